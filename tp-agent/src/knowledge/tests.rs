use std::convert::Infallible;

use http::{Method, Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use super::*;

const LIMIT: Duration = Duration::from_secs(10);

fn intercept(uid: &str, user: &str, workload: &str) -> Value {
    json!({
        "apiVersion": "tp.internal/v1alpha1",
        "kind": "Intercept",
        "metadata": {
            "name": uid, "namespace": "shop", "uid": uid, "generation": 1, "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "user": {"username": user},
            "session": {"namespace": "shop", "name": "s", "uid": "2"},
            "workload": {"kind": "Deployment", "name": workload},
            "ports": [{"port": 8080}],
        },
    })
}

fn pod() -> Value {
    json!({
        "metadata": {
            "name": "web-1-x", "namespace": "shop", "uid": "p", "resourceVersion": "1",
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "r",
                "controller": true,
            }],
        },
        "spec": {"containers": []},
        "status": {"phase": "Running"},
    })
}

/// What the API server answers; nothing while there is nothing to tell.
fn answer(request: &Request<Body>, removed: &watch::Receiver<bool>) -> Option<Value> {
    let query = request.uri().query().unwrap_or_default();
    let is_watch = query.contains("watch=true");
    let list = |items: Value| json!({"metadata": {"resourceVersion": "1"}, "items": items});
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/apis/tp.internal/v1alpha1/intercepts") if is_watch => {
            let gone = intercept("allowed", "alice", "web");
            removed
                .borrow()
                .then(|| json!({"type": "DELETED", "object": gone}))
        }
        (&Method::GET, "/apis/tp.internal/v1alpha1/intercepts") => Some(list(json!([
            {"metadata": {"name": "bad", "namespace": "shop", "uid": "bad"}, "spec": 1},
            intercept("allowed", "alice", "web"),
            intercept("denied", "bob", "web"),
            intercept("elsewhere", "alice", "db"),
        ]))),
        (&Method::GET, "/api/v1/pods") if !is_watch => {
            assert!(
                query.contains("fieldSelector=spec.nodeName%3Dnode1"),
                "{query}"
            );
            Some(list(json!([pod()])))
        }
        (&Method::GET, "/apis/apps/v1/namespaces/shop/replicasets/web-1") => Some(json!({
            "apiVersion": "meta.k8s.io/v1",
            "kind": "PartialObjectMetadata",
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "r", "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d",
                "controller": true,
            }]},
        })),
        _ => None,
    }
}

async fn review_of(request: Request<Body>) -> Value {
    let body = request.into_body().collect_bytes().await.unwrap();
    let review: SubjectAccessReview = serde_json::from_slice(&body).unwrap();
    let attributes = review.spec.resource_attributes.unwrap();
    assert_eq!(attributes.resource.as_deref(), Some("intercepts"));
    assert_eq!(attributes.namespace.as_deref(), Some("shop"));
    let allowed = review.spec.user.as_deref() == Some("alice");

    json!({"spec": {}, "status": {"allowed": allowed}})
}

/// An API server, and what is known from it. `true` to the sender removes an Intercept.
fn known() -> (
    watch::Sender<bool>,
    watch::Receiver<Facts>,
    AbortOnDropHandle<()>,
) {
    let (remove, removed) = watch::channel(false);
    let server = tower::service_fn(move |request: Request<Body>| {
        let mut removed = removed.clone();
        async move {
            let answer = if request.method() == Method::POST {
                review_of(request).await
            } else {
                loop {
                    if let Some(answer) = answer(&request, &removed) {
                        break answer;
                    }
                    if removed.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            };
            let body = Body::from(format!("{answer}\n").into_bytes());
            Ok::<_, Infallible>(Response::new(body))
        }
    });
    let (facts, known) = watch::channel(Facts::default());
    let knowledge = Knowledge::new(
        Client::new(server, "default"),
        "node1".into(),
        "tp-system".into(),
        facts,
    );
    let task = AbortOnDropHandle::new(tokio::spawn(knowledge.follow()));

    (remove, known, task)
}

async fn wait_for(known: &mut watch::Receiver<Facts>, wanted: impl FnMut(&Facts) -> bool) -> Facts {
    let waited = timeout(LIMIT, known.wait_for(wanted)).await;

    waited.unwrap().unwrap().clone()
}

#[tokio::test]
async fn rights_are_asked_for_where_a_pod_of_the_node_is_concerned() {
    let (_remove, mut known, _task) = known();

    let facts = wait_for(&mut known, |facts| facts.reviews.len() == 2).await;

    let kinds = facts.pods["p"].workloads.iter().map(|it| it.kind.as_str());
    assert_eq!(kinds.collect::<Vec<_>>(), ["ReplicaSet", "Deployment"]);
    assert_eq!(facts.intercepts.len(), 3, "a malformed one hides no other");
    assert_eq!(facts.reviews["allowed"], UserReview::Allowed);
    let UserReview::Denied(reason) = &facts.reviews["denied"] else {
        panic!("bob may not");
    };
    assert_eq!(
        reason,
        "user bob may not create intercepts.tp.internal in namespace shop: an administrator lets them by \
         `tp grant bob --namespace shop --intercept`"
    );
}

#[tokio::test]
async fn an_intercept_that_is_deleted_is_forgotten_with_its_review() {
    let (remove, mut known, _task) = known();
    wait_for(&mut known, |facts| facts.reviews.len() == 2).await;

    remove.send_replace(true);
    let is_gone = |facts: &Facts| !facts.intercepts.contains_key("allowed");
    wait_for(&mut known, is_gone).await;
    let facts = wait_for(&mut known, |facts| facts.reviews.len() == 1).await;

    assert!(facts.reviews.contains_key("denied"));
}
