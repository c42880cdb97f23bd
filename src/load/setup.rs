//! What the clients of one worker share: what they do, where they connect to, where they count.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use super::{
    connect::LoadRoute,
    figures::{LoadFigures, TransportFigures},
    scenario::{LoadTransport, Scenario},
};

/// What all clients of a worker share.
pub(super) struct WorkerSetup {
    pub(super) scenario: Scenario,
    pub(super) route: Arc<LoadRoute>,
    pub(super) tls: TlsConnector,
    pub(super) counters: LoadCounters,
    pub(super) seed: u64,
}

/// The state of the run, which every client watches.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RunState {
    /// How often the network was cut so far.
    pub(super) cuts: u32,
    /// Whether clients log out now.
    pub(super) is_over: bool,
}

/// Waits until the run is over.
pub(super) async fn wait_for_end(run_state: &mut watch::Receiver<RunState>) {
    let _ = run_state.wait_for(|state| state.is_over).await;
}

#[derive(Default)]
struct LoadCounts {
    /// Since the last report.
    figures: LoadFigures,
    /// Clients that are logged in now.
    sessions: BTreeMap<LoadTransport, u64>,
}

/// What a worker's clients have done since the last report.
#[derive(Clone, Default)]
pub(super) struct LoadCounters(Arc<Mutex<LoadCounts>>);

/// Counts a client as logged in until it is dropped.
pub(super) struct LoggedIn(LoadCounters, LoadTransport);

impl Drop for LoggedIn {
    fn drop(&mut self) {
        *self.0.0.lock().sessions.entry(self.1).or_default() -= 1;
    }
}

impl LoadCounters {
    /// Changes the figures of a transport. `change` runs under a lock.
    pub(super) fn update(&self, transport: LoadTransport, change: impl FnOnce(&mut TransportFigures)) {
        change(self.0.lock().figures.transports.entry(transport).or_default());
    }

    pub(super) fn count_error(&self, reason: String) {
        *self.0.lock().figures.errors.entry(reason).or_default() += 1;
    }

    pub(super) fn count_hostile(&self) {
        self.0.lock().figures.hostile += 1;
    }

    pub(super) fn logged_in(&self, transport: LoadTransport) -> LoggedIn {
        *self.0.lock().sessions.entry(transport).or_default() += 1;
        LoggedIn(self.clone(), transport)
    }

    /// Takes the figures since the last call, with the clients that are logged in now.
    pub(super) fn take(&self) -> LoadFigures {
        let mut counts = self.0.lock();
        let mut figures = std::mem::take(&mut counts.figures);
        figures.sessions = counts.sessions.clone();
        figures
    }
}
