//! Checks that this user's traffic reaches the session, by a query of this process, which is
//! steered like any other.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    time::{Instant, timeout},
};
use tp_core::dns;
use tp_proto::local::{Check, CheckResponse};

const NAME: &str = "steering";
const PORT: u16 = 53;
/// For the answer, which the session gives by itself.
const TIMEOUT: Duration = Duration::from_secs(2);

pub(super) async fn check(response: &CheckResponse) -> Check {
    let (Ok(server), Ok(address)) = (response.name_server.parse(), response.known_address.parse())
    else {
        return Check::ok(
            NAME,
            "not checked: no name server is read, or no service with an address is visible",
        );
    };

    ask(SocketAddr::new(server, PORT), &response.known_name, address).await
}

async fn ask(server: SocketAddr, name: &str, address: Ipv4Addr) -> Check {
    let asked = Instant::now();
    let answer = match timeout(TIMEOUT, exchange(server, name)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return nothing(name, &error.to_string()),
        Err(_) => return nothing(name, &format!("not within {} s", TIMEOUT.as_secs())),
    };
    let took = asked.elapsed().as_secs_f64() * 1e3;
    if dns::addresses(&answer, usize::MAX).contains(&address) {
        return Check::ok(NAME, format!("{name} is {address}, told in {took:.1} ms"));
    }

    Check::failed(
        NAME,
        format!("{name} was not answered by the session, so this process is not steered"),
        "run `tp check` as the user and in the network namespace that connected; where root is \
         connected for a command alone, only that command is steered",
    )
}

fn nothing(name: &str, why: &str) -> Check {
    Check::failed(
        NAME,
        format!("a query for {name} was not answered ({why})"),
        "a firewall of this machine must let packets to and from 240.0.0.0/4 pass (`tp status` \
         names the alias network)",
    )
}

async fn exchange(server: SocketAddr, name: &str) -> io::Result<Vec<u8>> {
    let query = dns::question(name).ok_or(io::ErrorKind::InvalidInput)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(server).await?;
    socket.send(&query).await?;
    let mut answer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut answer).await?;
        // Not the answer to this query; it may follow.
        if dns::presence(&query, &answer[..length]).is_some() {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name server that answers every query with what `answer` makes of it.
    async fn server(answer: impl Fn(Vec<u8>) -> Vec<u8> + Send + 'static) -> SocketAddr {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                let answer = answer(query[..length].to_vec());
                socket.send_to(&answer, from).await.unwrap();
            }
        });

        address
    }

    /// One A record for the name in the query (RFC 1035 section 4.1).
    fn with_address(mut query: Vec<u8>, address: Ipv4Addr) -> Vec<u8> {
        query[2] |= 0x80;
        query[7] = 1;
        query.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        query.extend(address.octets());

        query
    }

    #[tokio::test]
    async fn an_answer_with_the_clusters_address_is_of_the_session() {
        let known = Ipv4Addr::new(10, 96, 1, 2);
        let session = server(move |query| with_address(query, known)).await;
        let other = Ipv4Addr::new(192, 0, 2, 1);
        let company = server(move |query| with_address(query, other)).await;
        let name = "web.shop.svc.cluster.local";

        let steered = ask(session, name, known).await;
        let not_steered = ask(company, name, known).await;

        assert_eq!(steered.state, "ok", "{steered:?}");
        assert_eq!(not_steered.state, "failed", "{not_steered:?}");
        assert!(
            not_steered.message.contains("not steered"),
            "{not_steered:?}"
        );
    }

    #[tokio::test]
    async fn no_answer_is_a_failure_that_names_firewalls() {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let closed = socket.local_addr().unwrap();
        drop(socket);

        let check = ask(closed, "web.shop", Ipv4Addr::LOCALHOST).await;

        assert_eq!(check.state, "failed", "{check:?}");
        assert!(check.remedy.contains("firewall"), "{check:?}");
    }
}
