//! Why loading, attaching or speaking to the programs did not work.

use std::io;

use thiserror::Error;

#[derive(Debug, Error)]
pub enum LoadError {
    #[error("this build carries no eBPF object; build it with `cargo xtask ebpf` first")]
    NoObject,
    #[error("the kernel refuses the eBPF object")]
    Object(#[from] Box<aya::EbpfError>),
    #[error("the kernel refuses the program {program}")]
    Program {
        program: &'static str,
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    #[error("the eBPF object lacks {name}")]
    Missing { name: &'static str },
    #[error("cannot prepare {interface} for programs")]
    Interface {
        interface: String,
        #[source]
        source: Box<aya::programs::tc::TcError>,
    },
    #[error("cannot set up a map")]
    Map(#[from] MapError),
}

#[derive(Debug, Error)]
pub enum MapError {
    #[error("map {name} does not work")]
    Aya {
        name: &'static str,
        #[source]
        source: Box<aya::maps::MapError>,
    },
    #[error("map {name} is missing")]
    Missing { name: &'static str },
    #[error("map {name} cannot be handed out")]
    Descriptor {
        name: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{count} entries do not fit into map {name}, which takes {limit}")]
    TooMany {
        name: &'static str,
        count: usize,
        limit: usize,
    },
}

#[derive(Debug, Error)]
pub enum BtfError {
    #[error(
        "cannot read the kernel's type information at /sys/kernel/btf/vmlinux, which takes a kernel \
         with CONFIG_DEBUG_INFO_BTF and, in a container, the kernel's /sys"
    )]
    Read(#[from] io::Error),
    #[error("the kernel's type information is malformed")]
    Malformed,
    #[error("the kernel's type information lacks {member} of struct {structure}")]
    Missing {
        structure: &'static str,
        member: &'static str,
    },
}
