//! Runs kubectl and tp side by side.

use std::{process::Command, sync::RwLockWriteGuard, time::Duration};

use serde_json::Value;
use tp_e2e::{
    files::read_json,
    lock::alone,
    process::{Finished, run},
    user::Account,
    workstation::Workstation,
};

/// For one of the two programs: kubectl times out earlier.
const BOUND: Duration = Duration::from_secs(40);

/// Part of the Python programs between client and API server: copies one direction of a connection.
pub(crate) const COPY: &str = r#"
async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError: pass
    finally: writer.close()
"#;

/// A developer with own kubeconfigs. One at a time: proxies and forwarders have fixed ports.
pub(crate) struct Desk {
    pub(crate) workstation: Workstation,
    _alone: RwLockWriteGuard<'static, ()>,
}

/// The results of one kubeconfig.
pub(crate) struct Both {
    pub(crate) kubectl: Finished,
    pub(crate) tp: Finished,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let alone = alone();
        let mut workstation = Workstation::new(Account::Member, "dev");
        workstation.may_warn();

        Self {
            workstation,
            _alone: alone,
        }
    }

    /// The developer's kubeconfig, as JSON.
    pub(crate) fn kubeconfig(&self) -> Value {
        read_json(self.workstation.kubeconfig())
    }

    /// A command in another shell of the developer.
    pub(crate) fn command(&self, words: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = self.workstation.command(words);
        command.envs(variables.iter().copied());

        command
    }

    pub(crate) fn kubectl(&self, flags: &[&str], variables: &[(&str, &str)]) -> Finished {
        let words = ["kubectl", "--request-timeout=5s", "auth", "whoami"];
        let words = [&words[..], &["-o", "name"], flags].concat();

        run(&mut self.command(&words, variables), BOUND)
    }

    pub(crate) fn tp(&self, words: &[&str], variables: &[(&str, &str)]) -> Finished {
        run(
            &mut self.command(&[&["tp"], words].concat(), variables),
            BOUND,
        )
    }

    /// `tp connect` to the namespace `shop`.
    pub(crate) fn connect(&self, flags: &[&str], variables: &[(&str, &str)]) -> Finished {
        let connect = [&["connect", "--namespace", "shop"], flags].concat();

        self.tp(&connect, variables)
    }

    /// `tp connect` and `tp quit`.
    #[track_caller]
    pub(crate) fn connect_once(&self, flags: &[&str], variables: &[(&str, &str)]) -> Finished {
        let connected = self.connect(flags, variables);
        if connected.status.success() {
            self.tp(&["quit"], &[]).expect_success();
        }

        connected
    }

    /// Logs in with both programs, whose results must agree, and quits.
    #[track_caller]
    pub(crate) fn both(&self, name: &str, flags: &[&str], variables: &[(&str, &str)]) -> Both {
        let kubectl = self.kubectl(flags, variables);
        let tp = self.connect_once(flags, variables);

        let both = Both { kubectl, tp };
        assert_eq!(
            both.kubectl.status.success(),
            both.tp.status.success(),
            "{name}\n{}\n{}\n{}",
            both.kubectl,
            both.tp,
            self.workstation.session_log()
        );

        both
    }

    /// Logs in with both programs by this kubeconfig.
    #[track_caller]
    pub(crate) fn with(&self, name: &str, kubeconfig: &Value) -> Both {
        let file = self
            .workstation
            .write_file("tried/config", &kubeconfig.to_string());

        self.both(name, &["--kubeconfig", file.to_str().unwrap()], &[])
    }
}

impl Both {
    #[track_caller]
    pub(crate) fn expect_success(self, name: &str) {
        assert!(self.tp.status.success(), "{name}: {}", self.tp);
    }

    /// Checks that both refuse, `tp` with this code, in one sentence with these words.
    #[track_caller]
    pub(crate) fn expect_refusal(self, name: &str, code: i32, words: &[&str]) {
        assert_eq!(self.tp.code(), code, "{name}: {}", self.tp);
        for word in words {
            let is_said = self.tp.stderr.contains(word);
            assert!(is_said, "{name}: {word:?} is missing: {}", self.tp);
        }
        assert_eq!(
            self.tp.stderr.matches("tp: ").count(),
            1,
            "{name}: {}",
            self.tp
        );
        assert!(!self.tp.stderr.contains("panicked"), "{name}: {}", self.tp);
    }
}

/// A field of the first cluster.
pub(crate) fn cluster<'a>(kubeconfig: &'a mut Value, field: &str) -> &'a mut Value {
    &mut kubeconfig["clusters"][0]["cluster"][field]
}

/// The credentials of the first user.
pub(crate) fn user(kubeconfig: &mut Value) -> &mut Value {
    &mut kubeconfig["users"][0]["user"]
}
