//! Random numbers that are the same in every run with the same seed.

use std::time::Duration;

use super::scenario::MessageSizes;

/// A generator of random numbers (xorshift64*). Not for secrets.
pub(super) struct SeededRandom(u64);

impl SeededRandom {
    pub(super) fn new(seed: u64) -> Self {
        // The state of an xorshift generator must not be 0.
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number from 0 up to but not including 1.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The time between two independent events that are `mean` apart on average (exponential distribution).
    pub(super) fn pause(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.share()).ln())
    }

    /// The size of a message in bytes, with a log-normal distribution.
    pub(super) fn size(&mut self, sizes: MessageSizes) -> usize {
        // The 99th percentile of a normal distribution is 2.326 standard deviations above its mean.
        let sigma = (f64::from(sizes.p99) / f64::from(sizes.median)).ln() / 2.326;
        // Box-Muller: a normal number from two uniform ones.
        let normal = (-2.0 * (1.0 - self.share()).ln()).sqrt() * (std::f64::consts::TAU * self.share()).cos();
        let size = f64::from(sizes.median) * (sigma * normal).exp();
        // The size is at most `largest`.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let size = size.clamp(1.0, f64::from(sizes.largest)) as usize;
        size
    }
}
