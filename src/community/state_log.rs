//! When a change of a server's state is logged: at most one line a second that it is up, and one that it is down. A server
//! that goes up and down more often has a line later, with its last state, so that the log never ends with a wrong one.
//! No I/O; time is an argument.

use std::{
    num::NonZero,
    time::{Duration, Instant},
};

const INTERVAL: Duration = Duration::from_secs(1);

/// What to do about a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StateLine {
    /// Write a line. There were so many changes without one since the last line.
    Now(Option<NonZero<u64>>),
    /// Write a line about the state at that time, after this time: see [`StateLog::due`].
    Later(Duration),
    /// Nothing: a later line is due already.
    None,
}

/// ```text
///            a change, 1 s after the last line of its kind, or later
///            ┌───┐
///            │   ▼    a change within that second
///           free ────────────────────────────────► waiting
///            ▲                                        │
///            └────────────────────────────────────────┘
///               `due`: the state at that time is logged
/// ```
#[derive(Debug, Default)]
pub(super) struct StateLog {
    last_up: Option<Instant>,
    last_down: Option<Instant>,
    is_waiting: bool,
    unlogged: u64,
}

impl StateLog {
    /// The server is up, or down, since now.
    pub(super) fn changed(&mut self, is_up: bool, now: Instant) -> StateLine {
        let last = if is_up { &mut self.last_up } else { &mut self.last_down };
        let wait = last.map_or(Duration::ZERO, |last| (last + INTERVAL).saturating_duration_since(now));
        if self.is_waiting || !wait.is_zero() {
            self.unlogged += 1;
            return if std::mem::replace(&mut self.is_waiting, true) {
                StateLine::None
            } else {
                StateLine::Later(wait)
            };
        }
        *last = Some(now);
        StateLine::Now(NonZero::new(std::mem::take(&mut self.unlogged)))
    }

    /// The line that was to be written later is written now. Returns how many further changes it stands for.
    pub(super) fn due(&mut self, is_up: bool, now: Instant) -> Option<NonZero<u64>> {
        let last = if is_up { &mut self.last_up } else { &mut self.last_down };
        *last = Some(now);
        self.is_waiting = false;
        NonZero::new(std::mem::take(&mut self.unlogged).saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_logged_at_once_and_a_server_that_flaps_once_a_second() {
        let (mut log, start) = (StateLog::default(), Instant::now());
        assert_eq!(log.changed(false, start), StateLine::Now(None));
        assert_eq!(log.changed(true, start), StateLine::Now(None));
        assert_eq!(log.changed(false, start), StateLine::Later(INTERVAL));
        for _ in 0..5000 {
            assert_eq!(log.changed(true, start), StateLine::None);
            assert_eq!(log.changed(false, start), StateLine::None);
        }
        let later = start + INTERVAL;
        assert_eq!(log.due(false, later), NonZero::new(10_000), "and its own change");
        assert_eq!(log.changed(true, later), StateLine::Now(None));
        assert_eq!(log.changed(false, later), StateLine::Later(INTERVAL));
    }
}
