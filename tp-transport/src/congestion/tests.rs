//! The controller on simulated paths, and what it does when the path in use changes.

use std::time::Duration;

use super::*;

mod bars;
mod quic;
mod sim;
mod tcp;
mod wire;

#[test]
fn the_window_is_fixed_on_the_stream_and_starts_small_on_udp() {
    let (epoch, mut controller, now) = controller();

    assert_eq!(controller.window(), STREAM_WINDOW);
    epoch.switch(PathKind::Udp);
    controller.on_sent(now, 1200, 1);
    assert!(controller.window() <= 12_000, "{}", controller.window());
    epoch.switch(PathKind::Stream);
    assert_eq!(controller.window(), STREAM_WINDOW);
}

#[test]
fn a_loss_on_the_stream_is_no_congestion() {
    let (_, mut controller, now) = controller();

    controller.on_congestion_event(now, now, true, 1 << 20);

    assert_eq!(controller.window(), STREAM_WINDOW);
}

#[test]
fn what_was_sent_before_a_switch_says_nothing_of_the_path_after_it() {
    let (epoch, mut controller, before) = controller();
    controller.on_sent(before, 1 << 20, 1);
    epoch.switch(PathKind::Udp);
    let switched = before + Duration::from_millis(1);
    controller.on_sent(switched, 1200, 2);
    let mut controller = path_aware(controller);

    let now = switched + Duration::from_millis(1);
    controller.acked(now, before, 1 << 20);
    controller.on_end_acks(now, 8 << 20, false, Some(1));
    controller.on_congestion_event(now, before, true, 1 << 20);

    assert_eq!(controller.window(), controller.initial_window());
    let udp = controller.udp.as_ref().unwrap();
    assert_eq!(udp.in_flight(), 1200, "of the path after the switch alone");
}

#[test]
fn an_address_that_the_client_moved_to_starts_small_before_anybody_says_which_path_it_is() {
    let epoch = Arc::new(PathEpoch::default());
    let now = Instant::now();
    let factory = Arc::new(PathAwareFactory::new(Arc::clone(&epoch)));
    let first = Arc::clone(&factory).build(now, 1200);

    let mut moved = path_aware(factory.build(now, 1200));

    assert_eq!(first.window(), STREAM_WINDOW);
    assert!(moved.window() <= 12_000, "{}", moved.window());
    // Acknowledged, and still not reported as UDP: another stream.
    moved.acked(now, now, 1200);
    assert_eq!(moved.window(), STREAM_WINDOW);
}

#[test]
fn switches_are_counted() {
    let epoch = PathEpoch::default();

    epoch.switch(PathKind::Udp);
    epoch.switch(PathKind::Stream);
    epoch.switch(PathKind::Udp);

    assert_eq!((epoch.switches(), epoch.path()), (3, PathKind::Udp));
}

fn controller() -> (Arc<PathEpoch>, Box<dyn Controller>, Instant) {
    let epoch = Arc::new(PathEpoch::default());
    let now = Instant::now();
    let factory = Arc::new(PathAwareFactory::new(Arc::clone(&epoch)));

    (epoch, factory.build(now, 1200), now)
}

fn path_aware(controller: Box<dyn Controller>) -> Box<PathAware> {
    controller.into_any().downcast().unwrap()
}
