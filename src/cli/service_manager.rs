//! What the service manager is told about the program's state, by sd_notify(3). Without one (`NOTIFY_SOCKET` is not set),
//! this does nothing.
//!
//! ```text
//!  starts ── READY ──▶ serves ── RELOADING ──▶ reloads ── READY ──▶ serves ── STOPPING ──▶ drains
//! ```
//!
//! From READY on, WATCHDOG is sent twice within `WATCHDOG_USEC`, if each worker has run a task in this time. If one
//! does not, because it is blocked, the service manager gets no WATCHDOG, and restarts the program.

use std::time::Duration;

use sd_notify::{NotifyState, watchdog_enabled};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tracing::{error, warn};

use crate::{log::Throttle, runtime::Workers, server::Server};

/// The variable that names the service manager's socket.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";
/// Messages that wait until the service manager takes them. Further ones are dropped.
const MAX_WAITING: usize = 16;
/// How long the last messages may take at the end of the program.
const LAST_MESSAGES: Duration = Duration::from_secs(1);
/// How long the program may take to end after `limits.drain_timeout`: farewell messages, and the last lines of the log.
const STOP_MARGIN: Duration = Duration::from_secs(15);

/// The connection to the service manager.
pub(super) struct ServiceManager(Option<Notifier>);

struct Notifier {
    messages: mpsc::Sender<String>,
    sending: JoinHandle<()>,
    watchdog: Option<JoinHandle<()>>,
}

impl ServiceManager {
    /// The one that the environment names. To be called on a tokio runtime.
    pub(super) fn from_environment() -> Self {
        if std::env::var_os(SOCKET_VARIABLE).is_none() {
            return Self(None);
        }
        let (messages, waiting) = mpsc::channel(MAX_WAITING);
        Self(Some(Notifier { messages, sending: tokio::spawn(send_all(waiting)), watchdog: None }))
    }

    /// The server serves clients. From now on the service manager is told as long as every worker responds, if it wants
    /// that.
    pub(super) fn ready(&mut self, server: &Server, workers: Workers) {
        let Some(notifier) = &mut self.0 else { return };
        notifier.send(&[NotifyState::Ready, NotifyState::Status(&status(server))]);
        if let Some(interval) = watchdog_enabled().filter(|interval| !interval.is_zero()) {
            notifier.watchdog = Some(tokio::spawn(watch(workers, interval / 2, notifier.messages.clone())));
        }
    }

    /// A reload begins because of SIGHUP. systemd from 253 on checks that this message is newer than its signal.
    pub(super) fn reloading(&self) {
        let Some(notifier) = &self.0 else { return };
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notifier.send(&[NotifyState::Reloading, now]),
            Err(error) => warn!(%error, "the system has no monotonic clock: the service manager is not notified"),
        }
    }

    /// A reload has ended, whether it was refused or not.
    pub(super) fn reloaded(&self, server: &Server) {
        if let Some(notifier) = &self.0 {
            notifier.send(&[NotifyState::Ready, NotifyState::Status(&status(server))]);
        }
    }

    /// The configuration in force has changed.
    pub(super) fn changed(&self, server: &Server) {
        if let Some(notifier) = &self.0 {
            notifier.send(&[NotifyState::Status(&status(server))]);
        }
    }

    /// The server drains. The service manager waits for as long as that may take, also if `TimeoutStopSec=` is shorter.
    pub(super) fn stopping(&self, server: &Server) {
        let Some(notifier) = &self.0 else { return };
        let drain = server.drain_timeout();
        let status =
            format!("draining for at most {}; clients: {}", humantime::format_duration(drain), server.sessions());
        // The library's variant ends at 71 min.
        let extend = format!("EXTEND_TIMEOUT_USEC={}", (drain + STOP_MARGIN).as_micros());
        notifier.send(&[NotifyState::Stopping, NotifyState::Status(&status), NotifyState::Custom(&extend)]);
    }

    /// Waits until the last messages are sent, or for a second.
    pub(super) async fn finish(self) {
        let Some(Notifier { messages, sending, watchdog }) = self.0 else { return };
        if let Some(watchdog) = watchdog {
            watchdog.abort();
        }
        drop(messages);
        let _sent_or_not = timeout(LAST_MESSAGES, sending).await;
    }
}

impl Notifier {
    /// Sends a message of several lines, without waiting for the service manager.
    fn send(&self, states: &[NotifyState<'_>]) {
        let lines: Vec<String> = states.iter().map(|state| state.to_string().replace('\n', " ")).collect();
        if self.messages.try_send(lines.join("\n")).is_err() {
            warn!(message = lines.join(" "), "the service manager takes no messages: one is dropped");
        }
    }
}

/// One line about the server, for `systemctl status`.
fn status(server: &Server) -> String {
    let (revision, refused) = server.revision();
    let serving = format!("serving; open ports: {}; configuration revision: {revision}", server.listeners().len());
    match refused {
        Some(why) => format!("{serving}; the last reload was refused: {why}"),
        None => serving,
    }
}

/// Sends messages in their order. Sending waits while the service manager is busy, so a thread for blocking work does it.
async fn send_all(mut waiting: mpsc::Receiver<String>) {
    let failed = Throttle::default();
    while let Some(message) = waiting.recv().await {
        let sent = spawn_blocking(move || sd_notify::notify(&[NotifyState::Custom(&message)])).await;
        if let Ok(Err(error)) = sent
            && let Some(more) = failed.pass()
        {
            warn!(%error, more, "the service manager can't be notified");
        }
    }
}

/// Sends WATCHDOG once in each `period`, if every worker has responded in it.
async fn watch(workers: Workers, period: Duration, messages: mpsc::Sender<String>) {
    let watchdog = NotifyState::Watchdog.to_string();
    loop {
        let end = Instant::now() + period;
        if timeout_at(end, workers.respond()).await.is_ok() {
            // If the messages before it wait, this one is of no use.
            let _ = messages.try_send(watchdog.clone());
            sleep_until(end).await;
        } else {
            error!(
                ?period,
                "a worker is blocked: it has run no task in this time, and the service manager is not told that the program works"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::runtime::Threads;

    #[tokio::test]
    async fn the_watchdog_is_fed_only_while_every_worker_responds() {
        let threads = Threads::start().expect("threads");
        let (messages, mut sent) = mpsc::channel(MAX_WAITING);
        let last = threads.workers().runtimes().last().expect("a worker").clone();
        let watching = tokio::spawn(watch(threads.workers(), Duration::from_millis(20), messages));
        for _ in 0..3 {
            assert_eq!(sent.recv().await.expect("it watches"), "WATCHDOG=1");
        }
        let (unblock, blocked) = sync_channel::<()>(0);
        let (says, mut said) = mpsc::channel(1);
        last.spawn(async move {
            let _ = says.try_send(());
            let _ = blocked.recv();
        });
        said.recv().await.expect("it is blocked");
        // What was sent before. The watch goes on meanwhile, since it is on this runtime.
        tokio::time::sleep(Duration::from_millis(50)).await;
        while sent.try_recv().is_ok() {}
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(sent.try_recv().is_err(), "a worker is blocked");
        drop(unblock);
        assert_eq!(sent.recv().await.expect("it watches"), "WATCHDOG=1");
        watching.abort();
        drop(threads);
    }
}
