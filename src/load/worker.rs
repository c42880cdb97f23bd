//! One process of clients: told its plan on stdin, tells its figures on stdout, a line a second.

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
    Route, Scenario, Second, client, connect, hostile,
    setup::{Counters, Setup, Signal},
};

/// What a worker is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) scenario: Scenario,
    pub(super) route: Route,
    pub(super) worker: u32,
    pub(super) workers: u32,
    pub(super) seed: u64,
}

/// A line of a worker's. The last one says that it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) second: Second,
    pub(super) last: bool,
}

/// Runs a worker, whose stdin and stdout are its parent's.
///
/// # Errors
/// What is wrong with the order, or with the way to the parent.
pub async fn work() -> Result<(), String> {
    let mut order = String::new();
    std::io::stdin().lock().read_line(&mut order).map_err(|error| error.to_string())?;
    let order: Order = serde_json::from_str(&order).map_err(|error| error.to_string())?;
    let (sender, signal) = watch::channel(Signal::default());
    let stop = stop_when_told();
    let counters = Counters::default();
    let begin = Instant::now();
    let mut clients = start(&order, begin, &counters, &signal);
    let end = begin + order.scenario.whole();
    let cut = order.scenario.cut.map_or(end, |cut| begin + cut.at);
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    ticks.tick().await;
    let (mut cut_done, mut over) = (false, false);
    loop {
        tokio::select! {
            _ = ticks.tick() => tell(&Line { second: counters.take(), last: false })?,
            () = sleep_until(cut), if !cut_done => {
                cut_done = true;
                if cut < end {
                    sender.send_modify(|signal| signal.cuts += 1);
                }
            }
            () = told(stop.clone()), if !over => over = true,
            () = sleep_until(end), if !over => over = true,
            joined = clients.join_next() => if joined.is_none() {
                break;
            },
        }
        if over && !sender.borrow().over {
            sender.send_modify(|signal| signal.over = true);
        }
    }
    tell(&Line { second: counters.take(), last: true })
}

fn start(order: &Order, begin: Instant, counters: &Counters, signal: &watch::Receiver<Signal>) -> JoinSet<()> {
    let scenario = &order.scenario;
    let setup = Arc::new(Setup {
        scenario: scenario.clone(),
        route: Arc::new(order.route),
        tls: TlsConnector::from(Arc::new(connect::any_certificate())),
        counters: counters.clone(),
        seed: order.seed,
    });
    let mine = |n: &u32| n % order.workers == order.worker;
    let mut clients = JoinSet::new();
    for n in (0..scenario.clients).filter(mine) {
        let planned = begin + scenario.ramp_up * n / scenario.clients;
        clients.spawn(client::live(Arc::clone(&setup), n.into(), planned, signal.clone()));
    }
    for n in (0..scenario.hostile).filter(mine) {
        clients.spawn(hostile::live(Arc::clone(&setup), n.into(), signal.clone()));
    }
    clients
}

/// True when the parent has said `stop`, or is gone.
fn stop_when_told() -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    // Blocking reads on a thread of their own: the process ends without it.
    std::thread::spawn(move || {
        let _ = std::io::stdin().lock().read_line(&mut String::new());
        sender.send_replace(true);
    });
    receiver
}

async fn told(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn tell(line: &Line) -> Result<(), String> {
    let line = serde_json::to_string(line).map_err(|error| error.to_string())?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| error.to_string())
}
