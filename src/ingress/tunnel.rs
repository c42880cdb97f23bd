//! The HTTP tunnel: frames inside POST requests, loss-free over connections that break.
//!
//! `session` is
//! the state of one client without sockets or clocks, `registry` finds a session by its name,
//! `service` answers requests and joins a session to the core as a byte stream.

use std::time::Duration;

use ipnet::IpNet;

mod registry;
mod service;
pub mod session;
mod shared;

pub use service::{Answer, Outcome, Service, transport};
pub use shared::Payload;

/// Settings of the HTTP tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How long an idle hybrid request is held.
    pub hold: Duration,
    /// How long a request that brought data waits for the Community's answer.
    pub reply_wait: Duration,
    /// Without a request for so long, a session ends.
    pub session_timeout: Duration,
    /// 0: payload in the clear; 1: RC2-encrypted.
    pub version: u32,
    /// How many bytes a session may hold that its client has not acknowledged, and as many
    /// that the Community has not taken.
    pub window: usize,
    /// Whether later requests of a session must come from where the first came from.
    pub same_address: bool,
    /// Sessions at once, those that have ended but may be asked for still among them.
    pub sessions: usize,
    /// Of those, from one address; 0: no bound.
    pub sessions_per_address: usize,
    /// Networks without a bound for one address.
    pub exempt: Vec<IpNet>,
}
