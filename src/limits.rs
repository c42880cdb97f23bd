//! Counting what is limited: in total, and for each client address.
//!
//! `tally` counts things one by one and has the table of addresses that all counting uses, `budget` counts bytes that
//! are held for slow peers, `rate` bounds how often something may happen per second.

pub mod budget;
pub mod rate;
pub mod tally;

pub use budget::Budget;
