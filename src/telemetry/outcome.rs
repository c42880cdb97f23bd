//! Outcomes: every reason for which a session, a connection, a request, a listener or a reload ends or is
//! refused, as closed enums.
//!
//! The name of an outcome is the label of its metric, the word in the log, and the key in the status. Its comment
//! is its row in the tables of docs/operations.md. `tests/outcomes.rs` checks all of them.
//!
//! This file is also the one table of what follows from an outcome: what ends with it, which is the same for all of a
//! kind, and by [`Policy`] who caused it, how loud the log is, and what the client is sent. To add an outcome, add a line here. The compiler and that test then report every place that has to know it.

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};
use tracing::Level;

mod session_end;

pub use super::policy::{Blame, Ends, OutcomeKind, OutcomeRow, Policy, Sent, TlsAlert};
use crate::wire::reason::Reason;

/// One kind of outcomes: a closed set of reasons.
pub trait Outcome: Copy + PartialEq + Send + Sync + 'static {
    /// The metric that counts them, without `sametime_mux_` and `_total`.
    const METRIC: &'static str;
    /// What ends with an outcome of this kind, unless its client is sent a response of success.
    const ENDS: Ends;
    /// Every outcome of this kind, in the order of the document.
    const ALL: &'static [Self];

    /// The name in metrics, log and status.
    fn name(self) -> &'static str;
    /// What it means, in one sentence: its row in the document.
    fn meaning(self) -> &'static str;
    /// What follows from it.
    fn policy(self) -> Policy;
    /// Its position in [`Self::ALL`].
    fn index(self) -> usize;
}

// The levels of the table.
const DEBUG: Option<Level> = Some(Level::DEBUG);
const INFO: Option<Level> = Some(Level::INFO);
const WARN: Option<Level> = Some(Level::WARN);
const ERROR: Option<Level> = Some(Level::ERROR);
/// Counted, without a line in the log.
const UNLOGGED: Option<Level> = None;

/// Defines the kinds. A line of a kind is: comment (the meaning), variant, name, who caused it, log level, what the
/// client is sent.
macro_rules! outcomes {
    ($($(#[doc = $doc:literal])+ $name:ident counted as $metric:literal ends $ends:ident {
        $(#[doc = $meaning:literal] $variant:ident = $label:literal: $blame:ident, $level:ident, $sent:expr;)+
    })+) => {
        $(
            $(#[doc = $doc])+
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
            pub enum $name {
                $(#[doc = $meaning] $variant,)+
            }

            impl Outcome for $name {
                const METRIC: &'static str = $metric;
                const ENDS: Ends = Ends::$ends;
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
                            blame: Blame::$blame,
                            level: $level,
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
        pub const KINDS: &[OutcomeKind] = &[$(OutcomeKind { metric: $name::METRIC, ends: $name::ENDS, rows: rows::<$name> },)+];
    };
}

fn rows<O: Outcome>() -> Vec<OutcomeRow> {
    let row = |outcome: &O| OutcomeRow { name: outcome.name(), meaning: outcome.meaning(), policy: outcome.policy() };
    O::ALL.iter().map(row).collect()
}

use Sent::{Farewell, LastBytes, LinkFailure, Nothing, Status};

const ALERT_VERSION: Sent = Sent::TlsAlert(TlsAlert::ProtocolVersion);

outcomes! {
    /// Why a client is refused: it is not accepted, or no Community server ever had it.
    Refusal counted as "sessions_refused" ends Session {
        /// There are as many clients as `limits.capacity` allows.
        Capacity = "capacity": Limit, WARN, Farewell(Reason::ServerFull);
        /// This address has as many clients as `limits.per_address` allows.
        PerAddress = "per_address": Limit, WARN, Farewell(Reason::ServerFull);
        /// There are as many clients that are not logged in as `limits.logging_in` allows.
        LoggingIn = "logging_in": Limit, WARN, Farewell(Reason::ServerFull);
        /// This address has as many clients that are not logged in as `limits.logging_in_per_address` allows.
        LoggingInPerAddress = "logging_in_per_address": Limit, WARN, Farewell(Reason::ServerFull);
        /// There are as many tunnel sessions as `limits.tunnel_sessions` allows; streaming: 0x8000020B.
        TunnelSessions = "tunnel_sessions": Limit, WARN, Status(503);
        /// This address has as many tunnel sessions as `limits.tunnel_sessions_per_address` allows; streaming: 0x8000020B.
        TunnelSessionsPerAddress = "tunnel_sessions_per_address": Limit, WARN, Status(503);
        /// The multiplexer is being stopped.
        Draining = "draining": Limit, WARN, Farewell(Reason::NotResponding);
        /// The client's first frame is longer than 4 KiB, and `limits.held_bytes` leaves no room to collect it.
        HeldBytes = "held_bytes": Limit, INFO, Farewell(Reason::ServerFull);
        /// The Community did not log the client in within `limits.logging_in_timeout`.
        NotLoggedIn = "not_logged_in": Client, INFO, Farewell(Reason::TimedOut);
        /// No Community server accepted the client or answered its Handshake.
        NoCommunity = "no_community": Server, WARN, LinkFailure;
        /// This machine has no descriptors, or no memory, for a link to a Community server.
        Shortage = "shortage": System, WARN, Farewell(Reason::ServerFull);
        /// The connection is one of this multiplexer's own links, which came back: a Community server leads back to it.
        Loop = "loop": Configuration, WARN, Farewell(Reason::CannotConnect);
        /// The client's first frame is not a Handshake.
        NotAHandshake = "not_a_handshake": Client, INFO, Farewell(Reason::ProtocolError);
        /// The client's first frame did not arrive within `limits.login_timeout`.
        LoginTimeout = "login_timeout": Client, INFO, Farewell(Reason::TimedOut);
        /// The client sent a frame longer than `limits.max_frame`, or than 64 KiB before it was logged in.
        FrameTooLong = "frame_too_long": Client, INFO, Farewell(Reason::MessageTooLarge);
        /// The client sent a frame that is shorter than its own header.
        FrameTooShort = "frame_too_short": Client, INFO, Farewell(Reason::ProtocolError);
        /// No byte was sent for `limits.idle_timeout`, and no Community server had the client yet.
        Idle = "idle": None, INFO, Farewell(Reason::IdleTooLong);
    }

    /// Why a session is over.
    SessionEnd counted as "sessions_closed" ends Session {
        /// The client logged out.
        LogOut = "log_out": None, INFO, LastBytes;
        /// The client closed its connection without a farewell message.
        ClientClosed = "client_closed": None, INFO, Nothing;
        /// The client's connection broke.
        ClientBroken = "client_broken": Client, INFO, Nothing;
        /// The Community server closed its connection.
        CommunityClosed = "community_closed": None, INFO, LastBytes;
        /// The link to the Community server broke.
        CommunityBroken = "community_broken": Server, WARN, Farewell(Reason::ConnectionBroken);
        /// The Community server sent bytes that are not a frame.
        CommunityFault = "community_fault": Server, WARN, Farewell(Reason::ConnectionBroken);
        /// The Community server took nothing of what a streaming client sent within `tunnel.session_timeout`.
        CommunityTooSlow = "community_too_slow": Server, WARN, Nothing;
        /// The client closed its connection before its first frame was complete.
        NoHandshake = "no_handshake": Client, INFO, Nothing;
        /// The client's first frame is not a Handshake.
        NotAHandshake = "not_a_handshake": Client, INFO, Farewell(Reason::ProtocolError);
        /// The client's first frame did not arrive within `limits.login_timeout`.
        LoginTimeout = "login_timeout": Client, INFO, Farewell(Reason::TimedOut);
        /// The client sent a frame longer than `limits.max_frame`, or than 64 KiB before it was logged in.
        FrameTooLong = "frame_too_long": Client, INFO, Farewell(Reason::MessageTooLarge);
        /// The client sent a frame that is shorter than its own header.
        FrameTooShort = "frame_too_short": Client, INFO, Farewell(Reason::ProtocolError);
        /// The tunnel's client sent no request within `tunnel.session_timeout`.
        SessionTimeout = "session_timeout": Client, INFO, Nothing;
        /// One side closed its connection, and the other did not close: it accepted nothing for 30 s, or took longer than 5 min.
        HalfClosed = "half_closed": None, INFO, Nothing;
        /// No Community server accepted the client or answered its Handshake.
        NoCommunity = "no_community": Server, WARN, LinkFailure;
        /// This machine has no descriptors, or no memory, for a link to a Community server, or for one of the connections.
        Shortage = "shortage": System, WARN, Farewell(Reason::ServerFull);
        /// The connection is one of this multiplexer's own links, which came back: a Community server leads back to it.
        Loop = "loop": Configuration, WARN, Farewell(Reason::CannotConnect);
        /// The client's first frame is longer than 4 KiB, and `limits.held_bytes` leaves no room to collect it.
        HeldBytes = "held_bytes": Limit, INFO, Farewell(Reason::ServerFull);
        /// No byte was sent for `limits.idle_timeout`.
        Idle = "idle": None, INFO, Farewell(Reason::IdleTooLong);
        /// The Community did not log the client in within `limits.logging_in_timeout`.
        NotLoggedIn = "not_logged_in": Client, INFO, Farewell(Reason::TimedOut);
        /// The multiplexer was stopped: its sessions are ended evenly over `limits.drain_timeout`.
        Drained = "drained": Limit, INFO, Farewell(Reason::ConnectionBroken);
    }

    /// Why a connection never became a session.
    ConnectionDrop counted as "connections_dropped" ends Connection {
        /// The client left before its protocol was known, in the TLS handshake, or by resetting HTTP, as health checks do.
        ClosedEarly = "closed_early": None, DEBUG, Nothing;
        /// The client did not show its protocol within `limits.login_timeout`.
        LoginTimeout = "login_timeout": Client, INFO, Farewell(Reason::TimedOut);
        /// The connection broke.
        Broken = "broken": Client, INFO, Nothing;
        /// The first bytes are of no protocol that a port accepts.
        UnknownProtocol = "unknown_protocol": Client, INFO, Farewell(Reason::ProtocolError);
        /// The client began with a hello of SSL 2.0; TLS 1.2 is the oldest version that is accepted.
        OldSsl = "old_ssl": Client, INFO, ALERT_VERSION;
        /// The PROXY header is missing or wrong, or its sender is not in `listeners.proxy_protocol_from`.
        ProxyHeader = "proxy_header": Client, INFO, Nothing;
        /// The TLS handshake failed.
        TlsHandshake = "tls_handshake": Client, INFO, Nothing;
        /// The client does not use TLS, and `tls.client_certificates` requires a certificate.
        NoCertificate = "no_certificate": Client, INFO, Farewell(Reason::EncryptionMismatch);
        /// There are as many connections as `limits.connections` allows.
        Connections = "connections": Limit, INFO, Farewell(Reason::ServerFull);
        /// This address has as many connections as `limits.connections_per_address` allows.
        ConnectionsPerAddress = "connections_per_address": Limit, INFO, Farewell(Reason::ServerFull);
        /// This address opens connections faster than `limits.connection_rate_per_address` allows.
        RatePerAddress = "connection_rate_per_address": Limit, INFO, Farewell(Reason::ServerFull);
        /// An HTTP connection broke, took too long, or sent bytes that are not HTTP.
        Http = "http": Client, DEBUG, Nothing;
    }

    /// Why an HTTP request is refused.
    RequestRefusal counted as "http_requests_refused" ends Connection {
        /// The first line is not a method, a target and HTTP/1.0 or HTTP/1.1, each of visible ASCII characters.
        RequestLine = "request_line": Client, INFO, Status(400);
        /// A line does not end with CR LF.
        LineEnd = "line_end": Client, INFO, Status(400);
        /// A header has a name that is not a token, a space before its colon, a folded line or a control character.
        Header = "header": Client, INFO, Status(400);
        /// Content-Length appears twice, or is not made of digits alone.
        ContentLength = "content_length": Client, INFO, Status(400);
        /// Transfer-Encoding appears twice, is not `chunked` alone, or appears in HTTP/1.0.
        TransferEncoding = "transfer_encoding": Client, INFO, Status(400);
        /// The request has both Content-Length and Transfer-Encoding.
        BothLengths = "both_lengths": Client, INFO, Status(400);
        /// A chunk has no valid size, or its data does not end where its size says.
        Chunk = "chunk": Client, INFO, Status(400);
        /// A trailer would change the length or the host of the request.
        Trailer = "trailer": Client, INFO, Status(400);
        /// The head of the request is longer than 16 KiB, or has more than 100 headers.
        HeadTooLong = "head_too_long": Client, INFO, Status(431);
        /// The method is CONNECT, TRACE or TRACK, which are not passed on to the web server.
        Method = "method": Client, INFO, Status(405);
        /// The target is neither a path nor `http://host/path`, or has a character that no target may have.
        Target = "target": Client, INFO, Status(400);
        /// The request does not have exactly one Host of legal characters.
        Host = "host": Client, INFO, Status(400);
        /// The request expects something other than 100-continue.
        Expectation = "expectation": Client, INFO, Status(417);
        /// The request came back: it was passed on before, or `http_backend.url` is this program itself.
        Loop = "loop": Configuration, WARN, Status(508);
        /// There are as many requests at the web server as `http_backend.connections` allows.
        Backend = "http_backend": Limit, INFO, Status(503);
        /// The body paused for longer than `limits.login_timeout` on its way to the web server.
        BodyTooSlow = "body_too_slow": Client, INFO, Status(408);
        /// The body ended before it was complete, on its way to the web server.
        BodyCutOff = "body_cut_off": Client, INFO, Status(400);
    }

    /// Why the web server behind a port gave no response that can be passed back, or one that is not complete.
    WebServerError counted as "http_backend_errors" ends Request {
        /// This machine has no descriptors, or no memory, for a connection to the web server.
        Shortage = "shortage": System, WARN, Status(503);
        /// No connection to the web server could be made.
        Unreachable = "unreachable": Server, WARN, Status(502);
        /// The web server closed before it responded, or did not send HTTP.
        NoResponse = "no_response": Server, WARN, Status(502);
        /// The web server did not begin its response within `http_backend.response_timeout`.
        TooSlow = "too_slow": Server, WARN, Status(504);
        /// The web server switched to another protocol, which no request asked for.
        SwitchedProtocols = "switched_protocols": Server, WARN, Status(502);
        /// The web server paused in its response for `http_backend.response_timeout`; the client's connection is closed.
        Stalled = "stalled": Server, WARN, Nothing;
        /// The web server closed in the middle of its response; the client's connection is closed.
        CutOff = "cut_off": Server, WARN, Nothing;
    }

    /// The outcome of a request of the HTTP tunnel.
    TunnelOutcome counted as "tunnel_requests" ends Request {
        /// A session was opened.
        Opened = "opened": None, UNLOGGED, Status(200);
        /// The response carries bytes of the Community.
        Payload = "payload": None, UNLOGGED, Status(200);
        /// The response is empty: there was nothing to send.
        Empty = "empty": None, UNLOGGED, Status(200);
        /// The request repeats the newest one, and got the same response again.
        Retry = "retry": None, UNLOGGED, Status(200);
        /// The request is a late copy of an older one; its response is empty.
        Stale = "stale": None, UNLOGGED, Status(200);
        /// The bytes of a streaming client's request are with the session.
        Taken = "taken": None, UNLOGGED, Status(200);
        /// A streaming client's request arrived when its session had ended; its bytes were dropped.
        AfterEnd = "after_end": None, UNLOGGED, Status(200);
        /// A newer request of the session arrived while this one waited; its response is empty.
        Superseded = "superseded": None, UNLOGGED, Status(200);
        /// The request does not have the tunnel's form.
        Malformed = "malformed": Client, UNLOGGED, Status(400);
        /// The path is meant for the tunnel, but is not of its form.
        NoSuchPath = "no_such_path": Client, UNLOGGED, Status(404);
        /// The body is longer than twice `limits.max_frame` plus 64 KiB.
        TooLarge = "too_large": Client, UNLOGGED, Status(413);
        /// The body ended before it was complete.
        CutOff = "cut_off": Client, UNLOGGED, Status(400);
        /// The body did not arrive in time.
        TooSlow = "too_slow": Client, UNLOGGED, Status(408);
        /// The body is long, and `limits.held_bytes` leaves no room for it.
        HeldBytes = "held_bytes": Limit, UNLOGGED, Status(503);
        /// There are as many tunnel sessions as a limit allows.
        Full = "full": Limit, UNLOGGED, Status(503);
        /// The client was refused; `sametime_mux_sessions_refused_total` has the reason.
        Refused = "refused": Limit, UNLOGGED, Status(503);
        /// The Community server is too slow for what the client sends.
        Busy = "busy": Server, UNLOGGED, Status(503);
        /// There is no such session.
        Unknown = "unknown": Client, UNLOGGED, Status(404);
        /// The session belongs to another address, and `tunnel.same_address` is set.
        OtherAddress = "other_address": Client, UNLOGGED, Status(404);
        /// The session has ended, and the client has received everything.
        Gone = "gone": None, UNLOGGED, Status(404);
        /// The acknowledgement is not one of this session.
        NotAcknowledged = "not_acknowledged": Client, UNLOGGED, Status(404);
        /// The session is on another node of the cluster: the request was passed to it, and its response was passed back.
        Passed = "passed": None, UNLOGGED, Status(200);
        /// The session is on another node of the cluster, which did not respond; the client may repeat the request.
        NotPassed = "not_passed": Server, UNLOGGED, Status(503);
        /// The session was on another node of the cluster, which is gone; the client starts anew.
        NodeGone = "node_gone": Server, UNLOGGED, Status(404);
        /// Another node of the cluster passed the request here, and the session is not on this node.
        NotThisNode = "not_this_node": Configuration, UNLOGGED, Status(404);
        /// The system returned no random numbers.
        Failed = "failed": System, UNLOGGED, Status(500);
    }

    /// Why a request for a session of another node of the cluster did not get that node's response.
    ClusterFailure counted as "cluster_failures" ends Request {
        /// The node's address refuses connections, or none could be made for 5 s: its sessions are gone.
        Gone = "gone": Server, WARN, Status(404);
        /// No connection to the node could be made at present.
        Unreachable = "unreachable": Server, WARN, Status(503);
        /// What has the node's address did not prove that it is this node and has the cluster's secret.
        NotProven = "not_proven": Configuration, WARN, Status(404);
        /// The node closed the connection before it responded, or did not send a response of a node.
        NoResponse = "no_response": Server, WARN, Status(503);
        /// The node did not respond in the time that the longest request of the tunnel may take.
        TooSlow = "too_slow": Server, WARN, Status(503);
        /// The response is long, and `limits.held_bytes` leaves no room for it.
        HeldBytes = "held_bytes": Limit, INFO, Status(503);
        /// This machine has no descriptors, or no memory, for a connection to the node.
        Shortage = "shortage": System, WARN, Status(503);
    }

    /// Why a connection to `cluster.listen` is refused.
    PeerRefusal counted as "cluster_peers_refused" ends Connection {
        /// It closed before it had proved that it is a node, as health checks do.
        ClosedEarly = "closed_early": None, DEBUG, Nothing;
        /// It did not begin as a node does.
        NotANode = "not_a_node": Client, INFO, Nothing;
        /// It says that it is a node that is not in `cluster.peer` and `cluster.nodes`.
        UnknownNode = "unknown_node": Configuration, INFO, Nothing;
        /// It did not prove that it has the cluster's secret.
        NotProven = "not_proven": Client, WARN, Nothing;
        /// It did not prove it within 2 s.
        TooSlow = "too_slow": Client, INFO, Nothing;
        /// More than 256 connections at once have not proved it yet.
        TooMany = "too_many": Limit, INFO, Nothing;
        /// There are as many connections as `limits.connections` allows.
        Connections = "connections": Limit, INFO, Nothing;
    }

    /// The outcome of a TLS handshake.
    TlsOutcome counted as "tls_handshakes" ends Connection {
        /// The handshake succeeded.
        Accepted = "accepted": None, UNLOGGED, Nothing;
        /// The client closed or reset the connection before the end of the handshake, as health checks do.
        Abandoned = "abandoned": None, UNLOGGED, Nothing;
        /// The handshake failed, or did not end within `limits.login_timeout`.
        Failed = "failed": Client, UNLOGGED, Nothing;
    }

    /// Why the far end of a trunk refuses a request.
    TrunkRefusal counted as "trunk_streams_refused" ends Request {
        /// The method is not CONNECT.
        Method = "method": Client, INFO, Status(405);
        /// The request asks for another place than `trunk_listener.target`.
        Target = "target": Configuration, INFO, Status(403);
        /// No connection to `trunk_listener.target` could be made.
        Unreachable = "unreachable": Server, INFO, Status(502);
        /// This machine has no descriptors, or no memory, for a connection to `trunk_listener.target`.
        Shortage = "shortage": System, INFO, Status(503);
        /// `trunk_listener.target` did not accept the connection within `limits.login_timeout`.
        TimedOut = "timed_out": Server, INFO, Status(504);
    }

    /// Why a connection of the trunk is over, at either end.
    TrunkClose counted as "trunk_connections_closed" ends Connection {
        /// One end closed it in order.
        Closed = "closed": None, UNLOGGED, Nothing;
        /// The connection broke.
        Broken = "broken": System, WARN, Nothing;
        /// The other end did not answer a PING within 10 s.
        NoPong = "no_pong": Server, WARN, Nothing;
        /// The TLS handshake failed.
        TlsHandshake = "tls_handshake": Client, INFO, Nothing;
        /// The near end has no certificate of the authorities in `trunk_listener.client_ca`.
        ClientCertificate = "client_certificate": Client, INFO, Nothing;
        /// The near end did not begin HTTP/2 within `limits.login_timeout`.
        LoginTimeout = "login_timeout": Client, INFO, Nothing;
        /// One end violated HTTP/2, or does not speak it.
        Protocol = "protocol": Client, WARN, Nothing;
        /// One end sent more frames of a kind than any proper use needs.
        Flood = "flood": Client, WARN, Nothing;
    }

    /// Why a listener could not accept a connection.
    AcceptError counted as "accept_errors" ends Nothing {
        /// The connection was gone before it was accepted.
        Connection = "connection": Client, WARN, Nothing;
        /// Descriptors or memory have run out; accepting pauses for 100 ms.
        Exhausted = "exhausted": System, ERROR, Nothing;
        /// The listener itself failed.
        Listener = "listener": System, ERROR, Nothing;
    }

    /// Why the admin endpoint closed a connection.
    AdminClose counted as "admin_connections_closed" ends Connection {
        /// It did not send a complete request within 10 s.
        Idle = "idle": Client, DEBUG, Nothing;
        /// Its client did not take the response within 30 s.
        Stalled = "stalled": Client, WARN, Nothing;
        /// A new connection needed its place: all 64 were taken, and it had waited for a request the longest.
        Evicted = "evicted": Limit, WARN, Nothing;
    }

    /// Why a listener is down.
    ListenerFailure counted as "listener_failures" ends Listener {
        /// Another process listens on the port, at this address or at one that overlaps with it.
        InUse = "in_use": System, ERROR, Nothing;
        /// The process may not listen on the port.
        NotPermitted = "not_permitted": System, ERROR, Nothing;
        /// `host_name` is not an address of this machine.
        NotAnAddress = "not_an_address": Configuration, ERROR, Nothing;
        /// `host_name` cannot be resolved.
        Unresolved = "unresolved": Configuration, ERROR, Nothing;
        /// Another section has the same port, on the same address or on every address.
        Overlap = "overlap": Configuration, ERROR, Nothing;
        /// The service manager passed a socket at an address that overlaps with the one in the file and is not the same.
        BesidePassed = "beside_passed": Configuration, ERROR, Nothing;
        /// The system reported another error.
        Other = "other": System, ERROR, Nothing;
    }

    /// The outcome of a reload.
    ReloadOutcome counted as "reloads" ends Nothing {
        /// The new configuration is in force.
        Accepted = "accepted": None, INFO, Nothing;
        /// Nothing has changed; `sametime_mux_reloads_refused_total` has the reason.
        Refused = "refused": Configuration, ERROR, Nothing;
    }

    /// Why a reload was refused.
    ReloadRefusal counted as "reloads_refused" ends Reload {
        /// The configuration file has a mistake.
        Configuration = "configuration": Configuration, ERROR, Nothing;
        /// The file lacks sections that the configuration in force has: it may be cut off.
        SectionsLost = "sections_lost": Configuration, ERROR, Nothing;
        /// The last line of the file has no line end, which the file in force has: it may be cut off.
        CutOff = "cut_off": Configuration, ERROR, Nothing;
        /// The file names the sandbox, where any password logs in, and the configuration in force does not.
        ToSandbox = "to_sandbox": Configuration, ERROR, Nothing;
        /// The certificate and its key cannot be used, or are absent.
        Tls = "tls": Configuration, ERROR, Nothing;
        /// A Community port, or with `listeners.require_all` any port, cannot be bound.
        Listener = "listener": System, ERROR, Nothing;
        /// The secret of the cluster cannot be used, `cluster.listen` cannot be bound, or two nodes have the same tag.
        Cluster = "cluster": Configuration, ERROR, Nothing;
        /// `admin.listen` cannot be bound.
        Admin = "admin": System, ERROR, Nothing;
        /// The sandbox Community server cannot be started.
        Sandbox = "sandbox": System, ERROR, Nothing;
        /// The program is being stopped: its ports are closed, or left to the next process.
        Stopping = "stopping": None, ERROR, Nothing;
    }
}
