//! One line of `tp check`, which `tp` and the session make alike.

use crate::local::Check;

impl Check {
    /// Something is as it should be.
    pub fn ok(name: &str, message: impl Into<String>) -> Self {
        Self::new(name, "ok", message.into(), "")
    }

    /// Something works less well than it could, or for some programs only.
    pub fn warning(name: &str, message: impl Into<String>, remedy: &str) -> Self {
        Self::new(name, "warning", message.into(), remedy)
    }

    /// `tp connect` fails, or cluster traffic does not flow.
    pub fn failed(name: &str, message: impl Into<String>, remedy: &str) -> Self {
        Self::new(name, "failed", message.into(), remedy)
    }

    /// Tells whether this is a failure, and not a warning.
    pub fn has_failed(&self) -> bool {
        self.state == "failed"
    }

    fn new(name: &str, state: &str, message: String, remedy: &str) -> Self {
        Self {
            name: name.to_owned(),
            state: state.to_owned(),
            message,
            remedy: remedy.to_owned(),
        }
    }
}
