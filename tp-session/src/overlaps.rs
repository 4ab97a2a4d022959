//! Sentences about what another session of the same user has of this one.

use std::collections::BTreeMap;

use tp_root_api::Overlap;

/// Networks named in one sentence; more are counted.
const MAX_NAMED: usize = 4;

pub(super) fn notices(overlaps: &[Overlap]) -> Vec<String> {
    let mut of_process: BTreeMap<u32, (bool, Vec<String>)> = BTreeMap::new();
    for overlap in overlaps {
        let (has_names, networks) = of_process.entry(overlap.pid).or_default();
        if overlap.is_name_server {
            *has_names = true;
        } else {
            networks.push(overlap.network.to_string());
        }
    }

    of_process
        .into_iter()
        .map(|(pid, (has_names, networks))| {
            let mut what = Vec::new();
            if !networks.is_empty() {
                what.push(format!("{}, wholly or in part", list(&networks)));
            }
            if has_names {
                what.push("names".to_owned());
            }
            format!(
                "another session of yours (process {pid}) was opened before this one, and your programs \
                 reach {} through it: to use this one for them, run `tp quit` where that one was \
                 started, or end process {pid}",
                what.join(", and ")
            )
        })
        .collect()
}

fn list(networks: &[String]) -> String {
    let named = networks[..networks.len().min(MAX_NAMED)].join(", ");
    match networks.len().saturating_sub(MAX_NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_session_has_is_told_with_its_process() {
        let overlap = |network: &str, is_name_server, pid| Overlap {
            network: network.parse().unwrap(),
            is_name_server,
            pid,
        };
        let mut overlaps = vec![
            overlap("127.0.0.53/32", true, 7),
            overlap("192.168.1.1/32", true, 7),
            overlap("10.96.0.0/12", false, 7),
            overlap("172.20.0.0/16", false, 9),
        ];

        let told = notices(&overlaps);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("process 7"), "{told:?}");
        assert!(told[0].contains("reach 10.96.0.0/12, wholly or in part, and names through it"));
        assert!(
            told[1].contains("process 9") && !told[1].contains("names"),
            "{told:?}"
        );

        for third in 1..=5 {
            overlaps.push(overlap(&format!("10.{third}.0.0/16"), false, 9));
        }
        assert!(notices(&overlaps)[1].contains("10.3.0.0/16 and 2 more,"));
        assert!(notices(&[]).is_empty());
    }
}
