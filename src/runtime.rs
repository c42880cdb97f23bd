//! Threads: one worker for each core, how workers share a core, and the buffer that each of them reads into.

mod core_sharing;
pub mod scratch;
mod workers;

pub use workers::{Threads, Workers};
