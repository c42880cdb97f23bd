//! The system's sockets: listening, sockets that a service manager passes, connecting, keep-alive, host names, client
//! addresses, and the configuration sections of ports.

pub mod activation;
pub mod address;
mod attempts;
pub mod connect;
pub mod keepalive;
pub mod listen;
pub mod lookup;
pub mod loop_guard;
pub mod own;
pub mod pem;
mod port;
pub mod resolve;
mod section;
pub mod shortage;

pub use port::Port;
pub use section::Section;
