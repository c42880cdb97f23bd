//! One process of clients. It reads its order as one line of JSON from stdin, and writes a report as one line of
//! JSON to stdout every second. Anything else on stdin, its end included, ends the run.

use std::{
    io::{BufRead, Write},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_rustls::TlsConnector;

use super::{
    client,
    connect::{self, LoadRoute},
    figures::LoadFigures,
    hostile,
    scenario::Scenario,
    setup::{LoadCounters, RunState, WorkerSetup},
};

/// What a worker is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct WorkerOrder {
    pub(super) scenario: Scenario,
    pub(super) route: LoadRoute,
    /// The number of this worker, from 0.
    pub(super) worker: u32,
    /// The number of all workers. Client `n` belongs to worker `n % workers`.
    pub(super) workers: u32,
    pub(super) seed: u64,
}

/// One line that a worker writes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct WorkerReport {
    /// What happened since the last report.
    pub(super) second: LoadFigures,
    /// Whether this is the worker's last report.
    pub(super) last: bool,
}

/// Runs a worker, whose stdin and stdout belong to its parent process.
///
/// # Errors
/// A text that says what is wrong with the order, or with stdin or stdout.
pub async fn run_worker() -> Result<(), String> {
    let mut order = String::new();
    std::io::stdin().lock().read_line(&mut order).map_err(|error| error.to_string())?;
    let order: WorkerOrder = serde_json::from_str(&order).map_err(|error| error.to_string())?;
    let (sender, run_state) = watch::channel(RunState::default());
    let stop = watch_stdin();
    let counters = LoadCounters::default();
    let begin = Instant::now();
    let mut clients = start_clients(&order, begin, &counters, &run_state);
    let end = begin + order.scenario.whole();
    let cut = order.scenario.cut.map_or(end, |cut| begin + cut.at);
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    ticks.tick().await;
    let (mut is_cut_done, mut is_over) = (false, false);
    loop {
        tokio::select! {
            _ = ticks.tick() => write_report(&WorkerReport { second: counters.take(), last: false })?,
            () = sleep_until(cut), if !is_cut_done => {
                is_cut_done = true;
                if cut < end {
                    sender.send_modify(|state| state.cuts += 1);
                }
            }
            () = wait_for_stop(stop.clone()), if !is_over => is_over = true,
            () = sleep_until(end), if !is_over => is_over = true,
            joined = clients.join_next() => if joined.is_none() {
                break;
            },
        }
        if is_over && !sender.borrow().is_over {
            sender.send_modify(|state| state.is_over = true);
        }
    }
    write_report(&WorkerReport { second: counters.take(), last: true })
}

/// Starts the clients that belong to this worker.
fn start_clients(
    order: &WorkerOrder,
    begin: Instant,
    counters: &LoadCounters,
    run_state: &watch::Receiver<RunState>,
) -> JoinSet<()> {
    let scenario = &order.scenario;
    let setup = Arc::new(WorkerSetup {
        scenario: scenario.clone(),
        route: Arc::new(order.route),
        tls: TlsConnector::from(Arc::new(connect::any_certificate())),
        counters: counters.clone(),
        seed: order.seed,
    });
    let is_mine = |n: &u32| n % order.workers == order.worker;
    let mut clients = JoinSet::new();
    for n in (0..scenario.clients).filter(is_mine) {
        let planned = begin + scenario.ramp_up * n / scenario.clients;
        clients.spawn(client::live(Arc::clone(&setup), n.into(), planned, run_state.clone()));
    }
    for n in (0..scenario.hostile).filter(is_mine) {
        clients.spawn(hostile::live(Arc::clone(&setup), n.into(), run_state.clone()));
    }
    clients
}

/// Becomes true when the parent process writes a second line to stdin, closes it, or is gone.
fn watch_stdin() -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    // A thread of its own, because the read blocks. The process does not wait for this thread when it ends.
    std::thread::spawn(move || {
        let _ = std::io::stdin().lock().read_line(&mut String::new());
        sender.send_replace(true);
    });
    receiver
}

async fn wait_for_stop(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn write_report(report: &WorkerReport) -> Result<(), String> {
    let line = serde_json::to_string(report).map_err(|error| error.to_string())?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| error.to_string())
}
