//! What the tunnel returns for a request.

use std::{fmt, ops::Deref};

use bytes::Bytes;

use crate::{
    limits::budget::HeldBytes,
    telemetry::outcome::{Outcome, Refusal, Sent, TunnelOutcome},
};

/// What the tunnel returns for a request. Its HTTP status follows from its outcome.
#[derive(Debug)]
pub enum TunnelResponse {
    /// A response of a session, with the tunnel's body.
    Body(TunnelBody, TunnelOutcome),
    /// There is no room for a new session.
    Refused(Refusal, TunnelOutcome),
    /// The request failed.
    Failed(TunnelOutcome),
}

impl TunnelResponse {
    /// What the request came to, for the metrics.
    pub fn outcome(&self) -> TunnelOutcome {
        let (Self::Body(_, outcome) | Self::Refused(_, outcome) | Self::Failed(outcome)) = self;
        *outcome
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        status(self.outcome())
    }

    /// The reason that a response with status 503 gives to the client.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Refused(refusal, _) => refusal.name(),
            Self::Body(_, outcome) | Self::Failed(outcome) => outcome.name(),
        }
    }
}

/// The HTTP status of a request with this outcome.
pub fn status(outcome: TunnelOutcome) -> u16 {
    match outcome.policy().sent {
        Sent::Status(status) => status,
        // No outcome of the tunnel is of this kind, as the test below shows.
        _ => 500,
    }
}

/// The body of a response. If it is long, the budget counts it until it has been written.
pub struct TunnelBody {
    bytes: Vec<u8>,
    held: Option<HeldBytes>,
}

impl TunnelBody {
    /// A body that `held` counts for as long as it exists.
    pub(in crate::ingress) fn counted(bytes: Vec<u8>, held: HeldBytes) -> Self {
        Self { bytes, held: Some(held) }
    }
}

/// A body has what is said in chats, the name of a session and its token, so no log shows it.
impl fmt::Debug for TunnelBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

/// A body that the budget does not count.
impl From<Vec<u8>> for TunnelBody {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, held: None }
    }
}

impl From<TunnelBody> for Bytes {
    fn from(body: TunnelBody) -> Self {
        if body.held.is_none() { body.bytes.into() } else { Self::from_owner(body) }
    }
}

impl AsRef<[u8]> for TunnelBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Deref for TunnelBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::budget::Budget;

    #[test]
    fn every_outcome_has_a_status() {
        for outcome in TunnelOutcome::ALL {
            assert!(matches!(outcome.policy().sent, Sent::Status(sent) if sent == status(*outcome)), "{outcome}");
        }
    }

    #[test]
    fn a_refused_client_gets_the_reason_of_the_refusal() {
        let refused = TunnelResponse::Refused(Refusal::TunnelSessions, TunnelOutcome::Full);
        assert_eq!((refused.status(), refused.reason()), (503, "tunnel_sessions"));
        let busy = TunnelResponse::Failed(TunnelOutcome::Busy);
        assert_eq!((busy.status(), busy.reason()), (503, "busy"));
    }

    #[test]
    fn a_body_is_counted_until_its_last_copy_is_dropped() {
        let budget = Budget::new(100, 0, &[]);
        let mut held = HeldBytes::none(&budget, [127, 0, 0, 1].into());
        assert!(held.grow(3));
        let bytes = Bytes::from(TunnelBody::counted(b"abc".to_vec(), held));
        let copy = bytes.clone();
        assert_eq!(format!("{:?}", TunnelBody::from(b"abc".to_vec())), "3 bytes", "and not what is said");
        drop(bytes);
        assert_eq!((&copy[..], budget.held()), (&b"abc"[..], 3));
        drop(copy);
        assert_eq!(budget.held(), 0);
    }
}
