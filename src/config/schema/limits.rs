//! `[limits]`.

use std::time::Duration;

use ipnet::IpNet;

use super::{ANY_NUMBER, DAY, HOUR, MILLISECOND, NETWORKS, SECOND};
use crate::{
    config::{legal, reader::KeyReader, section_reader::SectionReader},
    ingress, mux,
    net::keepalive::MIN_VANISHED_TIMEOUT,
};

const NUMBER_OR_NONE: &str = "1 to 1000000, or 0 for no limit";

/// The values of this section: limits of clients, of connections and of tunnel sessions.
pub(super) struct LimitsSection {
    pub(super) capacity: usize,
    per_address: usize,
    logging_in: usize,
    logging_in_per_address: usize,
    logging_in_timeout: Option<Duration>,
    pub(super) tunnel_sessions: usize,
    pub(super) tunnel_sessions_per_address: usize,
    connections: usize,
    connections_per_address: usize,
    connection_rate: usize,
    connection_rate_per_address: usize,
    held_bytes: usize,
    held_bytes_per_address: usize,
    pub(super) exempt: Vec<IpNet>,
    pub(super) login_timeout: Duration,
    idle_timeout: Option<Duration>,
    pub(super) vanished_timeout: Duration,
    pub(super) max_frame: u32,
    pub(super) drain_timeout: Duration,
}

pub(super) fn read(reader: &mut KeyReader<'_>) -> LimitsSection {
    let mut section = SectionReader::new(reader, "limits");
    let section = &mut section;
    let capacity = number(section, "capacity", 20_000);
    let per_address = section.number("per_address", 0, "1 to limits.capacity, or 0 for no limit", 0..=1_000_000);
    if per_address > capacity {
        section.conflict("per_address", &format!("{per_address} is more than limits.capacity"));
    }
    let logging_in = number(section, "logging_in", 20_000);
    let logging_in_per_address = number_or_none(section, "logging_in_per_address");
    let logging_in_timeout = section.duration_or_never(
        "logging_in_timeout",
        "2m",
        "a duration, 1s to 1d, or \"0s\" for never",
        SECOND..=DAY,
    );
    let tunnel_sessions = number(section, "tunnel_sessions", 40_000);
    let tunnel_sessions_per_address = number_or_none(section, "tunnel_sessions_per_address");
    let connections = number(section, "connections", 60_000);
    let connections_per_address = number_or_none(section, "connections_per_address");
    let connection_rate = number_or_none(section, "connection_rate");
    let connection_rate_per_address = number_or_none(section, "connection_rate_per_address");
    let legal = "1048576 (1 MiB) to 1099511627776 bytes";
    let held_bytes = section.number("held_bytes", 256 << 20, legal, 1 << 20..=1 << 40);
    let legal = "65536 (64 KiB) to limits.held_bytes, or 0 for no limit";
    let held_bytes_per_address = section.key("held_bytes_per_address", 0, legal, |n| match n {
        0 => Ok(0),
        n => legal::number(1 << 16..=1 << 40)(n),
    });
    if held_bytes_per_address > held_bytes {
        section.conflict("held_bytes_per_address", &format!("{held_bytes_per_address} is more than limits.held_bytes"));
    }
    LimitsSection {
        capacity,
        per_address,
        logging_in,
        logging_in_per_address,
        logging_in_timeout,
        tunnel_sessions,
        tunnel_sessions_per_address,
        connections,
        connections_per_address,
        connection_rate,
        connection_rate_per_address,
        held_bytes,
        held_bytes_per_address,
        exempt: section.key("exempt", vec![], NETWORKS, legal::networks),
        login_timeout: section.duration("login_timeout", "30s", "a duration, 50ms to 1h", 50 * MILLISECOND..=HOUR),
        idle_timeout: section.duration_or_never(
            "idle_timeout",
            "0s",
            "a duration, 100ms to 30d, or \"0s\" for never",
            100 * MILLISECOND..=30 * DAY,
        ),
        vanished_timeout: section.duration(
            "vanished_timeout",
            "4m",
            "a duration, 8s to 1d",
            MIN_VANISHED_TIMEOUT..=DAY,
        ),
        max_frame: section.number("max_frame", 1_048_576, "1024 to 16777216 bytes", 1024..=16_777_216),
        drain_timeout: section.duration("drain_timeout", "30s", "a duration, 0s to 1d", Duration::ZERO..=DAY),
    }
}

fn number(section: &mut SectionReader<'_, '_>, name: &'static str, default: i64) -> usize {
    section.number(name, default, ANY_NUMBER, 1..=1_000_000)
}

fn number_or_none(section: &mut SectionReader<'_, '_>, name: &'static str) -> usize {
    section.number(name, 0, NUMBER_OR_NONE, 0..=1_000_000)
}

impl LimitsSection {
    /// The settings of the core, which counts clients.
    pub(super) fn mux_settings(&self) -> mux::MuxSettings {
        mux::MuxSettings {
            capacity: self.capacity,
            per_address: self.per_address,
            logging_in: self.logging_in,
            logging_in_per_address: self.logging_in_per_address,
            held_bytes: self.held_bytes,
            held_bytes_per_address: self.held_bytes_per_address,
            exempt: self.exempt.clone(),
            login_timeout: self.login_timeout,
            logging_in_timeout: self.logging_in_timeout,
            idle_timeout: self.idle_timeout,
            max_frame: self.max_frame,
            drain_timeout: self.drain_timeout,
        }
    }

    /// The limits of connections that are not a client.
    pub(super) fn connection_limits(&self) -> ingress::ConnectionLimits {
        ingress::ConnectionLimits {
            connections: self.connections,
            connections_per_address: self.connections_per_address,
            rate: self.connection_rate,
            rate_per_address: self.connection_rate_per_address,
            exempt: self.exempt.clone(),
        }
    }
}
