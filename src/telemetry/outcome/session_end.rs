//! Which end of a session is a refusal.

use super::{Refusal, SessionEnd};

impl SessionEnd {
    /// The refusal that this end counts as when no Community server ever had the client; `None`: it is no refusal.
    pub fn refusal(self) -> Option<Refusal> {
        match self {
            Self::NoCommunity => Some(Refusal::NoCommunity),
            Self::Shortage => Some(Refusal::Shortage),
            Self::Loop => Some(Refusal::Loop),
            Self::NotAHandshake => Some(Refusal::NotAHandshake),
            Self::LoginTimeout => Some(Refusal::LoginTimeout),
            Self::FrameTooLong => Some(Refusal::FrameTooLong),
            Self::FrameTooShort => Some(Refusal::FrameTooShort),
            Self::HeldBytes => Some(Refusal::HeldBytes),
            Self::Idle => Some(Refusal::Idle),
            Self::NotLoggedIn => Some(Refusal::NotLoggedIn),
            Self::LogOut
            | Self::ClientClosed
            | Self::ClientBroken
            | Self::CommunityClosed
            | Self::CommunityBroken
            | Self::CommunityFault
            | Self::CommunityTooSlow
            | Self::NoHandshake
            | Self::SessionTimeout
            | Self::HalfClosed
            | Self::Drained
            | Self::ServerDrained => None,
        }
    }
}
