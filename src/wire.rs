//! The Sametime community protocol, as far as a multiplexer reads it. Nothing here does any I/O.
//!
//! - [`frame`] follows a byte stream and builds frames.
//! - [`message`] names the messages, and reads and writes their fields.
//! - [`reason`] has the codes with which a client is refused or its session is ended.
//! - [`proxy_protocol`] reads and writes PROXY headers.
//! - [`tunnel`] has the codecs of the HTTP tunnel.
//!
//! The layouts come from draft-houri-sametime-community-client-00, from the headers of libmeanwhile, and from
//! recordings of a real Java client (`tests/fixtures/transcripts`). Where these disagree, the recordings count. All
//! integers are big-endian.

pub mod frame;
pub mod message;
pub mod proxy_protocol;
pub mod reason;
mod transport;
pub mod tunnel;

pub use transport::Transport;
