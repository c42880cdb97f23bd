//! Sockets of the system: listening, keep-alive, names and addresses.

pub mod address;
pub mod keepalive;
pub mod listen;
mod port;
pub mod resolve;
mod section;

pub use port::Port;
pub use section::Section;
