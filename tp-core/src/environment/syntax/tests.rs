use super::*;

fn one(syntax: &str, value: &str) -> Result<String, Unfit> {
    named(syntax, "A", value.as_bytes())
}

fn named(syntax: &str, name: &str, value: &[u8]) -> Result<String, Unfit> {
    let syntax: Syntax = syntax.parse().unwrap();
    let written = syntax.write(&[(name, value)].into_iter().collect());

    match written.not_held.into_iter().next() {
        Some(not_held) => {
            assert!(!String::from_utf8_lossy(&written.text).contains(name) || name.is_empty());
            Err(not_held.why)
        }
        None => Ok(String::from_utf8(written.text).unwrap()),
    }
}

const SYNTAXES: [&str; 10] = [
    "docker",
    "compose",
    "sh",
    "sh:export",
    "csh",
    "csh:export",
    "cmd",
    "json",
    "ps",
    "ps:export",
];

#[test]
fn syntaxes_are_those_of_telepresence() {
    for text in SYNTAXES {
        let syntax: Syntax = text.parse().unwrap();

        assert_eq!(syntax.to_string(), text);
    }
    assert_eq!(Syntax::default().to_string(), "docker");
    let refused = |text: &str| text.parse::<Syntax>().unwrap_err().to_string();
    assert_eq!(
        refused("docker:export"),
        "--env-syntax docker has no export: :export fits sh, csh and ps, use docker without it"
    );
    assert_eq!(
        refused("fish"),
        "--env-syntax \"fish\" is not known: use docker, compose, sh, csh, cmd, json or ps, of \
         which sh, csh and ps may have :export behind"
    );
    for text in ["", "SH", "sh:", "sh:export:export", ":export"] {
        assert!(
            matches!(text.parse::<Syntax>(), Err(SyntaxError::Unknown(_))),
            "{text}"
        );
    }
}

#[test]
fn docker_takes_the_rest_of_a_line() {
    assert_eq!(
        one("docker", r#" "$(x)" 'y' # z\ "#),
        Ok("A= \"$(x)\" 'y' # z\\ \n".to_owned())
    );
    assert_eq!(one("docker", "a\nB=evil"), Err(Unfit::LineBreak));
    assert_eq!(one("docker", "a\r"), Err(Unfit::LineBreak));
    assert_eq!(one("docker", &"x".repeat(65_536)), Err(Unfit::TooLong));
    assert_eq!(named("docker", "#A", b"x"), Err(Unfit::Name));
    assert_eq!(named("docker", "A B", b"x"), Err(Unfit::Name));
    assert_eq!(named("docker", "a.b-c", b"x"), Ok("a.b-c=x\n".to_owned()));
}

#[test]
fn compose_interpolates_nothing() {
    assert_eq!(one("compose", ""), Ok("A=''\n".to_owned()));
    assert_eq!(
        one("compose", "${B} # \"x\" $C"),
        Ok("A='${B} # \"x\" $C'\n".to_owned())
    );
    assert_eq!(one("compose", r"C:\dir"), Ok("A='C:\\dir'\n".to_owned()));
    assert_eq!(one("compose", "it's $B"), Ok("A=\"it's $$B\"\n".to_owned()));
    assert_eq!(
        one("compose", "a\r\n\"b\\"),
        Ok("A=\"a\\r\\n\\\"b\\\\\"\n".to_owned())
    );
    assert_eq!(one("compose", r"a\"), Ok("A=\"a\\\\\"\n".to_owned()));
    assert_eq!(named("compose", "A B", b"x"), Err(Unfit::Name));
}

#[test]
fn sh_quotes_everything() {
    assert_eq!(
        one("sh", "a'b$(c)`d`!\n"),
        Ok("A='a'\\''b$(c)`d`!\n'\n".to_owned())
    );
    assert_eq!(one("sh:export", ""), Ok("export A=''\n".to_owned()));
    assert_eq!(named("sh", "A-B", b"x"), Err(Unfit::Name));
    assert_eq!(named("sh", "A;id;", b"x"), Err(Unfit::Name));
    assert_eq!(named("sh", "UID", b"x"), Err(Unfit::Reserved));
}

#[test]
fn csh_substitutes_no_history() {
    assert_eq!(one("csh", "a!b"), Ok("set A='a'\\!'b'\n".to_owned()));
    assert_eq!(
        one("csh:export", r"it's\"),
        Ok("setenv A 'it'\\''s'\\\\''\n".to_owned())
    );
    assert_eq!(one("csh", "a\nb"), Ok("set A='a\\\nb'\n".to_owned()));
    assert_eq!(one("csh", "$(a)`b`"), Ok("set A='$(a)`b`'\n".to_owned()));
    assert_eq!(named("csh", "path", b"/x"), Err(Unfit::Reserved));
    assert_eq!(
        named("csh:export", "path", b"/x"),
        Ok("setenv path '/x'\n".to_owned())
    );
}

#[test]
fn cmd_runs_nothing_behind_a_quote() {
    assert_eq!(one("cmd", "a b"), Ok("@set ^\"A=a b^\"\r\n".to_owned()));
    assert_eq!(
        one("cmd", "a\"&calc&\""),
        Ok("@set ^\"A=a^\"^&calc^&^\"^\"\r\n".to_owned())
    );
    assert_eq!(
        one("cmd", "%PATH%^!(x)|<>"),
        Ok("@set ^\"A=%%PATH%%^^!^(x^)^|^<^>^\"\r\n".to_owned())
    );
    assert_eq!(one("cmd", ""), Err(Unfit::Empty));
    assert_eq!(one("cmd", "a\nb"), Err(Unfit::LineBreak));
    assert_eq!(one("cmd", "ä"), Err(Unfit::Character('ä')));
    assert_eq!(one("cmd", "\u{1a}"), Err(Unfit::Character('\u{1a}')));
    assert_eq!(one("cmd", &"x".repeat(8192)), Err(Unfit::TooLong));
    assert_eq!(named("cmd", "/P A", b"x"), Err(Unfit::Name));
}

#[test]
fn json_is_one_object() {
    let environment = [("A", "\"\\\n\t\u{1}é"), ("b c", "")].into_iter().collect();

    let written = Syntax::Json.write(&environment);

    assert_eq!(
        String::from_utf8(written.text).unwrap(),
        "{\n  \"A\": \"\\\"\\\\\\n\\t\\u0001é\",\n  \"b c\": \"\"\n}\n"
    );
    assert_eq!(
        Syntax::Json.write(&ProcessEnvironment::default()).text,
        b"{}\n"
    );
}

#[test]
fn powershell_reads_ascii_alone() {
    assert_eq!(
        one("ps", "it's $(x) `y`"),
        Ok("${Env:A} = 'it''s $(x) `y`'\n".to_owned())
    );
    assert_eq!(
        one("ps", "a\u{2019}b"),
        Ok("${Env:A} = 'a' + [char]0x2019 + 'b'\n".to_owned())
    );
    assert_eq!(
        one("ps:export", "\n😀"),
        Ok(
            "[Environment]::SetEnvironmentVariable('A', ('' + [char]0x000a + '' + [char]0xd83d + \
            [char]0xde00 + ''), 'User')\n"
                .to_owned()
        )
    );
    assert_eq!(one("ps", ""), Err(Unfit::Empty));
    assert_eq!(named("ps", "A}", b"x"), Err(Unfit::Name));
}

#[test]
fn what_is_no_text_is_held_by_sh_alone() {
    for syntax in SYNTAXES.into_iter().filter(|it| !it.starts_with("sh")) {
        assert_eq!(named(syntax, "A", b"\xff"), Err(Unfit::NotText), "{syntax}");
    }
    let environment = [("A", b"\xff")].into_iter().collect();
    assert_eq!(
        Syntax::Sh(Visibility::Plain).write(&environment).text,
        b"A='\xff'\n"
    );
}

#[test]
fn names_that_differ_in_case_are_one_in_windows() {
    let environment = [("Path_A", "1"), ("PATH_A", "2")].into_iter().collect();
    for (syntax, expected) in [("cmd", 1), ("ps", 1), ("sh", 0), ("json", 0)] {
        let written = syntax.parse::<Syntax>().unwrap().write(&environment);

        assert_eq!(written.not_held.len(), expected, "{syntax}");
    }
}

#[test]
fn every_variable_is_written_or_named() {
    let environment: ProcessEnvironment = [
        ("OK", "x"),
        ("LINES", "a\nb"),
        ("EMPTY", ""),
        ("UID", "0"),
        ("a.b", "ä"),
        ("a b", "x"),
    ]
    .into_iter()
    .collect();
    for text in SYNTAXES {
        let written = text.parse::<Syntax>().unwrap().write(&environment);

        for variable in environment.iter() {
            let name = shown(&variable.name);
            let is_named = written.not_held.iter().any(|it| it.name == name);
            let is_written = String::from_utf8_lossy(&written.text).contains(&name);
            assert!(is_named != is_written, "{text} {name}");
        }
    }
}

#[test]
fn a_sentence_names_the_variable_and_not_its_value() {
    let environment = [("KEY", "secret\nsecret")].into_iter().collect();

    let written = Syntax::Docker.write(&environment);

    assert_eq!(
        written.not_held.first().map(ToString::to_string).as_deref(),
        Some("KEY cannot be written as docker: the value has a line break")
    );
    assert!(!format!("{written:?}").contains("secret"));
}
