//! The log: to stderr, from a thread of its own, so that a slow terminal holds no client up.

use std::{
    io::{self, BufWriter, Stderr, Write},
    thread,
    time::Duration,
};

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    Layer, Registry, filter::LevelFilter, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use crate::config::{LogFormat, LogLevel, LogSettings};

/// Lines that may wait to be written; more are dropped rather than that a client waits.
const BUFFERED_LINES: usize = 64 * 1024;

/// Bytes that are written at once, at the most.
const BATCH: usize = 64 * 1024;
/// After a write, lines gather for so long: to wake the thread for each of them costs a log-in
/// more than the line.
const GATHER: Duration = Duration::from_millis(10);

/// Writes lines that came close together at once. The log's thread flushes when none is waiting.
struct Batches(BufWriter<Stderr>);

impl Write for Batches {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.0.flush();
        thread::sleep(GATHER);
        flushed
    }
}

/// The log; the rest of it is written when this is dropped.
pub(super) struct Log {
    level: reload::Handle<LevelFilter, Registry>,
    _writer: WorkerGuard,
}

impl Log {
    /// Sets the process's log up. Once; a second one has no effect.
    pub(super) fn start(settings: LogSettings) -> Self {
        let batches = Batches(BufWriter::with_capacity(BATCH, io::stderr()));
        let (writer, guard) =
            NonBlockingBuilder::default().buffered_lines_limit(BUFFERED_LINES).lossy(true).finish(batches);
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
