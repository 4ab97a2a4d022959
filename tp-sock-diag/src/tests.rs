use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use super::*;
use answer::{ADDRESS_IN_ID, ANSWER_LEN, ID_AT};

fn body(family: u8, peer: &[u8], mark: Option<u32>) -> Vec<u8> {
    let mut body = vec![0; ANSWER_LEN];
    body[0] = family;
    body[ID_AT..ID_AT + 2].copy_from_slice(&8080_u16.to_be_bytes());
    let at = ID_AT + ADDRESS_IN_ID[1];
    body[at..at + peer.len()].copy_from_slice(peer);
    // An attribute of one byte, and what pads it.
    body.extend(5_u16.to_ne_bytes());
    body.extend([8, 0, 3, 0, 0, 0]);
    if let Some(mark) = mark {
        body.extend(8_u16.to_ne_bytes());
        body.extend(INET_DIAG_MARK.to_ne_bytes());
        body.extend(mark.to_ne_bytes());
    }

    body
}

fn end(body: &[u8], end: End) -> Option<SocketAddr> {
    DiagMessage::new(body)?.end(end)
}

#[test]
fn an_answer_tells_ends_and_attributes() {
    let v4 = body(AF_INET, &[10, 0, 0, 1], Some(7));
    assert_eq!(end(&v4, End::Own), "0.0.0.0:8080".parse().ok());
    assert_eq!(end(&v4, End::Peer), "10.0.0.1:0".parse().ok());
    let told = DiagMessage::new(&v4).unwrap();
    assert_eq!(told.attribute(8), Some(&[3][..]));
    assert_eq!(
        told.attribute(INET_DIAG_MARK),
        Some(&7_u32.to_ne_bytes()[..])
    );
    assert_eq!(told.attribute(INET_DIAG_SKV6ONLY), None);

    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2];
    let v6 = body(AF_INET6, &mapped, None);
    assert_eq!(end(&v6, End::Peer), "10.0.0.2:0".parse().ok());
    assert_eq!(end(&body(1, &mapped, None), End::Peer), None);
}

#[test]
fn what_is_cut_off_is_not_read() {
    let whole = body(AF_INET, &[10, 0, 0, 1], Some(7));
    for len in 0..whole.len() {
        let mark = DiagMessage::new(&whole[..len]).and_then(|it| it.attribute(INET_DIAG_MARK));
        assert_eq!(mark, None, "{len}");
    }
    let mut backwards = body(AF_INET, &[10, 0, 0, 1], None);
    backwards[ANSWER_LEN] = 0;
    assert_eq!(
        DiagMessage::new(&backwards)
            .unwrap()
            .attribute(INET_DIAG_MARK),
        None
    );
    assert!(message(&[0; 16]).is_none());
    assert!(message(&[255; 16]).is_none());
}

#[test]
fn the_kernel_takes_filters_of_every_size() {
    let listener = TcpListener::bind("127.86.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let _stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let other = Ipv4Addr::new(127, 87, 0, 1);
    let listed = |end: End, conditions: Vec<Condition>| {
        let query = SocketQuery {
            family: AF_INET,
            protocol: IPPROTO_TCP,
            states: 1 << TCP_ESTABLISHED,
            id: ANY_SOCKET,
            filter: SocketFilter::any_of(end, conditions),
        };
        let mut found = 0;
        let diag = SockDiag::open().unwrap();
        diag.list(&query, |_| found += 1).unwrap();
        found
    };

    for count in [1, 2, SocketFilter::MAX] {
        let mut addresses = vec![Condition::Address(other); count];
        assert_eq!(listed(End::Peer, addresses.clone()), 0);
        addresses[count / 2] = Condition::Address([127, 86, 0, 1].into());
        // The end that connected, and the accepted one.
        assert_eq!(listed(End::Peer, addresses.clone()), 1, "{count}");
        assert_eq!(listed(End::Own, addresses), 1, "{count}");
        let mut ports = vec![Condition::Port(0); count];
        ports[count / 2] = Condition::Port(port);
        assert_eq!(listed(End::Own, ports), 1, "{count}");
    }
}

#[test]
fn a_connection_is_found_by_its_ends_and_told_from_the_socket_that_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let v4 = |address: SocketAddr| match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(address) => unreachable!("{address}"),
    };
    let own = v4(stream.local_addr().unwrap());
    let peer = v4(listener.local_addr().unwrap());
    let diag = SockDiag::open().unwrap();
    let state_of = |own, peer| {
        let query = SocketQuery {
            family: AF_INET,
            protocol: IPPROTO_TCP,
            states: ALL_STATES,
            id: socket_id(own, peer),
            filter: SocketFilter::default(),
        };
        diag.find(&query, |socket| (socket.state(), socket.end(End::Own)))
    };

    let found = state_of(own, peer).unwrap();
    assert_eq!(found, (TCP_ESTABLISHED, Some(own.into())));
    let listens = state_of(peer, SocketAddrV4::new([127, 0, 0, 1].into(), 1));
    assert_eq!(listens.unwrap().0, TCP_LISTEN);
    drop((stream, listener));
    let nobody = SocketAddrV4::new([127, 0, 0, 9].into(), 1);
    let error = state_of(nobody, nobody).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}
