//! Threads: one worker for each core, how workers share a core, and the buffer that each of them reads into.

mod core_sharing;
pub mod scratch;
mod workers;

pub use workers::{Threads, Workers};

/// The number of the worker that the present thread is; `None` if it is none.
pub fn current_worker() -> Option<usize> {
    core_sharing::worker()
}
