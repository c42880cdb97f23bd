//! The list of sessions: finds a session by its name.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use crate::wire::tunnel::name::SessionName;

/// Number of maps, each with its own lock, so that the requests of many clients find their sessions at the same time.
const SHARDS: usize = 16;

type Shard<S> = Mutex<HashMap<SessionName, Arc<S>>>;

/// All sessions of one type that a client may still ask for.
pub(super) struct Registry<S> {
    shards: [Shard<S>; SHARDS],
}

impl<S> Default for Registry<S> {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Shard::default()) }
    }
}

impl<S> Registry<S> {
    /// The last byte of a name is random, so it spreads the sessions evenly. The first bytes may be the tag of a node.
    fn shard(&self, name: &SessionName) -> &Shard<S> {
        let [.., last] = name.as_bytes();
        &self.shards[usize::from(*last) % SHARDS]
    }

    pub(super) fn insert(&self, name: SessionName, session: Arc<S>) {
        self.shard(&name).lock().insert(name, session);
    }

    pub(super) fn get(&self, name: &SessionName) -> Option<Arc<S>> {
        self.shard(name).lock().get(name).cloned()
    }

    pub(super) fn remove(&self, name: &SessionName) {
        self.shard(name).lock().remove(name);
    }

    /// Forgets every session for which `is_over` returns true.
    pub(super) fn forget(&self, mut is_over: impl FnMut(&S) -> bool) {
        for shard in &self.shards {
            shard.lock().retain(|_, session| !is_over(session));
        }
    }
}
