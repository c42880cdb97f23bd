//! The system's sockets: listening, keep-alive, host names, client addresses, and the configuration sections of ports.

pub mod address;
pub mod keepalive;
pub mod listen;
pub mod lookup;
pub mod resolve;
mod section;

pub use section::Section;
