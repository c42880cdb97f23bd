//! What the sandbox's sessions share: who is online, who watches whom, and a message queue for each session.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use atomic_waker::AtomicWaker;
use parking_lot::Mutex;

use super::{ECHO, bodies::User};

/// The most messages that wait in a queue. A client that does not read its connection lets its queue grow, and
/// is disconnected when the queue is longer.
const MAX_QUEUED: usize = 4096;

/// A message from one session to another. A channel between two clients has one id on each side.
#[derive(Debug, Clone)]
pub(super) enum PeerMessage {
    /// The session `from` opens a channel, which has the id `from_channel` on its side.
    CreateChannel { from: u64, from_channel: u32, offer: Arc<ChannelOffer> },
    /// The peer accepted the receiver's `channel`, which has the id `peer_channel` on the peer's side.
    AcceptChannel { channel: u32, peer_channel: u32, body: Vec<u8> },
    /// Data for the receiver's `channel`.
    Data { channel: u32, options: u16, body: Vec<u8> },
    /// The receiver's `channel` has ended.
    DestroyChannel { channel: u32, body: Vec<u8> },
    /// A user with this name, whom the receiver watches, came, went or changed status.
    PresenceChanged(Vec<u8>),
}

/// What a CreateCnl offers. The receiver's CreateCnl is made of it.
#[derive(Debug)]
pub(super) struct ChannelOffer {
    /// The user who creates the channel.
    pub(super) creator: User,
    /// The fields in front of the creator block, as sent: target, service, protocol, version, options and
    /// additional data.
    pub(super) front: Vec<u8>,
    /// The fields behind the creator block, as sent.
    pub(super) back: Vec<u8>,
}

/// The messages for one session.
#[derive(Default)]
pub(super) struct MessageQueue {
    messages: Mutex<VecDeque<PeerMessage>>,
    /// Wakes the task that serves the session.
    pub(super) waker: AtomicWaker,
}

impl MessageQueue {
    /// Takes all messages; `None` if there were more than [`MAX_QUEUED`].
    pub(super) fn take(&self) -> Option<VecDeque<PeerMessage>> {
        let messages = std::mem::take(&mut *self.messages.lock());
        (messages.len() <= MAX_QUEUED).then_some(messages)
    }

    fn put(&self, message: PeerMessage) {
        let mut messages = self.messages.lock();
        // One message more than allowed shows that the queue was full.
        if messages.len() <= MAX_QUEUED {
            messages.push_back(message);
        }
        drop(messages);
        self.waker.wake();
    }
}

#[derive(Default)]
struct SandboxState {
    /// The queue of each session.
    queues: HashMap<u64, Arc<MessageQueue>>,
    /// The log-ins of each user name, the newest last: the session, and its user with the status set last.
    users: HashMap<Vec<u8>, Vec<(u64, User)>>,
    /// The sessions that watch each user name.
    watchers: HashMap<Vec<u8>, Vec<u64>>,
}

/// What the sandbox's sessions share. Each session has a number of its own.
#[derive(Default)]
pub(super) struct SandboxCommunity {
    state: Mutex<SandboxState>,
    next_session: AtomicU64,
}

impl SandboxCommunity {
    /// The number of log-ins that are present.
    pub(super) fn log_ins(&self) -> usize {
        self.state.lock().users.values().map(Vec::len).sum()
    }

    /// Adds a session. Returns its number and its message queue.
    pub(super) fn join(&self) -> (u64, Arc<MessageQueue>) {
        let (session, queue) = (self.next_session.fetch_add(1, Relaxed), Arc::new(MessageQueue::default()));
        self.state.lock().queues.insert(session, Arc::clone(&queue));
        (session, queue)
    }

    /// Removes a session, and its log-in if it had one with the user name `name`.
    pub(super) fn leave(&self, session: u64, name: Option<&[u8]>) {
        let mut state = self.state.lock();
        state.queues.remove(&session);
        state.watchers.retain(|_, sessions| {
            sessions.retain(|&watcher| watcher != session);
            !sessions.is_empty()
        });
        let Some(name) = name else { return };
        if let Some(log_ins) = state.users.get_mut(name) {
            log_ins.retain(|(log_in, _)| *log_in != session);
            if log_ins.is_empty() {
                state.users.remove(name);
            }
        }
        state.notify_watchers(name);
    }

    /// Adds a log-in, or changes its status.
    pub(super) fn set_user(&self, session: u64, user: &User) {
        let mut state = self.state.lock();
        let log_ins = state.users.entry(user.name.clone()).or_default();
        log_ins.retain(|(log_in, _)| *log_in != session);
        log_ins.push((session, user.clone()));
        state.notify_watchers(&user.name);
    }

    /// The user with this name if it is online, with the session of its newest log-in, which gets new channels.
    /// `echo` has no session.
    pub(super) fn find(&self, name: &[u8]) -> Option<(Option<u64>, User)> {
        if name == ECHO {
            return Some((None, User::new(ECHO, ECHO, 0)));
        }
        let state = self.state.lock();
        state.users.get(name).and_then(|log_ins| log_ins.last()).map(|(session, user)| (Some(*session), user.clone()))
    }

    /// From now on the session is notified when the user with this name comes, goes or changes status.
    pub(super) fn watch(&self, session: u64, name: &[u8]) {
        let mut state = self.state.lock();
        let sessions = state.watchers.entry(name.to_vec()).or_default();
        if !sessions.contains(&session) {
            sessions.push(session);
        }
    }

    /// Puts a message into the queue of a session. A session that has left gets none.
    pub(super) fn send(&self, to: u64, message: PeerMessage) {
        let queue = self.state.lock().queues.get(&to).cloned();
        if let Some(queue) = queue {
            queue.put(message);
        }
    }
}

impl SandboxState {
    fn notify_watchers(&self, name: &[u8]) {
        for session in self.watchers.get(name).into_iter().flatten() {
            if let Some(queue) = self.queues.get(session) {
                queue.put(PeerMessage::PresenceChanged(name.to_vec()));
            }
        }
    }
}
