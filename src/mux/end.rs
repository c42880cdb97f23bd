//! How sessions end: one name each, for log and metrics, and a reason for the client.

use std::fmt;

use super::admission::Order;
use crate::{
    telemetry::outcome::{Outcome, Sent, SessionEnd},
    wire::{frame::FrameError, reason::Reason},
};

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
    ClientFault(FrameError),
    /// The Community sent a frame that is none.
    CommunityFault(FrameError),
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
    /// As it is counted and logged.
    pub(super) fn outcome(&self) -> SessionEnd {
        match self {
            Self::LogOut => SessionEnd::LogOut,
            Self::ClientClosed => SessionEnd::ClientClosed,
            Self::ClientBroken(_) => SessionEnd::ClientBroken,
            Self::CommunityClosed => SessionEnd::CommunityClosed,
            Self::CommunityBroken(_) => SessionEnd::CommunityBroken,
            Self::NoHandshake => SessionEnd::NoHandshake,
            Self::NotAHandshake(_) => SessionEnd::NotAHandshake,
            Self::LoginTimeout => SessionEnd::LoginTimeout,
            Self::ClientFault(FrameError::TooLong { .. }) => SessionEnd::FrameTooLong,
            Self::ClientFault(FrameError::TooShort { .. }) => SessionEnd::FrameTooShort,
            Self::CommunityFault(_) => SessionEnd::CommunityFault,
            Self::SessionTimeout => SessionEnd::SessionTimeout,
            Self::HalfClosed => SessionEnd::HalfClosed,
            Self::NoCommunity(..) => SessionEnd::NoCommunity,
            Self::HeldBytes => SessionEnd::HeldBytes,
            Self::Ordered(Order::Idle) => SessionEnd::Idle,
            Self::Ordered(Order::NotLoggedIn) => SessionEnd::NotLoggedIn,
            Self::Ordered(Order::Drain) => SessionEnd::Drained,
        }
    }

    /// The reason of the farewell message; `None`: there is none to send.
    pub(super) fn reason(&self) -> Option<Reason> {
        match (self, self.outcome().policy().sent) {
            (Self::NoCommunity(reason, _), Sent::LinkFailure) => Some(*reason),
            (_, Sent::Farewell(reason)) => Some(reason),
            _ => None,
        }
    }

    /// Whether the client may still be reading what the Community has said last.
    pub(super) fn lingers(&self) -> bool {
        matches!(self, Self::CommunityClosed | Self::LogOut)
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
