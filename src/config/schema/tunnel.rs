//! `[tunnel]`.

use std::time::Duration;

use super::{HOUR, MILLISECOND, MINUTE, SECOND, limits::LimitsSection};
use crate::{
    config::{reader::KeyReader, section_reader::SectionReader},
    ingress::tunnel::TunnelSettings,
};

/// Reads the section. The limits of tunnel sessions are in `limits`.
pub(super) fn read(reader: &mut KeyReader<'_>, limits: &LimitsSection) -> TunnelSettings {
    let mut section = SectionReader::new(reader, "tunnel");
    TunnelSettings {
        hold: section.duration(
            "hold",
            "25s",
            "a duration, 50ms to 2m; below the time-out of every proxy on the way",
            50 * MILLISECOND..=2 * MINUTE,
        ),
        reply_wait: section.duration("reply_wait", "100ms", "a duration, 0s to 5s", Duration::ZERO..=5 * SECOND),
        session_timeout: section.duration(
            "session_timeout",
            "60s",
            "a duration, 100ms to 1h",
            100 * MILLISECOND..=HOUR,
        ),
        stream_keep_alive: section.duration_or_never(
            "stream_keep_alive",
            "30s",
            "a duration, 100ms to 1h, below the time-out of every proxy on the way; or \"0s\" for never",
            100 * MILLISECOND..=HOUR,
        ),
        version: section.number("version", 0, "0 or 1", 0..=1),
        window: section.number("window", 131_072, "4096 to 16777216 bytes", 4096..=16_777_216),
        same_address: section.flag("same_address", false),
        sessions: limits.tunnel_sessions,
        sessions_per_address: limits.tunnel_sessions_per_address,
        exempt: limits.exempt.clone(),
    }
}
