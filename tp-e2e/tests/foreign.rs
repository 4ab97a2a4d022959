//! Foreign names that look like the cluster's.

use tp_e2e::{
    applied::{Applied, Subject, right},
    cluster::testbed,
    user::Account,
    workstation::Workstation,
};

const NAME_SERVER: &str = "172.30.0.53:53";
/// A, AAAA, MX, HTTPS, SRV, TXT.
const TYPES: [u16; 6] = [1, 28, 15, 65, 33, 16];

fn query(name: &str, kind: u16) -> String {
    let mut hex = "471101000001000000000000".to_owned();
    for label in name.split('.') {
        hex += &format!("{:02x}", label.len());
        for byte in label.bytes() {
            hex += &format!("{byte:02x}");
        }
    }
    hex + &format!("00{kind:04x}0001")
}

#[track_caller]
fn assert_as_without_tp(workstation: &Workstation, names: &[&str]) {
    for name in names {
        for kind in TYPES {
            let query = query(name, kind);
            let ask = ["udp", "-hex", "-timeout", "5s", NAME_SERVER, &query];
            let without = workstation.echo_as(Account::Outsider, &ask);
            let with = workstation.echo(&ask);

            assert_ne!(without["text"], "", "{name} type {kind}: {without}");
            assert_eq!(with["text"], without["text"], "{name} type {kind}");
            assert_eq!(with["error"], without["error"], "{name} type {kind}");
        }
    }
}

#[test]
fn a_service_named_like_the_end_of_a_foreign_name_does_not_take_it() {
    let workstation = Workstation::connected(Account::Member, "dev", "shop", &[]);
    let _made = Applied::new(
        "{apiVersion: v1, kind: Service, metadata: {name: test, namespace: shop}, \
         spec: {ports: [{port: 80}]}}",
        &["service", "test", "--namespace=shop"],
    );
    let address = testbed().service_ip("shop", "test");
    workstation.expect_address("test", &address);
    workstation.expect_address("test.shop", &address);

    let foreign = ["intranet.corp.test", "corp.test", "gone.test"];
    assert_as_without_tp(&workstation, &foreign);
    workstation.expect_address("intranet.corp.test", "192.0.2.10");
}

#[test]
fn a_headless_service_has_only_the_names_that_the_cluster_has_below_it() {
    let workstation = Workstation::connected(Account::Member, "dev", "shop", &[]);
    let _made = Applied::new(
        "{apiVersion: v1, kind: Service, metadata: {name: test, namespace: shop}, \
         spec: {clusterIP: None, selector: {app: cell}, ports: [{port: 7000}]}}\n---\n\
         {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, \
         metadata: {name: test-1, namespace: shop, labels: {kubernetes.io/service-name: test}}, \
         addressType: IPv4, ports: [{port: 7000}], \
         endpoints: [{addresses: [10.244.0.99], hostname: known, conditions: {ready: true}}]}",
        &["service/test", "endpointslice/test-1", "--namespace=shop"],
    );
    workstation.expect_address("known.test", "10.244.0.99");

    let foreign = ["intranet.corp.test", "corp.test", "gone.test"];
    assert_as_without_tp(&workstation, &foreign);
}

#[test]
fn a_namespace_named_like_the_end_of_a_foreign_name_has_only_its_services() {
    let workstation = Workstation::connected(Account::Member, "dev", "shop", &[]);
    let objects = "{apiVersion: v1, kind: Namespace, metadata: {name: test}}\n---\n\
         {apiVersion: v1, kind: Service, metadata: {name: web, namespace: test}, \
         spec: {ports: [{port: 80}]}}\n---\n\
         {apiVersion: v1, kind: Service, metadata: {name: corp, namespace: test}, \
         spec: {clusterIP: None, ports: [{port: 80}]}}\n";
    let right = right("e2e-dev", "test", Subject::User("dev"));
    let _made = Applied::new(&format!("{objects}{right}"), &["namespace", "test"]);
    let address = testbed().service_ip("test", "web");
    workstation.expect_address("web.test", &address);

    assert_as_without_tp(&workstation, &["intranet.corp.test", "www.web.test"]);
}

#[test]
fn an_ipv6_address_that_cannot_be_reached_is_not_given() {
    let workstation = Workstation::shared();
    let _made = Applied::new(
        "{apiVersion: v1, kind: Service, metadata: {name: e2e-both, namespace: shop}, \
         spec: {clusterIP: None, ports: [{port: 80}]}}\n---\n\
         {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: e2e-both-4, \
         namespace: shop, labels: {kubernetes.io/service-name: e2e-both}}, \
         addressType: IPv4, ports: [{port: 80}], \
         endpoints: [{addresses: [10.244.0.98], conditions: {ready: true}}]}\n---\n\
         {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: e2e-both-6, \
         namespace: shop, labels: {kubernetes.io/service-name: e2e-both}}, \
         addressType: IPv6, ports: [{port: 80}], \
         endpoints: [{addresses: ['2001:db8::1'], conditions: {ready: true}}]}",
        &[
            "service/e2e-both",
            "endpointslice/e2e-both-4",
            "endpointslice/e2e-both-6",
            "--namespace=shop",
        ],
    );
    workstation.expect_address("e2e-both.shop", "10.244.0.98");

    for name in ["e2e-both", "e2e-both.shop.svc.cluster.local"] {
        let said = workstation.run(&["dig", "+time=3", "+tries=1", "AAAA", name]);
        let said = said.expect_success();
        assert!(said.contains("status: NOERROR"), "{said}");
        assert!(said.contains("ANSWER: 0"), "{said}");
    }
    let found = workstation.run(&["getent", "ahosts", "e2e-both"]).stdout;
    assert!(found.contains("10.244.0.98"), "{found}");
    assert!(!found.contains("2001:db8"), "{found}");
}
