use super::*;

fn syn(port: u16, sequence: u32) -> Syn {
    let source = format!("198.19.255.1:{port}").parse().unwrap();
    let packet = packet::tests::syn_packet(source, "198.18.1.2:80".parse().unwrap(), sequence);
    packet::parse_syn(&packet).unwrap()
}

fn attempt(syn: &Syn) -> Attempt {
    Attempt {
        flow: syn.flow,
        sequence: syn.sequence,
    }
}

#[test]
fn a_repeated_syn_never_dials_twice() {
    let (mut held, now, syn) = (HeldSyns::new(8), Instant::now(), syn(40000, 1));

    assert_eq!(
        held.handle_syn(syn.clone(), now),
        [Action::Dial(attempt(&syn))]
    );
    assert_eq!(held.handle_syn(syn, now + Duration::from_secs(1)), []);
    assert_eq!(held.dialling(), 1);
}

#[test]
fn an_approved_syn_is_written_back_until_it_is_accepted() {
    let (mut held, now, syn) = (HeldSyns::new(8), Instant::now(), syn(40000, 1));
    held.handle_syn(syn.clone(), now);
    let written = Action::Write(syn.packet.to_vec());

    assert_eq!(
        held.handle_verdict(attempt(&syn), Verdict::Connected, now),
        Some(written.clone())
    );
    assert_eq!(
        held.handle_syn(syn.clone(), now + Duration::from_secs(1)),
        [written]
    );
    assert_eq!(held.handle_accepted(syn.flow), Some(attempt(&syn)));
    assert_eq!(held.handle_accepted(syn.flow), None);
}

#[test]
fn nobody_is_accepted_without_approval() {
    let (mut held, syn) = (HeldSyns::new(8), syn(40000, 1));
    held.handle_syn(syn.clone(), Instant::now());

    assert_eq!(held.handle_accepted(syn.flow), None);
}

#[test]
fn a_refusal_is_told_once() {
    let (mut held, now, syn) = (HeldSyns::new(8), Instant::now(), syn(40000, 1));
    held.handle_syn(syn.clone(), now);
    let refused = held.handle_verdict(attempt(&syn), Verdict::Refused, now);

    assert_eq!(refused, Some(Action::Write(packet::reset(&syn))));
    assert_eq!(
        held.handle_verdict(attempt(&syn), Verdict::Connected, now),
        None
    );
}

#[test]
fn a_refusal_that_the_kernel_may_have_dropped_is_repeated() {
    let (mut held, now) = (HeldSyns::new(8), Instant::now());
    let (unreachable, refused) = (syn(40000, 1), syn(40001, 1));
    for syn in [&unreachable, &refused] {
        held.handle_syn(syn.clone(), now);
    }
    held.handle_verdict(attempt(&unreachable), Verdict::HostUnreachable, now);
    held.handle_verdict(attempt(&refused), Verdict::Refused, now);
    let refusal = packet::unreachable(&unreachable, crate::verdict::HOST_UNREACHABLE);

    let mut times = Vec::new();
    while let Some(due) = held
        .poll_timeout()
        .filter(|due| *due < now + SWEEP_INTERVAL)
    {
        let actions = held.handle_timeout(due);
        assert_eq!(actions, [Action::WriteAgain(refusal.clone())]);
        times.push(due.duration_since(now).as_millis());
    }

    assert_eq!(times, [10, 60, 310]);
}

#[test]
fn a_refusal_is_not_repeated_to_the_next_attempt_of_a_port() {
    let (mut held, now) = (HeldSyns::new(8), Instant::now());
    let (old, new) = (syn(40000, 1), syn(40000, 2));
    held.handle_syn(old.clone(), now);
    held.handle_verdict(attempt(&old), Verdict::HostUnreachable, now);
    held.handle_syn(new, now);

    assert_eq!(held.handle_timeout(now + SWEEP_INTERVAL / 2), []);
}

#[test]
fn a_silent_target_stays_silent() {
    let (mut held, now, syn) = (HeldSyns::new(8), Instant::now(), syn(40000, 1));
    held.handle_syn(syn.clone(), now);

    assert_eq!(
        held.handle_verdict(attempt(&syn), Verdict::TimedOut, now),
        None
    );
    assert_eq!(held.handle_syn(syn, now + Duration::from_secs(1)), []);
}

#[test]
fn a_port_used_again_is_a_new_attempt() {
    let (mut held, now) = (HeldSyns::new(8), Instant::now());
    let (old, new) = (syn(40000, 1), syn(40000, 2));
    held.handle_syn(old.clone(), now);

    let actions = held.handle_syn(new.clone(), now);

    assert_eq!(
        actions,
        [Action::Cancel(attempt(&old)), Action::Dial(attempt(&new))]
    );
    assert_eq!(
        held.handle_verdict(attempt(&old), Verdict::Refused, now),
        None
    );
}

#[test]
fn a_full_table_refuses_at_once() {
    let (mut held, now) = (HeldSyns::new(1), Instant::now());
    held.handle_syn(syn(40000, 1), now);
    let second = syn(40001, 1);

    let refusal = packet::unreachable(&second, crate::verdict::HOST_UNREACHABLE);
    assert_eq!(held.handle_syn(second, now), [Action::Write(refusal)]);
}

#[test]
fn an_attempt_given_up_by_the_application_is_cancelled() {
    let (mut held, now, syn) = (HeldSyns::new(8), Instant::now(), syn(40000, 1));
    held.handle_syn(syn.clone(), now);
    let repeated = now + Duration::from_secs(8);
    held.handle_syn(syn.clone(), repeated);
    let due = repeated + Duration::from_secs(8 * 2) + ABANDONED_AFTER;

    assert_eq!(held.poll_timeout(), Some(now + SWEEP_INTERVAL));
    assert_eq!(held.handle_timeout(due - SWEEP_INTERVAL), []);
    assert_eq!(held.handle_timeout(due), [Action::Cancel(attempt(&syn))]);
    assert_eq!((held.poll_timeout(), held.dialling()), (None, 0));
}

#[test]
fn a_copy_of_an_accepted_or_refused_syn_is_not_dialled() {
    let (mut held, now) = (HeldSyns::new(8), Instant::now());
    let (accepted, refused) = (syn(40000, 1), syn(40001, 1));
    for syn in [&accepted, &refused] {
        held.handle_syn(syn.clone(), now);
    }
    held.handle_verdict(attempt(&accepted), Verdict::Connected, now);
    held.handle_accepted(accepted.flow);
    held.handle_verdict(attempt(&refused), Verdict::Refused, now);

    let again = Action::Write(packet::reset(&refused));
    assert_eq!(held.handle_syn(accepted, now), []);
    assert_eq!(held.handle_syn(refused, now), [again]);
}

#[test]
fn attempts_that_are_over_neither_pile_up_nor_take_room() {
    let (mut held, now) = (HeldSyns::new(2), Instant::now());

    for port in 1..100 {
        let syn = syn(port, 1);
        assert_eq!(
            held.handle_syn(syn.clone(), now),
            [Action::Dial(attempt(&syn))]
        );
        held.handle_verdict(attempt(&syn), Verdict::Refused, now);
    }

    assert_eq!((held.held.len(), held.waiting), (2, 0));
}

#[test]
fn the_end_of_the_session_resets_only_whoever_waits() {
    let (mut held, now) = (HeldSyns::new(8), Instant::now());
    let (over, waiting) = (syn(40000, 1), syn(40001, 1));
    for syn in [&over, &waiting] {
        held.handle_syn(syn.clone(), now);
    }
    held.handle_verdict(attempt(&over), Verdict::Refused, now);

    assert_eq!(held.reset_all(), [packet::reset(&waiting)]);
    assert_eq!(held.poll_timeout(), None);
}
