//! Chance that can be repeated.

use std::time::Duration;

use super::Sizes;

/// Numbers that are the same in every run with the same seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// From 0 up to 1.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Times between events that have nothing to do with each other.
    pub(super) fn pause(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.share()).ln())
    }

    /// Of a message, in bytes.
    pub(super) fn size(&mut self, sizes: Sizes) -> usize {
        // 2.326 standard deviations lie below the 99th percentile.
        let sigma = (f64::from(sizes.p99) / f64::from(sizes.median)).ln() / 2.326;
        let normal = (-2.0 * (1.0 - self.share()).ln()).sqrt() * (std::f64::consts::TAU * self.share()).cos();
        let size = f64::from(sizes.median) * (sigma * normal).exp();
        // Bounded by `largest`.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let size = size.clamp(1.0, f64::from(sizes.largest)) as usize;
        size
    }
}
