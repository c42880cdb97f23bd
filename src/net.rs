//! Sockets of the system: listening, connecting, keep-alive, names and addresses.

pub mod address;
mod attempts;
pub mod connect;
pub mod keepalive;
pub mod listen;
pub mod lookup;
pub mod loop_guard;
pub mod own;
pub mod resolve;
mod section;

pub use section::Section;
