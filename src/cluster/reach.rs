//! Whether another node can be reached. It knows no socket and no clock.
//!
//! ```text
//!             failure                    5 s of failures
//!  up ─────────────────▶ unreachable ──────────────────────▶ gone
//!  ▲  ▲                       │                                │
//!  │  └─────── success ───────┘                                │
//!  └────────────────────────── success ────────────────────────┘
//!  up ── its address refuses connections, or another program is there ──▶ gone
//! ```
//! After a failure, nothing is tried for [`PAUSE`], so that requests which come meanwhile get their response at once. A
//! node that may come back keeps its sessions: its clients repeat their requests. One that is gone has lost them.

use std::time::{Duration, Instant};

/// How long nothing is tried after a failure.
pub const PAUSE: Duration = Duration::from_millis(500);
/// After so long without a connection the node is gone.
pub const GONE_AFTER: Duration = Duration::from_secs(5);

/// Whether the node can be reached, as far as it is known.
#[derive(Debug, Default)]
pub struct Reach {
    failing: Option<Failing>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    retry_at: Instant,
    /// Whether the last failure shows that the node's sessions are lost.
    is_final: bool,
    error: String,
}

impl Reach {
    /// Whether a connection may be tried.
    pub fn may_try(&self, now: Instant) -> bool {
        self.failing.as_ref().is_none_or(|failing| now >= failing.retry_at)
    }

    /// Whether the sessions of the node are lost.
    pub fn is_gone(&self, now: Instant) -> bool {
        self.failing.as_ref().is_some_and(|failing| failing.is_final || now - failing.since >= GONE_AFTER)
    }

    /// Why the last connection failed; `None`: it did not.
    pub fn error(&self) -> Option<&str> {
        self.failing.as_ref().map(|failing| &*failing.error)
    }

    /// A connection was made.
    pub fn succeeded(&mut self) {
        self.failing = None;
    }

    /// No connection was made. `is_final`: the system of the node says that nothing is there, or something else is there.
    pub fn failed(&mut self, now: Instant, is_final: bool, error: String) {
        let since = self.failing.as_ref().map_or(now, |failing| failing.since);
        self.failing = Some(Failing { since, retry_at: now + PAUSE, is_final, error });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_silent_for_a_moment_is_not_gone() {
        let (mut reach, start) = (Reach::default(), Instant::now());
        assert!(reach.may_try(start) && !reach.is_gone(start));
        reach.failed(start, false, "silent".to_owned());
        assert!(!reach.may_try(start) && reach.may_try(start + PAUSE));
        assert_eq!((reach.is_gone(start), reach.error()), (false, Some("silent")));
        reach.failed(start + PAUSE, false, "silent".to_owned());
        assert!(!reach.is_gone(start + GONE_AFTER - PAUSE) && reach.is_gone(start + GONE_AFTER));
        reach.succeeded();
        assert!(reach.may_try(start + GONE_AFTER) && !reach.is_gone(start + GONE_AFTER) && reach.error().is_none());
    }

    #[test]
    fn a_node_whose_system_refuses_is_gone_at_once_and_tried_again() {
        let (mut reach, start) = (Reach::default(), Instant::now());
        reach.failed(start, true, "refused".to_owned());
        assert!(reach.is_gone(start) && !reach.may_try(start) && reach.may_try(start + PAUSE));
        reach.succeeded();
        assert!(!reach.is_gone(start));
    }
}
