//! The environment of a container, as a manager asks for it.

use tp_proto::agent::{EnvironPart, EnvironQuestion};

use crate::{
    manager::Manager,
    stage::{ID, Stage, UID},
};

fn question(number: u64, session: &str) -> EnvironQuestion {
    EnvironQuestion {
        number,
        session_namespace: "shop".into(),
        session_name: session.into(),
        session_uid: session.into(),
        namespace: "shop".into(),
        pod: UID.into(),
        container: ID.into(),
    }
}

fn environ(parts: &[EnvironPart]) -> Vec<u8> {
    parts.iter().flat_map(|it| it.part.to_vec()).collect()
}

#[test]
#[ignore = "needs root"]
fn an_environment_is_told_to_who_may_run_programs_in_the_container_without_what_is_excluded() {
    let stage = Stage::new("n");
    let large = "x".repeat(100_000);
    let told = format!("TOKEN=hunter2\0LARGE={large}\0");
    stage.set_environ(format!("{told}EXCLUDED_KEY=secret\0").as_bytes());
    stage.run(async {
        let mut manager = Manager::start().await;
        let agent = stage.agent(&manager);

        let answer = manager.ask(question(1, "alice")).await;
        assert_eq!(environ(&answer), told.as_bytes());
        let last = answer.last().unwrap();
        assert_eq!((last.excluded, &*last.refusal), (1, ""));

        let answer = manager.ask(question(2, "bob")).await;
        assert_eq!(answer[0].refusal, "bob may not create pods/exec");
        assert_eq!(environ(&answer), b"");

        stage.set_environ(b"nginx: master process nginx\0\0\0\0");
        let answer = manager.ask(question(3, "alice")).await;
        assert!(answer[0].is_overwritten && answer[0].is_last);
        assert_eq!(environ(&answer), b"");
        agent.close().await;
    });
}
