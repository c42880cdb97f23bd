//! Every key: its default, what is legal, and the settings that it becomes.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{Settings, legal, reader::Reader};
use crate::{
    admin,
    community::{self, Balance, Check},
    ingress::{self, ClientCertificates, ListenerSettings, TlsSettings, tunnel},
    log::{LogFormat, LogLevel, LogSettings},
    mux,
    net::{Section, keepalive::MIN_VANISHED_TIMEOUT},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

const ANY_NUMBER: &str = "1 to 1000000";
const NUMBER_OR_NONE: &str = "1 to 1000000, or 0 for no limit";
const NETWORKS: &str = "a list of networks and addresses, e.g. [\"10.0.0.0/8\", \"::1\"]";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum BalanceName {
    Failover,
    RoundRobin,
    LeastSessions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CheckName {
    Connect,
    Handshake,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LinkName {
    Direct,
    Trunk,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ClientCertificatesName {
    Off,
    Optional,
    Required,
}

/// Any value of the right type.
#[allow(clippy::unnecessary_wraps)]
fn any<T>(value: T) -> Result<T, String> {
    Ok(value)
}

/// Reads every key. What is wrong stands in the reader then.
pub(super) fn settings(reader: &mut Reader<'_>, file: &Path) -> Settings {
    let listeners = listeners(reader);
    let require_all = reader.key("listeners", "require_all", false, "true or false", any);
    let share_ports = reader.key("listeners", "share_ports", false, "true or false", any);
    let proxy_protocol_from = reader.key("listeners", "proxy_protocol_from", vec![], NETWORKS, legal::networks);
    let forwarded_for_from = reader.key("listeners", "forwarded_for_from", vec![], NETWORKS, legal::networks);
    let community = community(reader);
    trunk(reader);
    let http_backend =
        reader.key("http_backend", "url", String::new(), "\"http://host:port\", or \"\" for none", legal::backend);
    let http_backend_connections =
        reader.key("http_backend", "connections", 1000, ANY_NUMBER, legal::size(1..=1_000_000));
    let tls = tls(reader);
    let (mux, limits, (sessions, sessions_per_address)) = limits(reader);
    let mut tunnel = tunnel(reader);
    (tunnel.sessions, tunnel.sessions_per_address) = (sessions, sessions_per_address);
    tunnel.exempt.clone_from(&limits.exempt);
    let admin = admin(reader);
    let log = LogSettings {
        format: reader.key("log", "format", LogFormat::Text, "\"text\" or \"json\"", any),
        level: reader.key(
            "log",
            "level",
            LogLevel::Info,
            "\"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\"",
            any,
        ),
    };
    let ingress = ingress::IngressSettings {
        listeners,
        require_all,
        share_ports,
        proxy_protocol_from,
        forwarded_for_from,
        limits,
        login_timeout: mux.login_timeout,
        vanished_timeout: reader.key(
            "limits",
            "vanished_timeout",
            "4m".to_owned(),
            "a duration, 8s to 1d",
            legal::duration(MIN_VANISHED_TIMEOUT, DAY),
        ),
        max_frame: mux.max_frame,
        tls,
        http_backend,
        http_backend_connections,
        tunnel,
    };
    Settings { file: file.to_owned(), ingress, mux, community, admin, log }
}

fn tls(reader: &mut Reader<'_>) -> TlsSettings {
    let certificate = path(reader, "tls", "certificate", "certs/server.pem");
    let private_key = path(reader, "tls", "private_key", "certs/server.key");
    let legal = "\"off\", \"optional\" or \"required\"";
    let asked = reader.key("tls", "client_certificates", ClientCertificatesName::Off, legal, any);
    let client_certificates = match asked {
        ClientCertificatesName::Off => ClientCertificates::Off,
        ClientCertificatesName::Optional => ClientCertificates::Optional,
        ClientCertificatesName::Required => ClientCertificates::Required,
    };
    let legal = "a PEM file with the authorities that sign clients' certificates; \"\" where none are asked for";
    let client_ca = PathBuf::from(reader.key("tls", "client_ca", String::new(), legal, any));
    if client_certificates != ClientCertificates::Off && client_ca.as_os_str().is_empty() {
        reader.misfit("tls", "client_ca", "tls.client_certificates is not off: there must be a file");
    }
    TlsSettings { certificate, private_key, client_certificates, client_ca }
}

fn listeners(reader: &mut Reader<'_>) -> Vec<ListenerSettings> {
    let defaults: [&[i64]; 3] = [&[1533], &[80, 8082], &[443]];
    let mut listeners: Vec<ListenerSettings> = Vec::new();
    for (section, ports) in Section::ALL.into_iter().zip(defaults) {
        let host_name = "an address or a name of this machine, or \"\" for every address, IPv4 and IPv6";
        let host = reader.key(section.name(), "host_name", String::new(), host_name, legal::host);
        let legal = "a list of ports, each 1 to 65535 and in one section only; [] for none";
        for port in reader.key(section.name(), "ports", ports.to_vec(), legal, legal::ports) {
            let taken = listeners
                .iter()
                .find(|other| other.port == port && (other.host == host || other.host.is_empty() || host.is_empty()));
            if let Some(taken) = taken {
                let what = format!("port {port} stands in [{}], too", taken.section);
                reader.misfit(section.name(), "ports", &what);
            }
            listeners.push(ListenerSettings { section, host: host.clone(), port });
        }
    }
    if listeners.is_empty() {
        reader.misfit("client_connections", "ports", "no section has a port");
    }
    listeners
}

fn community(reader: &mut Reader<'_>) -> community::Settings {
    let legal = "a list of \"host:port\", or \"sandbox\"; at least one, each once";
    let servers = reader.key("community", "servers", vec!["sandbox".to_owned()], legal, legal::servers);
    let legal = "\"least-sessions\", \"failover\" or \"round-robin\"";
    let balance = reader.key("community", "balance", BalanceName::LeastSessions, legal, any);
    let recalculate_after =
        reader.key("community", "recalculate_after", 100, "1 to 1000000", legal::size(1..=1_000_000));
    let link = reader.key("community", "link", LinkName::Direct, "\"direct\"", any);
    if link == LinkName::Trunk {
        reader.misfit("community", "link", "\"trunk\" is not in this version");
    }
    community::Settings {
        servers,
        balance: match balance {
            BalanceName::Failover => Balance::Failover,
            BalanceName::RoundRobin => Balance::RoundRobin,
            BalanceName::LeastSessions => Balance::LeastSessions,
        },
        recalculate_after: u32::try_from(recalculate_after).unwrap_or(u32::MAX),
        send_proxy_protocol: reader.key("community", "send_proxy_protocol", false, "true or false", any),
        connect_timeout: reader.key(
            "community",
            "connect_timeout",
            "5s".to_owned(),
            "a duration, 50ms to 2m",
            legal::duration(50 * MS, 120 * SECOND),
        ),
        handshake_timeout: reader.key(
            "community",
            "handshake_timeout",
            "20s".to_owned(),
            "a duration, 100ms to 2m",
            legal::duration(100 * MS, 120 * SECOND),
        ),
        check: match reader.key("community", "check", CheckName::Connect, "\"connect\" or \"handshake\"", any) {
            CheckName::Connect => Check::Connect,
            CheckName::Handshake => Check::Handshake,
        },
        check_interval: reader.key(
            "community",
            "check_interval",
            "5s".to_owned(),
            "a duration, 100ms to 1h, or \"0s\" for never",
            legal::duration_or_never(100 * MS, 3600 * SECOND),
        ),
    }
}

/// The trunk is not in this version: its keys are checked, and its listener can't be asked for.
fn trunk(reader: &mut Reader<'_>) {
    reader.key("trunk", "connections", 2, "1 to 64", legal::within(1..=64));
    reader.key("trunk", "tls", true, "true or false", any);
    reader.key("trunk", "certificate_authority", String::new(), "a file, or \"\" for the system's roots", any);
    let host_name = "an address or a name of this machine, or \"\" for every address";
    reader.key("trunk_listener", "host_name", String::new(), host_name, legal::host);
    let ports = reader.key("trunk_listener", "ports", vec![], "[]", legal::ports);
    if !ports.is_empty() {
        reader.misfit("trunk_listener", "ports", "the trunk is not in this version");
    }
    let target = "127.0.0.1:1533".to_owned();
    reader.key("trunk_listener", "target", target, "\"host:port\"", |text: String| legal::host_and_port(&text));
}

/// The core's, those of connections, and those of tunnel sessions: in all, from one address.
fn limits(reader: &mut Reader<'_>) -> (mux::Settings, ingress::ConnectionLimits, (usize, usize)) {
    let capacity = reader.key("limits", "capacity", 20_000, ANY_NUMBER, legal::size(1..=1_000_000));
    let legal = "1 to limits.capacity, or 0 for no limit";
    let per_address = reader.key("limits", "per_address", 0, legal, legal::size(0..=1_000_000));
    if per_address > capacity {
        reader.misfit("limits", "per_address", &format!("{per_address} is more than limits.capacity"));
    }
    let mut number = |name, default| reader.key("limits", name, default, ANY_NUMBER, legal::size(1..=1_000_000));
    let logging_in = number("logging_in", 20_000);
    let tunnel_sessions = number("tunnel_sessions", 40_000);
    let connections = number("connections", 60_000);
    let mut or_none = |name| reader.key("limits", name, 0, NUMBER_OR_NONE, legal::size(0..=1_000_000));
    let logging_in_per_address = or_none("logging_in_per_address");
    let tunnel_sessions_per_address = or_none("tunnel_sessions_per_address");
    let connections_per_address = or_none("connections_per_address");
    let rate = or_none("connection_rate");
    let rate_per_address = or_none("connection_rate_per_address");
    let legal = "1048576 (1 MiB) to 1099511627776 bytes";
    let held_bytes = reader.key("limits", "held_bytes", 256 << 20, legal, legal::size(1 << 20..=1 << 40));
    let legal = "65536 (64 KiB) to limits.held_bytes, or 0 for no limit";
    let held_bytes_per_address = reader.key("limits", "held_bytes_per_address", 0, legal, |n| match n {
        0 => Ok(0),
        n => legal::size(1 << 16..=1 << 40)(n),
    });
    if held_bytes_per_address > held_bytes {
        let what = format!("{held_bytes_per_address} is more than limits.held_bytes");
        reader.misfit("limits", "held_bytes_per_address", &what);
    }
    let exempt = reader.key("limits", "exempt", vec![], NETWORKS, legal::networks);
    let login_timeout = reader.key(
        "limits",
        "login_timeout",
        "30s".to_owned(),
        "a duration, 50ms to 1h",
        legal::duration(50 * MS, 3600 * SECOND),
    );
    let idle_timeout = reader.key(
        "limits",
        "idle_timeout",
        "0s".to_owned(),
        "a duration, 100ms to 30d, or \"0s\" for never",
        legal::duration_or_never(100 * MS, 30 * DAY),
    );
    let max_frame =
        reader.key("limits", "max_frame", 1_048_576, "1024 to 16777216 bytes", legal::size(1024..=16_777_216));
    let drain_timeout = reader.key(
        "limits",
        "drain_timeout",
        "30s".to_owned(),
        "a duration, 0s to 1d",
        legal::duration(Duration::ZERO, DAY),
    );
    let logging_in_timeout = reader.key(
        "limits",
        "logging_in_timeout",
        "2m".to_owned(),
        "a duration, 1s to 1d, or \"0s\" for never",
        legal::duration_or_never(SECOND, DAY),
    );
    let limits = ingress::ConnectionLimits {
        connections,
        connections_per_address,
        rate,
        rate_per_address,
        exempt: exempt.clone(),
    };
    let mux = mux::Settings {
        capacity,
        per_address,
        logging_in,
        logging_in_per_address,
        held_bytes,
        held_bytes_per_address,
        exempt,
        login_timeout,
        logging_in_timeout,
        idle_timeout,
        max_frame: u32::try_from(max_frame).unwrap_or(u32::MAX),
        drain_timeout,
    };
    (mux, limits, (tunnel_sessions, tunnel_sessions_per_address))
}

fn tunnel(reader: &mut Reader<'_>) -> tunnel::Settings {
    let hold = reader.key(
        "tunnel",
        "hold",
        "25s".to_owned(),
        "a duration, 50ms to 2m; below the time-out of every proxy on the way",
        legal::duration(50 * MS, 120 * SECOND),
    );
    let reply_wait = reader.key(
        "tunnel",
        "reply_wait",
        "100ms".to_owned(),
        "a duration, 0s to 5s",
        legal::duration(Duration::ZERO, 5 * SECOND),
    );
    let session_timeout = reader.key(
        "tunnel",
        "session_timeout",
        "60s".to_owned(),
        "a duration, 100ms to 1h",
        legal::duration(100 * MS, 3600 * SECOND),
    );
    let version = reader.key("tunnel", "version", 0, "0 or 1", legal::within(0..=1));
    let window = reader.key("tunnel", "window", 131_072, "4096 to 16777216 bytes", legal::size(4096..=16_777_216));
    let same_address = reader.key("tunnel", "same_address", false, "true or false", any);
    tunnel::Settings {
        hold,
        reply_wait,
        session_timeout,
        version: u32::try_from(version).unwrap_or_default(),
        window,
        same_address,
        // Of [limits].
        sessions: 0,
        sessions_per_address: 0,
        exempt: Vec::new(),
    }
}

fn admin(reader: &mut Reader<'_>) -> admin::Settings {
    let legal = "\"address:port\", or \"\" for off";
    let listen = reader.key("admin", "listen", "127.0.0.1:9533".to_owned(), legal, |text: String| {
        if text.is_empty() {
            return Ok(None);
        }
        let address = text.parse::<SocketAddr>().map_err(|_| format!("{text:?} is no address with a port"))?;
        if address.port() == 0 { Err(format!("{text:?} has no port")) } else { Ok(Some(address)) }
    });
    let legal = "a file with a token; \"\" for none, on loopback only";
    let token_file = reader.key("admin", "token_file", String::new(), legal, any);
    let token_file = (!token_file.is_empty()).then(|| PathBuf::from(token_file));
    if token_file.is_none() && listen.is_some_and(|address| !address.ip().is_loopback()) {
        reader.misfit("admin", "token_file", "admin.listen is not on loopback: there must be a token");
    }
    admin::Settings { listen, token_file }
}

fn path(reader: &mut Reader<'_>, section: &'static str, name: &'static str, default: &str) -> PathBuf {
    reader.key(section, name, default.to_owned(), "a PEM file", |text: String| {
        if text.is_empty() { Err("\"\" is no file".to_owned()) } else { Ok(PathBuf::from(text)) }
    })
}
