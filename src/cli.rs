//! The command line: one file for each command.
//!
//! Exit codes: 0 fine, 1 failed while running, 2 bad usage or configuration. Logs go to
//! stderr, results to stdout.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

mod check;
mod community;
mod load;
mod run;
mod status;

/// Failed while running.
const FAILED: u8 = 1;
/// Bad usage or configuration.
const BAD_USAGE: u8 = 2;

/// Where the configuration database is without `--config`.
const CONFIG_VARIABLE: &str = "SAMETIME_MUX_CONFIG";
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
    fn file(self) -> PathBuf {
        let variable = || std::env::var_os(CONFIG_VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from);
        self.config.or_else(variable).unwrap_or_else(|| PathBuf::from(CONFIG_FILE))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the multiplexer (also without any command)
    Run(ConfigArgument),
    /// Validate the configuration database and show the effective ports
    Check(ConfigArgument),
    /// Run the sandbox Community server alone
    Community(community::Arguments),
    /// Put load on a multiplexer: simulated clients over every transport
    Load(Box<load::Arguments>),
    /// Show the running server's ports, sessions and Community servers
    Status(status::Arguments),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let Arguments { command, config } = Arguments::parse();
    match command.unwrap_or(Command::Run(config)) {
        Command::Run(config) => run::run(&config.file()),
        Command::Check(config) => check::run(&config.file()),
        Command::Community(arguments) => on_runtime(community::run(arguments)),
        Command::Load(arguments) => on_runtime(load::run(*arguments)),
        Command::Status(arguments) => on_runtime(status::run(arguments)),
    }
}

/// Runs `work` on a runtime of its own.
fn on_runtime(work: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let code = runtime.block_on(work);
            // Sessions that are left don't hold the process back.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            eprintln!("sametime-mux: no runtime: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// Columns as wide as their widest cell.
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
