//! `[log]`.

use crate::{
    config::{reader::KeyReader, section_reader::SectionReader},
    log::{LogFormat, LogLevel, LogSettings},
};

pub(super) fn read(reader: &mut KeyReader<'_>) -> LogSettings {
    let mut section = SectionReader::new(reader, "log");
    let levels = "\"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\"";
    LogSettings {
        format: section.value("format", LogFormat::Text, "\"text\" or \"json\""),
        level: section.value("level", LogLevel::Info, levels),
    }
}
