use super::*;
use crate::model::Update;

fn model(services: &[(&str, &str)]) -> Model {
    let mut model = Model::default();
    for (namespace, name) in services {
        let name = ObjectName::new(*namespace, *name);
        model.update_services(Update::Applied(name, Service::default()));
    }
    model
}

fn namespaces(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn names(services: &[(ObjectName, Arc<Service>)]) -> Vec<&str> {
    services
        .iter()
        .map(|(name, _)| name.name.as_str())
        .collect()
}

/// A cursor after everything in `user`'s namespaces.
fn known(model: &Model, user: &BTreeSet<String>) -> TableCursor {
    let mut known = TableCursor::new(PART);
    known.follow(model, user);
    assert!(!known.has_more());
    known
}

#[test]
fn a_snapshot_holds_only_the_namespaces_of_the_user() {
    let model = model(&[("shop", "web"), ("bank", "vault")]);

    let changes = TableCursor::new(PART).follow(&model, &namespaces(&["shop"]));

    let [Change::Snapshot(frame, services)] = changes.as_slice() else {
        panic!("{changes:?}");
    };
    assert_eq!(names(services), ["web"]);
    assert!(!frame.services_follow);
}

#[test]
fn of_an_unchanged_model_nothing_is_told() {
    let model = model(&[("shop", "web")]);
    let user = namespaces(&["shop"]);

    assert_eq!(known(&model, &user).follow(&model, &user), []);
}

#[test]
fn a_change_is_told_to_those_who_may_see_it() {
    let mut model = model(&[("shop", "web"), ("bank", "vault")]);
    let (shop, bank) = (namespaces(&["shop"]), namespaces(&["bank"]));
    let (mut in_shop, mut in_bank) = (known(&model, &shop), known(&model, &bank));

    let gone = ObjectName::new("shop", "web");
    model.update_services(Update::Removed(gone.clone()));

    assert_eq!(in_bank.follow(&model, &bank), []);
    assert_eq!(in_shop.follow(&model, &shop), [Change::Removed(gone)]);
    assert_eq!(in_shop.follow(&model, &shop), []);
}

#[test]
fn a_right_that_comes_brings_its_namespace_and_nothing_else() {
    let model = model(&[("shop", "web"), ("bank", "vault")]);
    let mut known = known(&model, &namespaces(&["shop"]));

    let changes = known.follow(&model, &namespaces(&["shop", "bank"]));

    let vault = ObjectName::new("bank", "vault");
    let [Change::Frame(frame), Change::Applied(name, _)] = changes.as_slice() else {
        panic!("{changes:?}");
    };
    assert_eq!(name, &vault);
    assert!(!frame.services_follow);
}

#[test]
fn a_snapshot_of_many_services_comes_in_parts_and_says_when_it_is_complete() {
    let model = model(&[("a", "1"), ("a", "2"), ("b", "1"), ("b", "2"), ("c", "1")]);
    let user = namespaces(&["a", "b", "c"]);
    let mut known = TableCursor::new(2);

    let first = known.follow(&model, &user);
    let [Change::Snapshot(frame, services)] = first.as_slice() else {
        panic!("{first:?}");
    };
    assert!(frame.services_follow && services.len() == 2);
    let second = known.follow(&model, &user);
    assert!(matches!(
        second.as_slice(),
        [Change::Applied(..), Change::Applied(..)]
    ));
    let third = known.follow(&model, &user);
    let [Change::Applied(..), Change::Frame(frame)] = third.as_slice() else {
        panic!("{third:?}");
    };
    assert!(!frame.services_follow && !known.has_more());
}
