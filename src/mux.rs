//! The core.
use std::time::Duration;

/// Settings of the core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Clients at once, over all ports.
    pub capacity: usize,
    /// Clients at once from one address; 0: no limit.
    pub per_address: usize,
    /// From accept to the end of the first frame.
    pub login_timeout: Duration,
    /// Without a byte either way for so long, a session ends; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// The most that one frame may hold, in bytes.
    pub max_frame: u32,
    /// How long present sessions may go on after the drain began.
    pub drain_timeout: Duration,
}
