//! Keys and values of the maps that say what is steered.

/// Value of the longest prefix that matches a destination.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SteerAction {
    Exclude = 0,
    Include = 1,
}

/// A name server; IPv4 in its mapped form.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameServer {
    pub address: [u8; 16],
    pub port: [u8; 2],
    _zero: [u8; 2],
}

impl NameServer {
    pub const fn new(address: [u8; 16], port: [u8; 2]) -> Self {
        Self {
            address,
            port,
            _zero: [0; 2],
        }
    }

    #[inline(always)]
    pub const fn v4(a: [u8; 4], port: [u8; 2]) -> Self {
        let address = [
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3],
        ];

        Self::new(address, port)
    }
}

const _: () = assert!(size_of::<NameServer>() == 20);
