//! What the sandbox's clients share: who is on line, and letters between them.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use atomic_waker::AtomicWaker;
use parking_lot::Mutex;

use super::{ECHO, service::User};

/// Letters that a client may leave unread; one that reads nothing is disconnected.
const MAX_LETTERS: usize = 4096;

/// Something that one client's connection tells another's.
#[derive(Debug, Clone)]
pub(super) enum Letter {
    /// `from` opens a channel, which is `channel` on its side.
    Create { from: u64, channel: u32, offer: Arc<Offer> },
    /// The channel, by the reader's id, was accepted; the channel is `channel` on the other side.
    Accept { mine: u32, channel: u32, body: Vec<u8> },
    /// Data for the channel, by the reader's id.
    Data { mine: u32, options: u16, body: Vec<u8> },
    /// The channel, by the reader's id, is over.
    Destroy { mine: u32, body: Vec<u8> },
    /// A user whom the reader watches came, went or changed.
    Changed(Vec<u8>),
}

/// What a CreateCnl offers, to be put before its target.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) creator: User,
    /// Target, service, protocol, version, options and additional data, as sent.
    pub(super) front: Vec<u8>,
    /// What followed the creator block.
    pub(super) back: Vec<u8>,
}

/// A connection's letter box.
#[derive(Default)]
pub(super) struct LetterBox {
    letters: Mutex<VecDeque<Letter>>,
    pub(super) waker: AtomicWaker,
}

impl LetterBox {
    /// The letters so far; `None` when there were too many.
    pub(super) fn take(&self) -> Option<VecDeque<Letter>> {
        let letters = std::mem::take(&mut *self.letters.lock());
        (letters.len() <= MAX_LETTERS).then_some(letters)
    }

    fn put(&self, letter: Letter) {
        let mut letters = self.letters.lock();
        if letters.len() <= MAX_LETTERS {
            letters.push_back(letter);
        }
        drop(letters);
        self.waker.wake();
    }
}

#[derive(Default)]
struct State {
    boxes: HashMap<u64, Arc<LetterBox>>,
    /// By name: the log-ins, and the status that was set last.
    users: HashMap<Vec<u8>, Vec<(u64, User)>>,
    /// By name: who wants to know.
    watchers: HashMap<Vec<u8>, Vec<u64>>,
}

/// See the module's page.
#[derive(Default)]
pub(super) struct Community {
    state: Mutex<State>,
    next: AtomicU64,
}

impl Community {
    pub(super) fn log_ins(&self) -> usize {
        self.state.lock().users.values().map(Vec::len).sum()
    }

    /// A connection's number and letter box.
    pub(super) fn join(&self) -> (u64, Arc<LetterBox>) {
        let (id, letters) = (self.next.fetch_add(1, Relaxed), Arc::new(LetterBox::default()));
        self.state.lock().boxes.insert(id, Arc::clone(&letters));
        (id, letters)
    }

    pub(super) fn leave(&self, id: u64, name: Option<&[u8]>) {
        let mut state = self.state.lock();
        state.boxes.remove(&id);
        state.watchers.retain(|_, ids| {
            ids.retain(|&watcher| watcher != id);
            !ids.is_empty()
        });
        let Some(name) = name else { return };
        if let Some(log_ins) = state.users.get_mut(name) {
            log_ins.retain(|(log_in, _)| *log_in != id);
            if log_ins.is_empty() {
                state.users.remove(name);
            }
        }
        state.tell_watchers(name);
    }

    /// A log-in, or a new status of one.
    pub(super) fn set_user(&self, id: u64, user: &User) {
        let mut state = self.state.lock();
        let log_ins = state.users.entry(user.name.clone()).or_default();
        log_ins.retain(|(log_in, _)| *log_in != id);
        log_ins.push((id, user.clone()));
        state.tell_watchers(&user.name);
    }

    /// The user of that name, if it is on line: the newest log-in, which gets new channels.
    pub(super) fn find(&self, name: &[u8]) -> Option<(Option<u64>, User)> {
        if name == ECHO {
            return Some((None, User::new(ECHO, ECHO, 0)));
        }
        let state = self.state.lock();
        state.users.get(name).and_then(|log_ins| log_ins.last()).map(|(id, user)| (Some(*id), user.clone()))
    }

    pub(super) fn watch(&self, id: u64, name: &[u8]) {
        let mut state = self.state.lock();
        let ids = state.watchers.entry(name.to_vec()).or_default();
        if !ids.contains(&id) {
            ids.push(id);
        }
    }

    pub(super) fn send(&self, to: u64, letter: Letter) -> bool {
        let found = self.state.lock().boxes.get(&to).cloned();
        found.as_ref().inspect(|letters| letters.put(letter)).is_some()
    }
}

impl State {
    fn tell_watchers(&self, name: &[u8]) {
        for id in self.watchers.get(name).into_iter().flatten() {
            if let Some(letters) = self.boxes.get(id) {
                letters.put(Letter::Changed(name.to_vec()));
            }
        }
    }
}
