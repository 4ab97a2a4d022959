//! Programs for the kernel that choose among the sockets of a list (`struct inet_diag_bc_op`).

use std::net::Ipv4Addr;

use super::AF_INET;

const INET_DIAG_BC_JMP: u8 = 1;
const INET_DIAG_BC_S_COND: u8 = 7;
const INET_DIAG_BC_D_COND: u8 = 8;

const JUMP_LEN: usize = 4;
/// `struct inet_diag_bc_op` and `struct inet_diag_hostcond`, without an address.
const CONDITION_LEN: usize = 12;
const ANY_PORT: i32 = -1;

/// An end of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Of the socket itself.
    Own = 0,
    /// Of whom it is connected to.
    Peer = 1,
}

/// What one end of a socket has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// This address, also in the IPv4-mapped form.
    Address(Ipv4Addr),
    /// This port.
    Port(u16),
}

/// Chooses sockets that meet one of the conditions; without any, all.
#[derive(Debug, Clone, Default)]
pub struct SocketFilter(Vec<(End, Condition)>);

impl SocketFilter {
    /// Conditions of one filter: few enough that its jumps fit into 16 bits.
    pub const MAX: usize = 1024;

    /// Of at most [`MAX`](Self::MAX) conditions.
    pub fn any_of(end: End, conditions: impl IntoIterator<Item = Condition>) -> Self {
        let conditions: Vec<_> = conditions.into_iter().map(|it| (end, it)).collect();
        assert!(conditions.len() <= Self::MAX, "more conditions than fit");

        Self(conditions)
    }

    /// A chain of conditions. If one holds, the jump after it leads to the end of the program, which
    /// accepts. If not, it leads to the next condition; the last one leads beyond the end, which
    /// refuses.
    pub(super) fn program(&self) -> Vec<u8> {
        let lengths = self
            .0
            .iter()
            .map(|(_, condition)| condition.len() + JUMP_LEN);
        let total = lengths.sum::<usize>().saturating_sub(JUMP_LEN);
        let mut program = Vec::with_capacity(total);
        for (n, (end, condition)) in self.0.iter().enumerate() {
            if n > 0 {
                let to_end = u16::try_from(total - program.len()).expect("MAX fit");
                program.extend([INET_DIAG_BC_JMP, JUMP_LEN as u8]);
                program.extend(to_end.to_ne_bytes());
            }
            condition.append(*end, &mut program);
        }

        program
    }
}

impl Condition {
    fn len(self) -> usize {
        match self {
            Self::Address(_) => CONDITION_LEN + 4,
            Self::Port(_) => CONDITION_LEN,
        }
    }

    fn append(self, end: End, program: &mut Vec<u8>) {
        let code = match end {
            End::Own => INET_DIAG_BC_S_COND,
            End::Peer => INET_DIAG_BC_D_COND,
        };
        program.extend([code, self.len() as u8]);
        program.extend(((self.len() + JUMP_LEN) as u16).to_ne_bytes());
        match self {
            Self::Address(address) => {
                program.extend([AF_INET, 32, 0, 0]);
                program.extend(ANY_PORT.to_ne_bytes());
                program.extend(address.octets());
            }
            Self::Port(port) => {
                program.extend([0; 4]);
                program.extend(i32::from(port).to_ne_bytes());
            }
        }
    }
}
