//! The established TCP connections of this thread's network namespace.

use std::{io, net::IpAddr};

use tp_sock_diag::{
    AF_INET, AF_INET6, ANY_SOCKET, Condition, DiagMessage, End, INET_DIAG_MARK, IPPROTO_TCP,
    SockDiag, SocketFilter, SocketId, SocketQuery, TCP_ESTABLISHED, is_unknown,
};

/// A connection of a socket that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Established {
    family: u8,
    id: SocketId,
    pub(crate) port: u16,
    pub(crate) peer: IpAddr,
    /// Of its socket.
    pub(crate) mark: u32,
}

/// A socket to ask by.
pub(crate) struct Diag(SockDiag);

impl Diag {
    pub(crate) fn open() -> io::Result<Self> {
        SockDiag::open().map(Self)
    }

    /// Shows `each` the connections to these local ports.
    pub(crate) fn list(&self, ports: &[u16], mut each: impl FnMut(Established)) -> io::Result<()> {
        if ports.is_empty() {
            return Ok(());
        }
        for family in [AF_INET, AF_INET6] {
            let query = SocketQuery {
                family,
                protocol: IPPROTO_TCP,
                states: 1 << TCP_ESTABLISHED,
                id: ANY_SOCKET,
                filter: SocketFilter::any_of(End::Own, ports.iter().copied().map(Condition::Port)),
            };
            let listed = self.0.list(&query, |socket| {
                established(&socket).into_iter().for_each(&mut each);
            });
            match listed {
                // A kernel without IPv6.
                Err(error) if family == AF_INET6 && is_unknown(&error) => {}
                listed => listed?,
            }
        }

        Ok(())
    }

    /// Resets a connection; returns whether it was still there.
    pub(crate) fn destroy(&self, connection: &Established) -> io::Result<bool> {
        let Established { family, id, .. } = connection;
        match self.0.destroy(*family, IPPROTO_TCP, id) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// `None` also without a mark, which the kernel tells to whoever may end the connection.
fn established(socket: &DiagMessage<'_>) -> Option<Established> {
    let mark = socket.attribute(INET_DIAG_MARK)?;

    Some(Established {
        family: socket.family(),
        id: socket.id(),
        port: socket.end(End::Own)?.port(),
        peer: socket.end(End::Peer)?.ip(),
        mark: u32::from_ne_bytes(mark.try_into().ok()?),
    })
}
