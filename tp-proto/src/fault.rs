//! A failure as shown to the user: one sentence and a kind that decides the exit code.

use std::fmt;

/// What kind of failure this is. The numbers are the documented exit codes of `tp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Anything without a code of its own.
    Failed = 1,
    /// A flag or an argument is wrong (as clap has it).
    Usage = 2,
    /// The command needs a session and there is none.
    NotConnected = 3,
    /// Connected already, with other options.
    AlreadyConnected = 4,
    /// tp is not installed in the cluster.
    NotInstalled = 5,
    /// API server, root daemon or tunnel out of reach (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// Something is starting or overloaded; the same command may succeed later (`EX_TEMPFAIL`).
    TemporaryFailure = 75,
    /// The user lacks a permission (`EX_NOPERM`).
    NoPermission = 77,
    /// The kubeconfig, or something it names, is wrong (`EX_CONFIG`).
    Config = 78,
}

impl FaultKind {
    const ALL: [Self; 9] = [
        Self::Failed,
        Self::Usage,
        Self::NotConnected,
        Self::AlreadyConnected,
        Self::NotInstalled,
        Self::Unavailable,
        Self::TemporaryFailure,
        Self::NoPermission,
        Self::Config,
    ];

    /// The process exit code.
    pub fn exit_code(self) -> u8 {
        self as u8
    }

    /// The kind with this exit code.
    pub fn from_exit_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.exit_code() == code)
    }
}

/// One sentence for a person: what failed, which thing, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Decides the exit code.
    pub kind: FaultKind,
    /// The sentence, without a full stop.
    pub message: String,
}

const KIND_KEY: &str = "tp-fault";

impl Fault {
    /// A fault of this kind with this sentence.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

/// Returns whether the other side sent a fault, as opposed to a broken connection.
pub fn is_fault(status: &tonic::Status) -> bool {
    status.metadata().contains_key(KIND_KEY)
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for tonic::Status {
    fn from(fault: Fault) -> Self {
        let mut status = Self::failed_precondition(fault.message);
        status
            .metadata_mut()
            .insert(KIND_KEY, u16::from(fault.kind.exit_code()).into());
        status
    }
}

impl From<tonic::Status> for Fault {
    fn from(status: tonic::Status) -> Self {
        let kind = status
            .metadata()
            .get(KIND_KEY)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.parse().ok())
            .and_then(FaultKind::from_exit_code);
        match kind {
            Some(kind) => Self::new(kind, status.message()),
            None if status.code() == tonic::Code::Unavailable => Self::new(
                FaultKind::Unavailable,
                format!("the session does not answer: {}", status.message()),
            ),
            None => Self::new(FaultKind::Failed, status.message()),
        }
    }
}

/// An error and its causes in one line, each said once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let cause = source.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        next = source.source();
    }

    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_survives_the_wire() {
        for kind in FaultKind::ALL {
            let fault = Fault::new(kind, "context \"x\" does not exist; known: y");

            assert_eq!(Fault::from(tonic::Status::from(fault.clone())), fault);
        }
    }
}
