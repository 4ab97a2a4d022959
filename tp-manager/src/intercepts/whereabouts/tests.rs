use super::*;

const MINUTE: i64 = 60;

/// Any time of the clock: this many seconds after the record began.
fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn at(begin: Instant, seconds: i64) -> (Timestamp, Instant) {
    let passed = Duration::from_secs(seconds.unsigned_abs());

    (time(seconds), begin + passed)
}

fn replica(pod: &str, started: i64) -> Whereabouts {
    Whereabouts::new(pod.into(), Duration::from_secs(600), time(started))
}

/// What a replica writes at this time of its sessions.
fn written(replica: &Whereabouts, seconds: i64, sessions: &[(&str, Here)]) -> Data {
    replica.note(sessions.iter().copied());
    let part = replica.due(None, time(seconds)).unwrap();

    [(replica.pod.clone(), serde_json::to_string(&part).unwrap())].into()
}

fn minutes(age: Option<Duration>) -> Option<u64> {
    age.map(|it| it.as_secs() / 60)
}

#[tokio::test]
async fn all_replicas_agree_on_a_session_that_left() {
    let begin = Instant::now();
    let (a, b) = (replica("a", 0), replica("b", 0));
    b.take(&written(&a, 1, &[("s", Here::Connected)]), at(begin, 1).1);
    let of_b = |seconds| b.disconnected("s", Here::Never, time(-9999), at(begin, seconds));
    assert_eq!(of_b(2), None, "it is connected to another replica");

    let left = Here::Left(time(5));
    b.take(&written(&a, 6, &[("s", left)]), at(begin, 6).1);
    let of_a = |seconds| a.disconnected("s", left, time(-9999), at(begin, seconds));

    for seconds in [6, 100, 605] {
        assert_eq!(of_a(seconds), of_b(seconds), "{seconds}");
    }
    assert_eq!(of_b(605), Some(Duration::from_secs(600)));
}

#[tokio::test]
async fn a_session_whose_replicas_are_gone_is_away_since_they_were_heard() {
    let begin = Instant::now();
    let a = replica("a", 0);
    let record = written(
        &a,
        100,
        &[("dead", Here::Connected), ("back", Here::Connected)],
    );

    // Of the next process of the same pod, and of a replica that has just started: all were replaced.
    for pod in ["a", "b"] {
        let next = replica(pod, 200);
        next.take(&record, at(begin, 200).1);
        let of = |session, here, seconds| {
            next.disconnected(session, here, time(-9999), at(begin, seconds))
        };
        assert_eq!(minutes(of("dead", Here::Never, 100 + 9 * MINUTE)), Some(9));
        assert_eq!(
            minutes(of("dead", Here::Never, 100 + 10 * MINUTE)),
            Some(10)
        );
        assert_eq!(of("back", Here::Connected, 100 + 10 * MINUTE), None);
        let again = written(
            &next,
            300,
            &[("dead", Here::Never), ("back", Here::Connected)],
        );
        let third = replica("c", 310);
        third.take(&record, at(begin, 310).1);
        third.take(&again, at(begin, 310).1);
        let known = |session| third.disconnected(session, Here::Never, time(0), at(begin, 320));
        assert_eq!(known("back"), None, "{pod}");
    }
}

#[tokio::test]
async fn a_replica_that_renews_keeps_its_sessions_whatever_its_clock_says() {
    let begin = Instant::now();
    let (a, b) = (replica("a", 0), replica("b", 0));
    b.take(&Data::new(), begin);
    // Its clock is an hour slow.
    let hour = 3600;
    for seconds in (0..2000).step_by(13) {
        let record = written(&a, seconds - hour, &[("s", Here::Connected)]);
        b.take(&record, at(begin, seconds).1);
        let of_b = b.disconnected("s", Here::Never, time(-9999), at(begin, seconds + 12));
        assert_eq!(of_b, None, "{seconds}");
    }
    let gone = b.disconnected("s", Here::Never, time(-9999), at(begin, 2100));
    assert_eq!(gone, Some(Duration::from_secs(2100 - 1989)), "by our clock");

    let left = [("s", Here::Left(time(2000 - hour)))];
    b.take(&written(&a, 2010 - hour, &left), at(begin, 2100).1);
    let left = b.disconnected("s", Here::Never, time(-9999), at(begin, 2130));
    assert_eq!(left, Some(Duration::from_secs(10 + 30)));
}

#[tokio::test]
async fn a_session_that_is_in_no_part_is_away_since_its_intercept_was_made() {
    let begin = Instant::now();
    let a = replica("a", 0);
    a.take(&Data::new(), begin);
    let of = |made, seconds| a.disconnected("s", Here::Never, time(made), at(begin, seconds));

    assert_eq!(of(100, 110), None, "its replica is about to write it");
    assert_eq!(minutes(of(100, 100 + 11 * MINUTE)), Some(11));
    // It is older than the record: whoever had it did not write it.
    assert_eq!(of(-5 * 3600, 12), None);
    assert_eq!(minutes(of(-5 * 3600, 10 * MINUTE)), Some(10));
}

#[tokio::test]
async fn one_replica_speaks_for_each_session() {
    let begin = Instant::now();
    let (a, b) = (replica("a", 0), replica("b", 0));
    let left = Here::Left(time(5));
    let of_a = written(&a, 10, &[("connected", Here::Connected)]);
    let of_b = written(&b, 10, &[("left", left)]);
    a.take(&of_b, at(begin, 10).1);
    b.take(&of_a, at(begin, 10).1);
    let speak = |session, of_a, of_b, seconds| {
        let now = at(begin, seconds).1;
        [
            a.speaks_for(session, of_a, now),
            b.speaks_for(session, of_b, now),
        ]
    };

    let (here, never) = (Here::Connected, Here::Never);
    assert_eq!(speak("connected", here, never, 11), [true, false]);
    assert_eq!(speak("left", never, left, 11), [false, true]);
    assert_eq!(speak("unknown", never, never, 11), [true, false]);
    assert!(
        b.speaks_for("unknown", never, at(begin, 100).1),
        "a is gone"
    );
}

#[tokio::test]
async fn the_record_is_written_when_it_changes_and_renewed_now_and_then() {
    let a = replica("a", 0);
    a.note([("s", Here::Connected)].into_iter());
    let first = a.due(None, time(1)).unwrap();
    let written = Some((first, Instant::now()));
    a.note([("s", Here::Connected)].into_iter());
    assert_eq!(a.due(written.as_ref(), time(2)), None);

    a.note([("s", Here::Left(time(3)))].into_iter());
    let second = a.due(written.as_ref(), time(3)).unwrap();
    let written = Some((second, Instant::now()));
    // The time at which it left stays, and nothing is renewed for it.
    a.note([("s", Here::Left(time(4)))].into_iter());
    assert_eq!(a.due(written.as_ref(), time(60)), None);
    // It is back, and somebody's Intercept names another one by its UID.
    let both = [("s", Here::Connected), ("s", Here::Never)];
    a.note(both.into_iter());
    assert!(a.due(None, time(60)).unwrap().left.is_empty());
    a.note(std::iter::empty());
    assert!(a.due(written.as_ref(), time(61)).is_some());
}

#[test]
fn what_is_not_written_is_told_once_as_soon_as_others_take_the_replica_for_gone() {
    let begin = Instant::now();
    let mut failures = Failures::default();
    let seconds = [0, 5, 14, 15, 16, 100];

    let told = seconds.map(|it| failures.is_to_be_told(begin + Duration::from_secs(it)));

    assert_eq!(told, [false, false, false, true, false, false]);
}
