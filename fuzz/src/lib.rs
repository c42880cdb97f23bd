//! What must hold for any input, as functions that panic where it does not. The fuzz targets
//! call them with what libFuzzer makes up, `tests/hostile.rs` with what proptest makes up.

pub mod client;
pub mod config;
pub mod detect;
pub mod envelope;
pub mod frames;
pub mod framing;
pub mod proxy_protocol;
pub mod session;
pub mod tunnel;

/// Reads choices off the input; zeros once it has run out.
pub struct Choices<'a>(pub &'a [u8]);

impl<'a> Choices<'a> {
    /// One byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `bound`, or 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound.max(1)
    }

    /// Up to `n` bytes.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (now, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        now
    }

    /// Whether it has run out.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }
}
