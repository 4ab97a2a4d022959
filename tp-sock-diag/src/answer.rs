//! What the kernel tells of a socket: `struct inet_diag_msg` and the attributes after it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{AF_INET, AF_INET6, End, ID_LEN, SocketId};

/// Attribute: the socket's mark, told to whoever may end it.
pub const INET_DIAG_MARK: u16 = 15;
/// Attribute: whether a socket that listens leaves IPv4 to others.
pub const INET_DIAG_SKV6ONLY: u16 = 11;

pub(super) const ANSWER_LEN: usize = 72;
pub(super) const ID_AT: usize = 4;
const UID_AT: usize = 64;
const INODE_AT: usize = 68;
pub(super) const ADDRESS_IN_ID: [usize; 2] = [4, 20];

/// A socket, as the kernel describes it.
#[derive(Debug, Clone, Copy)]
pub struct DiagMessage<'a> {
    message: &'a [u8; ANSWER_LEN],
    attributes: &'a [u8],
}

impl<'a> DiagMessage<'a> {
    /// From the body of a message; `None` if it is cut off.
    pub fn new(body: &'a [u8]) -> Option<Self> {
        let (message, attributes) = body.split_first_chunk()?;

        Some(Self {
            message,
            attributes,
        })
    }

    /// As in a [`SocketQuery`](super::SocketQuery).
    pub fn family(&self) -> u8 {
        self.message[0]
    }

    /// Such as [`TCP_LISTEN`](super::TCP_LISTEN).
    pub fn state(&self) -> u8 {
        self.message[1]
    }

    /// Names this socket, and not a later one at the same addresses.
    pub fn id(&self) -> SocketId {
        self.part::<ID_LEN>(ID_AT)
    }

    /// Address and port of that end; IPv4 in the mapped form is IPv4. `None` for another family.
    pub fn end(&self, end: End) -> Option<SocketAddr> {
        let at = ID_AT + ADDRESS_IN_ID[end as usize];
        let ip: IpAddr = match self.family() {
            AF_INET => Ipv4Addr::from(self.part::<4>(at)).into(),
            AF_INET6 => IpAddr::from(Ipv6Addr::from(self.part::<16>(at))).to_canonical(),
            _ => return None,
        };
        let port = self.part::<2>(ID_AT + 2 * end as usize);

        Some((ip, u16::from_be_bytes(port)).into())
    }

    /// Of the user who made it.
    pub fn uid(&self) -> u32 {
        u32::from_ne_bytes(self.part(UID_AT))
    }

    /// As in `/proc/PID/fd`: `socket:[INODE]`.
    pub fn inode(&self) -> u32 {
        u32::from_ne_bytes(self.part(INODE_AT))
    }

    /// What an attribute of this kind holds.
    pub fn attribute(&self, kind: u16) -> Option<&'a [u8]> {
        let mut bytes = self.attributes;
        loop {
            let half =
                |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
            let len = usize::from(half(0)?);
            let value = bytes.get(4..len)?;
            if half(2)? == kind {
                return Some(value);
            }
            bytes = bytes.get(len.next_multiple_of(4)..)?;
        }
    }

    fn part<const LEN: usize>(&self, at: usize) -> [u8; LEN] {
        self.message[at..at + LEN]
            .try_into()
            .expect("all parts are within the message")
    }
}
