//! Environments, asked of real connections of agents.

use tp_proto::agent::EnvironPart;

use super::*;
use crate::model::{AgentEnviron, EnvironError};

fn question(pod: &str) -> EnvironQuestion {
    EnvironQuestion {
        session_name: "alice".into(),
        namespace: "shop".into(),
        pod: pod.into(),
        ..EnvironQuestion::default()
    }
}

impl Lab {
    fn ask(&self, pod: &str) -> JoinHandle<Result<AgentEnviron, EnvironError>> {
        let (agents, question) = (Arc::clone(&self.agents), question(pod));
        tokio::spawn(async move { agents.environ("node1", question).await })
    }

    async fn unavailable(&self, asked: JoinHandle<Result<AgentEnviron, EnvironError>>) -> String {
        match within(asked).await.unwrap() {
            Err(EnvironError::Unavailable(reason)) => reason,
            answer => panic!("{answer:?}"),
        }
    }
}

/// The next question; what is beside it is passed over.
async fn asked(agent: &mut AgentControl) -> EnvironQuestion {
    let arrived = async {
        loop {
            let news = agent.news.receive().await.unwrap();
            if let Some(question) = news.environ {
                assert!(news.more && news.leases.is_empty(), "it ends no round");
                return question;
            }
        }
    };

    within(arrived).await
}

async fn answer(agent: &mut AgentControl, part: EnvironPart) {
    let news = AgentNews {
        pods: Vec::new(),
        environ: Some(part),
    };
    agent.reports.send(&news).await.unwrap();
}

fn part(number: u64, bytes: &[u8]) -> EnvironPart {
    EnvironPart {
        number,
        part: bytes.to_vec().into(),
        ..EnvironPart::default()
    }
}

fn last(number: u64) -> EnvironPart {
    EnvironPart {
        number,
        is_last: true,
        ..EnvironPart::default()
    }
}

#[tokio::test]
async fn an_environment_arrives_in_parts_and_each_answer_is_its_own() {
    let lab = Lab::new().await;
    let mut agent = lab.agent("node1").await;
    news(&mut agent, |_| true).await;
    let one = lab.ask("one");
    let first = asked(&mut agent).await;
    let two = lab.ask("two");
    let second = asked(&mut agent).await;
    assert_eq!((&*first.pod, &*first.session_name), ("one", "alice"));
    assert_ne!(first.number, second.number);

    answer(&mut agent, part(second.number, b"B=2\0")).await;
    answer(&mut agent, part(first.number, b"A=")).await;
    answer(&mut agent, part(first.number, b"1\0")).await;
    // Of a question that nobody asked.
    answer(&mut agent, last(77)).await;
    answer(&mut agent, last(first.number)).await;
    let refusal = "bob may not".to_owned();
    let refused = EnvironPart {
        refusal: refusal.clone(),
        ..last(second.number)
    };
    answer(&mut agent, refused).await;

    assert_eq!(within(one).await.unwrap().unwrap().environ, b"A=1\0");
    let two = within(two).await.unwrap();
    assert_eq!(two, Err(EnvironError::Refused(refusal)));
}

#[tokio::test]
async fn what_is_excluded_and_what_was_overwritten_is_told() {
    let lab = Lab::new().await;
    let mut agent = lab.agent("node1").await;
    let one = lab.ask("one");
    let number = asked(&mut agent).await.number;

    let told = EnvironPart {
        is_overwritten: true,
        excluded_names: vec!["DB_*".into(), "no name".into()],
        excluded: 3,
        ..last(number)
    };
    answer(&mut agent, told).await;

    let environ = within(one).await.unwrap().unwrap();
    assert!(environ.is_overwritten);
    assert_eq!(environ.excluded, 3);
    let names = environ.excluded_names.iter().map(ToString::to_string);
    assert_eq!(names.collect::<Vec<_>>(), ["DB_*", "no name"]);
}

#[tokio::test]
async fn names_that_the_manager_does_not_understand_are_not_passed_over() {
    let lab = Lab::new().await;
    let mut agent = lab.agent("node1").await;
    let one = lab.ask("one");
    let number = asked(&mut agent).await.number;

    let told = EnvironPart {
        excluded_names: vec!["DB_*".into(), "A=B".into()],
        ..last(number)
    };
    answer(&mut agent, told).await;

    let reason =
        "the agent excludes names that this version does not understand: update the manager";
    let one = within(one).await.unwrap();
    assert_eq!(one, Err(EnvironError::Refused(reason.into())));
}

#[tokio::test]
async fn an_agent_that_sends_too_much_is_not_listened_to() {
    let lab = Lab::new().await;
    let mut agent = lab.agent("node1").await;
    let one = lab.ask("one");
    let number = asked(&mut agent).await.number;

    for _ in 0..=(256 / 12) {
        answer(&mut agent, part(number, &vec![b'x'; 12 << 10])).await;
    }

    let one = within(one).await.unwrap();
    assert!(matches!(one, Err(EnvironError::Refused(_))), "{one:?}");
}

#[tokio::test]
async fn without_an_agent_and_with_one_that_goes_it_is_said_so() {
    let lab = Lab::new().await;
    let reason = lab.unavailable(lab.ask("one")).await;
    assert!(reason.contains("no agent of node node1"), "{reason}");
    assert!(reason.contains("tp install"), "{reason}");

    let mut agent = lab.agent("node1").await;
    let asking = lab.ask("one");
    asked(&mut agent).await;
    drop(agent);
    let reason = lab.unavailable(asking).await;
    assert!(reason.contains("has just gone"), "{reason}");
}

#[tokio::test]
async fn leases_go_on_while_questions_wait_and_further_ones_wait_in_turn() {
    let lab = Lab::new().await;
    let alice = lab.session("alice").await;
    let mut agent = lab.agent("node1").await;
    let all: Vec<_> = (0..10).map(|_| lab.ask("one")).collect();
    for _ in 0..4 {
        asked(&mut agent).await;
    }

    lab.intercept("i1", "alice", 8080);
    alice.announce("i1", 8080, true);
    let told = async {
        loop {
            let news = agent.news.receive().await.unwrap();
            assert_eq!(news.environ, None, "four at once");
            if !news.leases.is_empty() {
                return;
            }
        }
    };
    within(told).await;
    // An answer makes room for one more.
    answer(&mut agent, last(1)).await;
    asked(&mut agent).await;
    all.iter().for_each(JoinHandle::abort);
}
