use std::{
    ffi::c_void,
    net::{IpAddr, TcpListener},
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    ptr, thread,
};

use rustix::{
    mm::{MapFlags, ProtFlags, mmap, munmap},
    net::{Shutdown, SocketFlags, shutdown},
    time::{ClockId, clock_gettime},
};
use tp_agent_api::{
    AgentReply, AgentRequest, LeaseState, MAX_PORTS, PROTOCOL, PodIds, PortLease, RedirectFds,
    RedirectedPort,
};
use tp_packet::{MAX_PACKET, receive, send};

use crate::stage::{ID, UID, is_soon, serve};

const TABLE_LEN: usize = MAX_PORTS * 16;

/// A connection to the program.
pub(crate) struct Connected(OwnedFd);

/// A redirect, most often with its listeners served.
pub(crate) struct Redirected {
    pub(crate) number: u64,
    leases: Vec<PortLease>,
    listeners: Vec<TcpListener>,
    table: *mut c_void,
}

// SAFETY: the memory is shared with the kernel anyway, and lives as long as the value.
unsafe impl Sync for Redirected {}

impl Connected {
    /// Waits for the program to listen.
    pub(crate) fn to(path: &Path) -> Self {
        let socket = tp_packet::socket(SocketFlags::empty()).unwrap();
        assert!(is_soon(|| tp_packet::connect(&socket, path).is_ok()));

        Self(socket)
    }

    pub(crate) fn greet(&self) {
        let (version, protocol) = (String::new(), PROTOCOL);
        let (reply, _) = self.request(&AgentRequest::Hello { version, protocol });
        assert!(matches!(reply, AgentReply::Hello { .. }), "{reply:?}");
    }

    pub(crate) fn request(&self, request: &AgentRequest) -> (AgentReply, Vec<OwnedFd>) {
        self.try_request(request).expect("it replies")
    }

    /// `None` if the other end hangs up.
    pub(crate) fn try_request(&self, request: &AgentRequest) -> Option<(AgentReply, Vec<OwnedFd>)> {
        send(&self.0, request, &[]).ok()?;
        let mut buffer = vec![0; MAX_PACKET];
        let packet = receive(&self.0, &mut buffer).ok()?;
        let reply = serde_json::from_slice(packet.bytes).ok()?;

        Some((reply, packet.fds))
    }

    pub(crate) fn send(&self, request: &AgentRequest, fds: &[BorrowedFd<'_>]) {
        send(&self.0, request, fds).unwrap();
    }

    pub(crate) fn redirect(&self, ports: &[RedirectedPort], nodes: Vec<IpAddr>) -> Redirected {
        let redirected = self.redirect_unserved(ports, nodes);
        redirected.serve();

        redirected
    }

    /// One whose listeners accept nothing.
    pub(crate) fn redirect_unserved(
        &self,
        ports: &[RedirectedPort],
        nodes: Vec<IpAddr>,
    ) -> Redirected {
        let (reply, fds) = self.request(&redirect_request(ports, nodes));
        let AgentReply::Redirected { redirect, leases } = reply else {
            panic!("{reply:?}");
        };

        Redirected::new(redirect, leases, RedirectFds::from_fds(fds).unwrap())
    }
}

/// Of the container.
pub(crate) fn redirect_request(ports: &[RedirectedPort], nodes: Vec<IpAddr>) -> AgentRequest {
    AgentRequest::Redirect {
        pod: PodIds {
            uid: UID.into(),
            containers: vec![ID.into()],
            addresses: Vec::new(),
        },
        ports: ports.to_vec(),
        nodes,
    }
}

impl Redirected {
    fn new(number: u64, leases: Vec<PortLease>, fds: RedirectFds) -> Self {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let table = unsafe {
            mmap(
                ptr::null_mut(),
                TABLE_LEN,
                protection,
                flags,
                &fds.leases,
                0,
            )
        };
        let listeners: Vec<TcpListener> = [Some(fds.listener4), fds.listener6]
            .into_iter()
            .flatten()
            .map(TcpListener::from)
            .collect();

        Self {
            number,
            leases,
            listeners,
            table: table.unwrap(),
        }
    }

    fn serve(&self) {
        for listener in &self.listeners {
            listener.set_nonblocking(false).unwrap();
            let listener = listener.try_clone().unwrap();
            thread::spawn(move || {
                serve(&listener, |client| {
                    let port = client.local_addr().unwrap().port();
                    format!("workstation {} {port}", client.peer_addr().unwrap().ip())
                });
            });
        }
    }

    /// Ends the listeners.
    pub(crate) fn close(&self) {
        for listener in &self.listeners {
            let _ = shutdown(listener, Shutdown::Both);
        }
    }

    pub(crate) fn renew_all(&self, state: LeaseState) {
        for lease in &self.leases {
            self.renew(lease.index, state, 0);
        }
    }

    /// Writes a lease that was renewed now, or so many seconds from now.
    pub(crate) fn renew(&self, index: u32, state: LeaseState, seconds: i64) {
        let now = clock_gettime(ClockId::Boottime);
        let renewed = (now.tv_sec + seconds) as u64 * 1_000_000_000 + now.tv_nsec as u64;
        assert!((index as usize) < MAX_PORTS);
        // SAFETY: an element of the table, which is mapped as long as `self` lives.
        unsafe {
            let lease = self.table.cast::<u64>().add(index as usize * 2);
            lease.add(1).cast::<u32>().write_volatile(state as u32);
            lease.write_volatile(renewed);
        }
    }
}

impl Drop for Redirected {
    fn drop(&mut self) {
        // Ends their threads.
        self.close();
        // SAFETY: mapped above, with this length; no reference into it is kept.
        let _ = unsafe { munmap(self.table, TABLE_LEN) };
    }
}
