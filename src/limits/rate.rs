//! So many in a second: token buckets.

use std::time::Instant;

/// So many per second, and as many at once.
#[derive(Debug)]
pub struct Bucket {
    /// What is left; below zero where those that wait have a token each.
    pub tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket of `rate` tokens.
    pub fn full(rate: f64, now: Instant) -> Self {
        Self { tokens: rate, filled: now }
    }

    /// Adds what has come in since it was filled last.
    pub fn fill(&mut self, rate: f64, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * rate).min(rate);
        self.filled = now;
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, rate: f64, now: Instant) -> bool {
        self.fill(rate, now);
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }
}
