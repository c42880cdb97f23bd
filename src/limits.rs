//! Counting what is bounded, for one address and for all together.

pub mod budget;
pub mod rate;
pub mod tally;

pub use budget::Budget;
