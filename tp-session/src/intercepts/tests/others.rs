//! What the user is told of those who have a port, and whose names are lent.

use super::*;

fn state_of(lab: &Lab, state: InterceptState) -> InterceptStates {
    let [uid] = &lab.of_session()[..] else {
        panic!("one object is expected");
    };

    InterceptStates {
        intercepts: vec![InterceptState {
            uid: uid.clone(),
            ..state
        }],
    }
}

fn held_by_bob() -> InterceptState {
    InterceptState {
        held: vec![HeldPort {
            port: 80,
            user: "bob".to_owned(),
            since: "2026-11-27T09:00:00Z".to_owned(),
            own: false,
        }],
        ..InterceptState::default()
    }
}

/// Somebody has come in between while the workstation was away.
#[tokio::test]
async fn who_is_back_is_told_who_has_the_port_and_since_when() {
    let mut lab = Lab::new().await;
    lab.connect().await;
    lab.intercept("web").await.unwrap();
    *lock(&lab.manager.state) = held_by_bob();

    lab.connect().await;

    let mut entries = lab.own.entries.subscribe();
    let is_held = |entries: &Entries| {
        let state = entries["web"].state.as_ref();
        state.is_some_and(|state| !state.held.is_empty())
    };
    let held = timeout(LIMIT, entries.wait_for(is_held)).await;
    drop(held.expect("the manager says so").unwrap());
    let shown = &lab.own.status()[0];
    assert_eq!(shown.state, "held");
    assert!(
        shown
            .reason
            .contains("bob has port 80 since 2026-11-27T09:00:00Z"),
        "{}",
        shown.reason
    );
    assert!(shown.reason.contains("--take-over"), "{}", shown.reason);
}

#[tokio::test]
async fn a_command_that_runs_is_told_who_has_the_port_and_when_the_traffic_is_back() {
    let mut lab = Lab::new().await;
    lab.connect().await;
    let mut events = lab.ask(InterceptRequest {
        for_command: true,
        ..request("web")
    });
    let mut next = async || {
        let event = timeout(LIMIT, events.recv()).await.expect("in time");
        event.expect("an event").unwrap().event.unwrap()
    };
    while !matches!(next().await, Event::Intercepted(_)) {}

    let active = lock(&lab.manager.state).clone();
    for (state, expected) in [
        (held_by_bob(), "bob has port 80 since 2026-11-27T09:00:00Z"),
        (active, "the traffic of Deployment web comes here again"),
    ] {
        lab.own.apply(&state_of(&lab, state));
        let Event::Progress(said) = next().await else {
            panic!("a phrase is expected");
        };
        assert!(said.contains(expected), "{said}");
    }
    lock(&lab.api.objects).clear();
    let objects = lab.own.entries.borrow()["web"].made.clone().unwrap();
    lab.own.apply(&InterceptStates {
        intercepts: vec![InterceptState {
            uid: objects.uid,
            refusal: "the Intercept does not exist".to_owned(),
            ended: "bob took port 80 over".to_owned(),
            ..InterceptState::default()
        }],
    });
    let Event::Progress(said) = next().await else {
        panic!("a phrase is expected");
    };
    assert!(said.contains("bob took port 80 over"), "{said}");
}

#[tokio::test]
async fn a_command_hears_the_end_of_its_intercept() {
    let mut lab = Lab::new().await;
    lab.connect().await;
    let mut events = lab.ask(InterceptRequest {
        for_command: true,
        ..request("web")
    });
    let mut next = async || timeout(LIMIT, events.recv()).await.expect("in time");
    while !matches!(
        next().await.expect("an event").unwrap().event,
        Some(Event::Intercepted(_))
    ) {}

    lab.own.leave("web").await.unwrap();

    assert!(next().await.is_none());
}

#[tokio::test]
async fn the_services_of_an_intercept_are_lent_until_it_has_ended() {
    let mut lab = Lab::new().await;
    lab.connect().await;
    *lock(&lab.manager.services) = vec!["web:80".to_owned(), "www:8080".to_owned()];
    let asked = InterceptRequest {
        namespace: "team-b".to_owned(),
        ..request("web")
    };
    result(lab.ask(asked)).await.unwrap();
    let lent = |names: &[&str]| {
        let named = names
            .iter()
            .map(|it| ((*it).to_owned(), "team-b".to_owned()));
        named.collect::<BTreeMap<String, String>>()
    };
    let services = || announce::services(&lab.own.entries.borrow());
    assert_eq!(services(), lent(&["web", "www"]));

    let wanted = Arc::clone(&lab.own.entries.borrow()["web"].wanted);
    lab.own
        .update(&wanted, |entry| entry.phase = EntryPhase::Ended);

    assert_eq!(services(), lent(&[]));
}
