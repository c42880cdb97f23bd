//! The HTTP tunnel.
use std::time::Duration;

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
}
