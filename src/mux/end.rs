//! How sessions end: one name each, for log and metrics, and a reason for the client.

use std::fmt;

use super::admission::Order;
use crate::wire::{frame::Fault, reason::Reason};

/// Why a session is over.
#[derive(Debug)]
pub(super) enum End {
    /// The client logged out.
    LogOut,
    /// The client closed without a word.
    ClientClosed,
    /// The client's connection broke.
    ClientBroken(std::io::Error),
    /// The Community closed.
    CommunityClosed,
    /// The link to the Community broke.
    CommunityBroken(std::io::Error),
    /// The client closed before its first frame was over.
    NoHandshake,
    /// The client's first frame is no Handshake.
    NotAHandshake(u16),
    /// The client's first frame did not come in time.
    LoginTimeout,
    /// The client sent a frame that is none.
    ClientFault(Fault),
    /// The Community sent a frame that is none.
    CommunityFault(Fault),
    /// The tunnel's client has not asked for too long.
    SessionTimeout,
    /// One side closed, the other did not follow.
    HalfClosed,
    /// No Community server took the client.
    NoCommunity(Reason, String),
    /// The first frame is long, and there is no room to collect it.
    HeldBytes,
    /// Told from outside.
    Ordered(Order),
}

impl End {
    /// The name in log and metrics.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::LogOut => "log_out",
            Self::ClientClosed => "client_closed",
            Self::ClientBroken(_) => "client_broken",
            Self::CommunityClosed => "community_closed",
            Self::CommunityBroken(_) => "community_broken",
            Self::NoHandshake => "no_handshake",
            Self::NotAHandshake(_) => "not_a_handshake",
            Self::LoginTimeout => "login_timeout",
            Self::ClientFault(Fault::TooLong { .. }) => "frame_too_long",
            Self::ClientFault(Fault::TooShort { .. }) => "frame_too_short",
            Self::CommunityFault(_) => "community_fault",
            Self::SessionTimeout => "session_timeout",
            Self::HalfClosed => "half_closed",
            Self::NoCommunity(..) => "no_community",
            Self::HeldBytes => "held_bytes",
            Self::Ordered(Order::Idle) => "idle",
            Self::Ordered(Order::NotLoggedIn) => "not_logged_in",
            Self::Ordered(Order::Drain) => "drained",
        }
    }

    /// What the client is told before the close; `None` where it left itself, is out of
    /// reach, or was told by the Community.
    pub(super) fn reason(&self) -> Option<Reason> {
        match self {
            Self::LogOut
            | Self::ClientClosed
            | Self::ClientBroken(_)
            | Self::CommunityClosed
            | Self::NoHandshake
            | Self::SessionTimeout
            | Self::HalfClosed => None,
            Self::CommunityBroken(_) | Self::CommunityFault(_) | Self::Ordered(Order::Drain) => {
                Some(Reason::ConnectionBroken)
            }
            Self::NotAHandshake(_) | Self::ClientFault(Fault::TooShort { .. }) => Some(Reason::ProtocolError),
            Self::ClientFault(Fault::TooLong { .. }) => Some(Reason::MessageTooLarge),
            Self::LoginTimeout | Self::Ordered(Order::NotLoggedIn) => Some(Reason::TimedOut),
            Self::NoCommunity(reason, _) => Some(*reason),
            Self::HeldBytes => Some(Reason::ServerFull),
            Self::Ordered(Order::Idle) => Some(Reason::IdleTooLong),
        }
    }

    /// Whether the client may still be reading what the Community has said last.
    pub(super) fn lingers(&self) -> bool {
        matches!(self, Self::CommunityClosed | Self::LogOut)
    }

    /// Whether the client was never served: counted as refused.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::NoCommunity(..)
                | Self::NotAHandshake(_)
                | Self::LoginTimeout
                | Self::ClientFault(_)
                | Self::HeldBytes
                | Self::Ordered(Order::Idle | Order::NotLoggedIn)
        )
    }

    /// An end that an admin may want to look into.
    pub(super) fn is_trouble(&self) -> bool {
        matches!(self, Self::NoCommunity(..) | Self::CommunityBroken(_) | Self::CommunityFault(_))
    }

    /// What there is to say beyond the name, if there is anything.
    pub(super) fn detail(&self) -> Option<&dyn fmt::Display> {
        match self {
            Self::ClientBroken(_)
            | Self::CommunityBroken(_)
            | Self::ClientFault(_)
            | Self::CommunityFault(_)
            | Self::NotAHandshake(_)
            | Self::NoCommunity(..) => Some(self),
            _ => None,
        }
    }
}

/// What [`End::detail`] says.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientBroken(error) | Self::CommunityBroken(error) => error.fmt(f),
            Self::ClientFault(fault) | Self::CommunityFault(fault) => fault.fmt(f),
            Self::NotAHandshake(kind) => write!(f, "the first message is of type {kind:#06x}"),
            Self::NoCommunity(_, detail) => f.write_str(detail),
            _ => Ok(()),
        }
    }
}
