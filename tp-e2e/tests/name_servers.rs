//! The machine's own name servers, slow, silent, gone, replaced: tp makes none of their names
//! slower or fail, and they do not delay names of the cluster.

use std::time::Duration;

use serde_json::Value;
use tp_e2e::{
    applied::Applied,
    cluster::{Impairment, testbed},
    lock::alone,
    name_server::{NameServer, ResolvConf, Route, SERVER, ask, connected_behind},
    process::{Running, eventually},
    user::Account,
    workstation::Workstation,
};

/// An account without a session, for comparison.
const WITHOUT_SESSION: Account = Account::Outsider;

/// How much later than without a session an answer may come on a busy machine.
const MAX_DELAY_MS: u64 = 700;

fn with_and_without(workstation: &Workstation, words: &[&str]) -> (Value, Value) {
    (
        ask(workstation, workstation.account(), words),
        ask(workstation, WITHOUT_SESSION, words),
    )
}

#[track_caller]
fn milliseconds(seen: &Value) -> u64 {
    seen["ms"]
        .as_u64()
        .unwrap_or_else(|| panic!("no time in {seen}"))
}

/// Names, codes and addresses of the answers, in the order in which they came.
fn answers(seen: &Value) -> Vec<Value> {
    let answers = seen["answers"].as_array().cloned().unwrap_or_default();
    answers
        .into_iter()
        .map(|mut answer| {
            answer["ms"].take();
            answer
        })
        .collect()
}

#[test]
fn an_unreachable_name_server_fails_as_fast_as_without_a_session() {
    let _alone = alone();
    let servers = ["172.30.9.1", "172.30.9.2", "172.30.9.3"];
    let _routes = ["unreachable", "prohibit", "blackhole"].map(|kind| {
        let server = servers[["unreachable", "prohibit", "blackhole"]
            .iter()
            .position(|other| *other == kind)
            .unwrap_or_default()];
        Route::add(&format!("{kind} {server}"))
    });
    let _changed = ResolvConf::write(
        &servers
            .map(|server| format!("nameserver {server}\n"))
            .concat(),
    );
    let workstation = Workstation::connected(Account::Member, "dev", "shop", &[]);

    for server in servers {
        for way in ["connected", "unconnected", "tcp"] {
            let (with, without) =
                with_and_without(&workstation, &[server, way, "intranet.corp.test"]);

            assert!(
                milliseconds(&with) < milliseconds(&without) + MAX_DELAY_MS,
                "{server} {way}: {with} instead of {without}"
            );
            assert_ne!(with["end"], "timeout", "{server} {way}");
        }
    }
    let getent = |account| {
        let found = workstation.run_as(account, &["getent", "hosts", "intranet.corp.test"]);
        (found.code(), found.elapsed)
    };
    let (without, with) = (getent(WITHOUT_SESSION), getent(workstation.account()));
    assert_eq!(with.0, without.0);
    assert!(
        with.1 < without.1 + Duration::from_millis(MAX_DELAY_MS),
        "{with:?} instead of {without:?}"
    );
}

#[test]
fn an_unreachable_name_server_gives_the_error_that_it_gave() {
    let _alone = alone();
    let _route = Route::add("unreachable 172.30.9.1");
    // The first server is unreachable, on the second machine nothing listens.
    let servers = [
        ("172.30.9.1", "host unreachable"),
        ("172.30.0.210", "connection refused"),
    ];
    let _changed = ResolvConf::write("nameserver 172.30.9.1\nnameserver 172.30.0.210\n");
    let workstation = Workstation::connected(Account::Member, "dev", "shop", &[]);

    for (server, error) in servers {
        for way in ["connected", "tcp"] {
            let (with, without) =
                with_and_without(&workstation, &[server, way, "intranet.corp.test"]);

            assert_eq!(with["end"], error, "{server} {way}");
            assert_eq!(with["end"], without["end"], "{server} {way}");
        }
    }
}

#[test]
fn a_name_server_whose_machine_is_gone_fails_as_fast_as_without_a_session() {
    let _alone = alone();
    // In the workstation's own network: after three ARP requests the kernel knows that the host is
    // absent; a resolver with IP_RECVERR learns it before its time-out.
    let _changed = ResolvConf::write("nameserver 172.30.0.99\noptions timeout:8 attempts:1\n");
    let workstation = Workstation::connected(Account::Member, "dev", "shop", &[]);
    let getent = |account| {
        let found = workstation.run_as(account, &["getent", "hosts", "intranet.corp.test"]);
        (found.code(), found.elapsed)
    };

    let (without, with) = (getent(WITHOUT_SESSION), getent(workstation.account()));

    assert!(without.1 < Duration::from_secs(7), "{without:?}");
    assert_eq!(with.0, without.0);
    assert!(
        with.1 < without.1 + Duration::from_secs(2),
        "{with:?} instead of {without:?}"
    );
}

#[test]
fn a_name_server_that_is_replaced_still_answers_who_is_connected_to_it() {
    let _alone = alone();
    let workstation = Workstation::new(Account::Member, "dev");
    let _old = NameServer::start(&workstation, &[SERVER]);
    let _new = NameServer::start(&workstation, &["127.0.0.10", "answer=192.0.2.99"]);
    let first = ResolvConf::name(SERVER);
    workstation.connect(&["--namespace", "shop"]);

    // The old server delays some of the names, so that the file changes meanwhile.
    let names: Vec<String> = (0..6).map(|n| format!("slow-500-{n}.corp.test")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let words = [
        &["name-server", "ask", SERVER, "connected", "every=100"],
        &names[..],
    ]
    .concat();
    let asking = Running::start(&mut workstation.command(&words));
    let second = ResolvConf::name("127.0.0.10");
    eventually("the new server to be known", Duration::from_secs(2), || {
        let servers = workstation.status()["dns"]["name_servers"].clone();
        if servers[0] == "127.0.0.10" {
            Ok(())
        } else {
            Err(servers.to_string())
        }
    });
    let seen = asking.finish(Duration::from_secs(20)).json();

    assert_eq!(seen["end"], "all", "{seen}");
    let mut new = answers(&ask(
        &workstation,
        workstation.account(),
        &["127.0.0.10", "connected", "intranet.corp.test"],
    ));
    assert_eq!(new.remove(0)["address"], "192.0.2.99");
    // In reverse order: each restores what it found.
    drop(second);
    drop(first);
}

#[test]
fn a_silent_name_server_never_delays_a_name_of_the_cluster() {
    let _alone = alone();
    let (workstation, _server, _changed) = connected_behind(&[], "");

    let lost: Vec<String> = (0..1500).map(|n| format!("silent-{n}.corp.test")).collect();
    let lost: Vec<&str> = lost.iter().map(String::as_str).collect();
    let words = [&[SERVER, "connected", "pace=1", "timeout=1"], &lost[..]].concat();
    let flood = ask(&workstation, workstation.account(), &words);
    assert_eq!(flood["end"], "timeout", "{flood}");

    for _ in 0..10 {
        let seen = ask(
            &workstation,
            workstation.account(),
            &[SERVER, "connected", "timeout=1000", "web.shop"],
        );
        assert_eq!(seen["end"], "all", "{seen}");
    }
    // Nor does it delay a name that another server, or this one, answers.
    let seen = ask(
        &workstation,
        workstation.account(),
        &[SERVER, "connected", "timeout=1000", "intranet.corp.test"],
    );
    assert_eq!(seen["end"], "all", "{seen}");
}

#[test]
fn a_zone_transfer_in_several_messages_is_whole() {
    let _alone = alone();
    let (workstation, _server, _changed) = connected_behind(&[], "");
    let transfer = |account| {
        let server = format!("@{SERVER}");
        let words = ["dig", "+time=3", "+tries=1", "+noall", "+answer"];
        let words = [&words[..], &["axfr", "corp.test", &server]].concat();
        let said = workstation.run_as(account, &words).expect_success();
        said.lines()
            .filter(|line| line.contains("\tIN\t"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };

    let (with, without) = (transfer(workstation.account()), transfer(WITHOUT_SESSION));

    assert_eq!(without.len(), 6, "{without:?}");
    assert_eq!(with, without);
}

#[test]
fn tcp_is_refused_where_the_name_server_refuses_it() {
    let _alone = alone();
    let (workstation, _server, _changed) = connected_behind(&["no-tcp"], "");

    let (with, without) = with_and_without(&workstation, &[SERVER, "tcp", "intranet.corp.test"]);

    assert_eq!(without["end"], "connection refused");
    assert_eq!(with["end"], without["end"]);
}

#[test]
fn queries_on_one_connection_are_answered_as_they_come() {
    let _alone = alone();
    let (workstation, _server, _changed) = connected_behind(&[], "");
    let names = ["slow-2000-a.corp.test", "fast.corp.test"];

    let words = [&[SERVER, "tcp", "half-close"], &names[..]].concat();
    let (with, without) = with_and_without(&workstation, &words);

    assert_eq!(answers(&with), answers(&without));
    assert_eq!(with["answers"][0]["name"], names[1]);
    let first = milliseconds(&with["answers"][0]);
    assert!(first < MAX_DELAY_MS, "{with}");
    // Both ends of the connection end it with FIN.
    assert_eq!(without["end"], "fin", "{without}");
    assert_eq!(with["end"], "fin", "{with}");

    let mixed = ["slow-1000-a.corp.test", "web.shop", "fast.corp.test"];
    let words = [&[SERVER, "tcp", "half-close"], &mixed[..]].concat();
    let seen = ask(&workstation, workstation.account(), &words);
    let web = testbed().service_ip("shop", "web");
    let order: Vec<&Value> = [0, 1, 2]
        .iter()
        .map(|at: &usize| &seen["answers"][at]["name"])
        .collect();
    assert_eq!(order[2], mixed[0], "{seen}");
    let of_web = seen["answers"]
        .as_array()
        .and_then(|answers| answers.iter().find(|answer| answer["name"] == "web.shop"));
    assert_eq!(of_web.map(|answer| &answer["address"]), Some(&web.into()));
    assert_eq!(seen["end"], "fin", "{seen}");
}

#[test]
fn a_connection_that_the_name_server_resets_is_reset() {
    let _alone = alone();
    let (workstation, _server, _changed) = connected_behind(&[], "");

    let (with, without) = with_and_without(&workstation, &[SERVER, "tcp", "reset.corp.test"]);

    assert_eq!(without["end"], "connection reset");
    assert_eq!(with["end"], without["end"]);
}

#[test]
fn a_long_answer_of_the_cluster_arrives_though_the_name_server_serves_no_tcp() {
    let _alone = alone();
    let (workstation, _server, _changed) = connected_behind(&["no-tcp"], "");
    let many = many();

    let found = eventually("all addresses", Duration::from_secs(10), || {
        // Without EDNS 512 bytes hold fewer: dig comes back by TCP.
        let words = ["dig", "+short", "+noedns", "+time=3", "+tries=1"];
        let said = workstation.run(&[&words[..], &["many.shop.svc.cluster.local"]].concat());
        let found = said
            .stdout
            .lines()
            .filter(|line| line.starts_with("10.244."))
            .count();
        if found == MANY {
            Ok(found)
        } else {
            Err(said.to_string())
        }
    });
    drop(many);

    assert_eq!(found, MANY);
}

/// More addresses than fit an answer of 512 bytes.
const MANY: usize = 60;

/// A headless service with so many addresses.
fn many() -> Applied {
    let endpoints: Vec<String> = (0..MANY)
        .map(|n| {
            format!(
                "{{addresses: [10.244.0.{}], conditions: {{ready: true}}}}",
                180 + n
            )
        })
        .collect();
    Applied::new(
        &format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: many, namespace: shop}}, \
             spec: {{clusterIP: None, ports: [{{port: 80}}]}}}}\n---\n\
             {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: many-1, \
             namespace: shop, labels: {{kubernetes.io/service-name: many}}}}, addressType: IPv4, \
             ports: [{{port: 80}}], endpoints: [{}]}}\n",
            endpoints.join(", ")
        ),
        &["--namespace=shop", "service/many", "endpointslice/many-1"],
    )
}

#[test]
fn a_name_that_others_may_have_passes_on_in_time_while_the_tunnel_hangs() {
    let _alone = alone();
    let (workstation, _server, _changed) = connected_behind(&["wildcard"], "");
    let impaired = testbed().impair(Impairment::NothingPasses);

    // There is a service "web", so the cluster is asked for names below it.
    let words = [SERVER, "connected", "timeout=5000", "slow-2000-a.web"];
    let seen = ask(&workstation, workstation.account(), &words);
    drop(impaired);

    assert_eq!(seen["end"], "all", "{seen}");
    assert_eq!(seen["answers"][0]["address"], "192.0.2.10", "{seen}");
}

#[test]
fn answers_as_long_as_a_datagram_may_be_arrive() {
    let _alone = alone();
    let (workstation, _server, _changed) = connected_behind(&[], "");

    for length in [1472, 9000, 65_493, 65_494, 65_500, 65_507] {
        let name = format!("long-{length}.corp.test");
        for way in ["connected", "unconnected"] {
            let (with, without) = with_and_without(&workstation, &[SERVER, way, &name]);

            assert_eq!(without["answers"][0]["length"], length, "{without}");
            assert_eq!(with["answers"][0]["length"], length, "{with}");
        }
    }
}
