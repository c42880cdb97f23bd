//! `[community]`.

use std::time::Duration;

use serde::Deserialize;

use super::{ANY_NUMBER, HOUR, MILLISECOND, MINUTE, trunk};
use crate::{
    community::{self, Balance, Check, ServerAddress},
    config::{legal, reader::KeyReader, section_reader::SectionReader},
};

/// How clients are connected to a Community server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LinkKind {
    Direct,
    Trunk,
}

pub(super) fn read(reader: &mut KeyReader<'_>) -> community::CommunitySettings {
    let mut section = SectionReader::new(reader, "community");
    // There is no default: it would be the sandbox, and a file that is cut off would send everybody there.
    let legal = "a list of \"host:port\" or \"host:port weight=3\", at least one, each once, weights 1 to 256; \"sandbox\" is a server for trials, where any password logs in";
    let servers = section.required("servers", legal, legal::servers);
    let names_sandbox = servers.iter().any(|server| server.address == ServerAddress::Sandbox);
    let legal = "\"least-sessions\", \"failover\" or \"round-robin\"";
    let balance = section.value("balance", Balance::LeastSessions, legal);
    let recalculate_after = section.number("recalculate_after", 100, ANY_NUMBER, 1..=1_000_000);
    let slow_start = section.duration("slow_start", "0s", "a duration, 0s to 1h", Duration::ZERO..=HOUR);
    let is_trunk = section.value("link", LinkKind::Direct, "\"direct\" or \"trunk\"") == LinkKind::Trunk;
    if is_trunk && names_sandbox {
        section.conflict("link", "the sandbox has no trunk");
    }
    let send_proxy_protocol = section.flag("send_proxy_protocol", false);
    if send_proxy_protocol && names_sandbox {
        section.conflict("send_proxy_protocol", "the sandbox does not expect a PROXY header");
    }
    let short = 50 * MILLISECOND..=2 * MINUTE;
    let longer = 100 * MILLISECOND..=2 * MINUTE;
    let interval = 100 * MILLISECOND..=HOUR;
    community::CommunitySettings {
        servers,
        balance,
        recalculate_after,
        slow_start,
        send_proxy_protocol,
        connect_timeout: section.duration("connect_timeout", "5s", "a duration, 50ms to 2m", short),
        handshake_timeout: section.duration("handshake_timeout", "20s", "a duration, 100ms to 2m", longer),
        check: section.value("check", Check::Connect, "\"connect\" or \"handshake\""),
        check_interval: section.duration_or_never(
            "check_interval",
            "5s",
            "a duration, 100ms to 1h, or \"0s\" for never",
            interval,
        ),
        trunk: trunk::near(reader, is_trunk),
    }
}
