//! The process's log: lines for stderr, written by a thread of their own, so that no client waits for a slow terminal.

use std::{
    fmt::{self, Write},
    io::{self, Write as _},
    time::SystemTime,
};

use tracing::{error, field::Field};
use tracing_subscriber::{
    Layer, Registry,
    field::MakeExt,
    filter::{LevelFilter, filter_fn},
    fmt::{
        format::{Writer, debug_fn},
        layer,
        time::FormatTime,
    },
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

use super::{
    LogFormat, LogLevel, LogSettings,
    lines::{Lines, Writing},
};

/// The time of a line, in UTC and with microseconds. The subscriber's own clock writes the same with more instructions.
struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, line: &mut Writer<'_>) -> fmt::Result {
        write!(line, "{}", humantime::format_rfc3339_micros(SystemTime::now()))
    }
}

/// Writes `name=value`; of a line's message only the value.
fn write_field(line: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let is_message = field.name() == "message";
    if !is_message {
        line.write_str(field.name())?;
        line.write_char('=')?;
    }
    write!(Printable { line, is_message }, "{value:?}")
}

/// Escapes control characters. A value may contain text of a client, which must neither begin a line nor control a
/// terminal. A message is this program's own text, and may have several lines.
struct Printable<'a, W> {
    line: &'a mut W,
    is_message: bool,
}

impl<W: Write> Write for Printable<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let is_escaped = |c: char| c.is_control() && !(self.is_message && c == '\n');
        for piece in text.split_inclusive(is_escaped) {
            let mut plain = piece.chars();
            match plain.next_back().filter(|last| is_escaped(*last)) {
                Some(last) => write!(self.line, "{}{}", plain.as_str(), last.escape_default())?,
                None => self.line.write_str(piece)?,
            }
        }
        Ok(())
    }
}

/// The running log. When this is dropped, the lines that still wait are written.
pub struct Log {
    level: reload::Handle<LevelFilter, Registry>,
    _writing: Writing,
}

impl Log {
    /// Starts the log of the process. A second one has no effect. `None` when the system has no thread left, which is
    /// reported on stderr.
    pub fn start(settings: LogSettings) -> Option<Self> {
        let note = |lines| error!(lines, "lines of the log are missing here: they are read, or written, too slowly");
        let (writer, writing) = match Lines::start(io::stderr(), note) {
            Ok(started) => started,
            Err(error) => {
                let _ = writeln!(io::stderr(), "the log's thread can't be started: {error}");
                return None;
            }
        };
        let (level, handle) = reload::Layer::new(level(settings.level));
        let lines = layer().with_writer(writer).with_ansi(false).with_target(false).with_timer(Clock);
        let lines = match settings.format {
            LogFormat::Text => lines.fmt_fields(debug_fn(write_field).delimited(" ")).boxed(),
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
        };
        // Another end of a trunk can cause lines of the HTTP/2 library, which are not throttled.
        let own = filter_fn(|line| !line.target().starts_with("h2"));
        let _ = tracing_subscriber::registry().with(level).with(own).with(lines).try_init();
        Some(Self { level: handle, _writing: writing })
    }

    /// Uses a new level from now on. The format stays the same until the next start.
    pub fn set(&self, settings: LogSettings) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(is_message: bool, text: &str) -> String {
        let mut line = String::new();
        write!(Printable { line: &mut line, is_message }, "{text}").expect("a string has room");
        line
    }

    #[test]
    fn nobody_else_begins_a_line_or_gets_to_the_terminal() {
        assert_eq!(shown(false, "plain, Z\u{fc}rich"), "plain, Z\u{fc}rich");
        assert_eq!(shown(false, "a\nb\x1b[31m\u{9b}"), r"a\nb\u{1b}[31m\u{9b}");
        assert_eq!(shown(true, "a\nb\r"), "a\nb\\r");
    }
}
