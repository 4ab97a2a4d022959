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
