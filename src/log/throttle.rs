//! A throttle for log lines that outsiders can cause in large numbers: one line per second, with the number of lines
//! that were left out.

use std::{
    num::NonZero,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

const INTERVAL: Duration = Duration::from_secs(1);

/// Lets one line per second pass.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<ThrottleState>);

#[derive(Debug, Default)]
struct ThrottleState {
    /// When a line passed last.
    last: Option<Instant>,
    /// How many lines were left out since then.
    suppressed: u64,
}

impl Throttle {
    /// `Some` if a line may be written now. It contains how many lines were left out since the last one, if there were
    /// any.
    pub fn pass(&self) -> Option<Option<NonZero<u64>>> {
        let (mut state, now) = (self.0.lock(), Instant::now());
        if state.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            state.suppressed += 1;
            return None;
        }
        state.last = Some(now);
        Some(NonZero::new(std::mem::take(&mut state.suppressed)))
    }
}

/// A [`Throttle`] for each kind of line, so that many lines of one kind hide none of another.
#[derive(Debug)]
pub struct Throttles(Box<[Throttle]>);

impl Throttles {
    /// For `kinds` kinds of lines.
    pub fn new(kinds: usize) -> Self {
        Self((0..kinds).map(|_| Throttle::default()).collect())
    }

    /// See [`Throttle::pass`]. A kind is a number from 0; there must be such a kind.
    pub fn pass(&self, kind: usize) -> Option<Option<NonZero<u64>>> {
        self.0[kind].pass()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_passes_and_the_next_is_counted() {
        let throttle = Throttle::default();
        assert_eq!(throttle.pass(), Some(None));
        assert_eq!(throttle.pass(), None);
        throttle.0.lock().last = None;
        assert_eq!(throttle.pass(), Some(NonZero::new(1)));
    }

    #[test]
    fn kinds_do_not_hide_each_other() {
        let throttles = Throttles::new(2);
        assert_eq!((throttles.pass(0), throttles.pass(0), throttles.pass(1)), (Some(None), None, Some(None)));
    }
}
