//! How sessions end. [`End`] has the cause; its types separate the client's fault, the Community's fault, a limit of
//! this program, and an order from outside. [`End::outcome`] maps every cause to one [`SessionEnd`], and everything
//! else (who is to blame, log level, what the client is sent) is in the table of [`SessionEnd::policy`].
//!
//! [`SessionEnd::policy`]: crate::telemetry::outcome::Outcome::policy

use std::{fmt, io};

use rustix::io::Errno;

use super::admission::SessionOrder;
use crate::{
    net::shortage::is_shortage,
    stream::{LinkError, LinkFailure, StreamError},
    telemetry::outcome::{Outcome, Sent, SessionEnd},
    wire::{frame::FrameError, reason::Reason},
};

/// One of the two sides of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The client.
    Client,
    /// The Community server.
    Community,
}

impl Side {
    /// The other side.
    pub(super) fn other(self) -> Self {
        match self {
            Self::Client => Self::Community,
            Self::Community => Self::Client,
        }
    }
}

/// Why a session is over.
#[derive(Debug)]
pub(super) enum End {
    /// One side ended it, without a fault.
    Orderly(OrderlyEnd),
    /// The client's fault.
    Client(ClientFault),
    /// The Community server's fault.
    Community(CommunityFault),
    /// No link was opened: the fault of all servers, of this machine, or of the configuration.
    NoLink(LinkError),
    /// A stream failed, because this machine lacks descriptors or memory.
    Shortage(io::Error),
    /// A limit of this program.
    Limit(LimitReached),
    /// An order from outside the session.
    Ordered(SessionOrder),
}

/// An end without a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OrderlyEnd {
    /// The client logged out.
    LogOut,
    /// The client closed without a farewell message.
    ClientClosed,
    /// The Community server closed.
    CommunityClosed,
    /// One side closed, and the other neither followed nor accepted what was left for it.
    HalfClosed,
}

/// What a client did wrong.
#[derive(Debug)]
pub(super) enum ClientFault {
    /// Its connection broke.
    Broken(io::Error),
    /// It closed before its first frame was complete.
    NoHandshake,
    /// Its first frame is a message of this type, and not a Handshake.
    NotAHandshake(u16),
    /// Its first frame did not arrive in time.
    LoginTimeout,
    /// It sent an invalid frame.
    Frame(FrameError),
    /// Over the tunnel, it sent no request for too long.
    SessionTimeout,
}

/// What a Community server did wrong.
#[derive(Debug)]
pub(super) enum CommunityFault {
    /// The link broke.
    Broken(io::Error),
    /// It sent an invalid frame.
    Frame(FrameError),
    /// It took nothing of what a streaming client sent.
    TooSlow,
}

/// A limit of this program that ended a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LimitReached {
    /// The first frame is long, and `limits.held_bytes` has no room for it.
    HeldBytes,
}

/// Whether the peer closed, although without TLS's close_notify. It counts as an orderly end of the stream: it is
/// common among clients, and since frames have lengths, no part of a message can be cut off without notice.
pub(super) fn is_truncation(error: &io::Error) -> bool {
    StreamError::of(error) == Some(StreamError::Truncated)
}

/// Whether a failed write shows that the peer had closed before. Any other error, such as a reset, shows that the
/// connection broke.
pub(super) fn is_after_close(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| Errno::from_raw_os_error(code) == Errno::PIPE)
}

impl ClientFault {
    /// The fault behind an error of the client's stream.
    pub(super) fn of_stream(error: io::Error) -> Self {
        match StreamError::of(&error) {
            Some(StreamError::SessionTimeout) => Self::SessionTimeout,
            _ => Self::Broken(error),
        }
    }
}

impl End {
    /// The outcome that is counted and logged.
    pub(super) fn outcome(&self) -> SessionEnd {
        match self {
            Self::Orderly(OrderlyEnd::LogOut) => SessionEnd::LogOut,
            Self::Orderly(OrderlyEnd::ClientClosed) => SessionEnd::ClientClosed,
            Self::Orderly(OrderlyEnd::CommunityClosed) => SessionEnd::CommunityClosed,
            Self::Orderly(OrderlyEnd::HalfClosed) => SessionEnd::HalfClosed,
            Self::Client(ClientFault::Broken(_)) => SessionEnd::ClientBroken,
            Self::Client(ClientFault::NoHandshake) => SessionEnd::NoHandshake,
            Self::Client(ClientFault::NotAHandshake(_)) => SessionEnd::NotAHandshake,
            Self::Client(ClientFault::LoginTimeout) => SessionEnd::LoginTimeout,
            Self::Client(ClientFault::Frame(FrameError::TooLong { .. })) => SessionEnd::FrameTooLong,
            Self::Client(ClientFault::Frame(FrameError::TooShort { .. })) => SessionEnd::FrameTooShort,
            Self::Client(ClientFault::SessionTimeout) => SessionEnd::SessionTimeout,
            Self::Community(CommunityFault::Broken(_)) => SessionEnd::CommunityBroken,
            Self::Community(CommunityFault::Frame(_)) => SessionEnd::CommunityFault,
            Self::Community(CommunityFault::TooSlow) => SessionEnd::CommunityTooSlow,
            Self::NoLink(LinkError { failure: LinkFailure::Loop, .. }) => SessionEnd::Loop,
            Self::NoLink(LinkError { failure: LinkFailure::System, .. }) | Self::Shortage(_) => SessionEnd::Shortage,
            Self::NoLink(_) => SessionEnd::NoCommunity,
            Self::Limit(LimitReached::HeldBytes) => SessionEnd::HeldBytes,
            Self::Ordered(SessionOrder::Idle) => SessionEnd::Idle,
            Self::Ordered(SessionOrder::NotLoggedIn) => SessionEnd::NotLoggedIn,
            Self::Ordered(SessionOrder::Drain) => SessionEnd::Drained,
            Self::Ordered(SessionOrder::ServerDrain) => SessionEnd::ServerDrained,
        }
    }

    /// The end of a session whose `side` closed.
    pub(super) fn closed_by(side: Side) -> Self {
        Self::Orderly(match side {
            Side::Client => OrderlyEnd::ClientClosed,
            Side::Community => OrderlyEnd::CommunityClosed,
        })
    }

    /// The end of a session whose `side` sent a farewell message.
    pub(super) fn farewell_of(side: Side) -> Self {
        Self::Orderly(match side {
            Side::Client => OrderlyEnd::LogOut,
            Side::Community => OrderlyEnd::CommunityClosed,
        })
    }

    /// The end of a session whose stream on `side` failed.
    pub(super) fn broken(side: Side, error: io::Error) -> Self {
        match side {
            _ if is_shortage(&error) => Self::Shortage(error),
            // The client's stream knows how long the client has waited.
            Side::Client if StreamError::of(&error) == Some(StreamError::CommunityTooSlow) => {
                Self::Community(CommunityFault::TooSlow)
            }
            Side::Client => Self::Client(ClientFault::of_stream(error)),
            Side::Community => Self::Community(CommunityFault::Broken(error)),
        }
    }

    /// The end of a session in which `side` sent an invalid frame.
    pub(super) fn invalid_frame(side: Side, error: FrameError) -> Self {
        match side {
            Side::Client => Self::Client(ClientFault::Frame(error)),
            Side::Community => Self::Community(CommunityFault::Frame(error)),
        }
    }

    /// The side that caused it; `None`: neither.
    pub(super) fn side(&self) -> Option<Side> {
        match self {
            Self::Client(_) | Self::Orderly(OrderlyEnd::LogOut | OrderlyEnd::ClientClosed) => Some(Side::Client),
            Self::Community(_) | Self::Orderly(OrderlyEnd::CommunityClosed) => Some(Side::Community),
            Self::Orderly(OrderlyEnd::HalfClosed)
            | Self::NoLink(_)
            | Self::Shortage(_)
            | Self::Limit(_)
            | Self::Ordered(_) => None,
        }
    }

    /// The reason of the farewell message that the client is sent; `None`: it is sent none.
    pub(super) fn farewell(&self) -> Option<Reason> {
        match (self.outcome().policy().sent, self) {
            (Sent::Farewell(reason), _) => Some(reason),
            (Sent::LinkFailure, Self::NoLink(error)) => Some(error.failure.reason()),
            // A session has no HTTP response, and no alert.
            (Sent::LastBytes | Sent::LinkFailure | Sent::Nothing | Sent::Status(_) | Sent::TlsAlert(_), _) => None,
        }
    }

    /// For the log: the details of the cause, if it has any.
    pub(super) fn detail(&self) -> Option<&dyn fmt::Display> {
        match self {
            Self::Client(ClientFault::Broken(error))
            | Self::Community(CommunityFault::Broken(error))
            | Self::Shortage(error) => Some(error),
            Self::Client(ClientFault::Frame(error)) | Self::Community(CommunityFault::Frame(error)) => Some(error),
            Self::Client(fault @ ClientFault::NotAHandshake(_)) => Some(fault),
            Self::NoLink(error) => Some(&error.detail),
            Self::Client(ClientFault::NoHandshake | ClientFault::LoginTimeout | ClientFault::SessionTimeout)
            | Self::Community(CommunityFault::TooSlow)
            | Self::Orderly(_)
            | Self::Limit(_)
            | Self::Ordered(_) => None,
        }
    }
}

impl fmt::Display for ClientFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(error) => error.fmt(f),
            Self::NoHandshake => f.write_str("closed before the first frame was complete"),
            Self::NotAHandshake(kind) => write!(f, "the first message is of type {kind:#06x}"),
            Self::LoginTimeout => f.write_str("the first frame did not arrive in time"),
            Self::Frame(error) => error.fmt(f),
            Self::SessionTimeout => StreamError::SessionTimeout.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::outcome::Blame;

    fn broken() -> io::Error {
        io::ErrorKind::ConnectionReset.into()
    }

    /// Every cause, with who is to blame for it.
    fn causes() -> Vec<(End, Blame)> {
        let orderly =
            [OrderlyEnd::LogOut, OrderlyEnd::ClientClosed, OrderlyEnd::CommunityClosed, OrderlyEnd::HalfClosed];
        let client = [
            ClientFault::Broken(broken()),
            ClientFault::NoHandshake,
            ClientFault::NotAHandshake(4),
            ClientFault::LoginTimeout,
            ClientFault::Frame(FrameError::TooLong { length: 9, limit: 8 }),
            ClientFault::Frame(FrameError::TooShort { length: 7 }),
            ClientFault::SessionTimeout,
        ];
        let community = [
            CommunityFault::Broken(broken()),
            CommunityFault::Frame(FrameError::TooShort { length: 7 }),
            CommunityFault::TooSlow,
        ];
        let no_link = LinkError { failure: LinkFailure::CannotConnect, detail: "a:1533: refused".to_owned() };
        let mut causes: Vec<(End, Blame)> = orderly.map(|end| (End::Orderly(end), Blame::None)).into();
        causes.extend(client.map(|fault| (End::Client(fault), Blame::Client)));
        causes.extend(community.map(|fault| (End::Community(fault), Blame::Server)));
        causes.push((End::NoLink(no_link), Blame::Server));
        causes.push((End::Shortage(Errno::NOBUFS.into()), Blame::System));
        let came_back = LinkError { failure: LinkFailure::Loop, detail: "a:1533".to_owned() };
        causes.push((End::NoLink(came_back), Blame::Configuration));
        causes.push((End::Limit(LimitReached::HeldBytes), Blame::Limit));
        causes.push((End::Ordered(SessionOrder::Idle), Blame::None));
        causes.push((End::Ordered(SessionOrder::NotLoggedIn), Blame::Client));
        causes.push((End::Ordered(SessionOrder::Drain), Blame::Limit));
        causes.push((End::Ordered(SessionOrder::ServerDrain), Blame::Limit));
        causes
    }

    #[test]
    fn the_log_has_a_detail_where_there_is_one() {
        let details: Vec<String> =
            causes().iter().filter_map(|(end, _)| end.detail().map(ToString::to_string)).collect();
        assert!(details.contains(&"the first message is of type 0x0004".to_owned()), "{details:?}");
        assert!(details.contains(&"a:1533: refused".to_owned()), "{details:?}");
        assert!(details.contains(&"a frame of 9 bytes is over the limit of 8".to_owned()), "{details:?}");
        assert!(details.iter().all(|detail| !detail.is_empty()), "{details:?}");
        let faults = [ClientFault::NoHandshake, ClientFault::LoginTimeout, ClientFault::SessionTimeout];
        assert!(faults.iter().all(|fault| fault.to_string().contains(' ')));
    }

    #[test]
    fn every_outcome_has_one_cause_and_the_types_agree_with_the_table() {
        let mut outcomes = Vec::new();
        for (end, blame) in causes() {
            assert_eq!(end.outcome().policy().blame, blame, "{end:?}");
            outcomes.push(end.outcome());
        }
        outcomes.sort_unstable();
        assert_eq!(outcomes, SessionEnd::ALL);
    }

    #[test]
    fn a_failed_link_decides_the_farewell_message() {
        for (failure, reason) in [
            (LinkFailure::CannotConnect, Reason::CannotConnect),
            (LinkFailure::NotResponding, Reason::NotResponding),
            (LinkFailure::System, Reason::ServerFull),
        ] {
            let end = End::NoLink(LinkError { failure, detail: String::new() });
            assert_eq!(end.farewell(), Some(reason));
            assert_eq!(end.outcome() == SessionEnd::Shortage, failure == LinkFailure::System);
        }
        assert_eq!(End::Orderly(OrderlyEnd::LogOut).farewell(), None);
        assert_eq!(End::Client(ClientFault::SessionTimeout).farewell(), None);
        assert_eq!(End::Ordered(SessionOrder::Drain).farewell(), Some(Reason::ConnectionBroken));
    }

    #[test]
    fn errors_of_streams_are_told_apart() {
        assert!(is_truncation(&StreamError::Truncated.into()));
        assert!(!is_truncation(&broken()));
        assert!(matches!(ClientFault::of_stream(StreamError::SessionTimeout.into()), ClientFault::SessionTimeout));
        let slow = End::broken(Side::Client, StreamError::CommunityTooSlow.into());
        assert!(matches!(slow, End::Community(CommunityFault::TooSlow)));
        for side in [Side::Client, Side::Community] {
            assert!(matches!(End::broken(side, Errno::NOBUFS.into()), End::Shortage(_)), "nobody's fault");
        }
        // TCP's own time-out is a broken connection.
        let tcp = Errno::TIMEDOUT.into();
        assert!(matches!(ClientFault::of_stream(tcp), ClientFault::Broken(_)));
    }
}
