//! `sametime-mux load`: tests a multiplexer with simulated clients.

use std::{
    fs,
    io::{IsTerminal, stderr},
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{BAD_USAGE, FAILED, output, table};
use crate::load::{self, LoadPlan, LoadResult, LoadRoute, Proxies, Scenario};

/// Where stderr is not a terminal: seconds between two lines of progress.
const SHOW_EVERY: u64 = 5;

// The last occurrence of an argument wins, so that a script can pass its own arguments first.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true)]
pub(super) struct Arguments {
    /// The address of the multiplexer
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:1533")]
    target: String,
    /// Its address for TLS clients [default: as --target]
    #[arg(long, value_name = "HOST:PORT")]
    tls_target: Option<String>,
    /// Its address for tunnel clients [default: as --target]
    #[arg(long, value_name = "HOST:PORT")]
    http_target: Option<String>,
    /// A scenario file, such as config/load/office-day.toml; other arguments override it
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// The number of clients
    #[arg(long)]
    clients: Option<u32>,
    /// The time over which their log-ins are spread
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    ramp_up: Option<Duration>,
    /// How long the run continues after that
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// The mean time between two messages of a client; 0s: no messages
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    think_time: Option<Duration>,
    /// The mean time before a client logs out and in again; 0s: it stays to the end
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    stay: Option<Duration>,
    /// The weight of raw clients; if one weight is given, the others are 0 by default
    #[arg(long, value_name = "WEIGHT")]
    raw: Option<u32>,
    /// The weight of TLS clients
    #[arg(long, value_name = "WEIGHT")]
    tls: Option<u32>,
    /// The weight of polling clients
    #[arg(long, value_name = "WEIGHT")]
    polling: Option<u32>,
    /// The weight of hybrid clients
    #[arg(long, value_name = "WEIGHT")]
    hybrid: Option<u32>,
    /// The weight of streaming clients
    #[arg(long, value_name = "WEIGHT")]
    streaming: Option<u32>,
    /// The number of hostile clients, in addition to the others
    #[arg(long)]
    hostile: Option<u32>,
    /// Stop when the log-ins of the last 5 s have a higher p99; this finds the capacity
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    stop_p99_login: Option<Duration>,
    /// A SOCKS5 proxy for raw and TLS clients
    #[arg(long, value_name = "HOST:PORT")]
    socks5: Option<String>,
    /// An HTTPS proxy (CONNECT) for raw and TLS clients
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "socks5")]
    https_proxy: Option<String>,
    /// An HTTP proxy for tunnel clients
    #[arg(long, value_name = "HOST:PORT")]
    http_proxy: Option<String>,
    /// The number of worker processes [default: as many as the descriptor limit requires]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: Option<u32>,
    /// The seed of the random numbers; two runs with one seed follow the same schedule
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the result to this file as JSON; - is stdout
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the result to this file as an HTML page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Required for a target that is not on loopback, because load can take a server down
    #[arg(long)]
    yes_i_own_this_server: bool,
    /// Run as a worker process, which its parent controls through stdin
    #[arg(long, hide = true)]
    worker: bool,
}

pub(super) async fn run(arguments: Arguments) -> ExitCode {
    if arguments.worker {
        return match load::run_worker().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => failed(&why),
        };
    }
    let plan = match plan(&arguments) {
        Ok(plan) => plan,
        Err(why) => {
            output::complain(format_args!("sametime-mux load: {why}"));
            return ExitCode::from(BAD_USAGE);
        }
    };
    let progress = LoadProgress::new(&plan.scenario);
    match load::run(plan, |outcome| progress.show(outcome)).await {
        Ok(outcome) => {
            progress.end();
            show(&arguments, &outcome)
        }
        Err(load::LoadError(why)) => {
            progress.end();
            failed(&why)
        }
    }
}

fn failed(why: &str) -> ExitCode {
    output::complain(format_args!("sametime-mux load: {why}"));
    ExitCode::from(FAILED)
}

/// The plan of the run: the scenario, by its file and the arguments that override it, and the addresses.
fn plan(arguments: &Arguments) -> Result<LoadPlan, String> {
    let mut scenario = match &arguments.scenario {
        None => Scenario::default(),
        Some(file) => {
            let named = |why: String| format!("{}: {why}", file.display());
            let text = fs::read_to_string(file).map_err(|error| named(error.to_string()))?;
            Scenario::parse(&text).map_err(named)?
        }
    };
    macro_rules! given {
        ($($name:ident),*) => { $(if let Some(value) = arguments.$name { scenario.$name = value; })* };
    }
    given!(clients, ramp_up, duration, think_time, stay, hostile, stop_p99_login);
    let weights = [arguments.raw, arguments.tls, arguments.polling, arguments.hybrid, arguments.streaming];
    if weights.iter().any(Option::is_some) {
        let [raw, tls, polling, hybrid, streaming] = weights.map(Option::unwrap_or_default);
        scenario.mix = load::TransportMix { raw, tls, polling, hybrid, streaming };
    }
    scenario.check()?;
    let target = resolve(&arguments.target)?;
    let or_target = |given: &Option<String>| given.as_deref().map_or(Ok(target), resolve);
    let proxy = |given: &Option<String>| given.as_deref().map(resolve).transpose();
    let route = LoadRoute {
        raw: target,
        tls: or_target(&arguments.tls_target)?,
        http: or_target(&arguments.http_target)?,
        proxies: Proxies {
            socks5: proxy(&arguments.socks5)?,
            https: proxy(&arguments.https_proxy)?,
            http: proxy(&arguments.http_proxy)?,
        },
        source: None,
    };
    let remote = route.addresses().find(|address| !address.ip().to_canonical().is_loopback());
    if let Some(address) = remote.filter(|_| !arguments.yes_i_own_this_server) {
        return Err(format!(
            "{address} is not on loopback, and load can take a server down: add --yes-i-own-this-server if it is yours"
        ));
    }
    Ok(LoadPlan { scenario, route, workers: arguments.workers, seed: arguments.seed })
}

fn resolve(name: &str) -> Result<SocketAddr, String> {
    let mut found = name.to_socket_addrs().map_err(|error| format!("{name}: {error} (host:port)"))?;
    found.next().ok_or_else(|| format!("{name}: no such host"))
}

/// Writes the result where the arguments ask for it. Returns the exit code.
fn show(arguments: &Arguments, outcome: &LoadResult) -> ExitCode {
    let json = match serde_json::to_string_pretty(outcome) {
        Ok(json) => json,
        Err(error) => return failed(&error.to_string()),
    };
    let tables = || load::table(outcome).iter().map(|rows| table(rows) + "\n").collect::<String>();
    let mut files = Vec::new();
    let result = match &arguments.json {
        Some(file) if file.as_os_str() == "-" => json + "\n",
        json_file => {
            files.extend(json_file.as_ref().map(|file| (file, json)));
            tables() + &load::verdict(outcome) + "\n"
        }
    };
    files.extend(arguments.html.as_ref().map(|file| (file, load::html(outcome))));
    for (file, text) in files {
        if let Err(error) = fs::write(file, text) {
            return failed(&format!("{}: {error}", file.display()));
        }
    }
    output::print(&result, if outcome.is_fine() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Shows the progress of a run on stderr: as a bar on a terminal, else as a line every [`SHOW_EVERY`] seconds.
struct LoadProgress(Option<ProgressBar>);

impl LoadProgress {
    fn new(scenario: &Scenario) -> Self {
        let seconds = scenario.whole().as_secs();
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(seconds);
            let style = ProgressStyle::with_template("{elapsed_precise} [{bar:30}] {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self(bar)
    }

    fn show(&self, outcome: &LoadResult) {
        let Some(point) = outcome.points.last() else { return };
        let all = outcome.total.all();
        let errors: u64 = outcome.total.errors.values().sum();
        let text = format!(
            "{} clients, {} log-ins/s, {} messages/s, {} lost, {errors} errors",
            point.sessions.values().sum::<u64>(),
            point.log_ins,
            point.echoed,
            all.lost + all.disordered + all.corrupt,
        );
        match &self.0 {
            Some(bar) => {
                bar.set_position(outcome.seconds);
                bar.set_message(text);
            }
            None if outcome.seconds.is_multiple_of(SHOW_EVERY) => {
                output::complain(format_args!("{} s: {text}", outcome.seconds))
            }
            None => (),
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
