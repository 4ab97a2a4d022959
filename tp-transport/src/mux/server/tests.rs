use super::*;

#[test]
fn a_session_that_opens_many_streams_loses_the_oldest_that_it_has_not_proven() {
    let side = ServerSide::default();
    let (alice, bob) = (session("alice"), session("bob"));
    let links: Vec<_> = (0..MAX_SESSION_LINKS)
        .map(|_| side.add_link(alice.clone()).unwrap())
        .collect();
    let other = side.add_link(bob).unwrap();
    let keys = ProbeKeys::from_material(&[1; 72]);
    let peer = PeerPaths::new(alice.clone(), keys, Arc::default());
    side.add_peer(&peer, &links[0]);

    for _ in 0..2 * MAX_SESSION_LINKS {
        side.add_link(alice.clone()).unwrap();
    }

    let has_ended = |link: &ServerLink| link.link.ended().is_cancelled();
    assert!(!has_ended(&links[0]), "proven");
    assert!(links[1..].iter().all(|link| has_ended(link)), "not proven");
    assert!(!has_ended(&other), "of another session");
    assert_eq!(read(&side.links).len(), MAX_SESSION_LINKS + 1);

    side.remove_peer(&peer);
    assert!(
        links[0].orphaned.is_cancelled(),
        "with its session's connection"
    );
    assert!(!other.orphaned.is_cancelled(), "of another session");
}

/// Behind one NAT a port goes to another client once its owner has left it.
#[test]
fn an_address_that_is_anothers_by_now_is_not_taken_from_them() {
    let side = ServerSide::default();
    let (alice, bob) = (connected(&side, "alice", 1), connected(&side, "bob", 2));
    prove(&side, &alice, 1, 1000);
    prove(&side, &bob, 1, 1000);

    let rest = (1001..).take(MAX_REMOTES);
    (2..)
        .zip(rest)
        .for_each(|(counter, port)| prove(&side, &alice, counter, port));
    assert_eq!(owner(&side, 1000), Some(bob.keys.id()));

    prove(&side, &alice, 100, 2000);
    assert_eq!(owner(&side, 1001), None, "her own makes way");
    side.remove_peer(&alice);
    assert_eq!(owner(&side, 2000), None);
    assert_eq!(owner(&side, 1000), Some(bob.keys.id()));
}

#[test]
fn an_address_that_changes_hands_again_and_again_counts_once() {
    let side = ServerSide::default();
    let (alice, bob) = (connected(&side, "alice", 1), connected(&side, "bob", 2));
    prove(&side, &alice, 1, 1000);

    for counter in 2..20 {
        prove(&side, &bob, counter, 2000);
        prove(&side, &alice, counter, 2000);
    }

    assert_eq!(owner(&side, 1000), Some(alice.keys.id()));
    assert_eq!(owner(&side, 2000), Some(alice.keys.id()));
}

fn connected(side: &ServerSide, name: &str, seed: u8) -> Arc<PeerPaths> {
    let session = session(name);
    let link = side.add_link(session.clone()).unwrap();
    let keys = ProbeKeys::from_material(&[seed; 72]);
    let peer = PeerPaths::new(session, keys, Arc::default());
    side.add_peer(&peer, &link);

    peer
}

/// A genuine probe comes from this port.
fn prove(side: &ServerSide, peer: &PeerPaths, counter: u64, port: u16) {
    let probe = Probe { counter, tag: 0 };
    let probe = peer.keys.seal(ProbeKind::Request, probe, 0);

    assert!(side.udp_probe(&probe, nat(port)).is_some());
}

/// The owner of a port, by the id of the keys, as long as QUIC reads datagrams from there.
fn owner(side: &ServerSide, port: u16) -> Option<u64> {
    let admitted = side.admit_udp(nat(port))?;
    let remotes = read(&side.remotes);

    remotes.get(&admitted).map(|remote| remote.peer.keys.id())
}

fn nat(port: u16) -> SocketAddr {
    ([203, 0, 113, 7], port).into()
}

fn session(name: &str) -> SessionRef {
    SessionRef {
        namespace: "shop".into(),
        name: name.into(),
        uid: "1".into(),
    }
}

#[test]
fn a_counter_is_admitted_once() {
    let mut window = ReplayWindow::default();

    for counter in [1, 2, 5, 4, 100, 99, 70] {
        assert!(window.admit(counter), "{counter}");
        assert!(!window.admit(counter), "{counter} again");
    }
    assert!(!window.admit(3), "too old to tell");
    assert!(window.admit(u64::MAX));
}
