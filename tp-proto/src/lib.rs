//! What crosses the boundary of a process: protobuf messages and services, the custom resources, and
//! the faults that become exit codes. The packets of the root daemon are in `tp-root-api`.
//!
//! Compatibility: clients and managers one minor version apart work together. Fields are added,
//! never renumbered or given another meaning; an unknown field or enum value must be harmless.
//!
//! A fault keeps its kind, which is the exit code of `tp`, across a gRPC status:
//!
//! ```
//! use tp_proto::fault::{Fault, FaultKind};
//!
//! let fault = Fault::new(FaultKind::NotInstalled, "tp is not installed: run `tp install`");
//! let status = tonic::Status::from(fault.clone());
//!
//! assert_eq!(Fault::from(status), fault);
//! assert_eq!(fault.kind.exit_code(), 5);
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod allow;
mod check;
mod codec;
pub mod crd;
pub mod fault;
pub mod grant;
pub mod table;
pub mod version;

/// An agent and a traffic manager, over TLS.
pub mod agent {
    #![expect(missing_docs, reason = "generated")]
    tonic::include_proto!("tp.agent.v1");

    impl std::fmt::Debug for Control {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Control").finish_non_exhaustive()
        }
    }

    impl std::fmt::Debug for EnvironPart {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("EnvironPart")
                .field("number", &self.number)
                .field("is_last", &self.is_last)
                .field("refusal", &self.refusal)
                .finish_non_exhaustive()
        }
    }

    impl std::fmt::Debug for Welcome {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Welcome")
                .field("version", &self.version)
                .field("refusal", &self.refusal)
                .finish_non_exhaustive()
        }
    }
}

/// `tp` and its session, over a unix socket.
pub mod local {
    #![expect(
        missing_docs,
        unused_qualifications,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        clippy::clone_on_ref_ptr,
        clippy::large_enum_variant,
        clippy::too_many_lines,
        reason = "generated"
    )]
    tonic::include_proto!("tp.local.v1");

    impl std::fmt::Debug for EnvironmentResponse {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("EnvironmentResponse")
                .field("pod", &self.pod)
                .field("container", &self.container)
                .finish_non_exhaustive()
        }
    }

    impl std::fmt::Debug for NewFile {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("NewFile")
                .field("path", &self.path)
                .finish_non_exhaustive()
        }
    }

    impl std::fmt::Debug for Shell {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Shell").finish_non_exhaustive()
        }
    }
}

/// A session and the traffic manager, over the tunnel.
pub mod tunnel {
    #![expect(
        missing_docs,
        unused_qualifications,
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        clippy::clone_on_ref_ptr,
        clippy::too_many_lines,
        reason = "generated"
    )]
    tonic::include_proto!("tp.tunnel.v1");

    impl std::fmt::Debug for EnvironmentResponse {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("EnvironmentResponse")
                .field("pod", &self.pod)
                .field("container", &self.container)
                .finish_non_exhaustive()
        }
    }
}
