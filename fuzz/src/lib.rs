//! Invariants that hold for any input. Each module has a function `check` that panics when its invariants do not
//! hold. The fuzz targets call it with inputs of libFuzzer, `tests/hostile.rs` with inputs of proptest.

pub mod client;
pub mod config;
pub mod detect;
pub mod envelope;
pub mod frames;
pub mod framing;
pub mod proxy_protocol;
pub mod session;
pub mod streaming;
pub mod tunnel;

/// Reads choices from the beginning of the input. Numbers are 0 when the input has run out.
pub struct Choices<'a>(pub &'a [u8]);

impl<'a> Choices<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number from 0 up to but not including `bound`; 0 if `bound` is 0. It takes one byte.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound.max(1)
    }

    /// The next `n` bytes, or as many as are left.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (now, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        now
    }

    /// Whether the input has run out.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }
}
