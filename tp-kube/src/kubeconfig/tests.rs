use serde_json::{Value, json};

use super::*;

fn kubeconfig() -> Value {
    json!({
        "current-context": "prod",
        "contexts": [{"name": "prod", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [
            {"name": "c", "cluster": {"server": "https://192.0.2.1:6443"}},
            {"name": "other", "cluster": {"server": "https://192.0.2.2:6443"}},
        ],
        "users": [{"name": "u", "user": {}}],
    })
}

/// A directory with a kubeconfig, and options that name it.
fn written(kubeconfig: &Value) -> (tempfile::TempDir, KubeconfigOptions) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k");
    fs::write(&path, kubeconfig.to_string()).unwrap();
    let options = KubeconfigOptions {
        kubeconfigs: vec![path],
        ..KubeconfigOptions::default()
    };
    (dir, options)
}

#[test]
fn unknown_names_are_refused_with_the_known_ones_and_the_file() {
    let (dir, options) = written(&kubeconfig());
    let text = |text: &str| Some(text.to_owned());
    options.load(PluginMode::Background).unwrap();

    for (context, cluster, user, words) in [
        (
            text("staging"),
            None,
            None,
            "no context staging: it has prod",
        ),
        (None, text("mars"), None, "no cluster mars: it has c, other"),
        (None, None, text("nobody"), "no user nobody: it has u"),
    ] {
        let options = KubeconfigOptions {
            context,
            cluster,
            user,
            ..options.clone()
        };
        let fault = options.load(PluginMode::Background).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Config);
        assert!(fault.message.contains(words), "{fault}");
        let file = dir.path().join("k").display().to_string();
        assert!(fault.message.contains(&file), "{fault}");
    }
}

#[test]
fn without_a_current_context_the_known_ones_are_told() {
    let mut config = kubeconfig();
    config["current-context"] = json!("");
    let (_dir, options) = written(&config);

    let fault = options.load(PluginMode::Background).unwrap_err();

    let words = "has no current context: choose one with --context (prod)";
    assert!(fault.message.contains(words), "{fault}");
}

#[test]
fn the_choice_replaces_what_the_context_says() {
    let (_dir, options) = written(&kubeconfig());
    let options = KubeconfigOptions {
        cluster: Some("other".to_owned()),
        impersonate_user: Some("jane".to_owned()),
        impersonate_groups: vec!["ops".to_owned()],
        ..options
    };

    let loaded = options.load(PluginMode::Background).unwrap();

    assert_eq!(loaded.server(), "https://192.0.2.2:6443");
    assert_eq!((&*loaded.context, &*loaded.user), ("prod", "u"));
    let auth = loaded.config.auth_info;
    assert_eq!(auth.impersonate.as_deref(), Some("jane"));
    assert_eq!(auth.impersonate_groups, Some(vec!["ops".to_owned()]));
}

fn with(field: &str, value: Value) -> (tempfile::TempDir, KubeconfigOptions) {
    let mut config = kubeconfig();
    config["clusters"][0]["cluster"][field] = value;
    written(&config)
}

#[test]
fn a_server_without_a_scheme_is_http_as_for_kubectl() {
    let (_dir, options) = with("server", json!("192.0.2.1:8080"));

    assert_eq!(
        options.load(PluginMode::Background).unwrap().server(),
        "http://192.0.2.1:8080"
    );
}

#[test]
fn a_field_that_cannot_be_used_is_named_with_the_file_and_the_cluster() {
    let secret = "https://me:secret@proxy";
    for (field, value) in [
        ("server", "unix:///x"),
        ("proxy-url", "proxy:3128"),
        ("proxy-url", &*format!("{secret}:99999")),
        ("certificate-authority", "/nowhere/ca.pem"),
        ("certificate-authority-data", "?"),
        ("certificate-authority-data", "bm90aGluZw=="),
    ] {
        let (dir, options) = with(field, json!(value));

        let fault = options.load(PluginMode::Background).unwrap_err();

        assert_eq!(fault.kind, FaultKind::Config);
        let file = dir.path().join("k").display().to_string();
        for words in [&file, "cluster c", field] {
            assert!(fault.message.contains(words), "{words}: {fault}");
        }
        assert!(!fault.message.contains("secret"), "{fault}");
    }
}

#[test]
fn one_damaged_certificate_does_not_spoil_a_bundle() {
    let good = rcgen::generate_simple_self_signed(["ca".to_owned()])
        .unwrap()
        .cert;
    let damaged = "-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n";
    let bundle = format!("{damaged}{}{damaged}", good.pem());
    let (dir, options) = with("certificate-authority", json!("ca.pem"));
    fs::write(dir.path().join("ca.pem"), bundle).unwrap();

    let loaded = options.load(PluginMode::Background).unwrap();

    assert_eq!(loaded.config.root_cert, Some(vec![good.der().to_vec()]));
}

#[test]
fn a_context_whose_cluster_is_missing_says_so() {
    let mut config = kubeconfig();
    config["contexts"][0]["context"]["cluster"] = json!("gone");
    let (_dir, options) = written(&config);

    let fault = options.load(PluginMode::Background).unwrap_err();

    let words = "has no cluster gone, which its context prod names";
    assert!(fault.message.contains(words), "{fault}");
}

#[tokio::test]
async fn a_plugin_that_fails_is_told_with_the_context() {
    let mut config = kubeconfig();
    config["users"][0]["user"] = json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "false",
        "interactiveMode": "Never",
    }});
    let (_dir, options) = written(&config);

    let loaded = options.load(PluginMode::Background).unwrap();
    assert!(loaded.has_plugin());
    let Err(fault) = loaded.client(None).await else {
        panic!("a plugin that fails gives no client");
    };

    assert_eq!(fault.kind, FaultKind::Config);
    let words = "context prod cannot be used: its credential plugin false failed";
    assert!(fault.message.starts_with(words), "{fault}");
}

#[test]
fn what_is_written_down_comes_before_a_plugin() {
    let mut config = kubeconfig();
    config["users"][0]["user"] = json!({"token": "t", "exec": {"command": "false"}});
    let (_dir, options) = written(&config);

    assert!(!options.load(PluginMode::Background).unwrap().has_plugin());
}

#[test]
fn an_empty_current_context_leaves_it_to_the_next_file() {
    let mut first = kubeconfig();
    first["current-context"] = json!("");
    let (_first, mut options) = written(&first);
    let (_second, second) = written(&json!({"current-context": "prod"}));
    options.kubeconfigs.extend(second.kubeconfigs);

    assert_eq!(
        options.load(PluginMode::Background).unwrap().context,
        "prod"
    );
}

#[test]
fn a_certificate_comes_before_a_plugin_and_an_empty_field_does_not() {
    let certificate = json!({"client-certificate": "c.pem", "client-key": "k.pem"});
    for (written_down, has_plugin) in [
        (certificate, false),
        (json!({"tokenFile": "token"}), false),
        (json!({"client-certificate": "c.pem"}), true),
        (json!({"token": ""}), true),
        (json!({"tokenFile": "", "username": ""}), true),
        (json!({"client-certificate": "", "client-key": ""}), true),
    ] {
        let mut config = kubeconfig();
        let user = &mut config["users"][0]["user"];
        *user = written_down.clone();
        user["exec"] = json!({"command": "false"});
        let (_dir, options) = written(&config);

        let loaded = options.load(PluginMode::Background).unwrap();

        assert_eq!(loaded.has_plugin(), has_plugin, "{written_down}");
    }
}

#[test]
fn an_empty_authority_is_none() {
    let mut config = kubeconfig();
    config["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = json!(true);
    config["clusters"][0]["cluster"]["certificate-authority"] = json!("");
    let (_dir, options) = written(&config);

    let loaded = options.load(PluginMode::Background).unwrap();

    assert_eq!(loaded.config.root_cert, None);
}

#[test]
fn by_http_nobody_is_shown_credentials() {
    let mut config = kubeconfig();
    config["clusters"][0]["cluster"] = json!({
        "server": "http://192.0.2.1:8080",
        "certificate-authority": "/absent/ca.pem",
    });
    config["users"][0]["user"] = json!({
        "token": "t",
        "username": "u",
        "password": "p",
        "client-certificate": "/absent/c.pem",
        "client-key": "/absent/k.pem",
        "exec": {"command": "false"},
        "as": "jane",
        "as-groups": ["ops"],
    });
    let (_dir, options) = written(&config);

    let loaded = options.load(PluginMode::Background).unwrap();

    assert!(!loaded.has_plugin());
    let auth = loaded.config.auth_info;
    assert!(auth.token.is_none() && auth.username.is_none() && auth.password.is_none());
    assert!(auth.client_certificate.is_none() && auth.client_key.is_none());
    assert_eq!(auth.impersonate.as_deref(), Some("jane"));
    assert_eq!(auth.impersonate_groups, Some(vec!["ops".to_owned()]));
}

#[test]
fn whomever_to_trust_and_an_authority_are_not_taken_together() {
    let authority = rcgen::generate_simple_self_signed(["ca".to_owned()])
        .unwrap()
        .cert;
    let mut config = kubeconfig();
    config["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = json!(true);
    config["clusters"][0]["cluster"]["certificate-authority"] = json!("ca.pem");
    let (dir, options) = written(&config);
    fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();

    let fault = options.load(PluginMode::Background).unwrap_err();

    assert_eq!(fault.kind, FaultKind::Config);
    for words in ["cluster c", "insecure-skip-tls-verify"] {
        assert!(fault.message.contains(words), "{words}: {fault}");
    }
}

#[test]
fn contexts_are_those_of_all_files_and_a_broken_one_hides_none() {
    let (dir, options) = written(&kubeconfig());
    let (broken, second) = (dir.path().join("broken"), dir.path().join("second"));
    fs::write(&broken, "contexts: [").unwrap();
    let other = json!({"contexts": [
        {"name": "prod", "context": {"cluster": "c", "user": "u"}},
        {"name": "admin@lab", "context": {"cluster": "c", "user": "u"}},
    ]});
    fs::write(&second, other.to_string()).unwrap();
    let mut files = options.kubeconfigs.clone();
    files.extend([broken, dir.path().join("absent"), second]);
    let options = KubeconfigOptions {
        kubeconfigs: files,
        ..options
    };

    assert_eq!(options.contexts(), ["prod", "admin@lab"]);
}

#[test]
fn a_file_without_an_end_is_not_read() {
    let large = tempfile::NamedTempFile::new().unwrap();
    large.as_file().set_len(MAX_SIZE + 1).unwrap();
    for path in [Path::new("/dev/zero"), large.path()] {
        let options = KubeconfigOptions {
            kubeconfigs: vec![path.to_owned()],
            ..KubeconfigOptions::default()
        };

        let refusal = options.load(PluginMode::Background).unwrap_err();

        assert_eq!(refusal.kind, FaultKind::Config);
        let said = &refusal.message;
        assert!(said.contains(path.to_str().unwrap()), "{said}");
        assert!(said.contains("larger than 64 MiB"), "{said}");
        assert!(options.contexts().is_empty());
    }
}
