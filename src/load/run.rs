//! Starts workers, watches them, ends the run when a limit is reached.

use std::{
    collections::{BTreeMap, VecDeque},
    net::Ipv4Addr,
    process::Stdio,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
};

use super::{
    Latencies, Route, Scenario, Second, Way,
    worker::{Line, Order},
};

/// How many of the last seconds the stop rule looks at, and how many log-ins it wants to see.
const STOP_SECONDS: usize = 5;
const STOP_LOG_INS: u64 = 20;
/// Descriptors of a client: a tunnel has up to three connections at once.
const DESCRIPTORS: u64 = 3;
const OTHER_DESCRIPTORS: u64 = 100;

/// A run that could not be done.
#[derive(Debug)]
pub struct Fault(pub String);

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What the clients do.
    pub scenario: Scenario,
    /// Where they connect to.
    pub route: Route,
    /// Processes; `None`: as many as the descriptor limit asks for.
    pub workers: Option<u32>,
    /// Makes two runs alike.
    pub seed: u64,
}

/// What one second came to, over all workers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Point {
    /// Log-ins that succeeded.
    pub log_ins: u64,
    /// Messages that came back.
    pub echoed: u64,
    /// What went wrong.
    pub errors: u64,
    /// p99 of its log-ins, in milliseconds.
    pub login_p99: f64,
    /// p99 of its echoes, in milliseconds.
    pub echo_p99: f64,
    /// Clients that are logged in at its end.
    pub sessions: BTreeMap<Way, u64>,
}

/// What a run came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// What the clients did.
    pub scenario: Scenario,
    /// Where they connected to.
    pub route: Route,
    /// Processes.
    pub workers: u32,
    /// How long it took.
    pub seconds: u64,
    /// Everything.
    pub total: Second,
    /// Second by second.
    pub points: Vec<Point>,
    /// Why it ended early.
    pub stopped: Option<String>,
}

impl Outcome {
    /// Nothing lost, nothing wrong, no limit reached.
    pub fn is_fine(&self) -> bool {
        self.total.all().is_whole() && self.total.errors.is_empty() && self.stopped.is_none()
    }

    /// The most clients that were logged in at once.
    pub fn most_sessions(&self) -> u64 {
        self.points.iter().map(|point| point.sessions.values().sum()).max().unwrap_or(0)
    }
}

struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
}

/// Runs `plan`; `on_second` sees each second's figures and the outcome so far.
///
/// # Errors
/// A worker that can't be started, or that ends without its last line.
pub async fn run(plan: Plan, mut on_second: impl FnMut(&Outcome)) -> Result<Outcome, Fault> {
    let workers = plan.workers.unwrap_or_else(|| workers_for(&plan.scenario));
    let (lines, mut told) = mpsc::channel(64);
    let mut started = Vec::new();
    for worker in 0..workers {
        started.push(start(&plan, worker, workers, lines.clone()).await?);
    }
    drop(lines);
    let mut outcome = Outcome {
        scenario: plan.scenario,
        route: plan.route,
        workers,
        seconds: 0,
        total: Second::default(),
        points: Vec::new(),
        stopped: None,
    };
    let (mut waiting, mut ended, mut recent) = (vec![VecDeque::new(); started.len()], 0, VecDeque::new());
    while let Some((worker, line)) = told.recv().await {
        let Line { second, last } = line.map_err(|why| Fault(format!("worker {worker}: {why}")))?;
        ended += usize::from(last);
        waiting[worker as usize].push_back(second);
        // A second is whole when each worker has told it; the last lines come when they come.
        while waiting.iter().all(|queue| !queue.is_empty()) || (ended == started.len() && has_any(&waiting)) {
            let mut whole = Second::default();
            waiting.iter_mut().filter_map(VecDeque::pop_front).for_each(|second| whole.add(&second));
            count(&mut outcome, &mut recent, whole);
            on_second(&outcome);
        }
        if outcome.stopped.is_some() {
            // Closing their stdin tells them.
            started.iter_mut().for_each(|worker| worker.stdin = None);
        }
        if ended == started.len() {
            break;
        }
    }
    if ended < started.len() {
        return Err(Fault("a worker ended before its time".to_owned()));
    }
    for mut worker in started {
        let _ = worker.child.wait().await;
    }
    Ok(outcome)
}

fn has_any(waiting: &[VecDeque<Second>]) -> bool {
    waiting.iter().any(|queue| !queue.is_empty())
}

/// As many processes as the descriptor limit asks for.
fn workers_for(scenario: &Scenario) -> u32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let each = limit.maximum.unwrap_or(1 << 20).saturating_sub(OTHER_DESCRIPTORS).max(DESCRIPTORS);
    let needed = u64::from(scenario.clients) * DESCRIPTORS;
    u32::try_from(needed.div_ceil(each)).unwrap_or(1).clamp(1, 64)
}

type Told = (u32, Result<Line, String>);

async fn start(plan: &Plan, worker: u32, workers: u32, lines: mpsc::Sender<Told>) -> Result<Worker, Fault> {
    let fault = |what: String| Fault(format!("worker {worker}: {what}"));
    let program = std::env::current_exe().map_err(|error| fault(error.to_string()))?;
    let mut child = Command::new(program)
        .args(["load", "--worker"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| fault(error.to_string()))?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(fault("no pipes".to_owned()));
    };
    let mut route = plan.route;
    if workers > 1 && worker < 250 {
        // 127.0.1.x: each has all of the ephemeral ports.
        let last = u8::try_from(worker + 1).unwrap_or(1);
        route.source = Some(Ipv4Addr::new(127, 0, 1, last));
    }
    let order = Order { scenario: plan.scenario.clone(), route, worker, workers, seed: plan.seed };
    let order = serde_json::to_string(&order).map_err(|error| fault(error.to_string()))?;
    stdin.write_all(format!("{order}\n").as_bytes()).await.map_err(|error| fault(error.to_string()))?;
    tokio::spawn(async move {
        let mut from = BufReader::new(stdout).lines();
        loop {
            let line = match from.next_line().await {
                Ok(Some(text)) => serde_json::from_str::<Line>(&text).map_err(|error| error.to_string()),
                Ok(None) => return,
                Err(error) => Err(error.to_string()),
            };
            if lines.send((worker, line)).await.is_err() {
                return;
            }
        }
    });
    Ok(Worker { child, stdin: Some(stdin) })
}

fn count(outcome: &mut Outcome, recent: &mut VecDeque<Latencies>, second: Second) {
    let all = second.all();
    outcome.seconds += 1;
    outcome.points.push(Point {
        log_ins: all.log_ins,
        echoed: all.echoed,
        errors: second.errors.values().sum(),
        login_p99: all.login.quantile(0.99),
        echo_p99: all.echo.quantile(0.99),
        sessions: second.sessions.clone(),
    });
    let sessions = second.sessions.clone();
    outcome.total.add(&second);
    // A sum of who is there makes no sense over time; the latest does.
    outcome.total.sessions = sessions;
    recent.push_back(all.login);
    if recent.len() > STOP_SECONDS {
        recent.pop_front();
    }
    let limit = outcome.scenario.stop_p99_login;
    let mut log_ins = Latencies::default();
    recent.iter().for_each(|latencies| log_ins.add(latencies));
    let p99 = Duration::from_secs_f64(log_ins.quantile(0.99) / 1e3);
    if !limit.is_zero() && log_ins.count() >= STOP_LOG_INS && p99 > limit && outcome.stopped.is_none() {
        let sessions: u64 = outcome.total.sessions.values().sum();
        outcome.stopped = Some(format!("p99 of log-ins is {p99:.1?}, over {limit:?}, at {sessions} clients"));
    }
}
