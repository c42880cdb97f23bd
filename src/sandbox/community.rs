//! What the sandbox's sessions share: who is online, who watches whom, and a message queue for each session.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound::{Included, Unbounded},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use atomic_waker::AtomicWaker;
use parking_lot::Mutex;

use super::{
    ECHO,
    bodies::User,
    limits::{MAX_QUEUED, MAX_QUEUED_BYTES, MAX_SEVERAL},
};

/// The users that are found although they are not on line. `echo` always is.
const PEOPLE: [&[u8]; 4] = [b"ann", b"bea", b"bob", ECHO];

/// A message from one session to another. A channel between two clients has one id on each side.
#[derive(Debug, Clone)]
pub(super) enum PeerMessage {
    /// The session `from` opens a channel, which has the id `from_channel` on its side.
    CreateChannel { from: u64, from_channel: u32, offer: Arc<ChannelOffer> },
    /// The peer accepted the receiver's `channel`, which has the id `peer_channel` on the peer's side.
    AcceptChannel { channel: u32, peer_channel: u32, is_encrypted: bool, body: Vec<u8> },
    /// Data for the receiver's `channel`.
    Data { channel: u32, options: u16, body: Vec<u8> },
    /// The receiver's `channel` has ended.
    DestroyChannel { channel: u32, body: Vec<u8> },
    /// The user with this name, whom the receiver watches, came, went or changed status; `None`: it is off line now.
    PresenceChanged { name: Vec<u8>, user: Option<Arc<User>> },
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

impl PeerMessage {
    /// The bytes that it holds.
    fn size(&self) -> usize {
        let own = size_of::<Self>();
        own + match self {
            Self::CreateChannel { offer, .. } => offer.front.len() + offer.back.len() + offer.creator.size(),
            Self::AcceptChannel { body, .. } | Self::Data { body, .. } | Self::DestroyChannel { body, .. } => {
                body.len()
            }
            Self::PresenceChanged { name, user } => name.len() + user.as_ref().map_or(0, |user| user.size()),
        }
    }
}

/// The messages that wait, in the order of their arrival.
#[derive(Default)]
struct QueuedMessages {
    messages: VecDeque<PeerMessage>,
    bytes: usize,
    /// There were more than a client may let wait.
    is_over: bool,
}

/// The messages for one session.
#[derive(Default)]
pub(super) struct MessageQueue {
    queued: Mutex<QueuedMessages>,
    /// Wakes the task that serves the session.
    pub(super) waker: AtomicWaker,
}

impl MessageQueue {
    /// Takes the first message; `None`: there is none.
    pub(super) fn take(&self) -> Option<PeerMessage> {
        let mut queued = self.queued.lock();
        let message = queued.messages.pop_front()?;
        queued.bytes -= message.size();
        Some(message)
    }

    /// The bytes of the messages that wait.
    pub(super) fn bytes(&self) -> usize {
        self.queued.lock().bytes
    }

    /// Whether no message waits.
    pub(super) fn is_empty(&self) -> bool {
        self.queued.lock().messages.is_empty()
    }

    /// Whether more messages came than a client may let wait. Then none are kept.
    pub(super) fn is_over(&self) -> bool {
        self.queued.lock().is_over
    }

    /// Drops what waits about a user who is not watched any more. It would be out of date if the session watches the user
    /// again.
    fn drop_presence(&self, of: &[u8]) {
        let mut queued = self.queued.lock();
        let QueuedMessages { messages, bytes, .. } = &mut *queued;
        messages.retain(|message| {
            let drops = matches!(message, PeerMessage::PresenceChanged { name, .. } if name == of);
            *bytes -= if drops { message.size() } else { 0 };
            !drops
        });
    }

    /// Adds a message. Returns whether the queue is half full.
    fn put(&self, message: PeerMessage) -> bool {
        let mut queued = self.queued.lock();
        let (count, bytes) = (queued.messages.len(), queued.bytes + message.size());
        if queued.is_over || count >= MAX_QUEUED || (count > 0 && bytes > MAX_QUEUED_BYTES) {
            *queued = QueuedMessages { is_over: true, ..QueuedMessages::default() };
        } else {
            queued.bytes = bytes;
            queued.messages.push_back(message);
        }
        drop(queued);
        self.waker.wake();
        count >= MAX_QUEUED / 2 || bytes > MAX_QUEUED_BYTES / 2
    }
}

#[derive(Default)]
struct SandboxState {
    /// The queue of each session.
    queues: HashMap<u64, Arc<MessageQueue>>,
    /// The log-ins of each user name, the newest last: the session, and its user with the status set last.
    users: BTreeMap<Vec<u8>, Vec<(u64, User)>>,
    /// The sessions that watch each user name.
    watchers: HashMap<Vec<u8>, Vec<u64>>,
}

/// What the sandbox's sessions share. Each session has a number of its own.
#[derive(Default)]
pub(super) struct SandboxCommunity {
    /// Bytes that all sessions hold.
    pub(super) held: AtomicUsize,
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
            return Some((None, User::echo()));
        }
        let state = self.state.lock();
        state.users.get(name).and_then(|log_ins| log_ins.last()).map(|(session, user)| (Some(*session), user.clone()))
    }

    /// The users whom a name that somebody looks up means, in order. It means the user who has it; if there is none, the
    /// users whose names begin with it. Those who are on line are found, and a few others.
    pub(super) fn look_up(&self, name: &[u8]) -> Vec<Vec<u8>> {
        let state = self.state.lock();
        if PEOPLE.contains(&name) || state.users.contains_key(name) {
            return vec![name.to_vec()];
        }
        if name.is_empty() {
            return Vec::new();
        }
        let on_line = state.users.range::<[u8], _>((Included(name), Unbounded)).map(|(user, _)| user.as_slice());
        let on_line = on_line.take_while(|user| user.starts_with(name)).filter(|user| !PEOPLE.contains(user));
        let people = PEOPLE.into_iter().filter(|user| user.starts_with(name));
        let mut found: Vec<_> = people.chain(on_line).take(MAX_SEVERAL).map(<[u8]>::to_vec).collect();
        found.sort();
        found
    }

    /// From now on the session is notified when the user with this name comes, goes or changes status.
    pub(super) fn watch(&self, session: u64, name: &[u8]) {
        let mut state = self.state.lock();
        let sessions = state.watchers.entry(name.to_vec()).or_default();
        if !sessions.contains(&session) {
            sessions.push(session);
        }
    }

    /// From now on the session is not notified of this user any more.
    pub(super) fn unwatch(&self, session: u64, name: &[u8]) {
        let mut state = self.state.lock();
        if let Some(sessions) = state.watchers.get_mut(name) {
            sessions.retain(|&watcher| watcher != session);
            if sessions.is_empty() {
                state.watchers.remove(name);
            }
        }
        if let Some(queue) = state.queues.get(&session) {
            queue.drop_presence(name);
        }
    }

    /// Puts a message into the queue of a session. A session that has left gets none. Returns whether the queue is half
    /// full, so that the receiver should be served before there are more.
    pub(super) fn send(&self, to: u64, message: PeerMessage) -> bool {
        let queue = self.state.lock().queues.get(&to).cloned();
        queue.is_some_and(|queue| queue.put(message))
    }
}

impl SandboxState {
    fn notify_watchers(&self, name: &[u8]) {
        let Some(watchers) = self.watchers.get(name) else { return };
        let user = self.users.get(name).and_then(|log_ins| log_ins.last()).map(|(_, user)| Arc::new(user.clone()));
        for session in watchers {
            if let Some(queue) = self.queues.get(session) {
                queue.put(PeerMessage::PresenceChanged { name: name.to_vec(), user: user.clone() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(bytes: usize) -> PeerMessage {
        PeerMessage::Data { channel: 1, options: 0, body: vec![0; bytes] }
    }

    #[test]
    fn a_queue_is_bounded_in_messages_and_in_bytes_and_keeps_nothing_beyond() {
        for (message, fits) in [(0, MAX_QUEUED), (MAX_QUEUED_BYTES / 4, 3), (2 * MAX_QUEUED_BYTES, 1)] {
            let queue = MessageQueue::default();
            for n in 0..fits {
                queue.put(data(message));
                assert!(!queue.is_over(), "{n} messages of {message} bytes");
            }
            assert!(queue.put(data(message)) && queue.is_over());
            assert!(queue.take().is_none() && queue.is_empty() && queue.bytes() == 0);
            queue.put(data(0));
            assert!(queue.is_empty(), "it stays closed");
        }
    }

    #[test]
    fn what_is_taken_makes_room() {
        let queue = MessageQueue::default();
        for _ in 0..3 * MAX_QUEUED {
            queue.put(data(100_000));
            assert!(queue.take().is_some());
        }
        assert!(!queue.is_over() && queue.bytes() == 0);
    }

    #[test]
    fn what_waits_about_a_user_is_dropped_with_the_watch() {
        let community = SandboxCommunity::default();
        let (session, queue) = community.join();
        community.watch(session, b"ann");
        community.watch(session, b"bob");
        for name in [&b"ann"[..], b"bob"] {
            community.set_user(9, &User::new(name, b"login id", 0, 0));
        }
        community.unwatch(session, b"ann");
        assert!(matches!(queue.take(), Some(PeerMessage::PresenceChanged { name, user: Some(_) }) if name == b"bob"));
        assert!(queue.take().is_none() && queue.bytes() == 0);
    }

    #[test]
    fn a_name_means_its_user_or_those_whose_names_begin_with_it() {
        let community = SandboxCommunity::default();
        for (session, name) in [(1, &b"zoe"[..]), (2, b"zoe-2"), (3, b"annette"), (4, b"bob"), (5, b"Zo")] {
            community.set_user(session, &User::new(name, b"login id", 0, 0));
        }
        for (name, users) in [
            (&b"zoe"[..], &[&b"zoe"[..]][..]),
            (b"ann", &[b"ann"]),
            (b"zo", &[b"zoe", b"zoe-2"]),
            (b"b", &[b"bea", b"bob"]),
            (b"anne", &[b"annette"]),
            (b"an", &[b"ann", b"annette"]),
            (b"nobody", &[]),
            (b"", &[]),
            (b"echo", &[b"echo"]),
        ] {
            assert_eq!(community.look_up(name), users, "{:?}", name.escape_ascii().to_string());
        }
        for n in 10..200 {
            community.set_user(n, &User::new(format!("many-{n}").as_bytes(), b"login id", 0, 0));
        }
        assert_eq!(community.look_up(b"many").len(), MAX_SEVERAL);
    }

    #[test]
    fn a_name_that_nobody_watches_any_more_is_forgotten() {
        let community = SandboxCommunity::default();
        let [one, other] = [community.join().0, community.join().0];
        community.watch(one, b"ann");
        community.watch(other, b"ann");
        community.unwatch(one, b"ann");
        assert_eq!(community.state.lock().watchers.len(), 1);
        community.unwatch(other, b"ann");
        assert!(community.state.lock().watchers.is_empty());
    }
}
