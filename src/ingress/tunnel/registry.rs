//! The list of sessions: finds a session by its name.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use super::handle::SessionHandle;
use crate::wire::tunnel::name::SessionName;

/// Number of maps, each with its own lock, so that the requests of many clients find their sessions at the same time.
const SHARDS: usize = 16;

type Shard = Mutex<HashMap<SessionName, Arc<SessionHandle>>>;

/// All sessions that a client may still ask for.
#[derive(Default)]
pub(super) struct Registry {
    shards: [Shard; SHARDS],
}

impl Registry {
    /// Names are random, so one byte of them spreads the sessions evenly.
    fn shard(&self, name: &SessionName) -> &Shard {
        &self.shards[usize::from(name.as_bytes()[0]) % SHARDS]
    }

    pub(super) fn insert(&self, name: SessionName, session: Arc<SessionHandle>) {
        self.shard(&name).lock().insert(name, session);
    }

    pub(super) fn get(&self, name: &SessionName) -> Option<Arc<SessionHandle>> {
        self.shard(name).lock().get(name).cloned()
    }

    pub(super) fn remove(&self, name: &SessionName) {
        self.shard(name).lock().remove(name);
    }

    /// Forgets every session for which `is_over` returns true.
    pub(super) fn forget(&self, mut is_over: impl FnMut(&SessionHandle) -> bool) {
        for shard in &self.shards {
            shard.lock().retain(|_, session| !is_over(session));
        }
    }
}
