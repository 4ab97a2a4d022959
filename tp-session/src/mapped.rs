//! Notices about namespaces that `--mapped-namespaces` leaves without names.

/// `mapped` are the namespaces asked for, `visible` those that the user may reach.
pub(super) fn notices(mapped: &[String], connected: &str, visible: &[String]) -> Vec<String> {
    let absent = mapped.iter().filter(|name| !visible.contains(*name));
    let mut notices: Vec<String> = absent
        .map(|name| {
            format!(
                "no name in the namespace {name} of --mapped-namespaces is answered: it does not exist, \
                 or you may not reach it"
            )
        })
        .collect();
    if !mapped.is_empty() && !mapped.iter().any(|name| name == connected) {
        notices.push(format!(
            "the connected namespace {connected} is not among --mapped-namespaces, so none of its names \
             is answered"
        ));
    }

    notices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notices_of(mapped: &[&str], visible: &[&str]) -> Vec<String> {
        let owned = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();

        notices(&owned(mapped), "shop", &owned(visible))
    }

    #[test]
    fn what_has_no_names_is_told() {
        assert!(notices_of(&[], &["shop"]).is_empty());
        assert!(notices_of(&["shop", "bank"], &["bank", "shop"]).is_empty());
        let absent = notices_of(&["shop", "absent"], &["shop"]);
        assert!(absent.len() == 1 && absent[0].contains("namespace absent"));
        let elsewhere = notices_of(&["bank"], &["bank"]);
        assert!(elsewhere.len() == 1 && elsewhere[0].contains("namespace shop"));
    }
}
