//! The tasks that drive a server's connections, each with as much memory as fits its path.
//!
//! quinn keeps, for each connection, a buffer for the most datagrams that its socket takes at once
//! (quinn 0.11.12, `State::send_buffer`): 90 KB with the large datagrams of a byte stream. quinn asks
//! the socket for that number whenever it drives a connection, but does not say which, so the task
//! notes it here. A client has one connection, and keeps that buffer for its speed.

use std::{
    cell::Cell,
    io,
    net::UdpSocket,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};

/// Datagrams in one transmit to a byte stream.
const BY_STREAM_SEGMENTS: usize = 1;

thread_local! {
    /// True if the last datagram of the connection that is being driven went to a byte stream.
    static BY_STREAM: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Notes whether the connection that is being driven sends to a byte stream.
pub(super) fn sends_by_stream(by_stream: bool) {
    if BY_STREAM.get().is_some() {
        BY_STREAM.set(Some(by_stream));
    }
}

/// Datagrams in one transmit of the connection that is being driven, at most `most`.
pub(super) fn segments(most: usize) -> usize {
    match BY_STREAM.get() {
        Some(true) => BY_STREAM_SEGMENTS,
        Some(false) | None => most,
    }
}

/// tokio's runtime, with a note for each task of QUIC whether it sends to a byte stream.
#[derive(Debug)]
pub(crate) struct Drivers;

impl Runtime for Drivers {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        TokioRuntime.spawn(Box::pin(Driver {
            future,
            // Every connection begins on a byte stream.
            by_stream: true,
        }));
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

struct Driver {
    future: Pin<Box<dyn Future<Output = ()> + Send>>,
    by_stream: bool,
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let turn = Turn::begin(self.by_stream);
        let polled = self.future.as_mut().poll(cx);
        self.by_stream = turn.end();

        polled
    }
}

/// One connection's poll on this thread; ends also when it panics.
struct Turn;

impl Turn {
    fn begin(by_stream: bool) -> Self {
        BY_STREAM.set(Some(by_stream));
        Self
    }

    /// Returns whether the last datagram went to a byte stream.
    fn end(self) -> bool {
        BY_STREAM.get().unwrap_or(true)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        BY_STREAM.set(None);
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use super::*;

    /// A task that says which path it uses, and what it may send at once the next time.
    fn driver(by_stream: &'static [bool]) -> Driver {
        let mut turns = by_stream.iter();
        let mut expected = BY_STREAM_SEGMENTS;
        Driver {
            future: Box::pin(poll_fn(move |_| {
                assert_eq!(segments(10), expected);
                let Some(by_stream) = turns.next() else {
                    return Poll::Ready(());
                };
                sends_by_stream(*by_stream);
                expected = if *by_stream { BY_STREAM_SEGMENTS } else { 10 };
                Poll::Pending
            })),
            by_stream: true,
        }
    }

    #[test]
    fn each_connection_sends_as_much_at_once_as_its_own_path_is_for() {
        let mut drivers = [
            driver(&[true, false, false, true]),
            driver(&[false, false, true, true]),
        ];
        let mut cx = Context::from_waker(Waker::noop());

        for _ in 0..4 {
            for driver in &mut drivers {
                assert!(Pin::new(driver).poll(&mut cx).is_pending());
            }
        }
        for driver in &mut drivers {
            assert!(Pin::new(driver).poll(&mut cx).is_ready());
        }
        sends_by_stream(true);
        assert_eq!(segments(10), 10, "of a client");
    }
}
