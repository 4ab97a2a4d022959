use tp_agent_api::{EarlierPeer as SeenPeer, LeaseState::Container, PodIds};

use super::*;

fn plan(ports: &[(u16, LeaseState)], takes_open: bool) -> PodPlan {
    let ports = ports.iter().map(|(number, state)| {
        let port = PortPlan {
            intercept: "i".into(),
            manager: "m".into(),
            probed: false,
            http_probed: false,
            takes_open,
            state: *state,
            renewed: 0,
        };
        (*number, port)
    });

    PodPlan {
        name: "web-0".into(),
        ids: PodIds {
            uid: "1".into(),
            containers: Vec::new(),
            addresses: Vec::new(),
        },
        addresses: Vec::new(),
        nodes: Vec::new(),
        ports: ports.collect(),
    }
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
    looks.end(&[], vec![seen(80, 2, 0)], None);

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
    looks.end(&[], vec![seen(80, 0, 0)], None);
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
    looks.end(&[], vec![seen(80, 3, 0)], None);
    assert_eq!(looks.begin(nothing_arrived), None);

    assert!(looks.is_pending(80, true));
    assert_eq!(looks.begin(all_arrived), Some(vec![80]));
    looks.end(&[80], vec![seen(80, 0, 3)], None);

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

    looks.end(&[80], Vec::new(), Some("it cannot".into()));

    assert_eq!(looks.begin(all_arrived), None);
    let said = looks.obstacle([80].into_iter()).unwrap();
    assert!(said.contains("not ended: it cannot"), "{said}");
    assert_eq!(looks.obstacle([81].into_iter()), None);
}
