//! `[community]`.

use serde::Deserialize;

use super::{ANY_NUMBER, HOUR, MILLISECOND, MINUTE};
use crate::{
    community::{self, Balance, Check},
    config::{legal, reader::KeyReader, section_reader::SectionReader},
};

/// How clients are connected to a Community server. Settings have no such field, because only one value is possible in
/// this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LinkKind {
    Direct,
    Trunk,
}

pub(super) fn read(reader: &mut KeyReader<'_>) -> community::CommunitySettings {
    let mut section = SectionReader::new(reader, "community");
    let legal = "a list of \"host:port\", or \"sandbox\"; at least one, each once";
    let servers = section.key("servers", vec!["sandbox".to_owned()], legal, legal::servers);
    let legal = "\"least-sessions\", \"failover\" or \"round-robin\"";
    let balance = section.value("balance", Balance::LeastSessions, legal);
    let recalculate_after = section.number("recalculate_after", 100, ANY_NUMBER, 1..=1_000_000);
    if section.value("link", LinkKind::Direct, "\"direct\"") == LinkKind::Trunk {
        section.conflict("link", "\"trunk\" is not in this version");
    }
    let short = 50 * MILLISECOND..=2 * MINUTE;
    let longer = 100 * MILLISECOND..=2 * MINUTE;
    let interval = 100 * MILLISECOND..=HOUR;
    community::CommunitySettings {
        servers,
        balance,
        recalculate_after,
        send_proxy_protocol: section.flag("send_proxy_protocol", false),
        connect_timeout: section.duration("connect_timeout", "5s", "a duration, 50ms to 2m", short),
        handshake_timeout: section.duration("handshake_timeout", "20s", "a duration, 100ms to 2m", longer),
        check: section.value("check", Check::Connect, "\"connect\" or \"handshake\""),
        check_interval: section.duration_or_never(
            "check_interval",
            "5s",
            "a duration, 100ms to 1h, or \"0s\" for never",
            interval,
        ),
    }
}
