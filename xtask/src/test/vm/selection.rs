//! Which tests of the data path an emulated processor runs, and when.

use anyhow::{Result, bail};

/// What depends on the kernel, one test or more of each: all programs are loaded and attached,
/// addresses are rewritten and shown in their real form, SYNs are held, packets are guarded, and
/// who has an alias is told by the kernel. Each costs some 8 s on two emulated processors.
pub(super) const SUBSET: [&str; 21] = [
    "aliases::a_table_full_of_open_connections_stays_full_until_they_are_closed",
    "attacks::a_datagram_out_of_the_tun_reaches_no_server",
    "attacks::a_datagram_to_somebody_elses_query_is_not_heard",
    "attacks::a_listener_that_turns_client_reaches_no_server",
    "attacks::a_steered_socket_in_another_process_still_shows_the_real_address",
    "attacks::segments_out_of_the_tun_reach_no_server",
    "attacks::this_machine_accepts_no_connection_from_an_alias",
    "clients::a_process_of_the_user_is_shown_the_client",
    "clients::no_process_of_anybody_else_is_shown_a_client",
    "connects::a_dial_that_outlasts_repeated_syns_is_made_once",
    "connects::a_mapped_address_is_steered_and_reversed",
    "connects::a_socket_that_is_passed_on_still_tells_its_real_peer",
    "connects::connect_is_steered_and_the_application_sees_the_real_address",
    "connects::the_verdict_of_the_far_side_is_the_error_of_connect",
    "names::queries_to_a_name_server_are_answered_in_its_name",
    "privacy::a_cgroup_scope_reaches_no_further_than_the_cgroup",
    "privacy::a_container_of_another_user_on_the_hosts_network_cannot_use_the_aliases",
    "privacy::a_neighbour_cannot_use_the_aliases",
    "privacy::a_session_cannot_send_what_it_should_not",
    "privacy::a_set_user_id_program_is_not_steered",
    "privacy::another_user_is_not_steered_and_cannot_use_the_aliases",
];

/// Tests for which an emulated processor is too slow.
pub(super) const TOO_SLOW: [&str; 2] = [
    // Measures microseconds.
    "connects::a_held_connect_waits_for_no_timer",
    "aliases::a_full_alias_table_is_an_error_and_never_a_wrong_address",
];

/// Of the redirects, likewise.
pub(super) const NOT_REDIRECTS: [&str; 2] = [
    // Exceeds a rate.
    "limits::environments_and_sockets_are_handed_out_at_a_bounded_rate",
    // Has more descriptors than a virtual machine's first program may have.
    "earlier::many_connections_are_ended_by_several_requests",
];

/// Tests for `cargo xtask test vm` alone: what they look at depends little on the kernel, or a test of
/// the subset looks at it as well.
const NOT_IN_SUBSET: [&str; 97] = [
    "aliases::aliases_stand_for_other_addresses_after_a_quarantine_and_never_while_somebody_has_them",
    "aliases::descriptors_do_not_block_and_the_alias_table_is_read_only",
    "aliases::two_sessions_have_their_own_aliases",
    "attacks::a_datagram_from_the_private_namespace_reaches_no_server",
    "attacks::a_refusal_of_what_nobody_sent_reaches_no_server",
    "attacks::a_session_that_outlives_the_root_daemon_reaches_no_server_either",
    "attacks::what_is_local_is_not_steered_whatever_a_session_asks_for",
    "bindings::a_multipath_socket_is_steered_and_its_alias_is_freed_with_it",
    "bindings::a_new_name_server_passes_while_the_alias_table_is_full",
    "bindings::a_query_that_must_leave_by_an_interface_is_answered_as_without_a_session",
    "bindings::a_query_with_a_source_of_its_own_is_answered",
    "bindings::a_socket_bound_to_an_interface_is_refused_at_once",
    "bindings::a_socket_bound_to_an_own_address_is_steered",
    "bindings::an_alias_is_no_address_to_connect_to",
    "bounds::a_descriptor_that_is_slow_to_close_holds_up_nobody",
    "bounds::a_root_daemon_without_descriptors_goes_on_when_it_has_some_again",
    "bounds::connections_that_are_refused_take_no_room_of_others",
    "bounds::ending_a_session_touches_no_filter_of_the_machine",
    "bounds::private_networks_and_tables_that_somebody_keeps_are_bounded",
    "bounds::thousands_of_networks_are_steered",
    "circles::a_query_of_a_user_with_sessions_of_two_root_daemons_reaches_the_server_once",
    "circles::a_query_of_a_user_with_two_sessions_reaches_the_server_once",
    "circles::a_query_reaches_the_server_once_when_daemon_and_session_live_in_a_pid_namespace",
    "clients::a_client_goes_with_the_session_however_it_dies",
    "clients::a_client_goes_with_the_socket_of_the_session",
    "clients::a_client_is_registered_in_less_time_than_a_connection_takes",
    "clients::a_socket_of_somebody_else_in_the_users_hands_is_shown_no_client",
    "clients::a_socket_of_every_family_is_shown_a_client_of_ipv4",
    "clients::no_other_connection_and_no_client_of_the_other_family_is_shown",
    "connects::a_silent_far_side_times_out",
    "connects::a_socket_bound_to_loopback_is_left_alone_and_counted",
    "connects::a_target_that_resets_at_once_is_not_unreachable",
    "connects::a_transfer_that_the_far_side_cuts_ends_in_a_reset",
    "connects::an_excluded_network_is_left_alone",
    "connects::connect_ends_when_the_dial_ends",
    "connects::every_way_to_make_a_tcp_connection_is_steered",
    "connects::networks_and_name_servers_can_be_changed",
    "connects::without_a_tunnel_the_cluster_is_unreachable_at_once",
    "containers::what_a_container_lacks_for_a_root_daemon_to_start_is_told_with_its_name",
    "containers::where_no_tun_device_can_be_had_the_flag_that_gives_it_is_told",
    "containers::where_proc_sys_is_read_only_and_tun_devices_have_no_file_sessions_open_and_leave_nothing",
    "credentials::a_program_that_can_take_its_privilege_back_is_not_steered",
    "credentials::a_program_that_is_root_in_a_user_namespace_of_its_user_is_steered",
    "credentials::a_program_with_capabilities_in_a_user_namespace_of_somebody_else_is_not_steered",
    "credentials::a_session_in_a_user_namespace_gains_no_sight_of_privileged_programs",
    "credentials::a_set_group_id_program_is_not_steered",
    "credentials::a_socket_that_is_older_than_its_programs_user_is_steered",
    "ends::a_killed_root_daemon_leaves_nothing_behind",
    "ends::a_killed_session_leaves_nothing_behind",
    "ends::a_part_of_a_session_that_dies_is_told_and_takes_no_name_down",
    "ends::a_root_daemon_that_is_stopped_ends_its_sessions_first",
    "ends::closing_restores_the_machine_and_ends_held_connections",
    "ends::nothing_is_left_when_both_are_killed",
    "firewalls::a_firewall_that_drops_what_is_steered_is_noticed_and_one_that_lets_it_out_is_not",
    "hooks::programs_are_attached_once_however_many_sessions_there_are",
    "hooks::the_hooks_cost_with_many_sessions_what_they_cost_with_one",
    "names::a_query_that_the_cluster_never_answers_holds_up_no_other",
    "names::names_of_the_machine_resolve_while_the_session_hangs",
    "names::other_datagrams_are_left_alone_and_counted",
    "names::queries_by_tcp_are_answered_where_the_server_takes_them",
    "names::what_is_none_of_the_clusters_goes_to_the_server_that_was_asked",
    "names::what_the_table_does_not_decide_is_asked_in_the_cluster",
    "privacy::a_container_is_not_steered_and_cannot_use_the_aliases",
    "privacy::another_network_namespace_is_not_steered",
    "privacy::the_system_scope_is_for_root_and_for_everybody",
    "privacy::two_users_have_a_session_each",
    "ranges::addresses_that_proxies_give_out_stay_theirs",
    "ranges::an_address_of_the_range_never_leads_to_what_it_stands_for",
    "ranges::no_program_takes_the_links_address_for_one_of_the_machines",
    "ranges::the_range_is_one_that_no_table_no_rule_no_address_and_no_cluster_speaks_of",
    "requests::a_binary_that_others_can_replace_does_not_run_under_sudo",
    "requests::a_cgroup_of_somebody_else_is_no_scope",
    "requests::a_network_namespace_with_other_users_is_refused",
    "requests::a_root_daemon_of_sudo_serves_one_user_and_ends_with_the_last_session",
    "requests::a_second_root_daemon_does_not_take_the_socket",
    "requests::a_user_outside_the_group_is_refused",
    "requests::only_the_sessions_own_network_namespace_is_taken",
    "requests::senseless_requests_are_refused_and_the_session_goes_on",
    "requests::sessions_of_one_user_are_bounded",
    "requests::the_root_daemon_needs_root",
    "sessions::cgroups::a_cgroup_is_a_scope_for_a_root_daemon_in_a_container_too",
    "sessions::cgroups::one_users_cgroups_of_many_depths_leave_room_for_those_of_others",
    "sessions::cgroups::processes_reach_the_session_of_their_innermost_cgroup_and_others_the_users_own",
    "sessions::datagrams::a_session_that_asks_for_udp_gets_it_and_answers_in_the_name_of_the_real_address",
    "sessions::datagrams::a_session_that_does_not_ask_for_udp_counts_it_and_leaves_it_alone",
    "sessions::of_one_users_sessions_the_first_opened_has_what_several_steer_and_the_next_when_it_ends",
    "sessions::programs::a_killed_root_daemon_with_several_sessions_leaves_nothing_behind",
    "sessions::programs::an_opening_that_fails_on_the_way_takes_everything_back",
    "sessions::programs::only_the_first_session_loads_and_attaches_and_only_the_last_takes_it_away",
    "sessions::programs::programs_are_loaded_for_a_session_that_is_to_come_and_attached_by_it",
    "sessions::shares::a_session_that_said_hello_in_another_protocol_is_refused_in_one_sentence",
    "sessions::shares::a_user_has_eight_sessions_and_a_machine_sixty_four_and_each_more_is_refused_in_one_sentence",
    "sessions::shares::a_user_who_has_all_that_one_may_have_costs_another_nothing",
    "sessions::strays::a_socket_of_a_session_that_has_ended_is_a_stranger_to_the_next_at_the_same_place",
    "sessions::strays::a_socket_of_one_session_sends_nothing_into_another_whatever_it_is_bound_to",
    "sessions::strays::a_socket_that_asked_name_servers_of_two_sessions_hears_from_both_and_from_no_third",
    "sessions::users_and_root_with_sessions_of_the_same_networks_reach_their_own_alone",
];

/// Every test is in one list, and every name in a list is a test's: what is new, or has another name
/// now, must not be left out unseen.
pub(super) fn check(tests: &[String]) -> Result<()> {
    let listed = || SUBSET.iter().chain(&TOO_SLOW).chain(&NOT_IN_SUBSET);
    for test in tests {
        let lists = listed().filter(|name| *name == test).count();
        if lists != 1 {
            bail!(
                "the test {test} is in {lists} lists of xtask/src/test/vm/selection.rs: put it into SUBSET if it \
                 depends on the kernel, otherwise into NOT_IN_SUBSET or TOO_SLOW"
            );
        }
    }
    if let Some(name) = listed().find(|name| !tests.iter().any(|test| test == *name)) {
        bail!("there is no test {name}, which xtask/src/test/vm/selection.rs lists");
    }

    Ok(())
}

pub(super) fn subset(tests: &[String]) -> Result<Vec<String>> {
    check(tests)?;

    Ok(SUBSET.map(str::to_owned).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<String> {
        let names = SUBSET.iter().chain(&TOO_SLOW).chain(&NOT_IN_SUBSET);

        names.map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_test_that_is_gone_is_told() {
        let mut tests = all();
        assert_eq!(subset(&tests).unwrap(), SUBSET);

        for name in [SUBSET[0], TOO_SLOW[0], NOT_IN_SUBSET[0]] {
            tests.retain(|test| test != name);
            let error = check(&tests).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            tests = all();
        }
    }

    #[test]
    fn a_test_that_is_new_is_told() {
        let mut tests = all();
        tests.push("connects::a_new_one".to_owned());

        let error = subset(&tests).unwrap_err().to_string();

        assert!(
            error.contains("connects::a_new_one is in 0 lists"),
            "{error}"
        );
    }
}
