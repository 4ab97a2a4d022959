//! Requests to create an Intercept whose answer is lost, late or unclear.

use super::{super::testing::StagedCreation, *};

/// The API server of a lab that is connected.
async fn lab_of(creations: impl IntoIterator<Item = StagedCreation>) -> Lab {
    let mut lab = Lab::new().await;
    lab.connect().await;
    lock(&lab.api.creations).extend(creations);

    lab
}

fn count(lab: &Lab) -> usize {
    lock(&lab.api.objects).len()
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let held = timeout(LIMIT, async {
        while !holds() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    held.await.expect(what);
}

#[tokio::test]
async fn an_object_whose_answer_is_lost_is_taken_for_our_own() {
    for creation in [StagedCreation::Lost, StagedCreation::Fails(500)] {
        let lab = lab_of([creation.clone()]).await;

        let made = lab.intercept("web").await.unwrap();

        assert_eq!(made.state, "active", "{creation:?}");
        let objects = lab.of_session();
        assert_eq!(objects.len(), 1, "{creation:?}");
        lab.hears(|it| uids(it) == objects).await;
        lab.own.leave("web").await.unwrap();
        assert_eq!(count(&lab), 0, "{creation:?}");
    }
}

/// The client repeats what an API server answers so, and is then told that the object exists.
#[tokio::test]
async fn an_object_that_exists_already_by_our_own_request_is_taken_for_our_own() {
    let lab = lab_of([StagedCreation::Fails(504)]).await;

    let made = lab.intercept("web").await.unwrap();

    assert_eq!(made.state, "active");
    assert_eq!(lab.of_session().len(), 1);
}

#[tokio::test]
async fn an_object_of_another_session_is_neither_taken_nor_deleted() {
    let lab = lab_of([]).await;
    let made = lab.intercept("web").await.unwrap();
    lock(&lab.api.objects).get_mut(&made.object).unwrap()["spec"]["session"]["uid"] =
        "session-9".into();
    // As after a request whose answer was lost: the name is known, the UID is not.
    let changed = Arc::clone(&lab.own.entries.borrow()["web"].wanted);
    lab.own.update(&changed, |entry| {
        entry.made = None;
        entry.asked = Some(AskedObject::unanswered("session-1"));
    });
    until("it is made under another name", || count(&lab) == 2).await;

    lab.own.leave("web").await.unwrap();

    let objects = lock(&lab.api.objects);
    assert_eq!(objects.keys().collect::<Vec<_>>(), [&made.object]);
}

#[tokio::test]
async fn an_object_that_is_made_after_we_gave_up_is_deleted() {
    for code in [0, 500] {
        let creation = match code {
            0 => StagedCreation::Late(Duration::from_secs(3)),
            code => StagedCreation::Refused(code, "out of order".to_owned()),
        };
        let lab = lab_of([creation]).await;

        lab.intercept("web").await.unwrap_err();

        assert!(lab.own.status().is_empty());
        if code == 0 {
            until("it is made late", || count(&lab) == 1).await;
        }
        until("it is deleted", || count(&lab) == 0).await;
        assert_eq!(lab.intercept("web").await.unwrap().state, "active");
    }
}

/// A new object would find its port held by the one before.
#[tokio::test]
async fn an_object_that_is_made_anew_keeps_its_name_until_it_has_an_answer() {
    let mut lab = lab_of([]).await;
    lab.intercept("web").await.unwrap();
    lock(&lab.api.creations).extend([
        StagedCreation::Late(Duration::from_secs(2)),
        StagedCreation::Refused(500, "out of order".to_owned()),
        StagedCreation::Lost,
    ]);

    lab.connect().await;

    until("it is made anew", || lab.of_session().len() == 1).await;
    let objects = lab.of_session();
    lab.hears(|it| uids(it) == objects).await;
    until("the earlier one is deleted", || count(&lab) == 1).await;
    lab.own.leave("web").await.unwrap();
    // What must not appear any more would have by then.
    sleep(Duration::from_secs(3)).await;
    assert_eq!(count(&lab), 0);
}

#[tokio::test]
async fn the_end_of_the_connection_deletes_what_had_no_answer() {
    let lab = lab_of([StagedCreation::Late(Duration::from_secs(2))]).await;
    lab.intercept("web").await.unwrap_err();
    let entry = lock(&lab.api.objects).keys().next().cloned();
    assert_eq!(entry, None);
    // The sweep ends with the connection's tasks.
    lab._tasks.iter().for_each(AbortOnDropHandle::abort);
    until("it is made late", || count(&lab) == 1).await;

    lab.own.end_all().await;

    assert_eq!(count(&lab), 0);
}
