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

#[cfg(test)]
mod tests {
    use super::*;

    /// The name that ends with `last`.
    fn name(last: u8) -> SessionName {
        SessionName::parse(&format!("{:030x}{last:02x}", 7)).expect("a name")
    }

    #[test]
    fn a_session_is_found_until_it_is_removed_or_forgotten() {
        let registry = Registry::default();
        (0..=u8::MAX).for_each(|n| registry.insert(name(n), Arc::new(n)));
        assert!((0..=u8::MAX).all(|n| registry.get(&name(n)).as_deref() == Some(&n)));
        registry.remove(&name(3));
        registry.forget(|n| *n >= 10);
        let found: Vec<u8> = (0..=u8::MAX).filter(|n| registry.get(&name(*n)).is_some()).collect();
        assert_eq!(found, [0, 1, 2, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn sessions_side_by_side_are_in_different_shards() {
        let registry = Registry::default();
        (0..=u8::MAX).take(2 * SHARDS).for_each(|n| registry.insert(name(n), Arc::new(n)));
        assert!(registry.shards.iter().all(|shard| shard.lock().len() == 2));
    }
}
