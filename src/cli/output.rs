//! What a command prints: results on stdout, errors on stderr. Nothing else in the program writes there, except the log
//! and a load worker, whose stdout is its parent's.
//!
//! | a result is written | exit code |
//! |---|---|
//! | whole | the command's |
//! | until the reader closed the pipe, as `head` does | the command's: the reader has what it wanted |
//! | not, for example because the disk is full | 1, and the error on stderr |
//!
//! An error that can't be written to stderr is lost. The exit code is the same.

use std::{
    fmt::Display,
    io::{self, Write, stderr, stdout},
    process::ExitCode,
};

use rustix::io::Errno;

use super::{BAD_USAGE, FAILED};

/// Prints a result. Returns the exit code of the process: `code`, unless the result could not be written.
pub(super) fn print(result: &str, code: ExitCode) -> ExitCode {
    let mut out = stdout().lock();
    printed(out.write_all(result.as_bytes()).and_then(|()| out.flush()), code)
}

/// Prints what the parser of the arguments has to say: help or the version, or what is wrong with the arguments. Returns
/// the exit code of the process.
pub(super) fn print_usage(usage: &clap::Error) -> ExitCode {
    let written = usage.print().and_then(|()| stdout().flush());
    if usage.use_stderr() { ExitCode::from(BAD_USAGE) } else { printed(written, ExitCode::SUCCESS) }
}

/// Prints an error.
pub(super) fn complain(error: impl Display) {
    // One write, so that the lines of several processes do not mix.
    let _ = stderr().write_all(format!("{error}\n").as_bytes());
}

fn printed(written: io::Result<()>, code: ExitCode) -> ExitCode {
    match written {
        Err(error) if error.raw_os_error() != Some(Errno::PIPE.raw_os_error()) => {
            complain(format_args!("sametime-mux: the result can't be written: {error}"));
            ExitCode::from(FAILED)
        }
        _ => code,
    }
}
