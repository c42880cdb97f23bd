//! What the clients of a worker share: what to do, where to go, where to count.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

use super::{Figures, Route, Scenario, Second, Way};

/// What all clients of a worker share.
pub(super) struct Setup {
    pub(super) scenario: Scenario,
    pub(super) route: Arc<Route>,
    pub(super) tls: TlsConnector,
    pub(super) counters: Counters,
    pub(super) seed: u64,
}

/// What the run is at.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Signal {
    /// Cuts of the network so far.
    pub(super) cuts: u32,
    pub(super) over: bool,
}

/// Waits until the run is over.
pub(super) async fn over(signal: &mut watch::Receiver<Signal>) {
    let _ = signal.wait_for(|signal| signal.over).await;
}

#[derive(Default)]
struct Counted {
    second: Second,
    present: BTreeMap<Way, u64>,
}

/// What a worker's clients have done since the last line.
#[derive(Clone, Default)]
pub(super) struct Counters(Arc<Mutex<Counted>>);

/// A client that is logged in, until dropped.
pub(super) struct Present(Counters, Way);

impl Drop for Present {
    fn drop(&mut self) {
        *self.0.0.lock().present.entry(self.1).or_default() -= 1;
    }
}

impl Counters {
    pub(super) fn update(&self, way: Way, with: impl FnOnce(&mut Figures)) {
        with(self.0.lock().second.ways.entry(way).or_default());
    }

    pub(super) fn error(&self, reason: String) {
        *self.0.lock().second.errors.entry(reason).or_default() += 1;
    }

    pub(super) fn hostile(&self) {
        self.0.lock().second.hostile += 1;
    }

    pub(super) fn present(&self, way: Way) -> Present {
        *self.0.lock().present.entry(way).or_default() += 1;
        Present(self.clone(), way)
    }

    /// Takes the figures since the last time, and who is there.
    pub(super) fn take(&self) -> Second {
        let mut counted = self.0.lock();
        let mut second = std::mem::take(&mut counted.second);
        second.sessions = counted.present.clone();
        second
    }
}
