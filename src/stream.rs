//! What passes over the seams: byte streams, arrivals, links.
//!
//! Ingress, mux and community are blind to each other. Ingress turns whatever came in into
//! an [`Arrival`] and hands it to a [`Core`]; the core asks a [`Community`] for a [`Link`].
//! `server` is the one place that knows who is behind those two traits.

mod arrival;
mod core;
mod error;
mod io;
mod link;
mod refusal;

pub use self::{
    arrival::{Arrival, Via},
    core::Core,
    error::StreamError,
    io::{Duplex, Replayed, Stream},
    link::{Community, Lease, Link, LinkError, Linking, SpeaksOn},
    refusal::{linger, refuse},
};
