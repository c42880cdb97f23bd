//! The log: to stderr, from a thread of its own, so that a slow terminal holds no client up.

use std::{fmt, io, time::SystemTime};

use tracing::field::Field;
use tracing_subscriber::{
    Layer, Registry,
    field::MakeExt,
    filter::LevelFilter,
    fmt::{
        format::{Writer, debug_fn},
        layer,
        time::FormatTime,
    },
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

use crate::config::{LogFormat, LogLevel, LogSettings};

mod lines;

use lines::{Lines, Writing};

/// The time of a line, to the microsecond and in UTC; the subscriber's own says the same in more
/// instructions.
struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, line: &mut Writer<'_>) -> fmt::Result {
        write!(line, "{}", humantime::format_rfc3339_micros(SystemTime::now()))
    }
}

/// `name=value`; a line's message is the value alone.
fn write_field(line: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    if field.name() != "message" {
        line.write_str(field.name())?;
        line.write_char('=')?;
    }
    write!(line, "{value:?}")
}

/// The log; the rest of it is written when this is dropped.
pub(super) struct Log {
    level: reload::Handle<LevelFilter, Registry>,
    _writing: Writing,
}

impl Log {
    /// Sets the process's log up. Once; a second one has no effect.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(super) fn start(settings: LogSettings) -> io::Result<Self> {
        let (writer, writing) = Lines::start(io::stderr())?;
        let (level, handle) = reload::Layer::new(level(settings.level));
        let lines = layer().with_writer(writer).with_ansi(false).with_target(false).with_timer(Clock);
        let lines = match settings.format {
            LogFormat::Text => lines.fmt_fields(debug_fn(write_field).delimited(" ")).boxed(),
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
        };
        let _ = tracing_subscriber::registry().with(level).with(lines).try_init();
        Ok(Self { level: handle, _writing: writing })
    }

    /// Takes up a new level. The format stays until the next start.
    pub(super) fn set(&self, settings: LogSettings) {
        let _ = self.level.reload(level(settings.level));
    }
}

fn level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
