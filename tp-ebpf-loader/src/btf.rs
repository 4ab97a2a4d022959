//! Finds the offsets of fields of tasks and sockets in the type information (BTF) of the running
//! kernel.

use std::fs;

use tp_ebpf_common::KernelOffsets;

use crate::error::BtfError;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const HEADER_LEN: usize = 24;

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

/// Levels of anonymous structs and unions, more than any kernel nests.
const MAX_DEPTH: usize = 8;

/// Reads the offsets from the type information of the running kernel, which Linux has since 5.4 if it
/// was built with CONFIG_DEBUG_INFO_BTF.
///
/// # Errors
///
/// [`BtfError`]: the information cannot be read or understood, or lacks one of the members.
pub fn kernel_offsets() -> Result<KernelOffsets, BtfError> {
    parse_offsets(&fs::read(VMLINUX)?)
}

fn parse_offsets(bytes: &[u8]) -> Result<KernelOffsets, BtfError> {
    let btf = Btf::parse(bytes)?;
    let task = btf.members_of("task_struct")?;
    let cred = btf.members_of("cred")?;
    let user_ns = btf.members_of("user_namespace")?;
    let hook = btf.members_of("bpf_sock_addr_kern")?;
    let datagram = btf.members_of("ipcm_cookie")?;
    let source_to_interface = datagram
        .offset("oif")?
        .checked_sub(datagram.offset("addr")?)
        .ok_or(BtfError::Malformed)?;

    Ok(KernelOffsets {
        task_flags: task.offset("flags")?,
        task_cred: task.offset("cred")?,
        task_group_leader: task.offset("group_leader")?,
        task_comm: task.offset("comm")?,
        cred_uid: cred.offset("uid")?,
        cred_euid: cred.offset("euid")?,
        cred_suid: cred.offset("suid")?,
        cred_fsuid: cred.offset("fsuid")?,
        cred_gid: cred.offset("gid")?,
        cred_egid: cred.offset("egid")?,
        cred_sgid: cred.offset("sgid")?,
        cred_fsgid: cred.offset("fsgid")?,
        cred_cap_permitted: cred.offset("cap_permitted")?,
        cred_user_ns: cred.offset("user_ns")?,
        user_ns_owner: user_ns.offset("owner")?,
        user_ns_inum: user_ns.offset("ns")? + btf.members_of("ns_common")?.offset("inum")?,
        hook_socket: hook.offset("sk")?,
        hook_source: hook.offset("t_ctx")?,
        source_to_interface,
        socket_unicast_interface: btf.members_of("inet_sock")?.offset("uc_index")?,
        socket_uid: btf.members_of("sock")?.offset("sk_uid")?,
        _zero: 0,
    })
}

/// One type record: its fixed words and what follows them.
#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    info: u32,
    tail: &'a [u8],
}

impl Type<'_> {
    fn kind(self) -> u32 {
        (self.info >> 24) & 0x1f
    }

    fn has_bitfields(self) -> bool {
        self.info >> 31 == 1
    }

    fn is_composite(self) -> bool {
        matches!(self.kind(), KIND_STRUCT | KIND_UNION)
    }
}

struct Btf<'a> {
    /// Index 0 is `void`, which has no record.
    types: Vec<Type<'a>>,
    strings: &'a [u8],
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        if bytes.len() < HEADER_LEN || bytes[..2] != MAGIC.to_le_bytes() {
            return Err(BtfError::Malformed);
        }
        let header_len = word(bytes, 4)? as usize;
        let section = |offset: usize, len: usize| {
            let start = header_len.checked_add(offset)?;
            bytes.get(start..start.checked_add(len)?)
        };
        let types = section(word(bytes, 8)? as usize, word(bytes, 12)? as usize)
            .ok_or(BtfError::Malformed)?;
        let strings = section(word(bytes, 16)? as usize, word(bytes, 20)? as usize)
            .ok_or(BtfError::Malformed)?;

        Ok(Self {
            types: read_types(types)?,
            strings,
        })
    }

    fn name(&self, offset: u32) -> &'a [u8] {
        let rest = self.strings.get(offset as usize..).unwrap_or_default();

        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    fn members_of(&self, structure: &'static str) -> Result<Members<'_>, BtfError> {
        self.types
            .iter()
            .copied()
            .find(|t| t.kind() == KIND_STRUCT && self.name(t.name) == structure.as_bytes())
            .map(|of| Members {
                btf: self,
                structure,
                of,
            })
            .ok_or(BtfError::Missing {
                structure,
                member: "its definition",
            })
    }

    fn find(&self, of: Type<'a>, wanted: &[u8], depth: usize) -> Result<Option<u32>, BtfError> {
        if depth == 0 {
            return Ok(None);
        }
        for at in (0..of.tail.len()).step_by(12) {
            let name = self.name(word(of.tail, at)?);
            let raw = word(of.tail, at + 8)?;
            let bits = if of.has_bitfields() {
                raw & 0x00ff_ffff
            } else {
                raw
            };
            if name == wanted {
                return Ok(Some(bits));
            }
            if !name.is_empty() {
                continue;
            }
            let id = word(of.tail, at + 4)? as usize;
            let inner = *self.types.get(id).ok_or(BtfError::Malformed)?;
            if !inner.is_composite() {
                continue;
            }
            if let Some(inside) = self.find(inner, wanted, depth - 1)? {
                return Ok(Some(bits + inside));
            }
        }

        Ok(None)
    }
}

struct Members<'a> {
    btf: &'a Btf<'a>,
    structure: &'static str,
    of: Type<'a>,
}

impl Members<'_> {
    /// Returns the offset of a member in bytes.
    fn offset(&self, member: &'static str) -> Result<u32, BtfError> {
        let bits = self.btf.find(self.of, member.as_bytes(), MAX_DEPTH)?;

        bits.map(|bits| bits / 8).ok_or(BtfError::Missing {
            structure: self.structure,
            member,
        })
    }
}

fn read_types(bytes: &[u8]) -> Result<Vec<Type<'_>>, BtfError> {
    let mut types = vec![Type {
        name: 0,
        info: 0,
        tail: &[],
    }];
    let mut at = 0;
    while at < bytes.len() {
        let name = word(bytes, at)?;
        let info = word(bytes, at + 4)?;
        let len = tail_len(info);
        let tail = bytes
            .get(at + 12..at + 12 + len)
            .ok_or(BtfError::Malformed)?;
        types.push(Type { name, info, tail });
        at += 12 + len;
    }

    Ok(types)
}

fn tail_len(info: u32) -> usize {
    let count = (info & 0xffff) as usize;
    match (info >> 24) & 0x1f {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * count,
        KIND_ENUM | KIND_FUNC_PROTO => 8 * count,
        _ => 0,
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, BtfError> {
    let bytes = bytes.get(at..at + 4).ok_or(BtfError::Malformed)?;

    Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_also_inside_an_anonymous_struct() {
        let bytes = sample();

        let offsets = parse_offsets(&bytes).unwrap();

        assert_eq!(offsets.task_flags, 4);
        assert_eq!(offsets.task_cred, 16 + 8);
        assert_eq!(offsets.cred_fsuid, 32);
        assert_eq!(offsets.user_ns_inum, 16 + 24);
        assert_eq!(offsets.source_to_interface, 4);
        assert_eq!(offsets.socket_uid, 52);
    }

    #[test]
    fn truncated_type_information_is_an_error() {
        let bytes = sample();

        for len in 0..bytes.len() {
            assert!(parse_offsets(&bytes[..len]).is_err(), "length {len}");
        }
    }

    /// `task_struct { pad; flags; struct { pad; cred }; .. }`, and the others with their members.
    fn sample() -> Vec<u8> {
        let mut strings = vec![0];
        let mut string = |s: &str| {
            let at = strings.len() as u32;
            strings.extend(s.bytes().chain([0]));
            at
        };
        let mut types: Vec<u32> = Vec::new();
        let structure = |name: u32, members: &[(u32, u32, u32)]| {
            let mut words = vec![name, KIND_STRUCT << 24 | members.len() as u32, 64];
            for (name, id, bytes) in members {
                words.extend([*name, *id, bytes * 8]);
            }
            words
        };
        // 1: int
        types.extend([string("int"), KIND_INT << 24, 4, 32]);
        // 2: the anonymous struct
        types.extend(structure(
            0,
            &[(string("pad"), 1, 0), (string("cred"), 1, 8)],
        ));
        let plain: [(&str, &[(&str, u32)]); 7] = [
            (
                "cred",
                &[
                    ("uid", 8),
                    ("gid", 12),
                    ("suid", 16),
                    ("sgid", 20),
                    ("euid", 24),
                    ("egid", 28),
                    ("fsuid", 32),
                    ("fsgid", 36),
                    ("cap_permitted", 40),
                    ("user_ns", 48),
                ],
            ),
            ("user_namespace", &[("owner", 4), ("ns", 16)]),
            ("ns_common", &[("inum", 24)]),
            ("bpf_sock_addr_kern", &[("sk", 0), ("t_ctx", 24)]),
            ("ipcm_cookie", &[("addr", 16), ("oif", 20)]),
            ("inet_sock", &[("uc_index", 48)]),
            ("sock", &[("sk_uid", 52)]),
        ];
        for (name, members) in plain {
            let members: Vec<_> = members
                .iter()
                .map(|(name, bytes)| (string(name), 1, *bytes))
                .collect();
            types.extend(structure(string(name), &members));
        }
        let members = [
            (string("pad"), 1, 0),
            (string("flags"), 1, 4),
            (0, 2, 16),
            (string("group_leader"), 1, 40),
            (string("comm"), 1, 48),
        ];
        types.extend(structure(string("task_struct"), &members));

        let type_bytes: Vec<u8> = types.iter().flat_map(|w| w.to_le_bytes()).collect();
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        let header = [
            HEADER_LEN as u32,
            0,
            type_bytes.len() as u32,
            type_bytes.len() as u32,
            strings.len() as u32,
        ];
        bytes.extend(header.iter().flat_map(|w| w.to_le_bytes()));
        bytes.extend(type_bytes);
        bytes.extend(strings);
        bytes
    }
}
