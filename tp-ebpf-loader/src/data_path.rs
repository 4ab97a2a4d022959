//! The programs of a machine's data path: loaded once for all sessions, attached to the cgroups
//! once and to the interfaces of each session.

use std::{
    ffi::CStr,
    mem,
    os::fd::{AsFd, BorrowedFd},
    thread,
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{
        CgroupAttachMode, CgroupSockAddr, Program, ProgramError, SchedClassifier, SkLookup,
        TcAttachType,
        cgroup_sock_addr::CgroupSockAddrLink,
        sk_lookup::SkLookupLink,
        tc,
        tc::{NlOptions, TcAttachOptions},
    },
};
use tp_ebpf_common::{KernelOffsets, ProcessName, Settings};

use crate::{LoadError, maps::Maps};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tp-ebpf.o"));

/// The programs and the names of their hooks, in the order of attachment: those that reverse aliases
/// come first, so that the alias of every steered socket can be reversed.
const CGROUP_PROGRAMS: [(&str, &str); 8] = [
    ("tp_getpeername4", "cgroup/getpeername4"),
    ("tp_getpeername6", "cgroup/getpeername6"),
    ("tp_recvmsg4", "cgroup/recvmsg4"),
    ("tp_recvmsg6", "cgroup/recvmsg6"),
    ("tp_connect4", "cgroup/connect4"),
    ("tp_connect6", "cgroup/connect6"),
    ("tp_sendmsg4", "cgroup/sendmsg4"),
    ("tp_sendmsg6", "cgroup/sendmsg6"),
];
const HOST_EGRESS: &str = "tp_host_egress";
const HOST_INGRESS: &str = "tp_host_ingress";
const VETH_INGRESS: &str = "tp_veth_ingress";
const TUN_INGRESS: &str = "tp_tun_ingress";
const LOOKUP: &str = "tp_lookup";

/// Loaded programs, their links and maps. Dropping it detaches everything but the filters, which
/// go with their interface.
///
/// | Hook | Linux | The program there |
/// |---|---|---|
/// | `cgroup/connect4`, `connect6` | 4.17 | writes the alias in place of the real address |
/// | `cgroup/sendmsg4`, `sendmsg6` | 4.18 | does so for datagrams to name servers |
/// | `cgroup/recvmsg4`, `recvmsg6` | 5.2 | shows the real address as the sender of a datagram |
/// | `cgroup/getpeername4`, `getpeername6` | 5.8 | shows the real address as the peer, and the client of an intercepted connection |
/// | `sk_lookup` | 5.9 | leads connections and datagrams for aliases to the session's sockets |
/// | `tc/ingress`, `tc/egress` | 4.5 | guards the veth, holds SYNs, checks what the session sends |
///
/// The first five are attached by links (Linux 5.7 for cgroups, 5.9 for `sk_lookup`), the last one
/// by filters of a clsact queueing discipline: TCX, which Linux has since 6.6, would end with its
/// descriptor.
pub struct DataPath {
    // Fields drop in this order: links before the programs and maps they use.
    cgroup_links: Vec<CgroupSockAddrLink>,
    maps: Maps,
    ebpf: Ebpf,
}

/// What the programs of one session hold on to beside its interfaces.
pub struct SessionLinks {
    _lookup: SkLookupLink,
}

impl DataPath {
    /// Loads the programs and makes their maps; nothing is attached yet. `exempt` is the name of
    /// processes that are never steered, at most 15 bytes; `offsets` are what
    /// [`crate::kernel_offsets`] found; depths of cgroups are counted from `hierarchy`, which is known
    /// by the number of its inode.
    ///
    /// # Errors
    ///
    /// [`LoadError`]: the kernel or this build lacks something.
    pub fn load(exempt: &CStr, offsets: KernelOffsets, hierarchy: u64) -> Result<Self, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NoObject);
        }
        let settings = Settings {
            hierarchy,
            exempt: process_name(exempt),
            offsets,
        };
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .override_global("SETTINGS", &settings, true)
            .load(OBJECT)
            .map_err(Box::new)?;
        let maps = Maps::take(&mut ebpf)?;
        load_programs(&mut ebpf)?;

        Ok(Self {
            cgroup_links: Vec::new(),
            maps,
            ebpf,
        })
    }

    /// Attaches what belongs into the private namespace `netns` of a session: `sk_lookup`, and the
    /// filters of both interfaces. The calling thread must be in it. `hooks` receives their names.
    ///
    /// # Errors
    ///
    /// [`LoadError`]: the kernel lacks something, or an interface is not there.
    pub fn attach_inner(
        &mut self,
        netns: BorrowedFd<'_>,
        veth: &str,
        tun: &str,
        hooks: &mut Vec<String>,
    ) -> Result<SessionLinks, LoadError> {
        let lookup = program::<SkLookup>(&mut self.ebpf, LOOKUP)?;
        let id = lookup.attach(netns).map_err(refused(LOOKUP))?;
        let link = lookup.take_link(id).map_err(refused(LOOKUP))?;
        hooks.push("sk_lookup".to_owned());
        add_clsact(veth)?;
        add_clsact(tun)?;
        hooks.push(self.attach_tc(VETH_INGRESS, veth, TcAttachType::Ingress)?);
        hooks.push(self.attach_tc(TUN_INGRESS, tun, TcAttachType::Ingress)?);

        Ok(SessionLinks { _lookup: link })
    }

    /// Attaches what guards the workstation's end of a veth. The calling thread must be in its
    /// namespace.
    ///
    /// # Errors
    ///
    /// Those of [`Self::attach_inner`].
    pub fn attach_host(&mut self, veth: &str, hooks: &mut Vec<String>) -> Result<(), LoadError> {
        add_clsact(veth)?;
        hooks.push(self.attach_tc(HOST_INGRESS, veth, TcAttachType::Ingress)?);
        hooks.push(self.attach_tc(HOST_EGRESS, veth, TcAttachType::Egress)?);

        Ok(())
    }

    /// Attaches what steers sockets to `cgroup`, a directory of cgroup v2: to processes in or below
    /// it. Sessions and their scopes say which sockets those are.
    ///
    /// # Errors
    ///
    /// [`LoadError::Program`]: the kernel lacks a hook, or another program excludes ours.
    pub fn attach_cgroup(&mut self, cgroup: impl AsFd) -> Result<(), LoadError> {
        for (name, _) in CGROUP_PROGRAMS {
            let program = program::<CgroupSockAddr>(&mut self.ebpf, name)?;
            let id = program
                .attach(&cgroup, CgroupAttachMode::Single)
                .map_err(refused(name))?;
            let link = program.take_link(id).map_err(refused(name))?;
            self.cgroup_links.push(link);
        }

        Ok(())
    }

    /// The hooks of cgroups, in the order of attachment: "cgroup/connect4".
    pub fn cgroup_hooks() -> impl Iterator<Item = &'static str> {
        CGROUP_PROGRAMS.iter().map(|(_, hook)| *hook)
    }

    /// The maps, to read.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The maps, to change.
    pub fn maps_mut(&mut self) -> &mut Maps {
        &mut self.maps
    }

    fn attach_tc(
        &mut self,
        name: &'static str,
        interface: &str,
        kind: TcAttachType,
    ) -> Result<String, LoadError> {
        let program = program::<SchedClassifier>(&mut self.ebpf, name)?;
        attach_filter(program, interface, kind).map_err(refused(name))?;
        let direction = match kind {
            TcAttachType::Ingress => "ingress",
            TcAttachType::Egress | TcAttachType::Custom(_) => "egress",
        };

        Ok(format!("tc/{direction} {interface}"))
    }
}

/// Attaches a filter, which lives as long as the interface: unlike a TCX link, it stays when a user
/// kills the root daemon and keeps the private namespace.
///
/// The link is forgotten: its drop would remove the filter of the interface that has this index in the
/// namespace of the dropping thread, which can be another interface.
fn attach_filter(
    program: &mut SchedClassifier,
    interface: &str,
    kind: TcAttachType,
) -> Result<(), ProgramError> {
    let options = TcAttachOptions::Netlink(NlOptions::default());
    let id = program.attach_with_options(interface, kind, options)?;
    mem::forget(program.take_link(id)?);

    Ok(())
}

/// Adds the queueing discipline for filters to a new interface.
fn add_clsact(interface: &str) -> Result<(), LoadError> {
    tc::qdisc_add_clsact(interface).map_err(|source| LoadError::Interface {
        interface: interface.to_owned(),
        source: Box::new(source),
    })
}

/// Loads all programs side by side: the kernel checks each for some ten milliseconds.
fn load_programs(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let names: Vec<&'static str> = CGROUP_PROGRAMS
        .iter()
        .map(|(name, _)| *name)
        .chain([HOST_EGRESS, HOST_INGRESS, VETH_INGRESS, TUN_INGRESS, LOOKUP])
        .collect();
    let named = |name: &str| names.iter().find(|it| **it == name).copied();
    thread::scope(|scope| {
        let threads: Vec<_> = ebpf
            .programs_mut()
            .filter_map(|(name, program)| {
                let name = named(name)?;
                let load = move || load_program(program).map_err(refused(name));
                // Without a thread it is loaded below.
                thread::Builder::new().spawn_scoped(scope, load).ok()
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("loading does not panic"))
    })?;

    for name in names {
        let program = ebpf.program_mut(name).ok_or(LoadError::Missing { name })?;
        if program.fd().is_err() {
            load_program(program).map_err(refused(name))?;
        }
    }

    Ok(())
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

pub(crate) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, LoadError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or(LoadError::Missing { name })?
        .try_into()
        .map_err(refused(name))
}

pub(crate) fn refused(program: &'static str) -> impl Fn(ProgramError) -> LoadError {
    move |source| match source {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => LoadError::Rejected {
            program,
            source: io_error,
            log: verifier_log.to_string(),
        },
        source => LoadError::Program {
            program,
            source: Box::new(source),
        },
    }
}

/// As the kernel keeps it: cut to what fits with a zero behind it.
fn process_name(name: &CStr) -> ProcessName {
    let mut padded = [0; size_of::<ProcessName>()];
    let len = name.count_bytes().min(padded.len() - 1);
    padded[..len].copy_from_slice(&name.to_bytes()[..len]);
    let (words, _) = padded.as_chunks();

    [u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])]
}
