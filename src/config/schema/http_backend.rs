//! `[http_backend]`.

use std::time::Duration;

use super::{ANY_NUMBER, HOUR, MILLISECOND};
use crate::config::{legal, reader::KeyReader, section_reader::SectionReader};

/// The values of this section.
pub(super) struct HttpBackendSection {
    pub(super) url: Option<hyper::Uri>,
    pub(super) connections: usize,
    pub(super) response_timeout: Duration,
}

pub(super) fn read(reader: &mut KeyReader<'_>) -> HttpBackendSection {
    let mut section = SectionReader::new(reader, "http_backend");
    HttpBackendSection {
        url: section.key("url", String::new(), "\"http://host:port\", or \"\" for none", legal::backend),
        connections: section.number("connections", 1000, ANY_NUMBER, 1..=1_000_000),
        response_timeout: section.duration(
            "response_timeout",
            "60s",
            "a duration, 100ms to 1h",
            100 * MILLISECOND..=HOUR,
        ),
    }
}
