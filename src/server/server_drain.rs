//! Ends the sessions on Community servers that are drained: by a command, by the configuration, or because a reload has
//! removed them.
//!
//! ```text
//!              a command, a reload                          no session is left
//!   in use ─────────────────────────► draining: one task ─────────────────────► drained
//!     ▲                                  │ ends its sessions                        │
//!     │        a command, a reload       │                                          │
//!     └──────────────────────────────────┴──────────────────────────────────────────┘
//! ```

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tracing::info;

use super::ServerContext;
use crate::{
    community::{DrainRefusal, DrainingServer, Pool},
    mux::Mux,
};

/// How often clients are looked for that were on their way to a server when its drain began.
const LATE_CLIENTS: Duration = Duration::from_secs(1);

/// The tasks that end sessions, by the number of the server.
#[derive(Default)]
pub(super) struct ServerDrains(Mutex<BTreeMap<u16, AbortHandle>>);

impl ServerDrains {
    /// Ends no more sessions.
    pub(super) fn stop(&self) {
        std::mem::take(&mut *self.0.lock()).into_values().for_each(|task| task.abort());
    }

    /// Has a task for each server that `pool` drains, and for no other.
    fn follow(&self, pool: &Arc<Pool>, mux: &Mux, lasts: Duration) {
        let mut tasks = self.0.lock();
        let draining = pool.draining();
        tasks.retain(|number, task| {
            let stays = draining.iter().any(|server| server.number == *number);
            if !stays {
                task.abort();
            }
            stays
        });
        for server in draining {
            tasks.entry(server.number).or_insert_with(|| {
                info!(server = %server.name, sessions = server.sessions, over = %humantime::format_duration(lasts),
                    "draining a Community server: no new clients");
                tokio::spawn(drain(Arc::clone(pool), mux.clone(), server, lasts)).abort_handle()
            });
        }
    }
}

/// Ends the sessions on `server` evenly over `lasts`, and those that come late.
async fn drain(pool: Arc<Pool>, mux: Mux, server: DrainingServer, lasts: Duration) {
    let deadline = Instant::now() + lasts;
    let mut ended = 0;
    while pool.draining().iter().any(|other| other.number == server.number && other.sessions > 0) {
        ended += mux.drain_server(server.number, deadline.saturating_duration_since(Instant::now())).await;
        tokio::time::sleep(LATE_CLIENTS).await;
    }
    info!(server = %server.name, ended, "Community server is drained");
}

impl ServerContext {
    /// Ends the sessions on servers that are drained now, and no longer those on servers that are not.
    pub(super) fn follow_drains(&self) {
        self.server_drains.follow(&self.pool, &self.mux, self.settings.load().community.drain_timeout);
    }

    /// See [`Pool::drain`].
    pub(super) fn drain_server(&self, server: &str) -> Result<u64, DrainRefusal> {
        let sessions = self.pool.drain(server)?;
        self.follow_drains();
        Ok(sessions)
    }

    /// See [`Pool::resume`].
    pub(super) fn resume_server(&self, server: &str) -> Result<u64, DrainRefusal> {
        let sessions = self.pool.resume(server)?;
        self.follow_drains();
        info!(server, sessions, "Community server gets new clients again");
        Ok(sessions)
    }
}
