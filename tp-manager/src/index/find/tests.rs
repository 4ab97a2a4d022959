use super::*;

#[test]
fn a_service_without_a_selector_selects_nothing() {
    let labels = Labels::from([("app".to_owned(), "web".to_owned())]);
    let mut service = Service::default();
    assert!(!selects(&service, &labels));

    service.spec.get_or_insert_default().selector = Some(labels.clone());
    assert!(selects(&service, &labels));
    assert!(!selects(&service, &Labels::new()));
}
