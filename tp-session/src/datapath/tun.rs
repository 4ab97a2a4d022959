//! The TUN in the private namespace: whole IPv4 packets, one per read or write.

use std::{
    fs::File,
    io::{self, Read, Write},
    sync::Arc,
};

use tokio::io::unix::AsyncFd;

use crate::sys::{self, INPUT_OR_ERROR};

/// The TUN; clones share it.
#[derive(Clone)]
pub(crate) struct Tun(Arc<AsyncFd<File>>);

impl Tun {
    pub(super) fn new(file: File) -> io::Result<Self> {
        Ok(Self(Arc::new(sys::watched(file)?)))
    }

    /// Writes one packet. A full queue loses it, as any network does: the sender repeats.
    pub(crate) fn write(&self, packet: &[u8]) {
        if let Err(error) = self.0.get_ref().write(packet) {
            tracing::debug!(%error, "Packet lost on its way to the TUN");
        }
    }

    /// Waits for the next packet; returns its length.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0
            .async_io(INPUT_OR_ERROR, |mut file| file.read(buffer))
            .await
    }

    /// The length of the next packet, if there is one already.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> Option<usize> {
        self.0.get_ref().read(buffer).ok()
    }
}
