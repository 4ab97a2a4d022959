use std::{
    convert::Infallible,
    future::ready,
    sync::{Arc, Mutex},
};

use kube::{Client, client::Body};
use serde_json::json;
use tokio::sync::watch;
use tonic::Code;
use tp_core::environment::rebuild::{SpecValue, SpecVariable};
use tp_process::sync::lock;
use tp_proto::crd::UserInfo;

use super::*;
use crate::{
    access::{Access, User},
    grpc::{Replica, tests::nothing_else},
    model::SharedModel,
};

/// One container, whose agent gives this answer.
#[derive(Clone)]
struct Staged {
    answer: Result<AgentEnviron, EnvironError>,
    asked: Arc<Mutex<Vec<(WantedContainer, EnvironQuestion)>>>,
    wanted: Arc<Mutex<Option<WantedContainer>>>,
}

impl Staged {
    fn new(answer: Result<AgentEnviron, EnvironError>) -> Self {
        Self {
            answer,
            asked: Arc::default(),
            wanted: Arc::default(),
        }
    }
}

fn found() -> FoundContainer {
    let text = |name: &str, value: &str| SpecVariable {
        name: name.into(),
        value: SpecValue::Text(value.into()),
    };
    FoundContainer {
        kind: "Deployment".into(),
        workload: "web".into(),
        pod: "web-1".into(),
        pod_uid: "77aa".into(),
        node: "node1".into(),
        container: "app".into(),
        id: "c1".into(),
        spec: vec![
            text("MODE", "fast"),
            text("DB_HOST", "db"),
            SpecVariable {
                name: "DB_PASSWORD".into(),
                value: SpecValue::Elsewhere("Secret db".into()),
            },
        ],
    }
}

impl Environments for Staged {
    fn find(
        &self,
        wanted: WantedContainer,
    ) -> BoxFuture<'static, Result<FoundContainer, FindError>> {
        *lock(&self.wanted) = Some(wanted);

        Box::pin(ready(Ok(found())))
    }

    fn read(
        &self,
        node: String,
        question: EnvironQuestion,
    ) -> BoxFuture<'static, Result<AgentEnviron, EnvironError>> {
        assert_eq!(node, "node1");
        let wanted = lock(&self.wanted).clone().unwrap();
        lock(&self.asked).push((wanted, question));

        Box::pin(ready(self.answer.clone()))
    }
}

/// The service of alice, who may run programs in pods of shop or may not; and what was asked for that.
fn control(staged: &Staged, may_exec: bool) -> (Control, Arc<Mutex<String>>) {
    let reviewed = Arc::new(Mutex::new(String::new()));
    let seen = Arc::clone(&reviewed);
    let api_server = tower::service_fn(move |request: http::Request<Body>| {
        let seen = Arc::clone(&seen);
        async move {
            let body = request.into_body().collect_bytes().await.unwrap();
            *lock(&seen) = String::from_utf8(body.to_vec()).unwrap();
            let review = json!({"spec": {}, "status": {"allowed": may_exec}});
            let body = Body::from(review.to_string().into_bytes());
            Ok::<_, Infallible>(http::Response::new(body))
        }
    });
    let user = User::new(UserInfo {
        username: "alice".into(),
        ..UserInfo::default()
    });
    let (_, user) = watch::channel(Arc::new(user));
    let replica = Replica {
        environments: Box::new(staged.clone()),
        ..nothing_else()
    };
    let access = Access::new(Client::new(api_server, "default"));
    let control = Control::new(
        Arc::new(replica),
        SharedModel::new(),
        access,
        user,
        Arc::default(),
    );

    (control, reviewed)
}

fn session() -> SessionRef {
    SessionRef {
        namespace: "shop".into(),
        name: "alice-1".into(),
        uid: "s1".into(),
    }
}

fn request() -> EnvironmentRequest {
    EnvironmentRequest {
        namespace: "shop".into(),
        workload: "deploy/web".into(),
        otherwise: "side".into(),
        ..EnvironmentRequest::default()
    }
}

#[tokio::test]
async fn who_may_exec_is_given_what_the_agent_of_the_pod_says() {
    let staged = Staged::new(Ok(AgentEnviron {
        environ: b"TOKEN=hunter2\0".to_vec(),
        excluded: 2,
        ..AgentEnviron::default()
    }));
    let (control, reviewed) = control(&staged, true);

    let given = control.environment_for(&session(), request()).await;

    let given = given.unwrap();
    assert_eq!(given.environ, b"TOKEN=hunter2\0".as_slice());
    assert_eq!((&*given.pod, &*given.container), ("web-1", "app"));
    assert_eq!((given.is_rebuilt, given.excluded), (false, 2));
    let (wanted, question) = lock(&staged.asked)[0].clone();
    assert_eq!(wanted.workload.to_string(), "deployment/web");
    assert_eq!(wanted.container, None);
    assert_eq!(wanted.otherwise.as_deref(), Some("side"));
    assert_eq!((&*question.pod, &*question.container), ("77aa", "c1"));
    assert_eq!(
        (&*question.session_name, &*question.session_uid),
        ("alice-1", "s1")
    );
    assert!(!format!("{given:?}").contains("hunter2"));
    let review: serde_json::Value = serde_json::from_str(&lock(&reviewed)).unwrap();
    assert_eq!(review["spec"]["user"], "alice");
    assert_eq!(
        review["spec"]["resourceAttributes"],
        json!({
            "group": "", "resource": "pods", "subresource": "exec", "verb": "create",
            "namespace": "shop",
        })
    );
}

#[tokio::test]
async fn who_may_not_exec_is_told_the_rule_and_no_agent_is_asked() {
    let staged = Staged::new(Ok(AgentEnviron::default()));
    let (control, _) = control(&staged, false);

    let refused = control.environment_for(&session(), request()).await;

    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(
        refused.message(),
        "alice may not read the environment of deploy/web: it holds secrets, and takes the right to \
         create pods/exec in namespace shop"
    );
    assert!(lock(&staged.asked).is_empty());
}

#[tokio::test]
async fn what_a_process_has_written_over_is_rebuilt_and_its_gaps_are_named() {
    let staged = Staged::new(Ok(AgentEnviron {
        is_overwritten: true,
        excluded_names: vec!["DB_H*".parse().unwrap()],
        ..AgentEnviron::default()
    }));
    let (control, _) = control(&staged, true);

    let given = control.environment_for(&session(), request()).await;

    let given = given.unwrap();
    assert!(given.is_rebuilt);
    assert_eq!(given.environ, b"MODE=fast\0".as_slice());
    assert_eq!(given.missing, ["DB_PASSWORD (Secret db)"]);
    assert_eq!(given.excluded, 1);
}

#[tokio::test]
async fn what_is_wrong_has_a_code_of_its_kind() {
    for (error, code) in [
        (EnvironError::Refused("no".into()), Code::Aborted),
        (EnvironError::Unavailable("later".into()), Code::Unavailable),
    ] {
        let (control, _) = control(&Staged::new(Err(error)), true);
        let refused = control.environment_for(&session(), request()).await;
        assert_eq!(refused.unwrap_err().code(), code);
    }
    let (control, _) = control(&Staged::new(Ok(AgentEnviron::default())), true);
    let mut unknown = request();
    unknown.workload = "cronjob/x".into();
    let refused = control.environment_for(&session(), unknown).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}
