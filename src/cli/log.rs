//! The log: to stderr, from a thread of its own, so that a slow terminal holds no client up.

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    Layer, Registry, filter::LevelFilter, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use crate::config::{LogFormat, LogLevel, LogSettings};

/// Lines that may wait to be written; more are dropped rather than that a client waits.
const BUFFERED_LINES: usize = 64 * 1024;

/// The log; the rest of it is written when this is dropped.
pub(super) struct Log {
    level: reload::Handle<LevelFilter, Registry>,
    _writer: WorkerGuard,
}

impl Log {
    /// Sets the process's log up. Once; a second one has no effect.
    pub(super) fn start(settings: LogSettings) -> Self {
        let (writer, guard) =
            NonBlockingBuilder::default().buffered_lines_limit(BUFFERED_LINES).lossy(true).finish(std::io::stderr());
        let (level, handle) = reload::Layer::new(level(settings.level));
        let lines = fmt::layer().with_writer(writer).with_ansi(false).with_target(false);
        let lines = match settings.format {
            LogFormat::Text => lines.boxed(),
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
        };
        let _ = tracing_subscriber::registry().with(level).with(lines).try_init();
        Self { level: handle, _writer: guard }
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
