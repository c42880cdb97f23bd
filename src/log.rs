//! The log: settings, the subscriber, the thread that writes lines, and the throttle for lines that
//! outsiders can cause.

use serde::Deserialize;

mod lines;
mod subscriber;
mod throttle;

pub use subscriber::Log;
pub use throttle::{Throttle, Throttles};

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// What an admin should look into.
    Warn,
    /// A line for each session.
    Info,
    /// A line for each oddity.
    Debug,
    /// Everything.
    Trace,
}

/// Settings of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSettings {
    /// Text or JSON.
    pub format: LogFormat,
    /// How much.
    pub level: LogLevel,
}
