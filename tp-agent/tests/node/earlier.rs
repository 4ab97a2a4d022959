//! What the container had before a redirect, and what a port without anybody at the workstation takes
//! from others.

use std::{
    io,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};
use tp_agent::NodeAgent;
use tp_proto::agent::PodReport;

use crate::{
    LIMIT, POD4, POD6, is_carried, is_redirected,
    manager::Manager,
    stage::{self, CONTAINER, Stage},
};

const OTHER: &str = "10.77.0.2:9999";
/// More than a port takes beside another one, in all.
const MANY: usize = 700;
/// Of a pod: all are tried for.
const PLACES: usize = 1024;

async fn opened() -> [TcpStream; 3] {
    let open = |to: &'static str| async move { TcpStream::connect(to).await.unwrap() };

    [open(POD4).await, open(POD4).await, open(POD6).await]
}

/// How the other end ends it, when nothing is sent.
async fn end_of(mut client: TcpStream) -> io::Result<usize> {
    timeout(LIMIT, client.read(&mut [0])).await.unwrap()
}

/// In seconds since 1970.
fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);

    i64::try_from(now.unwrap().as_secs()).unwrap()
}

async fn redirected(stage: &Stage, takes_open: bool) -> (Manager, NodeAgent, PodReport) {
    let mut manager = Manager::start().await;
    let mut facts = stage::facts();
    for intercept in facts.intercepts.values_mut() {
        intercept.takes_open = takes_open;
        intercept.created = now();
    }
    let agent = stage.agent_with(&[&manager], facts);
    manager.lease(&[(8080, true)]);
    let report = manager.report(is_redirected).await;

    (manager, agent, report)
}

#[test]
#[ignore = "needs root"]
fn connections_opened_earlier_are_told_and_go_on() {
    let stage = Stage::new("m");
    stage.run(async {
        let clients = opened().await;

        let (mut manager, _agent, report) = redirected(&stage, false).await;

        let told = &report.ports[0];
        assert_eq!((told.earlier, told.earlier_ended), (3, 0));
        let peers = told.earlier_from.iter();
        let peers: Vec<_> = peers.map(|it| (it.address.len(), it.count)).collect();
        assert_eq!(peers, [(4, 2), (16, 1)]);
        is_carried(&mut manager, POD4).await;
        for mut client in clients {
            tokio::io::AsyncWriteExt::shutdown(&mut client)
                .await
                .unwrap();
            let mut answer = String::new();
            let read = timeout(LIMIT, client.read_to_string(&mut answer)).await;
            read.unwrap().unwrap();
            assert_eq!(answer, CONTAINER);
        }
        // It is looked at now and then.
        let gone = manager.report(|report| report.ports[0].earlier == 0);
        timeout(2 * LIMIT, gone).await.unwrap();
    });
}

#[test]
#[ignore = "needs root"]
fn an_intercept_that_takes_open_connections_ends_those_and_no_later_one() {
    let stage = Stage::new("n");
    stage.run(async {
        let clients = opened().await;

        let (mut manager, _agent, report) = redirected(&stage, true).await;

        let told = &report.ports[0];
        assert_eq!((told.earlier, told.earlier_ended), (0, 3));
        for client in clients {
            let error = end_of(client).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        // As the clients that connect again.
        is_carried(&mut manager, POD4).await;
        // What the container gets while the session is quiet stays with it.
        manager.lease_quietly(&[(8080, true)]);
        crate::is_soon(POD4, crate::is_container).await;
        while manager.incoming.try_recv().is_ok() {}
        let _later = TcpStream::connect(POD4).await.unwrap();
        manager.lease(&[(8080, true)]);
        let is_seen = |report: &PodReport| report.ports[0].earlier == 1;
        let report = manager.report(is_seen).await;
        assert_eq!(report.ports[0].earlier_ended, 3, "once");
    });
}

#[test]
#[ignore = "needs root"]
fn connections_that_the_container_got_while_the_agent_was_away_are_not_ended() {
    let stage = Stage::new("p");
    stage.run(async {
        let clients = opened().await;
        let (mut manager, agent, report) = redirected(&stage, true).await;
        assert_eq!(report.ports[0].earlier_ended, 3);
        drop(clients);

        // The lease ends, and with it the redirect.
        manager.lease(&[]);
        crate::is_soon(POD4, crate::is_container).await;
        while manager.incoming.try_recv().is_ok() {}
        let first = TcpStream::connect(POD4).await.unwrap();
        manager.lease(&[(8080, true)]);
        let is_seen = |report: &PodReport| report.ports.iter().any(|it| it.earlier == 1);
        let report = manager.report(is_seen).await;
        assert_eq!(report.ports[0].earlier_ended, 3, "once");
        drop((agent, first));

        // The next agent knows only when the Intercept was made.
        crate::is_soon(POD4, crate::is_container).await;
        let second = TcpStream::connect(POD4).await.unwrap();
        let mut facts = stage::facts();
        for intercept in facts.intercepts.values_mut() {
            (intercept.takes_open, intercept.created) = (true, now() - 60);
        }
        let _agent = stage.agent_with(&[&manager], facts);
        let is_seen = |report: &PodReport| report.ports.iter().any(|it| it.earlier == 1);
        let report = manager.report(is_seen).await;
        assert_eq!(report.ports[0].earlier_ended, 0);
        drop(second);
    });
}

#[test]
#[ignore = "needs root"]
fn a_port_whose_process_takes_nothing_leaves_room_to_another() {
    let stage = Stage::new("o");
    // Each connection has several ends in this process.
    let maximum = getrlimit(Resource::Nofile).maximum;
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, all).unwrap();
    stage.run(async {
        let mut manager = Manager::start().await;
        let _agent = stage.agent(&manager);
        manager.lease(&[(8080, true), (9999, true)]);
        manager.report(is_redirected).await;

        // Each waits for a workstation that never answers, or is reset as there are too many.
        let mut stalled = Vec::new();
        let mut stuck = Vec::new();
        for _ in 0..PLACES + MANY {
            stalled.extend(TcpStream::connect(POD4).await);
            stuck.extend(manager.incoming.try_recv());
        }
        let begun = Instant::now();
        let asked = tokio::spawn(crate::ask(OTHER));
        let incoming = loop {
            let incoming = manager.incoming().await;
            if incoming.from.pod.port() == 9999 {
                break incoming;
            }
            stuck.push(incoming);
        };
        assert!(begun.elapsed() < Duration::from_secs(5), "{begun:?}");
        incoming
            .refuse(tp_proto::tunnel::Outcome::Refused, "here")
            .await;
        assert!(asked.await.unwrap().is_err());
    });
}
