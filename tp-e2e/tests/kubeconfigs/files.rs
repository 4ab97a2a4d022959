//! Servers, certificates, keys and paths.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use tp_e2e::{
    cluster::{testbed, text},
    process::{PATIENCE, Running, run},
    user::Account,
};

use super::support::{Desk, cluster, user};

/// A variant's name, its change to the kubeconfig, and for a refusal the code and words.
type Variant<'a> = (
    &'a str,
    &'a dyn Fn(&mut Value),
    Option<(i32, &'a [&'a str])>,
);

#[track_caller]
fn try_all(desk: &Desk, variants: &[Variant<'_>]) {
    for (name, change, refusal) in variants {
        let mut kubeconfig = desk.kubeconfig();
        change(&mut kubeconfig);
        let both = desk.with(name, &kubeconfig);
        match refusal {
            None => both.expect_success(name),
            Some((code, words)) => both.expect_refusal(name, *code, words),
        }
    }
}

#[test]
fn a_server_is_taken_as_kubectl_takes_it() {
    let server =
        |server: &'static str| move |it: &mut Value| *cluster(it, "server") = server.into();
    let named = |code, words: &'static [&'static str]| Some((code, words));

    try_all(
        &Desk::new(),
        &[
            ("slash", &server("https://172.30.0.11:6443/"), None),
            ("upper case", &server("HTTPS://172.30.0.11:6443"), None),
            ("query", &server("https://172.30.0.11:6443?x=1"), None),
            (
                "credentials",
                &server("https://me:x@172.30.0.11:6443"),
                None,
            ),
            (
                "no scheme",
                &server("172.30.0.11:6443"),
                named(1, &["http://172.30.0.11:6443", "HTTPS server"]),
            ),
            (
                "a path",
                &server("https://172.30.0.11:6443/k8s/clusters/c"),
                named(77, &["/k8s/clusters/c"]),
            ),
            ("empty", &server(""), named(69, &["http://localhost:8080"])),
            (
                "no scheme, and a path",
                &server("172.30.0.11:6443/x"),
                named(78, &["tried/config", "cluster testbed", "server"]),
            ),
            (
                "a socket",
                &server("unix:///x"),
                named(78, &["tried/config", "server"]),
            ),
            (
                "a blank",
                &server(" https://172.30.0.11:6443"),
                named(78, &["server"]),
            ),
            (
                "a port",
                &server("https://172.30.0.11:99999"),
                named(78, &["server"]),
            ),
        ],
    );
}

#[test]
fn an_api_server_behind_kubectl_proxy_is_reached_without_a_scheme() {
    let desk = Desk::new();
    let mut proxy = Running::start(&mut desk.command(&["kubectl", "proxy", "--port=8001"], &[]));
    proxy.wait_for("Starting to serve", PATIENCE);
    let mut kubeconfig = desk.kubeconfig();
    *cluster(&mut kubeconfig, "server") = "127.0.0.1:8001".into();

    desk.with("kubectl proxy", &kubeconfig)
        .expect_success("kubectl proxy");
}

/// The certificate of the API server itself.
fn certificate_of_server(desk: &Desk) -> String {
    let ask = "import ssl; print(ssl.get_server_certificate(('172.30.0.11', 6443)))";

    desk.workstation
        .run(&["/usr/bin/python3", "-c", ask])
        .expect_success()
}

#[test]
fn whom_kubectl_trusts_is_trusted() {
    let desk = Desk::new();
    let encoded = text(cluster(
        &mut desk.kubeconfig(),
        "certificate-authority-data",
    ));
    let authority = run(
        desk.command(
            &["sh", "-c", "echo \"$DATA\" | base64 -d"],
            &[("DATA", &encoded)],
        )
        .env("LC_ALL", "C"),
        PATIENCE,
    )
    .expect_success();
    let damaged = "-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n";
    desk.workstation
        .write_file("tried/leaf.pem", &certificate_of_server(&desk));
    desk.workstation.write_file("tried/damaged.pem", damaged);
    desk.workstation
        .write_file("tried/bundle.pem", &format!("words\n{damaged}{authority}"));
    desk.workstation
        .write_file("tried/authority.pem", &authority);
    let link = desk.workstation.home().join("tried/link.pem");
    symlink("authority.pem", link).unwrap();
    let file = |name: &'static str| {
        move |it: &mut Value| {
            *cluster(it, "certificate-authority-data") = Value::Null;
            *cluster(it, "certificate-authority") = name.into();
        }
    };
    let skip = |it: &mut Value| {
        file("damaged.pem")(it);
        *cluster(it, "certificate-authority") = Value::Null;
        *cluster(it, "insecure-skip-tls-verify") = true.into();
    };
    let named =
        |name: &'static str| move |it: &mut Value| *cluster(it, "tls-server-name") = name.into();
    let broken = move |it: &mut Value| *cluster(it, "certificate-authority-data") = "?".into();

    try_all(
        &desk,
        &[
            ("a relative link", &file("link.pem"), None),
            ("the server's own", &file("leaf.pem"), None),
            ("a bundle with a damaged one", &file("bundle.pem"), None),
            ("whomever", &skip, None),
            (
                "whomever, and a name",
                &|it| {
                    skip(it);
                    named("kubernetes.default")(it);
                },
                None,
            ),
            ("a name of the server", &named("kubernetes.default"), None),
            (
                "another name",
                &named("elsewhere.test"),
                Some((69, &["certificate"])),
            ),
            (
                "nothing usable",
                &file("damaged.pem"),
                Some((78, &["tried/config", "certificate-authority"])),
            ),
            (
                "no file",
                &file("absent.pem"),
                Some((78, &["tried/config", "tried/absent.pem"])),
            ),
            ("no base64", &broken, Some((78, &["tried/config"]))),
        ],
    );
}

#[test]
fn whomever_to_trust_and_an_authority_are_not_taken_together() {
    let desk = Desk::new();
    desk.workstation
        .write_file("tried/leaf.pem", &certificate_of_server(&desk));
    let skip = |it: &mut Value| *cluster(it, "insecure-skip-tls-verify") = true.into();
    let refusal = Some((78, &["tried/config", "insecure-skip-tls-verify"][..]));

    try_all(
        &desk,
        &[
            ("beside data", &skip, refusal),
            (
                "beside a file",
                &|it| {
                    skip(it);
                    *cluster(it, "certificate-authority-data") = Value::Null;
                    *cluster(it, "certificate-authority") = "leaf.pem".into();
                },
                refusal,
            ),
        ],
    );
}

/// A key on `curve`, as `openssl ecparam` writes it, and the developer's certificate for it.
fn write_client_key(desk: &Desk, curve: &str) {
    let pki = testbed().dir().join("pki");
    let script = format!(
        "cd {} && openssl ecparam -name {curve} -genkey -out key.pem && \
         openssl req -new -key key.pem -subj '/O=developers/CN=dev' -out request.pem && \
         openssl x509 -req -in request.pem -CA {pki}/ca.crt -CAkey {pki}/ca.key -set_serial 77 \
         -days 2 -out certificate.pem",
        desk.workstation.home().join("tried").display(),
        pki = pki.display()
    );
    run(
        std::process::Command::new("sh").args(["-c", &script]),
        PATIENCE,
    )
    .expect_success();
    Account::Member.own(&desk.workstation.home().join("tried"));
}

#[test]
fn client_keys_are_taken_and_one_of_a_kind_that_is_not_is_named() {
    let desk = Desk::new();
    desk.workstation.write_file("tried/empty", "");
    let mut kubeconfig = desk.kubeconfig();
    *user(&mut kubeconfig) =
        json!({"client-certificate": "certificate.pem", "client-key": "key.pem"});
    for curve in ["prime256v1", "secp384r1"] {
        write_client_key(&desk, curve);
        desk.with(curve, &kubeconfig).expect_success(curve);
    }

    // kubectl accepts it, ring does not.
    write_client_key(&desk, "secp521r1");
    let file = desk
        .workstation
        .write_file("tried/config", &kubeconfig.to_string());
    let refused = desk.tp(&["connect", "--kubeconfig", file.to_str().unwrap()], &[]);
    assert_eq!(refused.code(), 78, "{refused}");
    for words in ["user dev", "client-key", "P-256 or P-384"] {
        assert!(refused.stderr.contains(words), "{words}: {refused}");
    }
}

#[test]
fn paths_and_names_are_taken_whole() {
    let desk = Desk::new();
    let mut kubeconfig = desk.kubeconfig();
    let name = "arn:aws:eks:eu-1:1:cluster/prod @home";
    kubeconfig["contexts"][0]["name"] = name.into();
    kubeconfig["current-context"] = name.into();
    let text = kubeconfig.to_string();
    let file = desk
        .workstation
        .write_file("arn:aws:eks: a cluster/prod", &text);
    let file = file.to_str().unwrap();

    for flags in [
        &["--kubeconfig", file][..],
        &["--kubeconfig", file, "--context", name],
    ] {
        desk.both(name, flags, &[]).expect_success(name);
    }
    // In the variable, colons separate paths.
    desk.both("variable", &[], &[("KUBECONFIG", file)])
        .expect_refusal("variable", 78, &["kubeconfig"]);
}

#[test]
fn the_shell_that_asks_says_which_kubeconfig_it_is() {
    let desk = Desk::new();
    let own = desk.workstation.kubeconfig().to_str().unwrap();
    let mut other = desk.kubeconfig();
    *cluster(&mut other, "server") = "https://192.0.2.1:6443".into();
    let elsewhere = desk.workstation.write_file("other", &other.to_string());
    let elsewhere = elsewhere.to_str().unwrap();
    // HOME holds the test's state.
    let home = desk
        .workstation
        .write_file("state/.kube/config", &other.to_string());
    assert!(home.exists());
    let list = format!("/absent:{own}:{elsewhere}");

    desk.both("a list", &[], &[("KUBECONFIG", &list)])
        .expect_success("a list");
    desk.both("none of a list", &[], &[("KUBECONFIG", "/absent:/gone")])
        .expect_refusal("none of a list", 78, &["/absent"]);

    desk.workstation.connect(&["--namespace", "shop"]);
    for variables in [[("KUBECONFIG", elsewhere)], [("KUBECONFIG", "")]] {
        let second = desk.tp(&["connect", "--namespace", "shop"], &variables);
        assert_eq!(second.code(), 4, "{second}");
        assert!(second.stderr.contains("https://192.0.2.1:6443"), "{second}");
    }
}

#[test]
fn an_empty_current_context_leaves_it_to_the_next_file() {
    let desk = Desk::new();
    let own = desk.workstation.kubeconfig().to_str().unwrap();
    let unset = json!({"apiVersion": "v1", "kind": "Config", "current-context": ""});
    let first = desk.workstation.write_file("unset", &unset.to_string());
    let list = format!("{}:{own}", first.display());

    desk.both("a list", &[], &[("KUBECONFIG", &list)])
        .expect_success("a list");
}
