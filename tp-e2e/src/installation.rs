//! tp in the test cluster: how tests install it, take it away and put it back.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{
    applied::{Subject, right},
    cluster::{Testbed, testbed},
    process::{Finished, run},
    programs::programs,
};

/// A rollout, and the removal of namespaces.
pub const ROLLOUT: Duration = Duration::from_secs(150);

/// The image of the programs under test.
pub fn image() -> String {
    std::env::var("TP_IMAGE")
        .unwrap_or_else(|_| format!("localhost/tp:{}", env!("CARGO_PKG_VERSION")))
}

/// Runs a test that installs tp in its own way or takes it out of the cluster, and puts it back as
/// the others want it.
pub fn with_tp_afterwards(test: impl FnOnce()) {
    let result = catch_unwind(AssertUnwindSafe(test));
    testbed().install_tp_again();
    if let Err(failure) = result {
        resume_unwind(failure);
    }
}

impl Testbed {
    /// Makes sure that tp is installed and that `dev` may reach all test namespaces and `limited`
    /// only team-b; once per test program.
    pub fn install_tp(&self) {
        static INSTALLED: Mutex<bool> = Mutex::new(false);
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if !*installed {
            self.install_tp_again();
            self.kubectl_apply(
                &RIGHTS
                    .map(|(name, namespace, person)| right(name, namespace, Subject::User(person)))
                    .concat(),
            );
            *installed = true;
        }
    }

    /// Installs tp whatever state it is in.
    pub fn install_tp_again(&self) {
        self.keep_objects_before_tp();
        self.install_tp_and_wait(&[]);
        self.everybody_may_reach_the_manager();
    }

    /// Installs tp with these flags, and waits until it is ready.
    pub fn install_tp_and_wait(&self, flags: &[&str]) {
        let image = format!("--image={}", image());
        let usual = ["install", &image, "--image-pull-policy=Never", "--wait=60s"];
        let mut install = self.tp_command("admin", &[&usual, flags].concat());
        run(&mut install, Duration::from_secs(90)).expect_success();
    }

    /// Whoever is logged in may forward a port to it: what is refused, is refused for another reason.
    pub fn everybody_may_reach_the_manager(&self) {
        self.kubectl_apply(CONNECT);
    }

    /// Whoever is connected; returns what the command says.
    #[track_caller]
    pub fn uninstall_everything(&self) -> String {
        self.tp(&["uninstall", "--everything", "--yes"])
            .expect_success()
    }

    /// `tp install` of the image under test, by the administrator.
    #[track_caller]
    pub fn tp_install(&self, flags: &[&str]) -> Finished {
        self.tp(&[&["install", "--image", &image()], flags].concat())
    }

    /// `tp` of the administrator, to its end.
    #[track_caller]
    pub fn tp(&self, words: &[&str]) -> Finished {
        run(&mut self.tp_command("admin", words), ROLLOUT)
    }

    /// `tp` at the workstation, by root with the kubeconfig of a person.
    pub fn tp_command(&self, person: &str, words: &[&str]) -> Command {
        let mut command = self.inside(&self.workstation());
        command
            .arg(programs().join("tp"))
            .args(words)
            .env("KUBECONFIG", self.kubeconfig(person));
        command
    }
}

/// Who may reach what in all tests: name of the binding, namespace, person.
const RIGHTS: [(&str, &str, &str); 3] = [
    ("e2e-dev", "shop", "dev"),
    ("e2e-dev", "team-b", "dev"),
    ("e2e-limited", "team-b", "limited"),
];

const CONNECT: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: e2e-connect, namespace: tp-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: tp-connect}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: \"system:authenticated\"}]
";
