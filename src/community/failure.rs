//! Why a link to a Community server was not opened, and what follows from it.
//!
//! | failure | whose fault | the client is sent | the server, if a client's link failed | the server, if a check failed |
//! |---|---|---|---|---|
//! | [`ConnectError::System`], [`ConnectError::NotLookedUp`] | this machine's | server is full | unchanged | unchanged |
//! | [`ConnectError::NotResolved`] | the server's | cannot connect | down | down |
//! | [`ConnectError::Unreachable`] | the server's | cannot connect | down | down |
//! | [`ConnectError::TimedOut`], [`ConnectError::LookupTimedOut`] | the server's | not responding | down | down |
//! | [`ConnectError::Trunk`] | the server's | cannot connect, or not responding | down | down |
//! | [`HandshakeError::System`] | this machine's | server is full | unchanged | unchanged |
//! | [`OpenError::LeadsBack`] | the configuration's | cannot connect | suspect and down | suspect and down |
//! | the other [`HandshakeError`]s | the server's, or the client's | not responding | suspect | suspect and down |
//!
//! A client's Handshake that stays unanswered may be the client's fault: an invalid Handshake, for example. So it only
//! makes the server suspect, and the check with this program's own Handshake decides.

use std::{fmt, io, net::SocketAddr, time::Duration};

use rustix::io::Errno;

use crate::{
    net::{
        connect::{ConnectFailure, FailedAttempt, Unconnected},
        lookup::LookupError,
        shortage::is_shortage,
    },
    stream::LinkFailure,
    trunk::TrunkError,
};

/// No connection to a server was made.
#[derive(Debug)]
pub(super) enum ConnectError {
    /// Descriptors, memory or local ports have run out.
    System(Unconnected),
    /// Descriptors or memory have run out, so that the server's name was not looked up.
    NotLookedUp(LookupError),
    /// The server's name has no address that can be used.
    NotResolved(LookupError),
    /// The server refused the connection, or no network leads to it.
    Unreachable(Unconnected),
    /// An address of the server was silent until the system, or this program, gave up waiting.
    TimedOut(Unconnected),
    /// The trunk to the server has no stream for the client.
    Trunk(TrunkError),
    /// Its name was not looked up within `community.connect_timeout`, which is this long.
    LookupTimedOut(Duration),
}

/// A connection was made, and the Handshake on it was not answered.
#[derive(Debug)]
pub(super) enum HandshakeError {
    /// This machine's memory has run out.
    System(io::Error),
    /// The server closed the connection.
    Closed,
    /// The connection broke.
    Broken(io::Error),
    /// The server did not answer within `community.handshake_timeout`, which is this long.
    NoAnswer(Duration),
}

/// No link was opened.
#[derive(Debug)]
pub(super) enum OpenError {
    /// No connection was made.
    Connect(ConnectError),
    /// The Handshake was not answered.
    Handshake(HandshakeError),
    /// The server leads back to this program: a probe came back from this address.
    LeadsBack(SocketAddr),
}

/// What a failure means for the health of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    /// It did not answer a Handshake.
    pub(super) is_suspect: bool,
    /// It is down.
    pub(super) is_down: bool,
}

impl Verdict {
    const UNCHANGED: Self = Self { is_suspect: false, is_down: false };
    const SUSPECT: Self = Self { is_suspect: true, is_down: false };
    const DOWN: Self = Self { is_suspect: false, is_down: true };
    const SUSPECT_AND_DOWN: Self = Self { is_suspect: true, is_down: true };
}

impl OpenError {
    /// What the client is sent if no other server accepts it.
    pub(super) fn link_failure(&self) -> LinkFailure {
        match self {
            _ if self.is_of_this_machine() => LinkFailure::System,
            Self::Connect(
                ConnectError::TimedOut(_)
                | ConnectError::LookupTimedOut(_)
                | ConnectError::Trunk(TrunkError::TimedOut(_)),
            )
            | Self::Handshake(_) => LinkFailure::NotResponding,
            Self::Connect(_) | Self::LeadsBack(_) => LinkFailure::CannotConnect,
        }
    }

    /// What it means for the server when the link was for a client.
    pub(super) fn verdict_of_client(&self) -> Verdict {
        match self {
            _ if self.is_of_this_machine() => Verdict::UNCHANGED,
            Self::Connect(_) => Verdict::DOWN,
            Self::Handshake(_) => Verdict::SUSPECT,
            Self::LeadsBack(_) => Verdict::SUSPECT_AND_DOWN,
        }
    }

    /// Whether this machine lacked something. Such a failure says nothing about the server.
    fn is_of_this_machine(&self) -> bool {
        matches!(
            self,
            Self::Connect(ConnectError::System(_) | ConnectError::NotLookedUp(_))
                | Self::Handshake(HandshakeError::System(_))
        )
    }

    /// Whether the server closed at the Handshake, which may be the fault of the client that sent it.
    pub(super) fn is_close(&self) -> bool {
        matches!(self, Self::Handshake(HandshakeError::Closed | HandshakeError::Broken(_)))
    }

    /// What it means for the server when it was a check.
    pub(super) fn verdict_of_check(&self) -> Verdict {
        match self {
            _ if self.is_of_this_machine() => Verdict::UNCHANGED,
            Self::Connect(_) | Self::LeadsBack(_) => self.verdict_of_client(),
            Self::Handshake(_) => Verdict::SUSPECT_AND_DOWN,
        }
    }
}

fn has_code(error: &io::Error, codes: &[Errno]) -> bool {
    error.raw_os_error().is_some_and(|code| codes.contains(&Errno::from_raw_os_error(code)))
}

impl From<ConnectFailure> for ConnectError {
    fn from(failure: ConnectFailure) -> Self {
        match failure {
            ConnectFailure::NotResolved(error @ LookupError::Shortage(_)) => Self::NotLookedUp(error),
            ConnectFailure::NotResolved(error) => Self::NotResolved(error),
            ConnectFailure::LookupTimedOut(within) => Self::LookupTimedOut(within),
            ConnectFailure::Unconnected(all) => Self::of_addresses(all),
        }
    }
}

impl ConnectError {
    /// The connection to `address` failed as soon as it was made.
    pub(super) fn at_once(address: SocketAddr, error: io::Error) -> Self {
        let attempts = vec![FailedAttempt { address, error: Some(error) }];
        Self::of_addresses(Unconnected { attempts, within: Duration::ZERO })
    }

    /// The failure behind those of all addresses. If this machine lacks something, the server is not known.
    fn of_addresses(all: Unconnected) -> Self {
        let is_lacking = |attempt: &FailedAttempt| attempt.error.as_ref().is_some_and(is_shortage);
        // No local port is left. With several addresses it may also be that this machine has no address of the family.
        let has_no_port = |attempt: &FailedAttempt| {
            attempt.error.as_ref().is_some_and(|error| has_code(error, &[Errno::ADDRNOTAVAIL]))
        };
        let is_silent =
            |attempt: &FailedAttempt| attempt.error.as_ref().is_none_or(|error| has_code(error, &[Errno::TIMEDOUT]));
        if all.attempts.iter().any(is_lacking) || all.attempts.iter().all(has_no_port) {
            Self::System(all)
        } else if all.attempts.iter().any(is_silent) {
            Self::TimedOut(all)
        } else {
            Self::Unreachable(all)
        }
    }
}

/// The system's error of a socket that is connected.
impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        if is_shortage(&error) { Self::System(error) } else { Self::Broken(error) }
    }
}

impl From<ConnectError> for OpenError {
    fn from(error: ConnectError) -> Self {
        Self::Connect(error)
    }
}

impl From<HandshakeError> for OpenError {
    fn from(error: HandshakeError) -> Self {
        Self::Handshake(error)
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(all) | Self::Unreachable(all) | Self::TimedOut(all) => all.fmt(f),
            Self::NotLookedUp(error) | Self::NotResolved(error) => error.fmt(f),
            Self::Trunk(error) => error.fmt(f),
            Self::LookupTimedOut(within) => {
                write!(f, "its name was not resolved within {}", humantime::format_duration(*within))
            }
        }
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(error) | Self::Broken(error) => error.fmt(f),
            Self::Closed => f.write_str("closed before it answered the Handshake"),
            Self::NoAnswer(within) => {
                write!(f, "no answer to the Handshake within {}", humantime::format_duration(*within))
            }
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => error.fmt(f),
            Self::Handshake(error) => error.fmt(f),
            Self::LeadsBack(from) => {
                write!(f, "it leads back to this program itself: a Handshake of a check came back from {from}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITHIN: Duration = Duration::from_secs(5);

    /// Addresses with these errors; `None`: silent.
    fn addresses(errors: &[Option<Errno>]) -> OpenError {
        let address = SocketAddr::from(([192, 0, 2, 1], 1533));
        let attempts = errors.iter().map(|errno| FailedAttempt { address, error: errno.map(io::Error::from) });
        let all = Unconnected { attempts: attempts.collect(), within: WITHIN };
        ConnectError::from(ConnectFailure::Unconnected(all)).into()
    }

    fn connect(errno: Errno) -> OpenError {
        addresses(&[Some(errno)])
    }

    fn handshake(errno: Errno) -> OpenError {
        HandshakeError::from(io::Error::from(errno)).into()
    }

    fn lookup(error: LookupError) -> OpenError {
        ConnectError::from(ConnectFailure::NotResolved(error)).into()
    }

    #[test]
    fn a_failure_has_the_consequences_of_the_table() {
        use LinkFailure::{CannotConnect, NotResponding, System};
        let [unchanged, suspect] = [Verdict::UNCHANGED, Verdict::SUSPECT];
        let [down, both] = [Verdict::DOWN, Verdict::SUSPECT_AND_DOWN];
        for (error, failure, of_client, of_check) in [
            (connect(Errno::MFILE), System, unchanged, unchanged),
            (connect(Errno::ADDRNOTAVAIL), System, unchanged, unchanged),
            (connect(Errno::CONNREFUSED), CannotConnect, down, down),
            (connect(Errno::HOSTUNREACH), CannotConnect, down, down),
            (connect(Errno::TIMEDOUT), NotResponding, down, down),
            (addresses(&[None]), NotResponding, down, down),
            (addresses(&[Some(Errno::CONNREFUSED), None]), NotResponding, down, down),
            (addresses(&[Some(Errno::CONNREFUSED), Some(Errno::MFILE)]), System, unchanged, unchanged),
            (addresses(&[Some(Errno::ADDRNOTAVAIL), Some(Errno::CONNREFUSED)]), CannotConnect, down, down),
            (ConnectError::LookupTimedOut(WITHIN).into(), NotResponding, down, down),
            (HandshakeError::NoAnswer(WITHIN).into(), NotResponding, suspect, both),
            (HandshakeError::Closed.into(), NotResponding, suspect, both),
            (OpenError::LeadsBack(SocketAddr::from(([192, 0, 2, 1], 4000))), CannotConnect, both, both),
            (handshake(Errno::CONNRESET), NotResponding, suspect, both),
            (handshake(Errno::NOBUFS), System, unchanged, unchanged),
            (handshake(Errno::NOMEM), System, unchanged, unchanged),
            (lookup(LookupError::NoAddress("name not known".to_owned())), CannotConnect, down, down),
            (lookup(LookupError::Shortage("too many open files".to_owned())), System, unchanged, unchanged),
        ] {
            assert_eq!(error.link_failure(), failure, "{error:?}");
            assert_eq!(error.verdict_of_client(), of_client, "{error:?}");
            assert_eq!(error.verdict_of_check(), of_check, "{error:?}");
        }
    }

    #[test]
    fn the_log_names_the_time_that_was_waited() {
        let within = Duration::from_millis(200);
        assert_eq!(ConnectError::LookupTimedOut(within).to_string(), "its name was not resolved within 200ms");
        assert_eq!(HandshakeError::NoAnswer(within).to_string(), "no answer to the Handshake within 200ms");
    }
}
