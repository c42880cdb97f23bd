//! The log: its settings, the subscriber, the thread that writes lines, and the throttle for lines that outsiders can
//! cause.

use serde::Deserialize;

mod lines;
mod subscriber;
mod throttle;

pub use subscriber::Log;
pub use throttle::{Throttle, Throttles};

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text, for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// How much is logged: the lines of a level and of all levels above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Failures.
    Error,
    /// What an admin should look into.
    Warn,
    /// One line for each session.
    Info,
    /// Single connections and requests.
    Debug,
    /// Everything.
    Trace,
}

/// Settings of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    /// The form of a line. A reload does not change it.
    pub format: LogFormat,
    /// How much is logged.
    pub level: LogLevel,
}
