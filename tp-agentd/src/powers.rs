//! Which capability this process lacks for what the kernel does not permit.

use rustix::thread::{CapabilitySet, capabilities};

const NAMES: [(CapabilitySet, &str); 5] = [
    (CapabilitySet::BPF, "CAP_BPF"),
    (CapabilitySet::DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"),
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
    (CapabilitySet::SYS_PTRACE, "CAP_SYS_PTRACE"),
];

/// What to do about it, of something that takes the capabilities `needed`.
pub(crate) fn lacking(needed: CapabilitySet) -> String {
    let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let lacking = needed.difference(effective);
    let names: Vec<&str> = NAMES
        .into_iter()
        .filter_map(|(capability, name)| lacking.contains(capability).then_some(name))
        .collect();
    if names.is_empty() {
        return "tp-agentd has the capabilities for it, so a security module or a seccomp profile of \
                the node forbids it"
            .to_owned();
    }

    format!("tp-agentd needs {}", names.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_capability_that_is_needed_has_a_name() {
        let named = NAMES.into_iter().map(|(capability, _)| capability);
        let all: CapabilitySet = named.collect();

        assert_eq!(all.bits().count_ones() as usize, NAMES.len());
        assert!(lacking(CapabilitySet::empty()).contains("security module"));
    }
}
