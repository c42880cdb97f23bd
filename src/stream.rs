//! The seams: what passes between the rooms that do not import each other.
//!
//! ```text
//!  ingress ── Arrival ──► Core (mux) ── Community::connect ──► community
//!                                ◄── Link ──────────────
//! ```
//!
//! Ingress makes an [`Arrival`] from a client's connection and passes it to a [`Core`]. The core asks a [`Community`]
//! for a [`Link`]. Only `server` knows what implements these two traits.

mod admission;
mod arrival;
mod error;
mod io;
mod link;
mod refusal;

pub use self::{
    admission::Core,
    arrival::{Arrival, Via},
    error::{StreamError, peer_has_left},
    io::{Duplex, Replayed, Stream},
    link::{Community, Lease, Link, LinkError, LinkFailure, Linking, MoreFromClient},
    refusal::{ClosingBounds, close_in_stages, linger, refuse},
};
