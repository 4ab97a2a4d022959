//! A cluster without tp: messages, `tp connect --install`, and `tp uninstall --everything`, which
//! restores it.

use tp_e2e::{
    cluster::testbed,
    installation::{ROLLOUT, image, with_tp_afterwards},
    process::{PATIENCE, eventually, run},
    terminal::Terminal,
    user::Account,
    workstation::Workstation,
};

/// Uninstalls even if users are connected, also at this workstation; returns the command's output.
#[track_caller]
fn uninstall_everything_at(workstation: &Workstation) -> String {
    let mut uninstall = workstation.command(&["tp", "uninstall", "--everything", "--yes"]);
    uninstall.env("KUBECONFIG", testbed().kubeconfig("admin"));
    run(&mut uninstall, ROLLOUT).expect_success()
}

#[test]
fn everybody_is_told_that_tp_is_not_installed() {
    let mut developer = Workstation::new(Account::Member, "dev");
    developer.may_warn();
    let admin = Workstation::new(Account::Root, "admin");
    with_tp_afterwards(|| {
        let said = uninstall_everything_at(&admin);
        // Only a service outlives its last session.
        assert!(said.contains("root daemon"), "{said}");

        // The API server forgets a group a moment after its definitions.
        let refused = eventually("the cluster to be without tp", PATIENCE, || {
            let refused = developer.tp(&["connect", "--namespace", "shop"]);
            match refused.code() {
                5 => Ok(refused),
                _ => Err(refused.to_string()),
            }
        });
        refused.assert_refused_in_one_line(5, &["not installed", "tp install"]);
    });
}

#[test]
fn connect_installs_tp_when_told_so() {
    let admin = Workstation::new(Account::Root, "admin");
    with_tp_afterwards(|| {
        uninstall_everything_at(&admin);

        let image = image();
        let mut connect = admin.command(&["tp", "connect", "--namespace", "shop"]);
        connect.args(["--install", "--image", &image]);
        run(&mut connect, ROLLOUT).expect_success();

        assert_eq!(admin.status()["state"], "connected");
        let set = testbed().object("tp-system", "statefulset", "tp-manager");
        assert!(set["spec"].to_string().contains(&image), "{set}");
    });
}

#[test]
fn on_a_terminal_connect_offers_to_install_tp() {
    let admin = Workstation::new(Account::Root, "admin");
    let connect = || Terminal::start(&mut admin.command(&["tp", "connect", "-n", "shop"]));
    with_tp_afterwards(|| {
        uninstall_everything_at(&admin);

        let mut declined = connect();
        declined.wait_for("name the image", PATIENCE);
        declined.enter("");
        let (code, screen) = declined.finish(PATIENCE);
        assert_eq!(code, Some(5), "{screen}");
        admin.tp(&["status"]).expect_code(3);

        let mut accepted = connect();
        accepted.wait_for("name the image", PATIENCE);
        accepted.enter(&image());
        let (code, screen) = accepted.finish(ROLLOUT);
        assert_eq!(code, Some(0), "{screen}");
        assert_eq!(admin.status()["state"], "connected");
    });
}

#[test]
fn uninstalling_everything_ends_the_session_and_the_root_daemon_made_for_it() {
    testbed().install_tp();
    // Root starts a root daemon that ends with the session, as others do through sudo.
    let workstation = Workstation::without_root_daemon(Account::Root, "dev");
    workstation.connect(&["--namespace", "shop"]);
    assert!(workstation.root_socket().exists());
    with_tp_afterwards(|| {
        let said = uninstall_everything_at(&workstation);

        workstation.tp(&["status"]).expect_code(3);
        assert!(!workstation.root_socket().exists());
        assert!(!said.contains("root daemon"), "{said}");
    });
}
