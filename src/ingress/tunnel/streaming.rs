//! The streaming tunnel: one response without an end carries the bytes to the client, and each POST request brings
//! bytes from it.
//!
//! ```text
//!  GET  ── response ◀── connection ◀── core          connection: the client's stream, as the core sees it
//!                           │                        inbox: what POST requests brought, and who waits for it
//!  POST ── body ─────────▶ inbox ────▶ core          handle: the inbox behind its lock, and the tasks that wait
//! ```
//! The session owns the connection of the GET request and writes to it directly, so nothing is stored for a slow
//! client: its TCP connection is full, and the core stops reading from the Community. A POST request gets its response
//! when the core has read its bytes, so a slow Community makes the client wait.
//!
//! There is no acknowledgement and no retry, because clients have none: see `docs/notes/streaming.md`.

mod body;
mod connection;
mod handle;
mod inbox;

pub(super) use self::{
    connection::StreamingConnection,
    handle::{StreamingHandle, StreamingTimes},
    inbox::Upload,
};
