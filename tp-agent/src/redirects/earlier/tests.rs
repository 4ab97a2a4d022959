use tp_agent_api::{EarlierPeer as SeenPeer, LeaseState::Container};

use super::*;

fn plan(ports: &[(u16, LeaseState)], takes_open: bool) -> PodPlan {
    let ports = ports.iter().map(|(port, state)| (*port, "i", *state));

    PodPlan::of_ports(ports, takes_open)
}

fn seen(port: u16, count: u64, ended: u64) -> EarlierConnections {
    let address = "10.0.0.1".parse().unwrap();

    EarlierConnections {
        port,
        count,
        peers: vec![SeenPeer { address, count }],
        ended,
    }
}

fn known(seen: Vec<EarlierConnections>) -> Looked {
    Looked {
        seen,
        ..Looked::default()
    }
}

fn hindered(obstacle: &str, has_more: bool) -> Looked {
    Looked {
        seen: vec![seen(80, 3, 0)],
        obstacle: Some(obstacle.into()),
        has_more,
    }
}

/// As if the last look were longer ago.
fn wait(looks: &mut EarlierLooks) {
    for port in looks.ports.values_mut() {
        port.looked = port.looked.and_then(|it| it.checked_sub(LOOK_INTERVAL));
    }
}

fn follow(looks: &mut EarlierLooks, plan: &PodPlan) {
    looks.follow(plan, |_, planned| planned.state);
}

fn following(plan: &PodPlan) -> EarlierLooks {
    let mut looks = EarlierLooks::default();
    follow(&mut looks, plan);

    looks
}

fn nothing_arrived(_: u16) -> bool {
    false
}

fn all_arrived(_: u16) -> bool {
    true
}

#[test]
fn what_the_container_has_is_looked_at_once_before_anything_is_reported() {
    let plan = plan(&[(80, LeaseState::Redirect), (81, Container)], false);
    let mut looks = following(&plan);
    assert!(looks.is_pending(80, false));
    assert!(!looks.is_pending(81, false), "all of it is the container's");

    assert_eq!(looks.begin(nothing_arrived), Some(Vec::new()));
    assert_eq!(looks.begin(nothing_arrived), None, "one at a time");
    looks.end(&[], known(vec![seen(80, 2, 0)]));

    assert!(!looks.is_pending(80, false));
    assert_eq!(looks.begin(nothing_arrived), None, "not yet again");
    let told = looks.tell(80, agent::PortCounters::default());
    assert_eq!((told.earlier, told.earlier_ended), (2, 0));
    assert_eq!(*told.earlier_from[0].address, [10, 0, 0, 1]);
    assert_eq!(looks.tell(81, agent::PortCounters::default()).earlier, 0);
}

#[test]
fn what_the_container_got_while_it_served_is_looked_at_again() {
    let redirected = plan(&[(80, LeaseState::Redirect)], false);
    let mut looks = following(&redirected);
    looks.begin(nothing_arrived);
    looks.end(&[], known(vec![seen(80, 0, 0)]));
    follow(&mut looks, &redirected);
    assert_eq!(looks.begin(nothing_arrived), None);

    follow(&mut looks, &plan(&[(80, Container)], false));
    assert_eq!(looks.begin(nothing_arrived), None);
    follow(&mut looks, &redirected);

    assert_eq!(looks.begin(nothing_arrived), Some(Vec::new()));
}

#[test]
fn connections_are_ended_once_a_connection_was_seen_to_arrive() {
    let plan = plan(&[(80, LeaseState::Redirect)], true);
    let mut looks = following(&plan);
    assert_eq!(
        looks.begin(nothing_arrived),
        Some(Vec::new()),
        "nothing has arrived"
    );
    looks.end(&[], known(vec![seen(80, 3, 0)]));
    assert_eq!(looks.begin(nothing_arrived), None);

    assert!(looks.is_pending(80, true));
    assert_eq!(looks.begin(all_arrived), Some(vec![80]));
    looks.end(&[80], known(vec![seen(80, 0, 3)]));

    assert!(!looks.is_pending(80, true));
    assert_eq!(looks.begin(all_arrived), None, "once");
    let told = looks.tell(80, agent::PortCounters::default());
    assert_eq!((told.earlier, told.earlier_ended), (0, 3));
    assert_eq!(looks.obstacle([80].into_iter()), None);
}

#[test]
fn a_kernel_that_cannot_end_them_is_asked_once_and_said() {
    let plan = plan(&[(80, LeaseState::Redirect)], true);
    let mut looks = following(&plan);
    assert_eq!(looks.begin(all_arrived), Some(vec![80]));

    looks.end(&[80], hindered("it cannot", false));

    assert_eq!(looks.begin(all_arrived), None);
    let said = looks.obstacle([80].into_iter()).unwrap();
    assert!(said.contains("not ended: it cannot"), "{said}");
    assert_eq!(looks.obstacle([81].into_iter()), None);
}

#[test]
fn a_look_that_failed_is_said_and_repeated() {
    let plan = plan(&[(80, LeaseState::Redirect)], false);
    let mut looks = following(&plan);
    looks.begin(nothing_arrived);

    looks.fail(&[], "it is busy".into());

    assert!(!looks.is_pending(80, false), "the rest is reported");
    let said = looks.obstacle([80].into_iter()).unwrap();
    assert!(said.contains("not known: it is busy"), "{said}");
    assert_eq!(looks.begin(nothing_arrived), None, "not at once");
    wait(&mut looks);
    assert_eq!(looks.begin(nothing_arrived), Some(Vec::new()));
    looks.end(&[], known(vec![seen(80, 0, 0)]));
    assert_eq!(looks.obstacle([80].into_iter()), None);
    wait(&mut looks);
    assert_eq!(looks.begin(nothing_arrived), None);
}

#[test]
fn what_was_not_ended_for_a_passing_reason_is_tried_some_times() {
    let plan = plan(&[(80, LeaseState::Redirect)], true);
    let mut looks = following(&plan);
    assert_eq!(looks.begin(all_arrived), Some(vec![80]));
    looks.fail(&[80], "it is busy".into());
    assert!(!looks.is_pending(80, true));
    assert_eq!(looks.begin(all_arrived), None, "not at once");

    for _ in 1..MAX_FAILURES {
        wait(&mut looks);
        assert_eq!(looks.begin(all_arrived), Some(vec![80]));
        looks.end(&[80], hindered("it is busy", true));
    }

    wait(&mut looks);
    assert_eq!(looks.begin(all_arrived), Some(Vec::new()), "looked at only");
    assert!(looks.obstacle([80].into_iter()).is_some());
}

#[test]
fn many_connections_are_ended_a_part_at_a_time() {
    let plan = plan(&[(80, LeaseState::Redirect)], true);
    let mut looks = following(&plan);
    looks.begin(all_arrived);
    looks.end(
        &[80],
        Looked {
            has_more: true,
            ..known(vec![seen(80, 1, 2)])
        },
    );

    assert!(looks.is_pending(80, true));
    assert_eq!(looks.begin(all_arrived), Some(vec![80]));
    looks.end(&[80], known(vec![seen(80, 0, 1)]));

    assert!(!looks.is_pending(80, true));
    assert_eq!(looks.begin(all_arrived), None);
    let told = looks.tell(80, agent::PortCounters::default());
    assert_eq!(told.earlier_ended, 3);
}

#[test]
fn connections_are_ended_once_however_often_the_pod_is_redirected() {
    let plan = plan(&[(80, LeaseState::Redirect)], true);
    let taken = Arc::new(AllTaken::default());
    let redirected = |pod: &str| {
        let mut looks = EarlierLooks::new(pod.into(), Arc::clone(&taken));
        follow(&mut looks, &plan);
        looks
    };
    let mut looks = redirected("1");
    looks.begin(all_arrived);
    looks.end(&[80], known(vec![seen(80, 0, 3)]));

    let mut looks = redirected("1");
    assert_eq!(looks.begin(all_arrived), Some(Vec::new()));
    let told = looks.tell(80, agent::PortCounters::default());
    assert_eq!(told.earlier_ended, 3);
    assert_eq!(redirected("2").begin(all_arrived), Some(vec![80]));
    // Without the Intercept there is nothing to remember.
    taken.follow(&crate::facts::Facts::default());
    assert_eq!(redirected("1").begin(all_arrived), Some(vec![80]));
}

#[test]
fn an_intercept_that_an_earlier_agent_served_ends_none() {
    let mut plan = plan(&[(80, LeaseState::Redirect)], true);
    let taken = Arc::new(AllTaken::from_now_on());
    let mut looks = EarlierLooks::new("1".into(), Arc::clone(&taken));
    follow(&mut looks, &plan);
    assert_eq!(looks.begin(all_arrived), Some(Vec::new()));

    plan.ports.get_mut(&80).unwrap().met = i64::MAX;
    let mut looks = EarlierLooks::new("1".into(), taken);
    follow(&mut looks, &plan);
    assert_eq!(looks.begin(all_arrived), Some(vec![80]));
}
