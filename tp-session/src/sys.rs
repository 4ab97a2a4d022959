//! The two maps of the data path, mapped into memory, descriptors to wait for, and the kernel's
//! counters of a connection. The only unsafe code of the session.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::TcpStream,
};
use tp_core::keep_alive::Segments;

/// The readiness to wait for before reading: a deleted device, or an aborted socket, only has an error.
pub(super) const INPUT_OR_ERROR: Interest = Interest::READABLE.add(Interest::ERROR);

/// Registers a descriptor with the runtime.
pub(super) fn watched<T: AsFd + AsRawFd>(fd: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `AsFd` means that `fd` holds an open descriptor for as long as it lives, and every
    // type given here always names the same one.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// The segments that a TCP connection has received and sent; `None` if the kernel does not tell.
pub(super) fn segments(tcp: &TcpStream) -> Option<Segments> {
    /// Words of `struct tcp_info` up to the last one read here.
    const WORDS: usize = 40;

    let mut info = [0_u32; WORDS];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which has so many, and any bytes
    // make integers.
    let got = unsafe {
        libc::getsockopt(
            tcp.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if got != 0 || (length as usize) < size_of_val(&info) {
        return None;
    }

    Some(Segments {
        sent: info[34],
        received: info[35],
        data_received: info[38],
        data_sent: info[39],
    })
}

/// In bytes, of an element of the alias table.
const ADDRESS_LEN: usize = 16;

/// Aliases to real addresses, written by the kernel.
pub(super) struct AliasTable {
    map: Mapping,
    count: usize,
}

/// Between two beats of each part. The hooks let port 53 pass after 2 s without a beat.
pub(super) const BEAT_INTERVAL: Duration = Duration::from_millis(250);

/// The parts that must be alive for names to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Relay,
    Dns,
}

/// The heartbeat that the port-53 hooks read: the older of the last beats of both parts.
pub(super) struct Heartbeat {
    map: Mapping,
    relay: AtomicU64,
    dns: AtomicU64,
}

struct Mapping {
    start: *mut std::ffi::c_void,
    len: usize,
}

// SAFETY: the memory is shared with the kernel and only accessed through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: &OwnedFd, len: usize, protection: ProtFlags) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, fd, 0) }?;

        Ok(Self { start, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `start` and `len` are of a mapping made above, and no reference outlives `self`.
        let unmapped = unsafe { munmap(self.start, self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

impl AliasTable {
    pub(super) fn map(fd: &OwnedFd, count: u32) -> io::Result<Self> {
        let count = usize::try_from(count).map_err(io::Error::other)?;
        let map = Mapping::new(fd, count * ADDRESS_LEN, ProtFlags::READ)?;

        Ok(Self { map, count })
    }

    /// The address behind an alias; `None` if it is free.
    pub(super) fn real(&self, index: u32) -> Option<IpAddr> {
        let index = usize::try_from(index)
            .ok()
            .filter(|index| *index < self.count)?;
        let mut address = [0; ADDRESS_LEN];
        for (place, bytes) in address.chunks_exact_mut(size_of::<u64>()).enumerate() {
            let place = index * (ADDRESS_LEN / size_of::<u64>()) + place;
            // SAFETY: the mapping is page-aligned and holds `count` addresses.
            let word = unsafe { &*self.map.start.cast::<AtomicU64>().add(place) };
            bytes.copy_from_slice(&word.load(Ordering::Acquire).to_ne_bytes());
        }

        (address != [0; ADDRESS_LEN]).then(|| Ipv6Addr::from(address).to_canonical())
    }
}

impl Heartbeat {
    pub(super) fn map(fd: &OwnedFd) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;

        Ok(Self {
            map: Mapping::new(fd, size_of::<u64>(), protection)?,
            relay: AtomicU64::new(0),
            dns: AtomicU64::new(0),
        })
    }

    /// Notes that `part` is alive now, in CLOCK_BOOTTIME nanoseconds.
    pub(super) fn beat(&self, part: Part) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or_default();
        let (own, other) = match part {
            Part::Relay => (&self.relay, &self.dns),
            Part::Dns => (&self.dns, &self.relay),
        };
        let now = seconds * 1_000_000_000 + nanoseconds;
        own.store(now, Ordering::Release);
        let oldest = now.min(other.load(Ordering::Acquire));
        // SAFETY: the mapping is page-aligned and holds at least one word.
        let word = unsafe { &*self.map.start.cast::<AtomicU64>() };
        word.store(oldest, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use rustix::{
        fs::{MemfdFlags, ftruncate, memfd_create},
        io::pread,
    };

    use super::*;

    #[test]
    fn the_heart_beats_only_while_all_parts_live() {
        let fd = memfd_create("heartbeat", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 4096).unwrap();
        let heartbeat = Heartbeat::map(&fd).unwrap();
        let read = || {
            let mut word = [0; 8];
            pread(&fd, &mut word, 0).unwrap();
            u64::from_ne_bytes(word)
        };

        heartbeat.beat(Part::Dns);
        assert_eq!(read(), 0, "the relay has never lived");
        heartbeat.beat(Part::Relay);
        heartbeat.beat(Part::Dns);
        let last_of_relay = read();
        heartbeat.beat(Part::Dns);
        assert_eq!(read(), last_of_relay, "only DNS lives");
        heartbeat.beat(Part::Relay);

        assert!(read() > last_of_relay);
    }
}
