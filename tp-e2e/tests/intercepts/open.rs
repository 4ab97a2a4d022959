//! Connections that clients have to a pod before it is intercepted.

use serde_json::Value;
use tp_e2e::{
    cluster::{testbed, text},
    process::{Finished, PATIENCE, Running, eventually},
};

use super::support::{
    CHANGE, ECHO, FROM_WORKSTATION, HTTP, Handler, Target, connected, expect_workstation,
};

/// A client in the network of a node that keeps its connections: by one it asks until the workstation
/// answers, and where that one is ended it connects again; the other one is to another port.
struct KeepAlive(Running);

impl KeepAlive {
    /// With an answer from the pod.
    #[track_caller]
    fn start(target: &Target) -> Self {
        let program = format!(
            "import http.client, socket, sys, time\n\
             address = sys.argv[1]\n\
             other = socket.create_connection((address, {ECHO}), 5)\n\
             connection = None\n\
             body = b''\n\
             while body != b'{FROM_WORKSTATION}':\n\
             \x20   try:\n\
             \x20       if connection is None:\n\
             \x20           connection = http.client.HTTPConnection(address, {HTTP}, timeout=5)\n\
             \x20           connection.connect()\n\
             \x20           print('connected', flush=True)\n\
             \x20       connection.request('GET', '/')\n\
             \x20       body = connection.getresponse().read()\n\
             \x20       print('answered', flush=True)\n\
             \x20   except (OSError, http.client.HTTPException) as error:\n\
             \x20       print('ended:', repr(error), flush=True)\n\
             \x20       connection = None\n\
             \x20   time.sleep(0.05)\n\
             other.sendall(b'x')\n\
             assert other.recv(1) == b'x'\n\
             print('the other port was left alone')"
        );
        let address = text(&target.pods()[0]["status"]["podIP"]);
        let mut command = testbed().inside(&testbed().namespace("1"));
        let mut client =
            Running::start(command.args(["/usr/bin/python3", "-c", &program, &address]));
        client.wait_for("answered", PATIENCE);

        Self(client)
    }

    /// Waits until the workstation has answered.
    #[track_caller]
    fn finish(self) -> Finished {
        self.0.finish(CHANGE)
    }
}

#[test]
fn connections_opened_earlier_are_told_and_stay_until_they_are_taken() {
    let target = Target::new("e2e-open", 1);
    let workstation = connected();
    let _handler = Handler::start(&workstation, 18120);
    let mut client = KeepAlive::start(&target);
    let words = ["intercept", "e2e-open", "--port", "18120:http"];

    let said = workstation.tp(&words).expect_success();

    let told = "1 connection opened earlier still goes to the pod, from ";
    assert!(
        said.contains(told) && said.contains("--take-open"),
        "{said}"
    );
    expect_workstation(&target.url());
    let status = workstation.status();
    let pod = &status["intercepts"][0]["pods"][0];
    assert_eq!(pod["earlier"], 1, "{status}");
    assert_eq!(pod["earlier_from"][0]["count"], 1, "{status}");
    let shown = workstation.tp(&["status"]).expect_success();
    assert!(shown.contains(told), "{shown}");
    assert!(!client.0.has_ended(), "its connection is the pod's");
    workstation.tp(&["leave", "e2e-open"]).expect_success();

    let taking = [&words[..], &["--take-open"]].concat();
    let said = workstation.tp(&taking).expect_success();

    assert!(
        said.contains("1 connection opened earlier was ended"),
        "{said}"
    );
    let asked = client.finish().expect_success();
    assert_eq!(asked.matches("connected").count(), 2, "{asked}");
    assert!(asked.contains("the other port was left alone"), "{asked}");
    assert_eq!(
        workstation.status()["intercepts"][0]["pods"][0]["earlier"],
        0
    );
    assert_eq!(target.restarts(), 0);
}

#[test]
fn what_a_client_ends_itself_is_no_longer_told() {
    let target = Target::new("e2e-open-ended", 1);
    let workstation = connected();
    let _handler = Handler::start(&workstation, 18121);
    let client = KeepAlive::start(&target);
    workstation
        .tp(&["intercept", "e2e-open-ended", "--port", "18121:http"])
        .expect_success();
    let earlier = || {
        let status = workstation.status();
        status["intercepts"][0]["pods"][0]["earlier"].clone()
    };
    assert_eq!(earlier(), 1);

    drop(client);

    // It is looked at each ten seconds.
    eventually("nothing to be told", 2 * CHANGE, || match earlier() {
        Value::Number(none) if none.as_u64() == Some(0) => Ok(()),
        some => Err(some.to_string()),
    });
}
