//! The command line, with one file for each command.
//!
//! Exit codes: 0 for success, 1 for a failure while running, 2 for wrong arguments or a faulty configuration. Logs and
//! errors go to stderr, results to stdout; `output` writes both.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

mod check;
mod community;
mod load;
mod output;
pub(crate) mod run;
mod service_manager;
mod status;

/// Exit code: a failure while running.
const FAILED: u8 = 1;
/// Exit code: wrong arguments, or a faulty configuration.
const BAD_USAGE: u8 = 2;

/// The environment variable that names the configuration database if there is no `--config`.
const CONFIG_VARIABLE: &str = "SAMETIME_MUX_CONFIG";
/// The configuration database if neither names one, relative to the working directory.
const CONFIG_FILE: &str = "config/stconfig.toml";

/// Community multiplexer for Sametime.
#[derive(Debug, Parser)]
#[command(name = "sametime-mux", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: ConfigArgument,
}

#[derive(Debug, clap::Args)]
struct ConfigArgument {
    /// The configuration database [default: $SAMETIME_MUX_CONFIG, else config/stconfig.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArgument {
    /// The configuration database: by the argument, else by the variable, else the default.
    fn file(self) -> PathBuf {
        let variable = || std::env::var_os(CONFIG_VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from);
        self.config.or_else(variable).unwrap_or_else(|| PathBuf::from(CONFIG_FILE))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the multiplexer; this is also the default without a command
    Run(ConfigArgument),
    /// Validate the configuration database, and show its ports and its maximum memory
    Check(ConfigArgument),
    /// Run only the sandbox Community server
    Community(community::Arguments),
    /// Test a multiplexer with simulated clients over every transport
    Load(Box<load::Arguments>),
    /// Show the running server's ports, sessions and Community servers
    Status(status::Arguments),
}

/// Whether the first argument begins the command `run`, which needs no name.
fn begins_run(argument: Option<OsString>) -> bool {
    argument.is_none_or(|argument| argument == "run" || argument.as_encoded_bytes().starts_with(b"--config"))
}

/// Runs the command that the arguments of this process name. Returns its exit code.
pub fn main() -> ExitCode {
    // Parsing the arguments takes longer than this, and a signal may come at any moment.
    let main_thread = begins_run(std::env::args_os().nth(1)).then(run::MainThread::start);
    let Arguments { command, config } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(usage) => return output::print_usage(&usage),
    };
    match command.unwrap_or(Command::Run(config)) {
        Command::Run(config) => run::run(config.file(), main_thread.unwrap_or_else(run::MainThread::start)),
        Command::Check(config) => check::run(&config.file()),
        Command::Community(arguments) => on_runtime(community::run(arguments)),
        Command::Load(arguments) => on_runtime(load::run(*arguments)),
        Command::Status(arguments) => on_runtime(status::run(arguments)),
    }
}

/// Runs a command on a runtime with one thread for each core. Tasks that are left at its end are dropped.
fn on_runtime(work: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(work);
            // Does not wait for blocking work, such as a name look-up that hangs.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            output::complain(format_args!("sametime-mux: the threads can't be started: {error}"));
            ExitCode::from(FAILED)
        }
    }
}

/// The rows as lines of text. Each column is as wide as its widest cell.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    rows.iter().fold(String::new(), |text, row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text + line.trim_end() + "\n"
    })
}
