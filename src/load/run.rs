//! A whole run: starts the worker processes, adds up their reports, and ends the run early when the stop rule
//! applies.

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
    connect::LoadRoute,
    figures::{Latencies, LoadFigures},
    scenario::{LoadTransport, Scenario},
    worker::{WorkerOrder, WorkerReport},
};

/// How many of the last seconds the stop rule looks at.
const STOP_SECONDS: usize = 5;
/// The fewest log-ins in these seconds for which the stop rule applies.
const STOP_LOG_INS: u64 = 20;
/// Descriptors that a client needs: a tunnel has up to three connections at once.
const DESCRIPTORS: u64 = 3;
/// Descriptors that a worker needs in addition to those of its clients.
const OTHER_DESCRIPTORS: u64 = 100;

/// Why a run could not be done, as a text.
#[derive(Debug)]
pub struct LoadError(pub String);

/// What a run is to do.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    /// What the clients do.
    pub scenario: Scenario,
    /// Where they connect to.
    pub route: LoadRoute,
    /// The number of worker processes; `None`: as many as the descriptor limit requires.
    pub workers: Option<u32>,
    /// The seed of all random numbers. Two runs with the same seed have the same schedule.
    pub seed: u64,
}

/// What happened in one second, in all workers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SecondSummary {
    /// Log-ins that succeeded.
    pub log_ins: u64,
    /// Messages whose echo arrived.
    pub echoed: u64,
    /// Errors.
    pub errors: u64,
    /// The 99th percentile of the log-ins, in milliseconds.
    pub login_p99: f64,
    /// The 99th percentile of the echoes, in milliseconds.
    pub echo_p99: f64,
    /// Clients that are logged in at the end of the second, by transport.
    pub sessions: BTreeMap<LoadTransport, u64>,
}

/// The result of a run. Its JSON is what `--json` writes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoadResult {
    /// What the clients did.
    pub scenario: Scenario,
    /// Where they connected to.
    pub route: LoadRoute,
    /// The number of worker processes.
    pub workers: u32,
    /// How long the run took, in seconds.
    pub seconds: u64,
    /// The figures of the whole run.
    pub total: LoadFigures,
    /// The figures of each second.
    pub points: Vec<SecondSummary>,
    /// Why the run ended early; `None`: it did not.
    pub stopped: Option<String>,
}

impl LoadResult {
    fn new(scenario: Scenario, route: LoadRoute, workers: u32) -> Self {
        let (total, points) = (LoadFigures::default(), Vec::new());
        Self { scenario, route, workers, seconds: 0, total, points, stopped: None }
    }

    /// Whether no message was lost or changed, no error occurred, and no stop rule ended the run.
    pub fn is_fine(&self) -> bool {
        self.total.all().is_whole() && self.total.errors.is_empty() && self.stopped.is_none()
    }

    /// The highest number of clients that were logged in at the same time.
    pub fn most_sessions(&self) -> u64 {
        self.points.iter().map(|point| point.sessions.values().sum()).max().unwrap_or(0)
    }

    /// Adds the figures of the next second.
    fn add_second(&mut self, second: LoadFigures) {
        let all = second.all();
        self.seconds += 1;
        self.points.push(SecondSummary {
            log_ins: all.log_ins,
            echoed: all.echoed,
            errors: second.errors.values().sum(),
            login_p99: all.login.quantile(0.99),
            echo_p99: all.echo.quantile(0.99),
            sessions: second.sessions.clone(),
        });
        self.total.add(&second);
        // Clients that are logged in at several times can't be added up: the total has the latest number.
        self.total.sessions = second.sessions;
    }
}

/// Puts the reports of the workers together into whole seconds.
#[derive(Default)]
struct SecondCollector {
    /// The reports of each worker that are not part of a whole second yet.
    waiting: Vec<VecDeque<LoadFigures>>,
    /// The number of workers that have sent their last report.
    ended: usize,
}

impl SecondCollector {
    fn new(workers: usize) -> Self {
        Self { waiting: vec![VecDeque::new(); workers], ended: 0 }
    }

    fn add(&mut self, worker: usize, report: WorkerReport) {
        self.ended += usize::from(report.last);
        self.waiting[worker].push_back(report.second);
    }

    fn have_all_ended(&self) -> bool {
        self.ended == self.waiting.len()
    }

    /// The next second of all workers. It is whole when each worker has reported it. After the last reports, a
    /// second may lack workers that ended earlier.
    fn next_second(&mut self) -> Option<LoadFigures> {
        let (mut any, mut all) = (false, true);
        for queue in &self.waiting {
            any |= !queue.is_empty();
            all &= !queue.is_empty();
        }
        if !any || !(all || self.have_all_ended()) {
            return None;
        }
        let mut second = LoadFigures::default();
        self.waiting.iter_mut().filter_map(VecDeque::pop_front).for_each(|figures| second.add(&figures));
        Some(second)
    }
}

/// The rule of `stop_p99_login`.
struct StopRule {
    /// The highest 99th percentile; zero: the rule is off.
    limit: Duration,
    /// The log-ins of each of the last seconds.
    recent: VecDeque<Latencies>,
}

impl StopRule {
    fn new(limit: Duration) -> Self {
        Self { limit, recent: VecDeque::new() }
    }

    /// Adds the log-ins of the next second. Returns the 99th percentile of the last seconds if it is over the
    /// limit.
    fn exceeded(&mut self, log_ins: Latencies) -> Option<Duration> {
        self.recent.push_back(log_ins);
        if self.recent.len() > STOP_SECONDS {
            self.recent.pop_front();
        }
        let mut sum = Latencies::default();
        self.recent.iter().for_each(|latencies| sum.add(latencies));
        let p99 = Duration::from_secs_f64(sum.quantile(0.99) / 1e3);
        (!self.limit.is_zero() && sum.count() >= STOP_LOG_INS && p99 > self.limit).then_some(p99)
    }
}

/// A worker process. The worker ends the run when its stdin is closed.
struct WorkerProcess {
    child: Child,
    stdin: Option<ChildStdin>,
}

/// Runs `plan`. Calls `on_second` after every second, with the result so far.
///
/// # Errors
/// A worker cannot be started, or ends without its last report.
pub async fn run(plan: LoadPlan, mut on_second: impl FnMut(&LoadResult)) -> Result<LoadResult, LoadError> {
    let workers = plan.workers.unwrap_or_else(|| workers_for(&plan.scenario));
    let (sender, mut reports) = mpsc::channel(64);
    let mut processes = Vec::new();
    for worker in 0..workers {
        processes.push(start(&plan, worker, workers, sender.clone()).await?);
    }
    drop(sender);
    let mut stop_rule = StopRule::new(plan.scenario.stop_p99_login);
    let mut collector = SecondCollector::new(processes.len());
    let mut result = LoadResult::new(plan.scenario, plan.route, workers);
    while let Some((worker, report)) = reports.recv().await {
        let report = report.map_err(|why| LoadError(format!("worker {worker}: {why}")))?;
        collector.add(worker as usize, report);
        while let Some(second) = collector.next_second() {
            let log_ins = second.all().login;
            result.add_second(second);
            let exceeded = stop_rule.exceeded(log_ins);
            if let (Some(p99), None) = (exceeded, &result.stopped) {
                let (limit, sessions): (_, u64) = (stop_rule.limit, result.total.sessions.values().sum());
                result.stopped = Some(format!("p99 of log-ins is {p99:.1?}, over {limit:?}, at {sessions} clients"));
            }
            on_second(&result);
        }
        if result.stopped.is_some() {
            processes.iter_mut().for_each(|process| process.stdin = None);
        }
        if collector.have_all_ended() {
            break;
        }
    }
    if !collector.have_all_ended() {
        return Err(LoadError("a worker ended before its time".to_owned()));
    }
    for mut process in processes {
        let _ = process.child.wait().await;
    }
    Ok(result)
}

/// The number of processes that the descriptor limit requires.
fn workers_for(scenario: &Scenario) -> u32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let each = limit.maximum.unwrap_or(1 << 20).saturating_sub(OTHER_DESCRIPTORS).max(DESCRIPTORS);
    let needed = u64::from(scenario.clients) * DESCRIPTORS;
    u32::try_from(needed.div_ceil(each)).unwrap_or(1).clamp(1, 64)
}

/// The number of a worker, and its report or what is wrong with it.
type NumberedReport = (u32, Result<WorkerReport, String>);

/// Starts a worker, gives it its order, and passes its reports on to `reports`.
async fn start(
    plan: &LoadPlan,
    worker: u32,
    workers: u32,
    reports: mpsc::Sender<NumberedReport>,
) -> Result<WorkerProcess, LoadError> {
    let failed = |what: String| LoadError(format!("worker {worker}: {what}"));
    let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let mut child = Command::new(program)
        .args(["load", "--worker"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(failed("no pipes".to_owned()));
    };
    let mut route = plan.route;
    if workers > 1 && worker < 250 {
        // 127.0.1.1, 127.0.1.2, ...: on each of these addresses all ephemeral ports are free.
        let last = u8::try_from(worker + 1).unwrap_or(1);
        route.source = Some(Ipv4Addr::new(127, 0, 1, last));
    }
    let order = WorkerOrder { scenario: plan.scenario.clone(), route, worker, workers, seed: plan.seed };
    let order = serde_json::to_string(&order).map_err(|error| failed(error.to_string()))?;
    stdin.write_all(format!("{order}\n").as_bytes()).await.map_err(|error| failed(error.to_string()))?;
    tokio::spawn(async move {
        let mut lines = BufReader::new(stdout).lines();
        loop {
            let report = match lines.next_line().await {
                Ok(Some(line)) => serde_json::from_str(&line).map_err(|error| error.to_string()),
                Ok(None) => return,
                Err(error) => Err(error.to_string()),
            };
            if reports.send((worker, report)).await.is_err() {
                return;
            }
        }
    });
    Ok(WorkerProcess { child, stdin: Some(stdin) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(hostile: u64, last: bool) -> WorkerReport {
        WorkerReport { second: LoadFigures { hostile, ..LoadFigures::default() }, last }
    }

    #[test]
    fn a_second_is_whole_when_each_worker_has_reported_it() {
        let mut collector = SecondCollector::new(2);
        collector.add(0, report(1, false));
        collector.add(0, report(2, false));
        assert!(collector.next_second().is_none());
        collector.add(1, report(10, true));
        assert_eq!(collector.next_second().map(|second| second.hostile), Some(11));
        assert!(collector.next_second().is_none());
        collector.add(0, report(3, true));
        assert!(collector.have_all_ended());
        // Worker 1 ended earlier.
        assert_eq!(collector.next_second().map(|second| second.hostile), Some(2));
        assert_eq!(collector.next_second().map(|second| second.hostile), Some(3));
        assert!(collector.next_second().is_none());
    }

    #[test]
    fn the_stop_rule_looks_at_the_last_seconds_and_needs_enough_log_ins() {
        let log_ins = |count, ms| {
            let mut latencies = Latencies::default();
            (0..count).for_each(|_| latencies.record(Duration::from_millis(ms)));
            latencies
        };
        let mut rule = StopRule::new(Duration::from_millis(100));
        assert_eq!(rule.exceeded(log_ins(STOP_LOG_INS - 1, 500)), None);
        assert!(rule.exceeded(log_ins(1, 500)).is_some_and(|p99| p99 >= Duration::from_millis(499)));
        for _ in 0..STOP_SECONDS {
            rule.exceeded(log_ins(STOP_LOG_INS, 10));
        }
        assert_eq!(rule.exceeded(log_ins(STOP_LOG_INS, 10)), None);
        assert_eq!(StopRule::new(Duration::ZERO).exceeded(log_ins(100, 500)), None);
    }
}
