//! The Sametime community protocol, as far as a multiplexer reads it.
//!
//! Nothing here knows a socket: [`frame`] follows a byte stream and builds frames,
//! [`message`] names the messages and reads and writes their fields, [`reason`] holds the
//! codes that a client is refused or closed with.
//!
//! The layouts come from draft-houri-sametime-community-client-00, from libmeanwhile's
//! headers, and from recordings of a real Java client (`tests/fixtures/transcripts`); where
//! they disagree, the recordings win. All integers are big-endian.

pub mod frame;
pub mod message;
pub mod proxy_protocol;
pub mod reason;
mod transport;
pub mod tunnel;

pub use transport::Transport;
