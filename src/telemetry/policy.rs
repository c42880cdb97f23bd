//! What follows from an outcome: who caused it, how loud the log is, and what the client is sent.

use std::fmt;

use tracing::Level;

use crate::wire::reason::Reason;

/// Who caused an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// Nobody: this is the normal course.
    None,
    /// The client, or a proxy between it and this program.
    Client,
    /// The Community server, or the web server behind this port.
    Server,
    /// A limit of this program's configuration is reached, or the program is being stopped.
    Limit,
    /// The configuration: it has a mistake, or asks for what this machine does not have.
    Configuration,
    /// This machine: descriptors or memory have run out, or a right is missing.
    System,
}

/// What ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// Nothing: everything continues.
    Nothing,
    /// The request. Its connection, and the session that it belongs to, continue.
    Request,
    /// The connection, which is not a session, or is one of the connections of a tunnel session.
    Connection,
    /// The session.
    Session,
    /// The attempt to open the listener. It is repeated.
    Listener,
    /// The reload. The settings before it stay in force.
    Reload,
}

/// As the document shows it.
impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Request => "the request",
            Self::Connection => "the connection",
            Self::Session => "the session",
            Self::Listener => "the attempt to open the listener",
            Self::Reload => "the reload",
        })
    }
}

/// A fatal alert of TLS (RFC 8446, section 6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsAlert {
    /// The version that the client offers is not accepted.
    ProtocolVersion = 70,
    /// The server can't serve the client now.
    InternalError = 80,
}

/// As the document shows it.
impl fmt::Display for TlsAlert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ProtocolVersion => "protocol version",
            Self::InternalError => "internal error",
        })
    }
}

/// What the client is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Nothing: the client left by itself, cannot be reached, or was notified by the Community.
    Nothing,
    /// A farewell message: DestroyCnl on the master channel with this reason.
    Farewell(Reason),
    /// A farewell message with the reason for which no link to a Community server could be opened.
    LinkFailure,
    /// The last bytes of the Community. They are delivered before the connection is closed.
    LastBytes,
    /// An HTTP response with this status.
    Status(u16),
    /// This alert of TLS.
    TlsAlert(TlsAlert),
}

/// What follows from an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Who caused it.
    pub blame: Blame,
    /// The level of its line in the log; `None`: it is counted and has no line of its own.
    pub level: Option<Level>,
    /// What the client is sent.
    pub sent: Sent,
}

impl Policy {
    /// The status of the HTTP response, if it is one.
    pub fn status(self) -> Option<http::StatusCode> {
        match self.sent {
            Sent::Status(status) => http::StatusCode::from_u16(status).ok(),
            _ => None,
        }
    }

    /// The reason of the farewell message, if the outcome alone decides it.
    pub fn farewell(self) -> Option<Reason> {
        match self.sent {
            Sent::Farewell(reason) => Some(reason),
            Sent::Nothing | Sent::LinkFailure | Sent::LastBytes | Sent::Status(_) | Sent::TlsAlert(_) => None,
        }
    }
}

/// A kind of outcomes without its type, for tests and documents.
#[derive(Debug, Clone, Copy)]
pub struct OutcomeKind {
    /// See [`super::outcome::Outcome::METRIC`].
    pub metric: &'static str,
    /// See [`super::outcome::Outcome::ENDS`].
    pub ends: Ends,
    /// The rows of its table.
    pub rows: fn() -> Vec<OutcomeRow>,
}

/// An outcome without its type.
#[derive(Debug, Clone, Copy)]
pub struct OutcomeRow {
    /// See [`super::outcome::Outcome::name`].
    pub name: &'static str,
    /// See [`super::outcome::Outcome::meaning`].
    pub meaning: &'static str,
    /// See [`super::outcome::Outcome::policy`].
    pub policy: Policy,
}

/// As the document's tables show it; empty for [`Blame::None`].
impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "",
            Self::Client => "client",
            Self::Server => "server",
            Self::Limit => "limit",
            Self::Configuration => "configuration",
            Self::System => "this machine",
        })
    }
}

/// As the document's tables show it; empty for [`Sent::Nothing`].
impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::Farewell(reason) => reason.fmt(f),
            Self::LinkFailure => f.write_str("the reason of the failed link"),
            Self::LastBytes => f.write_str("the last bytes of the Community"),
            Self::Status(status) => write!(f, "HTTP {status}"),
            Self::TlsAlert(alert) => write!(f, "TLS alert: {alert}"),
        }
    }
}
