//! The core: admits clients, gives each a link to a Community server, and relays.
//!
//! `admission` counts clients in and out, `session` is the life of one client, `relay` the
//! loop that moves its bytes. How a client came in is known for limits, logs and metrics; no
//! decision here depends on it.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    limits::Budget,
    log::Throttle,
    stream::{Arrival, Community, Core},
    telemetry::{
        Telemetry,
        outcome::{Outcome, Refusal},
    },
};

mod admission;
mod end;
mod relay;
mod session;

use admission::{Admission, Order};

/// How often the clock that sessions read is set, and their idleness looked at.
const TICK: Duration = Duration::from_millis(100);
/// After the drain's deadline: how long sessions have to say good-bye. A polling client needs
/// a second to ask for it, and one to say that it has it.
const GOOD_BYE: Duration = Duration::from_secs(4);

/// Settings of the core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Clients at once, over all ports.
    pub capacity: usize,
    /// Clients at once from one address; 0: no limit.
    pub per_address: usize,
    /// Of those, clients that the Community has not logged in yet.
    pub logging_in: usize,
    /// Of those, from one address; 0: no limit.
    pub logging_in_per_address: usize,
    /// Bytes held for slow clients and for a slow Community, over all ways in.
    pub held_bytes: usize,
    /// Of those, for one address; 0: no limit of its own.
    pub held_bytes_per_address: usize,
    /// Networks without limits for one address: proxies, behind which many clients are.
    pub exempt: Vec<IpNet>,
    /// From accept to the end of the first frame.
    pub login_timeout: Duration,
    /// A client that the Community has not logged in for so long is sent away; `None`: never.
    pub logging_in_timeout: Option<Duration>,
    /// Without a byte either way for so long, a session ends; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// The most that one frame may hold, in bytes.
    pub max_frame: u32,
    /// How long present sessions may go on after the drain began.
    pub drain_timeout: Duration,
}

/// What every session shares.
struct Shared {
    settings: ArcSwap<Settings>,
    community: Arc<dyn Community>,
    telemetry: Arc<Telemetry>,
    admission: Arc<Admission>,
    budget: Arc<Budget>,
    refusals: Throttle,
    unserved: Throttle,
}

/// The core. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Mux(Arc<Shared>);

impl Mux {
    /// A core in front of `community`. Must be called on a tokio runtime: a task watches for
    /// idle sessions, for as long as the core lives.
    pub fn start(settings: Settings, community: Arc<dyn Community>, telemetry: Arc<Telemetry>) -> Self {
        let budget = Budget::new(settings.held_bytes, settings.held_bytes_per_address, &settings.exempt);
        let admission = Arc::new(Admission::new(Arc::clone(&telemetry), Arc::clone(&budget)));
        let shared = Arc::new(Shared {
            settings: ArcSwap::from_pointee(settings),
            community,
            telemetry,
            admission,
            budget,
            refusals: Throttle::default(),
            unserved: Throttle::default(),
        });
        tokio::spawn(watch(Arc::downgrade(&shared)));
        Self(shared)
    }

    /// Takes up new settings. Present sessions keep their frame limit.
    pub fn reconfigure(&self, settings: Settings) {
        self.0.budget.set(settings.held_bytes, settings.held_bytes_per_address, &settings.exempt);
        self.0.settings.store(Arc::new(settings));
    }

    /// Clients at present that the Community has not logged in.
    pub fn logging_in(&self) -> usize {
        self.0.admission.logging_in()
    }

    /// Bytes held at present.
    pub fn held_bytes(&self) -> usize {
        self.0.budget.held()
    }

    /// Clients at present.
    pub fn sessions(&self) -> usize {
        self.0.admission.sessions()
    }

    /// Refuses clients from now on.
    pub fn begin_drain(&self) {
        self.0.admission.drain();
    }

    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.0.admission.is_draining()
    }

    /// Waits until every session has ended, or ends them after `drain_timeout` with a word in
    /// their own protocol. Says how many it had to end, and how many would not.
    pub async fn drain(&self) -> Drained {
        self.begin_drain();
        let deadline = Instant::now() + self.0.settings.load().drain_timeout;
        self.wait_for_none(deadline).await;
        let ended = self.sessions();
        if ended > 0 {
            self.0.admission.order_all(Order::Drain);
            self.wait_for_none(Instant::now() + GOOD_BYE).await;
        }
        Drained { ended, left: self.sessions() }
    }

    async fn wait_for_none(&self, deadline: Instant) {
        while self.sessions() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What a drain came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Sessions that did not end by themselves in time.
    pub ended: usize,
    /// Of those, the ones that did not even take the good-bye.
    pub left: usize,
}

impl Core for Mux {
    fn take(&self, arrival: Arrival) -> Result<(), Box<(Refusal, Arrival)>> {
        let settings = self.0.settings.load();
        match self.0.admission.admit(&settings, &arrival.via) {
            Ok(ticket) => {
                tokio::spawn(session::run(Arc::clone(&self.0), arrival, ticket));
                Ok(())
            }
            Err(refusal) => {
                let via = arrival.via;
                self.0.telemetry.sessions.refused.count(refusal);
                if let Some(more) = self.0.refusals.pass() {
                    warn!(client = %via.client, port = via.port.number, transport = %via.transport, reason = refusal.name(),
                        sessions = self.sessions(), more, "client refused");
                }
                Err(Box::new((refusal, arrival)))
            }
        }
    }

    fn budget(&self) -> Arc<Budget> {
        Arc::clone(&self.0.budget)
    }
}

/// Sets the sessions' clock and ends those that are idle for too long.
async fn watch(shared: std::sync::Weak<Shared>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        let now = shared.admission.set_clock();
        let settings = shared.settings.load();
        let since = |limit: Duration| now.saturating_sub(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        if let Some(idle) = settings.idle_timeout {
            let ended = shared.admission.order_idle(since(idle));
            if ended > 0 {
                info!(sessions = ended, "idle for too long");
            }
        }
        if let Some(limit) = settings.logging_in_timeout {
            shared.admission.order_not_logged_in(since(limit));
        }
    }
}
