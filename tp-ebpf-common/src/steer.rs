//! Keys and values of the maps that say what is steered.

/// Value of the longest prefix that matches a destination.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SteerAction {
    /// Sockets to the destination are left alone.
    Exclude = 0,
    /// Sockets to the destination are steered.
    Include = 1,
}

/// A name server, the key of the map of name servers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameServer {
    /// In network order; IPv4 in its mapped form (`::ffff:a.b.c.d`).
    pub address: [u8; 16],
    /// In network order.
    pub port: [u8; 2],
    _zero: [u8; 2],
}

impl NameServer {
    /// The key for an IPv6 address, or one in the mapped form, and a port, both in network order.
    pub const fn new(address: [u8; 16], port: [u8; 2]) -> Self {
        Self {
            address,
            port,
            _zero: [0; 2],
        }
    }

    /// The key for an IPv4 address and a port, both in network order.
    #[inline(always)]
    pub const fn v4(a: [u8; 4], port: [u8; 2]) -> Self {
        let address = [
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3],
        ];

        Self::new(address, port)
    }
}

const _: () = assert!(size_of::<NameServer>() == 20);
