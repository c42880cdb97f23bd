//! How things end: every reason that a session, a connection, a request, a listener or a reload can end or
//! be refused with, in closed enums.
//!
//! A variant is, by its name, the metric's label, the word in the log and the key in the status; by its
//! comment, the row of the table in docs/operations.md. `tests/outcomes.rs` walks all of them.
//!
//! This is also the one table of what follows from an outcome: whose fault it is, what ends with it, how loud
//! the log is, and what the client is sent. To add a reason, add a line here; the compiler and that test then
//! name every place that has to know it.

use std::io;

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};
use rustix::io::Errno;
use tracing::Level;

use crate::wire::reason::Reason;

/// Whose fault an outcome is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nobody's: it is how things go.
    None,
    /// The client's, or that of a proxy on its way.
    Client,
    /// The Community server's, or that of the web server behind this port.
    Server,
    /// A bound of this multiplexer's configuration was reached, or it is being stopped.
    Limit,
    /// This machine's: out of descriptors, out of memory, a right that is missing.
    System,
}

/// What ends with an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// Nothing: all goes on.
    Nothing,
    /// The one request.
    Request,
    /// The connection.
    Connection,
    /// The session.
    Session,
}

/// What the client is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Nothing: it left by itself, is out of reach, or was notified by the Community.
    Nothing,
    /// A farewell message: DestroyCnl on the master channel with this reason.
    Farewell(Reason),
    /// A farewell message with the reason that the link to the Community failed with.
    LinkFailure,
    /// An HTTP response with this status.
    Status(u16),
}

/// What follows from an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Whose fault it is.
    pub fault: Fault,
    /// What ends with it.
    pub ends: Ends,
    /// The level of its line in the log.
    pub level: Level,
    /// What the client is sent.
    pub sent: Sent,
}

/// One kind of outcomes: a closed set of reasons.
pub trait Outcome: Copy + PartialEq + Send + Sync + 'static {
    /// The metric that counts them, without prefix and suffix.
    const METRIC: &'static str;
    /// Every one, in the order of the document.
    const ALL: &'static [Self];

    /// The name in metrics, log and status.
    fn name(self) -> &'static str;
    /// What it means, in one sentence: the row of the document.
    fn meaning(self) -> &'static str;
    /// What follows from it.
    fn policy(self) -> Policy;
    /// Its place in [`Self::ALL`].
    fn index(self) -> usize;
}

/// A kind of outcomes, for tests and documents.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// See [`Outcome::METRIC`].
    pub metric: &'static str,
    /// Name and meaning of each.
    pub rows: fn() -> Vec<(&'static str, &'static str)>,
}

/// Defines the kinds. A line of a kind is: comment (the meaning), variant, name, fault, what ends, log level,
/// what is sent.
macro_rules! outcomes {
    ($($(#[doc = $doc:literal])+ $name:ident counted as $metric:literal {
        $(#[doc = $meaning:literal] $variant:ident = $label:literal: $fault:ident, $ends:ident, $level:ident, $sent:expr;)+
    })+) => {
        $(
            $(#[doc = $doc])+
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
            pub enum $name {
                $(#[doc = $meaning] $variant,)+
            }

            impl Outcome for $name {
                const METRIC: &'static str = $metric;
                const ALL: &'static [Self] = &[$(Self::$variant,)+];

                fn name(self) -> &'static str {
                    match self {
                        $(Self::$variant => $label,)+
                    }
                }

                fn meaning(self) -> &'static str {
                    match self {
                        $(Self::$variant => $meaning.trim_ascii(),)+
                    }
                }

                fn policy(self) -> Policy {
                    match self {
                        $(Self::$variant => Policy {
                            fault: Fault::$fault,
                            ends: Ends::$ends,
                            level: Level::$level,
                            sent: $sent,
                        },)+
                    }
                }

                fn index(self) -> usize {
                    self as usize
                }
            }

            impl std::fmt::Display for $name {
                fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str(self.name())
                }
            }

            impl EncodeLabelValue for $name {
                fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
                    self.name().encode(encoder)
                }
            }
        )+

        /// Every kind of outcomes, in the order of the document.
        pub const KINDS: &[Kind] = &[$(Kind {
            metric: $name::METRIC,
            rows: || $name::ALL.iter().map(|outcome| (outcome.name(), outcome.meaning())).collect(),
        },)+];
    };
}

use Sent::{Farewell, LinkFailure, Nothing, Status};

outcomes! {
    /// Why a client is refused: it is not served, or no Community server ever had it.
    Refusal counted as "sessions_refused" {
        /// There are as many clients as `limits.capacity` allows.
        Capacity = "capacity": Limit, Session, WARN, Farewell(Reason::ServerFull);
        /// There are as many clients from this address as `limits.per_address` allows.
        PerAddress = "per_address": Limit, Session, WARN, Farewell(Reason::ServerFull);
        /// There are as many clients that are not logged in as `limits.logging_in` allows.
        LoggingIn = "logging_in": Limit, Session, WARN, Farewell(Reason::ServerFull);
        /// There are as many of those from this address as `limits.logging_in_per_address` allows.
        LoggingInPerAddress = "logging_in_per_address": Limit, Session, WARN, Farewell(Reason::ServerFull);
        /// There are as many tunnel sessions as `limits.tunnel_sessions` allows.
        TunnelSessions = "tunnel_sessions": Limit, Session, WARN, Farewell(Reason::ServerFull);
        /// There are as many tunnel sessions from this address as `limits.tunnel_sessions_per_address` allows.
        TunnelSessionsPerAddress = "tunnel_sessions_per_address": Limit, Session, WARN, Farewell(Reason::ServerFull);
        /// The multiplexer is being stopped.
        Draining = "draining": Limit, Session, WARN, Farewell(Reason::NotResponding);
        /// The client's first frame is long, and `limits.held_bytes` leaves no room to collect it.
        HeldBytes = "held_bytes": Limit, Session, INFO, Farewell(Reason::ServerFull);
        /// The Community did not log the client in within `limits.logging_in_timeout`.
        NotLoggedIn = "not_logged_in": Client, Session, INFO, Farewell(Reason::TimedOut);
        /// No Community server took the client.
        NoCommunity = "no_community": Server, Session, WARN, LinkFailure;
        /// The client's first frame is not a Handshake.
        NotAHandshake = "not_a_handshake": Client, Session, INFO, Farewell(Reason::ProtocolError);
        /// The client's first frame did not arrive within `limits.login_timeout`.
        LoginTimeout = "login_timeout": Client, Session, INFO, Farewell(Reason::TimedOut);
        /// The client sent a frame longer than `limits.max_frame`, or than 64 KiB before it was logged in.
        FrameTooLong = "frame_too_long": Client, Session, INFO, Farewell(Reason::MessageTooLarge);
        /// The client sent a frame that is shorter than its own header.
        FrameTooShort = "frame_too_short": Client, Session, INFO, Farewell(Reason::ProtocolError);
        /// No byte passed within `limits.idle_timeout`, and no Community server had the client yet.
        Idle = "idle": None, Session, INFO, Farewell(Reason::IdleTooLong);
    }

    /// Why a session is over.
    SessionEnd counted as "sessions_closed" {
        /// The client logged out.
        LogOut = "log_out": None, Session, INFO, Nothing;
        /// The client closed its connection without logging out.
        ClientClosed = "client_closed": None, Session, INFO, Nothing;
        /// The client's connection broke.
        ClientBroken = "client_broken": Client, Session, INFO, Nothing;
        /// The Community server closed its connection.
        CommunityClosed = "community_closed": None, Session, INFO, Nothing;
        /// The connection to the Community server broke.
        CommunityBroken = "community_broken": Server, Session, WARN, Farewell(Reason::ConnectionBroken);
        /// The Community server sent bytes that are not a frame.
        CommunityFault = "community_fault": Server, Session, WARN, Farewell(Reason::ConnectionBroken);
        /// The client closed its connection before its first frame was complete.
        NoHandshake = "no_handshake": Client, Session, INFO, Nothing;
        /// The client's first frame is not a Handshake.
        NotAHandshake = "not_a_handshake": Client, Session, INFO, Farewell(Reason::ProtocolError);
        /// The client's first frame did not arrive within `limits.login_timeout`.
        LoginTimeout = "login_timeout": Client, Session, INFO, Farewell(Reason::TimedOut);
        /// The client sent a frame longer than `limits.max_frame`, or than 64 KiB before it was logged in.
        FrameTooLong = "frame_too_long": Client, Session, INFO, Farewell(Reason::MessageTooLarge);
        /// The client sent a frame that is shorter than its own header.
        FrameTooShort = "frame_too_short": Client, Session, INFO, Farewell(Reason::ProtocolError);
        /// The tunnel's client sent no request within `tunnel.session_timeout`.
        SessionTimeout = "session_timeout": Client, Session, INFO, Nothing;
        /// One side closed its connection and the other did not follow within 30 s.
        HalfClosed = "half_closed": None, Session, INFO, Nothing;
        /// No Community server took the client.
        NoCommunity = "no_community": Server, Session, WARN, LinkFailure;
        /// The client's first frame is long, and `limits.held_bytes` leaves no room to collect it.
        HeldBytes = "held_bytes": Limit, Session, INFO, Farewell(Reason::ServerFull);
        /// No byte passed within `limits.idle_timeout`.
        Idle = "idle": None, Session, INFO, Farewell(Reason::IdleTooLong);
        /// The Community did not log the client in within `limits.logging_in_timeout`.
        NotLoggedIn = "not_logged_in": Client, Session, INFO, Farewell(Reason::TimedOut);
        /// The multiplexer was stopped, and `limits.drain_timeout` passed.
        Drained = "drained": Limit, Session, INFO, Farewell(Reason::ConnectionBroken);
    }

    /// Why a connection never became a session.
    ConnectionDrop counted as "connections_dropped" {
        /// It closed before it sent enough to show its protocol, as health checks and port scans do.
        ClosedEarly = "closed_early": None, Connection, DEBUG, Nothing;
        /// It did not show its protocol within `limits.login_timeout`.
        LoginTimeout = "login_timeout": Client, Connection, INFO, Farewell(Reason::TimedOut);
        /// It broke.
        Broken = "broken": Client, Connection, INFO, Nothing;
        /// Its first bytes are of no protocol that a port takes.
        UnknownProtocol = "unknown_protocol": Client, Connection, INFO, Farewell(Reason::ProtocolError);
        /// Its PROXY header is missing or wrong, or its address is not in `listeners.proxy_protocol_from`.
        ProxyHeader = "proxy_header": Client, Connection, INFO, Nothing;
        /// The TLS handshake failed.
        TlsHandshake = "tls_handshake": Client, Connection, INFO, Nothing;
        /// It does not use TLS, and `tls.client_certificates` requires a certificate.
        NoCertificate = "no_certificate": Client, Connection, INFO, Farewell(Reason::EncryptionMismatch);
        /// There are as many connections as `limits.connections` allows.
        Connections = "connections": Limit, Connection, INFO, Farewell(Reason::ServerFull);
        /// There are as many connections from this address as `limits.connections_per_address` allows.
        ConnectionsPerAddress = "connections_per_address": Limit, Connection, INFO, Farewell(Reason::ServerFull);
        /// This address opens connections faster than `limits.connection_rate_per_address` allows.
        RatePerAddress = "connection_rate_per_address": Limit, Connection, INFO, Farewell(Reason::ServerFull);
        /// An HTTP connection broke, took too long, or sent what is not HTTP.
        Http = "http": Client, Connection, DEBUG, Nothing;
    }

    /// Why an HTTP request is refused for its form.
    RequestRefusal counted as "http_requests_refused" {
        /// The first line is not a method, a target and HTTP/1.0 or HTTP/1.1, each of visible ASCII characters.
        RequestLine = "request_line": Client, Connection, INFO, Status(400);
        /// A line does not end with CR LF.
        LineEnd = "line_end": Client, Connection, INFO, Status(400);
        /// A header has a name that is not a token, a space before its colon, a folded line or a control character.
        Header = "header": Client, Connection, INFO, Status(400);
        /// Content-Length appears twice, or is not made of digits alone.
        ContentLength = "content_length": Client, Connection, INFO, Status(400);
        /// Transfer-Encoding appears twice, is not `chunked` alone, or appears in HTTP/1.0.
        TransferEncoding = "transfer_encoding": Client, Connection, INFO, Status(400);
        /// The request has both Content-Length and Transfer-Encoding.
        BothLengths = "both_lengths": Client, Connection, INFO, Status(400);
        /// A chunk has no valid size, or its data is longer than its size.
        Chunk = "chunk": Client, Connection, INFO, Status(400);
        /// A trailer would change the length or the host of the request.
        Trailer = "trailer": Client, Connection, INFO, Status(400);
        /// The head of the request is longer than 16 KiB, or has more than 100 headers.
        HeadTooLong = "head_too_long": Client, Connection, INFO, Status(431);
        /// The method is CONNECT, TRACE or TRACK, which are not passed on to the web server.
        Method = "method": Client, Request, INFO, Status(405);
        /// The target is neither a path nor `http://host/path`.
        Target = "target": Client, Request, INFO, Status(400);
        /// The request does not have exactly one Host of legal characters.
        Host = "host": Client, Request, INFO, Status(400);
        /// The request expects something other than 100-continue.
        Expectation = "expectation": Client, Request, INFO, Status(417);
        /// The request asks for another protocol.
        Upgrade = "upgrade": Client, Request, INFO, Status(501);
        /// As many requests are at the web server as `http_backend.connections` allows.
        Backend = "http_backend": Limit, Request, INFO, Status(503);
        /// The body paused for longer than `limits.login_timeout` on its way to the web server.
        BodyTooSlow = "body_too_slow": Client, Request, INFO, Status(408);
    }

    /// What a request of the HTTP tunnel came to.
    TunnelOutcome counted as "tunnel_requests" {
        /// A session was opened.
        Opened = "opened": None, Nothing, DEBUG, Status(200);
        /// The response carries bytes of the Community.
        Payload = "payload": None, Nothing, DEBUG, Status(200);
        /// The response carries nothing: there was nothing to send.
        Empty = "empty": None, Nothing, DEBUG, Status(200);
        /// The request is the newest one again, and got its response again.
        Retry = "retry": None, Nothing, DEBUG, Status(200);
        /// The request is a late copy of an older one; its response carries nothing.
        Stale = "stale": None, Nothing, DEBUG, Status(200);
        /// A newer request of the session arrived while this one waited; its response carries nothing.
        Superseded = "superseded": None, Nothing, DEBUG, Status(200);
        /// The request is not of the tunnel's form.
        Malformed = "malformed": Client, Request, DEBUG, Status(400);
        /// The body is longer than twice `limits.max_frame` and 64 KiB.
        TooLarge = "too_large": Client, Connection, DEBUG, Status(413);
        /// The body broke off.
        CutOff = "cut_off": Client, Connection, DEBUG, Status(400);
        /// The body did not arrive in time.
        TooSlow = "too_slow": Client, Connection, DEBUG, Status(408);
        /// The body is long, and `limits.held_bytes` leaves no room for it.
        HeldBytes = "held_bytes": Limit, Request, DEBUG, Status(503);
        /// There are as many tunnel sessions as a limit allows.
        Full = "full": Limit, Request, DEBUG, Status(503);
        /// The core refused the client; `sessions_refused` has the reason.
        Refused = "refused": Limit, Request, DEBUG, Status(503);
        /// The Community server does not take what the client sends.
        Busy = "busy": Server, Request, DEBUG, Status(503);
        /// There is no such session.
        Unknown = "unknown": Client, Request, DEBUG, Status(404);
        /// The session is another address's, and `tunnel.same_address` is set.
        OtherAddress = "other_address": Client, Request, DEBUG, Status(404);
        /// The session has ended, and the client has received everything.
        Gone = "gone": None, Request, DEBUG, Status(404);
        /// The acknowledgement is not this session's.
        NotAcknowledged = "not_acknowledged": Client, Request, DEBUG, Status(404);
        /// The system has no random numbers.
        Failed = "failed": System, Request, DEBUG, Status(500);
    }

    /// What a TLS handshake came to.
    TlsOutcome counted as "tls_handshakes" {
        /// The handshake succeeded.
        Accepted = "accepted": None, Nothing, DEBUG, Nothing;
        /// The handshake failed, or did not end within `limits.login_timeout`.
        Failed = "failed": Client, Connection, INFO, Nothing;
    }

    /// Why a listener could not accept a connection.
    AcceptError counted as "accept_errors" {
        /// The connection was gone before it was accepted.
        Connection = "connection": Client, Connection, WARN, Nothing;
        /// Descriptors or memory have run out: accepting pauses for 100 ms.
        Exhausted = "exhausted": System, Nothing, ERROR, Nothing;
        /// The listener itself failed.
        Listener = "listener": System, Nothing, ERROR, Nothing;
    }

    /// Why a connection to the admin endpoint was closed.
    AdminClose counted as "admin_connections_closed" {
        /// It did not send a complete request within 10 s.
        Idle = "idle": Client, Connection, DEBUG, Nothing;
        /// Its client did not take the response within 30 s.
        Stalled = "stalled": Client, Connection, WARN, Nothing;
        /// A new connection needed its place: all 64 were taken, and it had waited for a request for the longest time.
        Evicted = "evicted": Limit, Connection, WARN, Nothing;
    }

    /// Why a listener is down.
    ListenerFailure counted as "listener_failures" {
        /// Another process listens on the port.
        InUse = "in_use": System, Nothing, ERROR, Nothing;
        /// The process may not listen on the port.
        NotPermitted = "not_permitted": System, Nothing, ERROR, Nothing;
        /// `host_name` is not an address of this machine.
        NotAnAddress = "not_an_address": System, Nothing, ERROR, Nothing;
        /// `host_name` can't be resolved.
        Unresolved = "unresolved": System, Nothing, ERROR, Nothing;
        /// Another section has the same port, on the same address or on every address.
        Overlap = "overlap": System, Nothing, ERROR, Nothing;
        /// The system gave another error.
        Other = "other": System, Nothing, ERROR, Nothing;
    }

    /// What a reload came to.
    ReloadOutcome counted as "reloads" {
        /// The configuration is in force.
        Accepted = "accepted": None, Nothing, INFO, Nothing;
        /// Nothing has changed.
        Refused = "refused": System, Nothing, ERROR, Nothing;
    }

    /// Why a reload was refused.
    ReloadRefusal counted as "reloads_refused" {
        /// The configuration database has a fault.
        Configuration = "configuration": System, Nothing, ERROR, Nothing;
        /// The certificate and its key can't be used.
        Tls = "tls": System, Nothing, ERROR, Nothing;
        /// A Community port, or with `listeners.require_all` any port, can't be bound.
        Listener = "listener": System, Nothing, ERROR, Nothing;
        /// `admin.listen` can't be bound.
        Admin = "admin": System, Nothing, ERROR, Nothing;
        /// The sandbox Community server can't be started.
        Sandbox = "sandbox": System, Nothing, ERROR, Nothing;
    }
}

impl AcceptError {
    /// What an error of accept means for who accepts.
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Self::Exhausted,
            Some(Errno::BADF | Errno::INVAL | Errno::NOTSOCK | Errno::OPNOTSUPP) => Self::Listener,
            // accept(2): network errors of the new connection are passed on by accept.
            _ => Self::Connection,
        }
    }
}

impl SessionEnd {
    /// What it counts as where no Community server ever had the client; `None`: it was not refused.
    pub fn refusal(self) -> Option<Refusal> {
        match self {
            Self::NoCommunity => Some(Refusal::NoCommunity),
            Self::NotAHandshake => Some(Refusal::NotAHandshake),
            Self::LoginTimeout => Some(Refusal::LoginTimeout),
            Self::FrameTooLong => Some(Refusal::FrameTooLong),
            Self::FrameTooShort => Some(Refusal::FrameTooShort),
            Self::HeldBytes => Some(Refusal::HeldBytes),
            Self::Idle => Some(Refusal::Idle),
            Self::NotLoggedIn => Some(Refusal::NotLoggedIn),
            Self::LogOut
            | Self::ClientClosed
            | Self::ClientBroken
            | Self::CommunityClosed
            | Self::CommunityBroken
            | Self::CommunityFault
            | Self::NoHandshake
            | Self::SessionTimeout
            | Self::HalfClosed
            | Self::Drained => None,
        }
    }
}

impl Policy {
    /// The reason of the farewell message, where it is the outcome's own.
    pub fn farewell(self) -> Option<Reason> {
        match self.sent {
            Farewell(reason) => Some(reason),
            Nothing | LinkFailure | Status(_) => None,
        }
    }
}
