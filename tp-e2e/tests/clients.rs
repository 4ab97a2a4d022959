//! Real clients reach real servers by name.

use std::path::Path;

use tp_e2e::{
    cluster::{testbed, text},
    programs::readable_by_all,
    workstation::Workstation,
};

fn client_program(file: &str) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../testbed/clients")
        .join(file);

    readable_by_all(&source).display().to_string()
}

#[test]
fn curl_reads_a_page_of_nginx() {
    let page = Workstation::shared()
        .run(&["curl", "-sS", "http://web/"])
        .expect_success();

    assert!(page.contains("<title>nginx of web-"), "{page}");
}

#[test]
fn curl_downloads_a_large_file_of_nginx_whole() {
    let workstation = Workstation::shared();

    let sum = workstation
        .run(&["sh", "-c", "curl -sS http://web.shop/big | sha256sum"])
        .expect_success();
    let expected = workstation
        .run(&["curl", "-sS", "http://web/big.sha256"])
        .expect_success();

    assert_eq!(
        sum.split_whitespace().next(),
        expected.split_whitespace().next()
    );
}

#[test]
fn psql_works_with_postgresql() {
    let answer = Workstation::shared()
        .run(&[
            "psql",
            "postgresql://shop:shop@db/shop",
            "-Atc",
            "create temp table t as select generate_series(1, 10000) n; select sum(n) from t; select inet_server_port()",
        ])
        .expect_success();

    assert!(answer.ends_with("50005000\n5432\n"), "{answer}");
}

#[test]
fn the_mariadb_client_works_with_mariadb() {
    let answer = Workstation::shared()
        .run(&[
            "mariadb",
            "--host=mariadb.shop",
            "--user=shop",
            "--password=shop",
            "--batch",
            "--skip-column-names",
            "shop",
            "--execute=create temporary table t (n int); insert into t values (40), (2); select sum(n), @@port from t",
        ])
        .expect_success();

    assert_eq!(answer.trim(), "42\t3306");
}

#[test]
fn amqp_tools_pass_a_message_through_rabbitmq() {
    let workstation = Workstation::shared();
    let url = "--url=amqp://shop:shop@rabbitmq.shop.svc";

    workstation
        .run(&["amqp-declare-queue", url, "--queue=letters"])
        .expect_success();
    workstation
        .run(&[
            "amqp-publish",
            url,
            "--routing-key=letters",
            "--body=a letter",
        ])
        .expect_success();
    let letter = workstation
        .run(&["amqp-get", url, "--queue=letters"])
        .expect_success();

    assert_eq!(letter, "a letter");
}

#[test]
fn a_static_go_program_resolves_and_connects() {
    let seen = Workstation::shared().echo(&["http", "http://web.shop.svc.cluster.local/"]);

    assert_eq!(seen["status"], 200, "{seen}");
    assert!(text(&seen["text"]).contains("nginx of"), "{seen}");
}

#[test]
fn java_resolves_and_connects() {
    assert_client_reaches_web(
        "java",
        &[
            "java",
            "-XX:TieredStopAtLevel=1",
            "-XX:-UsePerfData",
            &client_program("Get.java"),
        ],
    );
}

#[test]
fn node_resolves_and_connects() {
    assert_client_reaches_web("node", &["node", &client_program("get.mjs")]);
}

/// Checks that the program prints the peer's address, the error of a closed port, and the page.
#[track_caller]
fn assert_client_reaches_web(who: &str, program: &[&str]) {
    let web = testbed().service_ip("shop", "web");

    let said = Workstation::shared()
        .run(&[program, &["web.shop", "80", "81"]].concat())
        .expect_success();

    assert!(said.contains(&format!("peer {web}")), "{who}: {said}");
    assert!(said.contains("closed refused"), "{who}: {said}");
    assert!(said.contains("nginx of"), "{who}: {said}");
}
