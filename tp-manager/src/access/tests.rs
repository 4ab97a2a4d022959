use std::{convert::Infallible, sync::atomic::AtomicUsize};

use http::{Request, Response};
use kube::client::Body;
use serde_json::json;

use super::{polling::RIGHT_INTERVAL, *};

/// What the API server does with a review.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    Allowed(bool),
    Nothing,
}

/// An API server that answers every review alike, and counts them.
struct ApiServer {
    says: watch::Sender<Says>,
    asked: Arc<AtomicUsize>,
    access: Arc<Access>,
}

impl ApiServer {
    fn new() -> Self {
        let (says, receiver) = watch::channel(Says::Allowed(true));
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let service = tower::service_fn(move |_: Request<Body>| {
            count.fetch_add(1, Ordering::Relaxed);
            let mut receiver = receiver.clone();
            async move {
                let said = receiver.wait_for(|says| *says != Says::Nothing).await;
                let allowed = said.is_ok_and(|says| *says == Says::Allowed(true));
                let review = json!({
                    "apiVersion": "authorization.k8s.io/v1",
                    "kind": "SubjectAccessReview",
                    "spec": {},
                    "status": {"allowed": allowed},
                });
                Ok::<_, Infallible>(Response::new(Body::from(review.to_string().into_bytes())))
            }
        });

        Self {
            says,
            asked,
            access: Access::new(Client::new(service, "default")),
        }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Makes the cached answers older.
    fn age(&self, by: Duration) {
        let mut known = self.access.cache();
        for known in known.values_mut() {
            if let Some(answer) = &mut known.answer {
                answer.asked -= by;
            }
        }
    }
}

fn alice() -> Arc<User> {
    Arc::new(User::new(UserInfo {
        username: "alice".into(),
        ..UserInfo::default()
    }))
}

fn shop() -> Scope {
    Scope::Namespace("shop".into())
}

#[tokio::test]
async fn a_right_that_is_known_is_not_waited_for_where_the_api_server_hangs() {
    let server = ApiServer::new();
    let (access, user) = (&server.access, alice());
    assert!(
        access
            .right_for_dial(&user, &shop())
            .await
            .unwrap()
            .is_settled()
            .await
    );
    server.says.send_replace(Says::Nothing);

    server.age(Duration::from_secs(3));
    let right = access.right_for_dial(&user, &shop()).await.unwrap();
    assert!(right.allowed && right.settle_timeout.is_zero() && right.review.is_some());
    server.age(Duration::from_secs(60));
    let right = access.right_for_dial(&user, &shop()).await.unwrap();
    assert!(right.is_settled().await, "after its patience");

    assert_eq!(server.asked(), 2, "one review for both");
}

#[tokio::test]
async fn who_was_refused_and_granted_the_right_then_need_not_wait() {
    let server = ApiServer::new();
    let (access, user) = (&server.access, alice());
    let intercepts = Scope::Intercepts("shop".into());
    server.says.send_replace(Says::Allowed(false));
    assert!(!access.allows(&user, &intercepts).await.unwrap());
    assert!(!access.allows(&user, &intercepts).await.unwrap());
    assert!(!access.allows(&user, &shop()).await.unwrap());
    assert_eq!(server.asked(), 2, "a moment later it is the same answer");
    server.says.send_replace(Says::Allowed(true));

    server.age(RECHECK_REFUSAL_AFTER);

    assert!(access.allows(&user, &intercepts).await.unwrap());
    let dialled = access.allows(&user, &shop()).await.unwrap();
    assert!(!dialled, "programs may dial as often as they like");
}

#[tokio::test]
async fn a_right_that_is_gone_is_noticed_before_the_connection_is_used() {
    let server = ApiServer::new();
    let (access, user) = (&server.access, alice());
    assert!(access.allows(&user, &shop()).await.unwrap());
    server.age(Duration::from_secs(60));
    server.says.send_replace(Says::Allowed(false));

    let right = access.right_for_dial(&user, &shop()).await.unwrap();

    assert!(right.allowed, "as far as is known");
    assert!(!right.is_settled().await);
    assert!(!access.right_for_dial(&user, &shop()).await.unwrap().allowed);
}

#[tokio::test]
async fn a_right_that_was_refused_is_asked_for_before_it_is_refused_again() {
    let server = ApiServer::new();
    let (access, user) = (&server.access, alice());
    server.says.send_replace(Says::Allowed(false));
    assert!(!access.allows(&user, &shop()).await.unwrap());
    server.age(Duration::from_secs(60));
    server.says.send_replace(Says::Allowed(true));

    assert!(access.right_for_dial(&user, &shop()).await.unwrap().allowed);
}

#[tokio::test]
async fn many_who_ask_for_one_right_ask_once() {
    let server = ApiServer::new();
    let (access, user) = (&server.access, alice());
    server.says.send_replace(Says::Nothing);
    let asking: Vec<_> = (0..100)
        .map(|_| {
            let (access, user) = (Arc::clone(access), Arc::clone(&user));
            tokio::spawn(async move { access.allows(&user, &shop()).await })
        })
        .collect();
    while server.asked() == 0 {
        tokio::task::yield_now().await;
    }

    server.says.send_replace(Says::Allowed(true));

    for asked in asking {
        assert!(asked.await.unwrap().unwrap());
    }
    assert_eq!(server.asked(), 1);
}

#[tokio::test]
async fn the_tables_of_one_user_are_counted_once() {
    let server = ApiServer::new();
    let access = &server.access;
    let (one, _) = access.start_polling(&alice(), 100);
    let (_two, same) = access.start_polling(&alice(), 100);
    let bob = User::new(UserInfo {
        username: "bob".into(),
        ..UserInfo::default()
    });
    let (_bobs, both) = access.start_polling(&bob, 50);
    assert_eq!((same, both), (RIGHT_INTERVAL * 100, RIGHT_INTERVAL * 150));
    drop(one);

    let (_again, still) = access.start_polling(&bob, 50);

    assert_eq!(still, RIGHT_INTERVAL * 150);
}

#[test]
fn users_who_differ_in_groups_do_not_share_answers() {
    let user = |groups: &[&str]| {
        User::new(UserInfo {
            username: "alice".into(),
            groups: groups.iter().map(|&group| group.into()).collect(),
            ..UserInfo::default()
        })
    };

    assert_eq!(user(&["a"]).fingerprint, user(&["a"]).fingerprint);
    assert_ne!(user(&["a"]).fingerprint, user(&["b"]).fingerprint);
}

#[test]
fn external_addresses_are_a_subresource() {
    let attributes = Scope::External("shop".into()).attributes();

    assert_eq!(attributes.subresource.as_deref(), Some("external"));
    assert_eq!(attributes.namespace.as_deref(), Some("shop"));
}
