//! Errors of loading and attaching the programs and of using their maps.

use std::io;

use thiserror::Error;

/// Loading or attaching the programs failed.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The loader was built without the programs.
    #[error("this build carries no eBPF object; build it with `cargo xtask ebpf` first")]
    NoObject,
    /// The kernel does not take the maps or the object.
    #[error("the kernel refuses the eBPF object")]
    Object(#[from] Box<aya::EbpfError>),
    /// The kernel does not load or attach a program.
    #[error("the kernel refuses the program {program}")]
    Program {
        /// The name of the program in the object.
        program: &'static str,
        /// The kernel's error.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// The kernel's verifier, or a limit, keeps a program from being loaded.
    #[error("the kernel does not load the program {program}")]
    Rejected {
        /// The name of the program in the object.
        program: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
        /// What the verifier has to say, in many lines.
        log: String,
    },
    /// The object is of another version.
    #[error("the eBPF object lacks {name}")]
    Missing {
        /// The name of the program.
        name: &'static str,
    },
    /// An interface takes no filters.
    #[error("cannot prepare {interface} for programs")]
    Interface {
        /// The name of the interface.
        interface: String,
        /// The kernel's error.
        #[source]
        source: Box<aya::programs::tc::TcError>,
    },
    /// A map could not be set up.
    #[error("cannot set up a map")]
    Map(#[from] MapError),
}

/// An operation on a map failed.
#[derive(Debug, Error)]
pub enum MapError {
    /// The kernel does not carry out an operation on a map, or it is of another kind.
    #[error("map {name} does not work")]
    Aya {
        /// The name of the map in the object.
        name: &'static str,
        /// The kernel's error.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// The object is of another version.
    #[error("map {name} is missing")]
    Missing {
        /// The name of the map in the object.
        name: &'static str,
    },
    /// The descriptor of a map cannot be duplicated, frozen or mapped into memory.
    #[error("map {name} cannot be handed out")]
    Descriptor {
        /// The name of the map in the object.
        name: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

/// The kernel's type information lacks what the programs need.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The file is missing or cannot be read.
    #[error(
        "cannot read the kernel's type information at /sys/kernel/btf/vmlinux, which takes a kernel \
         with CONFIG_DEBUG_INFO_BTF and, in a container, the kernel's /sys"
    )]
    Read(#[from] io::Error),
    /// The file has another format than BTF.
    #[error("the kernel's type information is malformed")]
    Malformed,
    /// The running kernel has another structure.
    #[error("the kernel's type information lacks {member} of struct {structure}")]
    Missing {
        /// The name of the struct.
        structure: &'static str,
        /// The name of the member.
        member: &'static str,
    },
}
