//! The state of a connection, which the session reports as text.

use tp_proto::local::Status;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionState {
    Connecting,
    Connected,
    Reconnecting,
    Disconnected,
    /// A state of a newer session: a session exists, no more is known.
    Other,
}

impl ConnectionState {
    const NAMED: [(&str, Self); 4] = [
        ("connecting", Self::Connecting),
        ("connected", Self::Connected),
        ("reconnecting", Self::Reconnecting),
        (Self::DISCONNECTED, Self::Disconnected),
    ];
    /// The printed name.
    pub(crate) const DISCONNECTED: &str = "disconnected";

    pub(crate) fn of(status: &Status) -> Self {
        let named = Self::NAMED.iter().find(|(name, _)| *name == status.state);

        named.map_or(Self::Other, |(_, state)| *state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(state: &str) -> ConnectionState {
        ConnectionState::of(&Status {
            state: state.into(),
            ..Status::default()
        })
    }

    #[test]
    fn states_are_read_as_the_session_tells_them() {
        assert_eq!(parsed("connecting"), ConnectionState::Connecting);
        assert_eq!(parsed("connected"), ConnectionState::Connected);
        assert_eq!(parsed("reconnecting"), ConnectionState::Reconnecting);
        assert_eq!(parsed("disconnected"), ConnectionState::Disconnected);
    }

    #[test]
    fn a_state_of_a_newer_session_is_neither_connected_nor_disconnected() {
        assert_eq!(parsed("suspended"), ConnectionState::Other);
        assert_eq!(parsed(""), ConnectionState::Other);
    }
}
