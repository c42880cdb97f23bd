//! Threads: one runtime for each core, what they share, and the buffer that each reads into.

mod core_sharing;
pub mod scratch;
mod workers;

pub use workers::{Threads, Workers};
