//! The counters that every floor writes and the admin endpoint reads.
//!
//! Names and labels are an interface: dashboards hold them. Every label has few values: ports
//! and servers of the configuration, names from the code.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use crate::stream::{Refusal, Section, Transport};

mod process;

/// The media type of [`Telemetry::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    ToCommunity,
    /// From the Community.
    ToClient,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Port {
    port: u32,
    transport: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Way {
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Listener {
    section: &'static str,
    port: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Server {
    server: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TunnelRequest {
    kind: &'static str,
    outcome: &'static str,
}

/// A directions' counters, resolved once: the way of a byte looks up no label.
struct Flow {
    bytes: Counter,
    frames: Counter,
}

/// Shows counters before there is something to count: a query finds 0, not nothing.
fn at_zero(family: &Family<Reason, Counter>, reasons: &[&'static str]) {
    for &reason in reasons {
        drop(family.get_or_create(&Reason { reason }));
    }
}

/// Sessions of one port and transport.
#[derive(Clone)]
pub struct SessionsGauge {
    present: Gauge,
    opened: Counter,
}

impl SessionsGauge {
    /// One more.
    pub fn opened(&self) {
        self.present.inc();
        self.opened.inc();
    }

    /// One less.
    pub fn closed(&self) {
        self.present.dec();
    }
}

/// What there is at present of what is bounded.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Connections that are no session.
    pub connections: usize,
    /// Clients that are not logged in.
    pub logging_in: usize,
    /// Bytes held for slow clients.
    pub held_bytes: usize,
    /// Sessions of the HTTP tunnel.
    pub tunnel_sessions: usize,
}

/// Every counter.
pub struct Telemetry {
    registry: Registry,
    started: Instant,
    sessions: Family<Port, Gauge>,
    opened: Family<Port, Counter>,
    gauges: Mutex<BTreeMap<(u16, Transport), SessionsGauge>>,
    refused: Family<Reason, Counter>,
    closed: Family<Reason, Counter>,
    dropped: Family<Reason, Counter>,
    duration: Histogram,
    to_community: Flow,
    to_client: Flow,
    listener_up: Family<Listener, Gauge>,
    community_up: Family<Server, Gauge>,
    community_sessions: Family<Server, Gauge>,
    tunnel_requests: Family<TunnelRequest, Counter>,
    http_refused: Family<Reason, Counter>,
    tls_handshakes: Family<Reason, Counter>,
    accept_errors: Family<Reason, Counter>,
    guesses_delayed: Counter,
    connections_delayed: Counter,
    connections: Gauge,
    logging_in: Gauge,
    held_bytes: Gauge,
    tunnel_sessions: Gauge,
    login: Histogram,
    logins_refused: Counter,
    reloads: Family<Reason, Counter>,
    /// When the certificate ends, in seconds since 1970; 0: not known.
    certificate_end: AtomicI64,
    certificate: Gauge<f64, AtomicU64>,
    uptime: Gauge<f64, AtomicU64>,
    process: process::Process,
}

impl Telemetry {
    /// Counters at zero, for the given version of the program.
    pub fn new(version: &str) -> Arc<Self> {
        let mut all = Registry::with_prefix("sametime_mux");
        let bytes = Family::<Way, Counter>::default();
        let frames = Family::<Way, Counter>::default();
        let flow = |direction| {
            let way = Way { direction };
            Flow { bytes: bytes.get_or_create(&way).clone(), frames: frames.get_or_create(&way).clone() }
        };
        let (to_community, to_client) = (flow("to_community"), flow("to_client"));
        all.register("bytes", "Bytes relayed", bytes);
        all.register("frames", "Frames relayed", frames);
        all.register("build", "The program", Info::new(vec![("version".to_owned(), version.to_owned())]));
        macro_rules! registered {
            ($name:literal, $help:literal, $metric:expr) => {{
                let metric = $metric;
                all.register($name, $help, metric.clone());
                metric
            }};
        }
        let sessions = registered!("sessions", "Clients at present", Family::default());
        let opened = registered!("sessions_opened", "Clients taken in", Family::default());
        let refused = registered!("sessions_refused", "Clients refused, by reason", Family::default());
        let closed = registered!("sessions_closed", "Sessions ended, by reason", Family::default());
        let dropped =
            registered!("connections_dropped", "Connections that never became a session, by reason", Family::default());
        let listener_up = registered!("listener_up", "Whether a port is bound", Family::default());
        let community_up = registered!("community_up", "Whether a Community server answers", Family::default());
        let community_sessions = registered!("community_sessions", "Clients on a Community server", Family::default());
        let tunnel_requests =
            registered!("tunnel_requests", "Requests of the HTTP tunnel, by kind and outcome", Family::default());
        let http_refused =
            registered!("http_requests_refused", "HTTP requests refused for their form, by reason", Family::default());
        let tls_handshakes = registered!("tls_handshakes", "TLS handshakes, by outcome", Family::default());
        let accept_errors = registered!("accept_errors", "Errors of accept, by class", Family::default());
        let logins_refused = registered!("logins_refused", "Log-ins that the Community refused", Counter::default());
        let guesses_delayed = registered!(
            "tunnel_guesses_delayed",
            "Requests for tunnel sessions that are not there, answered late since one address sent very many",
            Counter::default()
        );
        let connections_delayed =
            registered!("connections_delayed", "Connections that waited for their turn", Counter::default());
        let connections =
            registered!("connections", "Connections that are no session: not yet, or HTTP", Gauge::default());
        let logging_in = registered!("sessions_logging_in", "Clients that are not logged in yet", Gauge::default());
        let held_bytes =
            registered!("held_bytes", "Bytes held since a client, or the Community, is slow", Gauge::default());
        let tunnel_sessions = registered!(
            "tunnel_sessions",
            "Sessions of the HTTP tunnel, those that have ended but may be asked for still among them",
            Gauge::default()
        );
        let reloads = registered!("reloads", "Reloads of the configuration, by outcome", Family::default());
        let mut seconds = |name: &str, help: &str, histogram: Histogram| {
            all.register_with_unit(name, help, Unit::Seconds, histogram.clone());
            histogram
        };
        let login = seconds(
            "login",
            "From accept to the Community's LoginAck",
            Histogram::new(exponential_buckets(0.001, 2.0, 17)),
        );
        let duration =
            seconds("session_duration", "From accept to close", Histogram::new(exponential_buckets(1.0, 4.0, 10)));
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::<f64, AtomicU64>::default();
            all.register_with_unit(name, help, Unit::Seconds, gauge.clone());
            gauge
        };
        let certificate = gauge("tls_certificate_expiry", "Until the server's TLS certificate ends");
        let uptime = gauge("uptime", "Since the start");
        at_zero(&refused, &Refusal::ALL.map(Refusal::name));
        at_zero(&refused, &["no_community", "login_timeout"]);
        at_zero(&closed, &["log_out", "client_closed", "community_closed", "community_broken"]);
        at_zero(&dropped, &["http", "connections", "connections_per_address", "connection_rate_per_address"]);
        at_zero(&http_refused, &["line_end", "header", "both_lengths", "host", "target"]);
        at_zero(&tls_handshakes, &["accepted", "failed"]);
        at_zero(&accept_errors, &["connection", "exhausted", "listener"]);
        at_zero(&reloads, &["accepted", "refused"]);
        for kind in [Transport::HttpPolling, Transport::HttpHybrid].map(Transport::name) {
            for outcome in ["opened", "payload", "empty", "retry", "unknown"] {
                let _ =
                    Family::<TunnelRequest, Counter>::get_or_create(&tunnel_requests, &TunnelRequest { kind, outcome });
            }
        }
        let process = process::Process::register(&mut all);
        Arc::new(Self {
            registry: all,
            started: Instant::now(),
            sessions,
            opened,
            gauges: Mutex::default(),
            refused,
            closed,
            dropped,
            duration,
            to_community,
            to_client,
            listener_up,
            community_up,
            community_sessions,
            tunnel_requests,
            http_refused,
            tls_handshakes,
            accept_errors,
            guesses_delayed,
            connections_delayed,
            connections,
            logging_in,
            held_bytes,
            tunnel_sessions,
            login,
            logins_refused,
            reloads,
            certificate_end: AtomicI64::new(0),
            certificate,
            uptime,
            process,
        })
    }

    /// Since the start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// The sessions of a port and transport.
    pub fn sessions(&self, port: u16, transport: Transport) -> SessionsGauge {
        let mut gauges = self.gauges.lock();
        let gauge = gauges.entry((port, transport)).or_insert_with(|| {
            let labels = Port { port: port.into(), transport: transport.name() };
            SessionsGauge {
                present: self.sessions.get_or_create(&labels).clone(),
                opened: self.opened.get_or_create(&labels).clone(),
            }
        });
        gauge.clone()
    }

    /// Clients at present that match, summed.
    pub fn present(&self, matches: impl Fn(u16, Transport) -> bool) -> u64 {
        let gauges = self.gauges.lock();
        let sum: i64 =
            gauges.iter().filter(|((port, via), _)| matches(*port, *via)).map(|(_, g)| g.present.get()).sum();
        u64::try_from(sum).unwrap_or(0)
    }

    /// A client was refused.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// How many clients were refused for each of `reasons`.
    pub fn refused_count(&self, reason: &'static str) -> u64 {
        self.refused.get(&Reason { reason }).map_or(0, |counter| counter.get())
    }

    /// A session ended.
    pub fn closed(&self, reason: &'static str, seconds: f64) {
        self.closed.get_or_create(&Reason { reason }).inc();
        self.duration.observe(seconds);
    }

    /// A connection never became a session.
    pub fn connection_dropped(&self, reason: &'static str) {
        self.dropped.get_or_create(&Reason { reason }).inc();
    }

    /// Bytes were read for the given direction.
    #[inline]
    pub fn bytes(&self, direction: Direction, n: u64) {
        self.flow(direction).bytes.inc_by(n);
    }

    /// Frames were read for the given direction.
    #[inline]
    pub fn frames(&self, direction: Direction, n: u64) {
        self.flow(direction).frames.inc_by(n);
    }

    #[inline]
    fn flow(&self, direction: Direction) -> &Flow {
        match direction {
            Direction::ToCommunity => &self.to_community,
            Direction::ToClient => &self.to_client,
        }
    }

    /// The Community has answered a log-in, so long after the accept.
    pub fn login(&self, seconds: f64, accepted: bool) {
        if accepted {
            self.login.observe(seconds);
        } else {
            self.logins_refused.inc();
        }
    }

    /// A request of the tunnel was answered.
    pub fn tunnel_request(&self, kind: &'static str, outcome: &'static str) {
        self.tunnel_requests.get_or_create(&TunnelRequest { kind, outcome }).inc();
    }

    /// An HTTP request was refused for its form.
    pub fn http_refused(&self, reason: &'static str) {
        self.http_refused.get_or_create(&Reason { reason }).inc();
    }

    /// A TLS handshake came to its end.
    pub fn tls_handshake(&self, accepted: bool) {
        let reason = if accepted { "accepted" } else { "failed" };
        self.tls_handshakes.get_or_create(&Reason { reason }).inc();
    }

    /// A request for a session that is not there was answered late.
    pub fn guess_delayed(&self) {
        self.guesses_delayed.inc();
    }

    /// A connection waits, since more come than may be served in a second.
    pub fn connection_delayed(&self) {
        self.connections_delayed.inc();
    }

    /// What there is of what is bounded.
    pub fn set_load(&self, load: Load) {
        for (gauge, n) in [
            (&self.connections, load.connections),
            (&self.logging_in, load.logging_in),
            (&self.held_bytes, load.held_bytes),
            (&self.tunnel_sessions, load.tunnel_sessions),
        ] {
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        }
    }

    /// `accept` failed.
    pub fn accept_error(&self, class: &'static str) {
        self.accept_errors.get_or_create(&Reason { reason: class }).inc();
    }

    /// A reload was tried.
    pub fn reload(&self, accepted: bool) {
        let reason = if accepted { "accepted" } else { "refused" };
        self.reloads.get_or_create(&Reason { reason }).inc();
    }

    /// A port is bound or not. Its sessions are shown from now on, none as 0.
    pub fn set_listener(&self, section: Section, port: u16, up: bool) {
        for transport in Transport::ALL {
            self.sessions(port, transport);
        }
        self.listener_up.get_or_create(&Listener { section: section.name(), port: port.into() }).set(up.into());
    }

    /// A port is no longer in the configuration.
    pub fn remove_listener(&self, section: Section, port: u16) {
        self.listener_up.remove(&Listener { section: section.name(), port: port.into() });
    }

    /// All Community servers: name, whether up, clients.
    pub fn set_community(&self, servers: impl Iterator<Item = (String, bool, u64)>) {
        self.community_up.clear();
        self.community_sessions.clear();
        for (server, up, sessions) in servers {
            let labels = Server { server };
            self.community_up.get_or_create(&labels).set(up.into());
            self.community_sessions.get_or_create(&labels).set(i64::try_from(sessions).unwrap_or(i64::MAX));
        }
    }

    /// The runtimes whose tasks are counted beside those of the present one.
    pub fn set_runtimes(&self, runtimes: &[tokio::runtime::Handle]) {
        self.process.set_runtimes(runtimes);
    }

    /// When the certificate ends, in seconds since 1970.
    pub fn set_certificate_end(&self, unix: i64) {
        self.certificate_end.store(unix, Relaxed);
    }

    /// All of it, in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        #[allow(clippy::cast_precision_loss)]
        self.certificate.set(self.certificate_end.load(Relaxed) as f64 - now.as_secs_f64());
        self.uptime.set(self.uptime().as_secs_f64());
        self.process.refresh();
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests;
