//! Short names with companies' search lists: they resolve as README says, or `tp status` names what
//! wins and which form still works.

use tp_e2e::{
    cluster::testbed,
    lock::alone,
    name_server::{NameServer, ResolvConf, connected_behind},
    process::Finished,
    user::Account,
    workstation::Workstation,
};

/// Has every name below it (a wildcard).
const WILDCARD: &str = "corp.test";
/// The company's name server has nothing below these.
const DOMAINS: &str = "eu.example.test us.example.test ad.example.test lab.example.test \
                       dev.example.test example.test";

/// A session on a machine with this search list, these options and the company's server.
fn connected_with_search_list(
    search: &str,
    options: &str,
) -> (Workstation, NameServer, ResolvConf) {
    connected_behind(&[], &format!("search {search}\noptions {options}\n"))
}

fn look_up(workstation: &Workstation, name: &str) -> Finished {
    workstation.run(&["getent", "ahostsv4", name])
}

#[track_caller]
fn assert_resolves_to(workstation: &Workstation, name: &str, address: &str) {
    let found = look_up(workstation, name);
    assert!(found.stdout.starts_with(address), "{name}: {found}");
}

fn not_covered(workstation: &Workstation) -> String {
    workstation.status()["dns"]["not_covered"].to_string()
}

#[test]
fn short_names_lead_to_the_cluster_behind_six_search_domains_and_five_dots() {
    let _alone = alone();
    let web = testbed().service_ip("shop", "web");
    for options in ["ndots:1", "ndots:5"] {
        let (workstation, _server, _changed) = connected_with_search_list(DOMAINS, options);

        for name in ["web", "web.shop", "web.shop.svc.cluster.local"] {
            assert_resolves_to(&workstation, name, &web);
        }
        assert_eq!(not_covered(&workstation), "[]", "{options}");
    }
}

#[test]
fn a_wildcard_among_the_search_domains_is_named_with_the_form_that_it_does_not_concern() {
    let _alone = alone();
    let web = testbed().service_ip("shop", "web");
    let search = format!("example.test {WILDCARD}");
    for (options, form, stated) in [
        ("ndots:1", "web.shop", "such as web.shop, are not concerned"),
        (
            "ndots:5",
            "web.shop.svc.cluster.local.",
            "such as web.shop.svc.cluster.local., are not concerned",
        ),
    ] {
        let (workstation, _server, _changed) = connected_with_search_list(&search, options);

        let told = not_covered(&workstation);
        assert!(
            told.contains(&format!("search domain {WILDCARD}")),
            "{told}"
        );
        assert!(told.contains(stated), "{told}");
        assert_resolves_to(&workstation, form, &web);
        // The notice is true: the company's address comes first.
        assert_resolves_to(&workstation, "web", "192.0.2.10");
    }
}

#[test]
fn a_company_server_that_is_away_is_named_and_names_that_end_in_a_dot_are_not_kept_waiting() {
    let _alone = alone();
    let web = testbed().service_ip("shop", "web");
    // The address neither answers nor refuses.
    let workstation = Workstation::new(Account::Member, "dev");
    let conf = format!("nameserver 192.0.2.53\nsearch {DOMAINS}\noptions ndots:5\n");
    let _changed = ResolvConf::write(&conf);
    workstation.connect(&["--namespace", "shop"]);

    let told = not_covered(&workstation);
    assert!(
        told.contains("no name server answers for the search domain"),
        "{told}"
    );
    let found = look_up(&workstation, "web.shop.svc.cluster.local.");
    assert!(found.stdout.starts_with(&web), "{found}");
    assert!(found.elapsed.as_secs() < 2, "{found}");
}
