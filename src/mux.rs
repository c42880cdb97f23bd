//! The core: it admits clients, gives each one a link to a Community server, and relays bytes.
//!
//! - `admission` counts clients and sends orders to sessions.
//! - `session` is the life of one session. `opening` has its first states, `relay` the others.
//! - `direction` is one direction of a relay, `closing` is how a session closes, `facts` is what a session's frames have
//!   shown, and `end` is why a session is over. `report` counts and logs the end.
//!
//! The transport of a client is known for limits, log and metrics; no decision here depends on it.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    limits::Budget,
    log::{Throttle, Throttles},
    net::Port,
    stream::{Arrival, Community, Core},
    telemetry::{
        Telemetry,
        outcome::{Outcome, Refusal, SessionEnd},
    },
};

mod admission;
mod closing;
mod direction;
mod end;
mod facts;
mod opening;
mod relay;
mod report;
mod session;

use admission::{Admission, SessionOrder};

/// How often the clock that sessions read is set, and idle sessions are looked for.
const TICK: Duration = Duration::from_millis(100);
/// How long sessions have for the farewell message after the drain's deadline. A polling client asks for it within a
/// second and acknowledges it within another one.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(4);
/// How often the end of a drain is looked for.
const DRAIN_STEP: Duration = Duration::from_millis(20);

/// The settings of the core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MuxSettings {
    /// The number of clients, over all ports.
    pub capacity: usize,
    /// The number of clients from one address; 0: no limit.
    pub per_address: usize,
    /// The number of clients that the Community has not logged in yet.
    pub logging_in: usize,
    /// The number of those from one address; 0: no limit.
    pub logging_in_per_address: usize,
    /// Bytes that are held because a client or a Community server is slow, over all transports.
    pub held_bytes: usize,
    /// The number of those for one address; 0: no limit per address.
    pub held_bytes_per_address: usize,
    /// Networks without limits per address, for example of proxies with many clients.
    pub exempt: Vec<IpNet>,
    /// The time from accept to the end of the first frame.
    pub login_timeout: Duration,
    /// The time from admission after which a client that is not logged in is disconnected; `None`: never.
    pub logging_in_timeout: Option<Duration>,
    /// The time without a byte in any direction after which a session is ended; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// The longest frame of a client, in bytes.
    pub max_frame: u32,
    /// How long sessions may continue after the drain has begun.
    pub drain_timeout: Duration,
}

/// What all sessions share.
struct MuxContext {
    settings: ArcSwap<MuxSettings>,
    community: Arc<dyn Community>,
    telemetry: Arc<Telemetry>,
    admission: Arc<Admission>,
    budget: Arc<Budget>,
    /// For log lines about refused clients, by [`Refusal`].
    refusals: Throttles,
    /// For log lines about sessions that were never logged in, by [`SessionEnd`].
    not_logged_in: Throttles,
    /// For log lines about idle sessions.
    idle: Throttle,
}

/// The core. A clone is the same core.
#[derive(Clone)]
pub struct Mux(Arc<MuxContext>);

impl Mux {
    /// Starts a core in front of `community`. Must be called on a tokio runtime: a task sets the clock and looks for
    /// idle sessions as long as the core exists.
    pub fn start(settings: MuxSettings, community: Arc<dyn Community>, telemetry: Arc<Telemetry>) -> Self {
        let budget = Budget::new(settings.held_bytes, settings.held_bytes_per_address, &settings.exempt);
        let admission = Arc::new(Admission::new(Arc::clone(&telemetry), Arc::clone(&budget)));
        let context = Arc::new(MuxContext {
            settings: ArcSwap::from_pointee(settings),
            community,
            telemetry,
            admission,
            budget,
            refusals: Throttles::new(Refusal::ALL.len()),
            not_logged_in: Throttles::new(SessionEnd::ALL.len()),
            idle: Throttle::default(),
        });
        tokio::spawn(keep_time(Arc::downgrade(&context)));
        Self(context)
    }

    /// Puts new settings into force. Present sessions keep their limit of frames.
    pub fn reconfigure(&self, settings: MuxSettings) {
        self.0.budget.set(settings.held_bytes, settings.held_bytes_per_address, &settings.exempt);
        self.0.settings.store(Arc::new(settings));
    }

    /// The number of present clients that the Community has not logged in.
    pub fn logging_in(&self) -> usize {
        self.0.admission.logging_in()
    }

    /// The number of bytes that are held at present.
    pub fn held_bytes(&self) -> usize {
        self.0.budget.held()
    }

    /// The number of present clients.
    pub fn sessions(&self) -> usize {
        self.0.admission.sessions()
    }

    /// Begins to refuse new clients.
    pub fn begin_drain(&self) {
        self.0.admission.drain();
    }

    /// Admits clients of some ports also during the drain, which then waits for them. To be called once, before it begins.
    pub fn admit_last(&self, last: LastArrivals) {
        self.0.admission.admit_last(last);
    }

    /// Whether the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.0.admission.is_draining()
    }

    /// Waits until every session has ended. Sessions are ended evenly over `drain_timeout`, with a farewell message, and
    /// those first that have been idle for the longest: so their clients do not all come to another server at once. A
    /// session that ends by itself takes the place of one that would be ended.
    pub async fn drain(&self) -> Drained {
        self.begin_drain();
        let (mut first, lasts) = (self.sessions(), self.0.settings.load().drain_timeout);
        let (deadline, step) = (Instant::now() + lasts, (lasts / 200).clamp(DRAIN_STEP, Duration::from_secs(1)));
        let mut ended = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || (self.sessions() == 0 && !self.0.admission.may_arrive()) {
                break;
            }
            // Clients that have arrived meanwhile.
            first = first.max(self.sessions());
            ended += self.0.admission.order_idlest(SessionOrder::Drain, may_stay(first, left, lasts));
            tokio::time::sleep(step.min(left)).await;
        }
        ended += self.0.admission.order_idlest(SessionOrder::Drain, 0);
        self.wait_for_none(Instant::now() + FAREWELL_TIMEOUT).await;
        Drained { ended, left: self.sessions() }
    }

    async fn wait_for_none(&self, deadline: Instant) {
        while self.sessions() > 0 && Instant::now() < deadline {
            tokio::time::sleep(DRAIN_STEP).await;
        }
    }
}

/// Clients that are admitted although the core drains: their connections were accepted before the drain began, on a port
/// whose further connections another process accepts. Nobody is refused when one process takes the place of another.
pub struct LastArrivals {
    /// The ports.
    pub ports: Vec<Port>,
    /// Whether such connections are left that are not a session yet.
    pub may_come: Box<dyn Fn() -> bool + Send + Sync>,
}

/// How many of the `first` sessions may stay when `left` is left of the time that a drain lasts.
fn may_stay(first: usize, left: Duration, lasts: Duration) -> usize {
    let stay = (first as u128 * left.as_millis()).div_ceil(lasts.as_millis().max(1));
    usize::try_from(stay).unwrap_or(first).min(first)
}

/// The result of a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// The number of sessions that were ended.
    pub ended: usize,
    /// The number of those that did not end by the farewell message.
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
                if let Some(more) = self.0.refusals.pass(refusal.index()) {
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

/// Sets the clock of the sessions, and ends sessions that are idle, or not logged in, for too long.
async fn keep_time(context: Weak<MuxContext>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(context) = context.upgrade() else { return };
        let now = context.admission.set_clock();
        let settings = context.settings.load();
        let since = |limit: Duration| now.saturating_sub(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        if let Some(idle) = settings.idle_timeout
            && let Some(sessions) = NonZeroUsize::new(context.admission.order_idle(since(idle)))
            && let Some(more) = context.idle.pass()
        {
            info!(sessions, more, "idle for too long");
        }
        if let Some(limit) = settings.logging_in_timeout {
            context.admission.order_not_logged_in(since(limit));
        }
    }
}

#[cfg(test)]
mod tests;
