//! Sockets of the system: listening, keep-alive, names and addresses.

pub mod address;
pub mod keepalive;
pub mod listen;
pub mod lookup;
pub mod resolve;
mod section;

pub use section::Section;
