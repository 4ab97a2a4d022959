//! Installs, removes and restores tp in the test cluster.

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

/// For a rollout, and for the removal of namespaces.
pub const ROLLOUT: Duration = Duration::from_secs(150);

/// The image of the programs under test.
pub fn image() -> String {
    std::env::var("TP_IMAGE")
        .unwrap_or_else(|_| format!("localhost/tp:{}", env!("CARGO_PKG_VERSION")))
}

/// Runs a test that installs tp in its own way or removes it, and restores the usual installation.
pub fn with_tp_afterwards(test: impl FnOnce()) {
    let result = catch_unwind(AssertUnwindSafe(test));
    testbed().install_tp_again();
    if let Err(failure) = result {
        resume_unwind(failure);
    }
}

impl Testbed {
    /// Ensures that tp is installed and that `dev` may reach all test namespaces and `limited` only
    /// team-b; once per test program.
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

    /// Installs tp in any state of the cluster.
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

    /// Lets every user forward a port to the manager: what is refused, is refused for another
    /// reason.
    pub fn everybody_may_reach_the_manager(&self) {
        self.kubectl_apply(CONNECT);
    }

    /// Uninstalls even if users are connected; returns the command's output.
    #[track_caller]
    pub fn uninstall_everything(&self) -> String {
        self.tp(&["uninstall", "--everything", "--yes"])
            .expect_success()
    }

    /// Runs `tp install` of the image under test, as administrator.
    #[track_caller]
    pub fn tp_install(&self, flags: &[&str]) -> Finished {
        self.tp(&[&["install", "--image", &image()], flags].concat())
    }

    /// Runs `tp` as administrator to its end.
    #[track_caller]
    pub fn tp(&self, words: &[&str]) -> Finished {
        run(&mut self.tp_command("admin", words), ROLLOUT)
    }

    /// `tp` at the workstation, as root with a person's kubeconfig.
    pub fn tp_command(&self, person: &str, words: &[&str]) -> Command {
        let mut command = self.inside(&self.workstation());
        command
            .arg(programs().join("tp"))
            .args(words)
            .env("KUBECONFIG", self.kubeconfig(person));
        command
    }
}

/// Rights in all tests: name of the binding, namespace, person.
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
