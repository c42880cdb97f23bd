//! Whether a Community server is trusted not to lead back to this program. No I/O; time is an argument.
//!
//! A connection that comes back, over another machine or through a proxy, looks like that of any client: a Handshake that
//! many clients send. So nothing is concluded from it alone. It is the reason to probe the servers: a probe is a Handshake
//! with a random number, and if it arrives on one of this program's ports, the server leads back. That is proven then, and
//! a multiplexer in front of this one is never taken for a loop.
//!
//! ```text
//!                probed, and nothing came back
//!   unknown ──────────────────────────────────► trusted
//!      ▲                                           │
//!      └───────────────────────────────────────────┘
//!        10 s, or 100 Handshakes that a multiplexer has passed on
//! ```

use std::time::{Duration, Instant};

/// How long a server is trusted.
const TRUSTED: Duration = Duration::from_secs(10);
/// For how many Handshakes that a multiplexer has passed on. It bounds how often a loop that has just been made is gone
/// through.
const TRUSTED_FORWARDED: u32 = 100;
/// After so many Handshakes in a row without an answer, a server is probed in any case: in a loop none is answered.
const UNANSWERED: u32 = 32;

/// What a Handshake that is about to be sent to a server says about a loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// A multiplexer has passed it on, which may be this one.
    Forwarded,
    /// So many Handshakes before it have no answer yet.
    AfterUnanswered(u32),
}

/// See the module's drawing.
#[derive(Debug, Default)]
pub(super) struct Trust {
    until: Option<Instant>,
    forwarded_left: u32,
}

impl Trust {
    /// Whether a Handshake may be sent at `now` without a probe.
    pub(super) fn permits(&mut self, suspicion: Suspicion, now: Instant) -> bool {
        let is_trusted = self.until.is_some_and(|until| now < until);
        match suspicion {
            Suspicion::Forwarded if is_trusted && self.forwarded_left > 0 => {
                self.forwarded_left -= 1;
                true
            }
            Suspicion::Forwarded => false,
            Suspicion::AfterUnanswered(count) => count < UNANSWERED || is_trusted,
        }
    }

    /// The server was probed, and nothing came back.
    pub(super) fn grant(&mut self, now: Instant) {
        *self = Self { until: Some(now + TRUSTED), forwarded_left: TRUSTED_FORWARDED };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forwarded_handshake_needs_a_probe_every_ten_seconds_and_every_hundred_times() {
        let (mut trust, now) = (Trust::default(), Instant::now());
        assert!(!trust.permits(Suspicion::Forwarded, now));
        trust.grant(now);
        for _ in 0..TRUSTED_FORWARDED {
            assert!(trust.permits(Suspicion::Forwarded, now));
        }
        assert!(!trust.permits(Suspicion::Forwarded, now));
        trust.grant(now);
        assert!(trust.permits(Suspicion::Forwarded, now + TRUSTED - Duration::from_nanos(1)));
        assert!(!trust.permits(Suspicion::Forwarded, now + TRUSTED));
    }

    #[test]
    fn other_handshakes_need_one_only_when_many_have_no_answer() {
        let (mut trust, now) = (Trust::default(), Instant::now());
        assert!(trust.permits(Suspicion::AfterUnanswered(0), now));
        assert!(trust.permits(Suspicion::AfterUnanswered(UNANSWERED - 1), now));
        assert!(!trust.permits(Suspicion::AfterUnanswered(UNANSWERED), now));
        trust.grant(now);
        assert!(trust.permits(Suspicion::AfterUnanswered(5000), now));
        assert!(!trust.permits(Suspicion::AfterUnanswered(5000), now + TRUSTED));
    }
}
