use super::*;

fn intact(bytes: &[u8]) -> (ProcessEnvironment, usize) {
    match Environ::parse(bytes) {
        Environ::Intact {
            environment,
            ignored,
        } => (environment, ignored),
        Environ::Overwritten(evidence) => panic!("overwritten: {evidence}"),
    }
}

fn names(environment: &ProcessEnvironment) -> Vec<String> {
    environment.iter().map(|it| shown(&it.name)).collect()
}

#[test]
fn variables_keep_their_order_and_their_bytes() {
    let (environment, ignored) = intact(b"PATH=/bin\0B=x=y\0A=\0C=a\xff\nb\0");

    assert_eq!(names(&environment), ["PATH", "B", "A", "C"]);
    assert_eq!(environment.value(b"B"), Some(b"x=y".as_slice()));
    assert_eq!(environment.value(b"A"), Some(b"".as_slice()));
    assert_eq!(environment.value(b"C"), Some(b"a\xff\nb".as_slice()));
    assert_eq!(environment.value(b"D"), None);
    assert_eq!(ignored, 0);
}

#[test]
fn what_was_written_is_read_as_it_was() {
    let bytes = b"PATH=/bin\0A B=x=y\nz\0C=\0D=\xff\0";
    let environment = ProcessEnvironment::from_environ(bytes);

    assert_eq!(names(&environment), ["PATH", "A B", "C", "D"]);
    assert_eq!(environment.to_environ(), bytes);
    assert_eq!(ProcessEnvironment::default().to_environ(), b"");
    assert_eq!(
        ProcessEnvironment::from_environ(b""),
        ProcessEnvironment::default()
    );
}

#[test]
fn of_duplicates_the_first_counts() {
    let (environment, _) = intact(b"A=1\0B=2\0A=3\0");

    assert_eq!(names(&environment), ["A", "B"]);
    assert_eq!(environment.value(b"A"), Some(b"1".as_slice()));
}

#[test]
fn entries_that_getenv_never_finds_are_counted() {
    let (environment, ignored) = intact(b"A=1\0no-variable\0=nameless\0B=2\0");

    assert_eq!(names(&environment), ["A", "B"]);
    assert_eq!(ignored, 2);
}

#[test]
fn a_process_without_variables_is_intact() {
    assert_eq!(intact(b""), (ProcessEnvironment::default(), 0));
}

#[test]
fn a_secret_that_was_cleared_in_place_leaves_the_rest_intact() {
    let (environment, _) = intact(b"A=1\0SECRET=\0\0\0\0\0B=2\0");

    assert_eq!(names(&environment), ["A", "SECRET", "B"]);
}

#[test]
fn an_environ_under_a_title_is_recognised() {
    let mut nginx = b" nginx -g daemon off;".to_vec();
    nginx.resize(400, 0);
    let mut spaces = b"cepting connections on port 25".to_vec();
    spaces.resize(300, b' ');
    let mut terminated = spaces.clone();
    terminated.push(0);
    for (bytes, evidence) in [
        (nginx.as_slice(), Evidence::Padded),
        // The title of a worker is shorter than the arguments of the master.
        (&[0; 400], Evidence::Padded),
        (&spaces, Evidence::Padded),
        (&terminated, Evidence::BeginsWithText),
        // A `=` makes no variable of a title.
        (b" nginx -g env A=b; daemon off;\0\0\0", Evidence::Padded),
        (
            b" nginx -g env A=b; daemon off;\0",
            Evidence::BeginsWithText,
        ),
        (b"postgres: walwriter \0", Evidence::BeginsWithText),
        // What a short title leaves of the first variables is not theirs.
        (b"er process\0ME=web-1\0A=1\0", Evidence::BeginsWithText),
        (b"\0TH=/bin\0A=1\0", Evidence::Padded),
        (b"A=1\0B=cut", Evidence::NotTerminated),
    ] {
        let seen = Environ::parse(bytes);

        assert_eq!(
            seen,
            Environ::Overwritten(evidence),
            "{:?}",
            shown(bytes.get(..40).unwrap_or(bytes))
        );
    }
}

#[test]
fn debug_output_shows_no_value() {
    let (environment, _) = intact(b"PASSWORD=hunter2\0");

    let shown = format!("{environment:?}");

    assert!(shown.contains("PASSWORD") && !shown.contains("hunter2"));
}

#[test]
fn an_environment_of_pairs_takes_what_can_be_a_variable() {
    let pairs = [
        ("A", "1"),
        ("", "2"),
        ("B=", "3"),
        ("C", "a\0b"),
        ("A", "4"),
    ];

    let environment: ProcessEnvironment = pairs.into_iter().collect();

    assert_eq!(names(&environment), ["A"]);
    assert_eq!(environment.value(b"A"), Some(b"1".as_slice()));
}
