//! One client's side of the protocol: it takes the bytes that the client sent and the messages of other sessions,
//! and makes the bytes for the client. It knows no socket.
//!
//! ```text
//!  Connected ── Handshake ──▶ Handshaken ── Login ──▶ LoggedIn ── DestroyCnl on channel 0 ──▶ Closing
//!      │                          │                      │                                       ▲
//!      └──── any other message, or a wrong password ─────┴── a frame that cannot be read, a limit ┘
//! ```
//!
//! In the state `Closing` nothing is read any more: the output is written, then the connection is closed.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Waker,
};

use super::{
    WRONG_PASSWORD,
    bodies::{self, User},
    community::{ChannelOffer, MessageQueue, PeerMessage, SandboxCommunity},
    limits::{FREE, MAX_ASKED, MAX_CHANNELS, MAX_FRAME, MAX_HELD, MAX_NAME, MAX_OFFER, MAX_STATUS, MAX_WATCHED},
};
use crate::wire::{
    frame::{self, First, FrameError, Head, MAX_BEFORE_LOGIN},
    message::{Reader, Writer, destroy, kind},
    reason::Reason,
};

/// Ids of channels that the server side creates have the top bit set.
const SERVER_CHANNEL: u32 = 0x8000_0000;
/// Reasons for which a channel is declined: there is no such service, or no user with that name is online.
const NO_SERVICE: u32 = 0x8000_000D;
const NO_USER: u32 = 0x8000_0006;

/// What a name or a channel costs beside its bytes.
const ENTRY: usize = 100;

/// A channel that is open in this session.
enum Channel {
    /// To `echo`.
    Echo,
    /// Awareness, with the user names that the client watches on this channel.
    Awareness(HashSet<Vec<u8>>),
    /// Resolves names.
    Resolve,
    /// To the session `peer`. `peer_channel` is the channel's id there, once the peer has accepted the channel.
    Peer { peer: u64, peer_channel: Option<u32> },
}

/// See the module's drawing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SandboxStage {
    Connected,
    Handshaken,
    LoggedIn,
    Closing,
}

/// One client's session. It leaves the community when it is dropped.
pub(super) struct SandboxSession {
    community: Arc<SandboxCommunity>,
    /// The session's number in the community.
    id: u64,
    queue: Arc<MessageQueue>,
    stage: SandboxStage,
    user: Option<User>,
    /// The client's IPv4 address, as the multiplexer wrote it into the Handshake.
    address: u32,
    channels: HashMap<u32, Channel>,
    next_channel: u32,
    /// The bytes of a frame that is not complete.
    partial: Vec<u8>,
    /// How many names are watched, and their bytes, over all channels.
    watched: (usize, usize),
    /// The bytes that are counted in the community.
    held: usize,
    /// A receiver of this client's messages is slow.
    should_pause: bool,
    /// The bytes for the client. The connection removes what it has written.
    pub(super) out: Vec<u8>,
}

impl SandboxSession {
    /// A session of a client that has sent nothing yet.
    pub(super) fn new(community: Arc<SandboxCommunity>) -> Self {
        let (id, queue) = community.join();
        Self {
            community,
            id,
            queue,
            stage: SandboxStage::Connected,
            user: None,
            address: 0,
            channels: HashMap::new(),
            next_channel: SERVER_CHANNEL + 1,
            partial: Vec::new(),
            watched: (0, 0),
            held: 0,
            should_pause: false,
            out: Vec::new(),
        }
    }

    /// Whether the connection is to be closed as soon as the output is written.
    pub(super) fn is_closing(&self) -> bool {
        self.stage == SandboxStage::Closing
    }

    /// `waker` is woken when another session has sent a message.
    pub(super) fn register_waker(&self, waker: &Waker) {
        self.queue.waker.register(waker);
    }

    /// Takes messages of other sessions while no more than `most` bytes wait for the client. If there are too many messages,
    /// because the client does not read, the session ends.
    pub(super) fn take_peer_messages(&mut self, most: usize) {
        if self.queue.is_over() && !self.is_closing() {
            self.end(Reason::TimedOut);
        }
        while self.out.len() <= most && !self.is_closing() {
            let Some(message) = self.queue.take() else { break };
            self.peer_message(message);
        }
        self.count_held();
    }

    /// Whether messages of other sessions wait.
    pub(super) fn has_peer_messages(&self) -> bool {
        !self.queue.is_empty() && !self.is_closing()
    }

    /// Whether the receiver of this client's messages should be served before more of them are read.
    pub(super) fn should_pause(&mut self) -> bool {
        std::mem::take(&mut self.should_pause)
    }

    /// Counts what the session holds. If all sessions together hold too much, and this one not little, it ends.
    fn count_held(&mut self) {
        let (names, bytes) = self.watched;
        let entries = (names + self.channels.len()) * ENTRY;
        let now = self.partial.len() + self.out.len() + self.queue.bytes() + bytes + entries;
        let held = &self.community.held;
        let before = std::mem::replace(&mut self.held, now);
        let all = held.fetch_add(now.wrapping_sub(before), Relaxed).wrapping_add(now.wrapping_sub(before));
        if all > MAX_HELD && now > FREE && !self.is_closing() {
            self.partial = Vec::new();
            self.end(Reason::ServerFull);
        }
    }

    fn send_to_peer(&mut self, peer: u64, message: PeerMessage) {
        self.should_pause |= self.community.send(peer, message);
    }

    /// Takes bytes that the client sent: processes the whole frames and keeps the rest.
    pub(super) fn receive(&mut self, bytes: &[u8]) {
        let joined;
        let mut rest = bytes;
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.partial);
            rest = &joined;
        }
        while !self.is_closing() {
            let longest = if self.stage == SandboxStage::LoggedIn { MAX_FRAME } else { MAX_BEFORE_LOGIN };
            match frame::first(rest, longest) {
                Ok(First::Whole { head, start, end }) => {
                    self.frame(head, &rest[start + frame::LENGTH + frame::HEADER..end]);
                    rest = &rest[end..];
                }
                Ok(First::Partial) => break,
                Err(FrameError::TooLong { .. }) => self.end(Reason::MessageTooLarge),
                Err(FrameError::TooShort { .. }) => self.end(Reason::ProtocolError),
            }
        }
        // A rest of keep-alives alone is not the beginning of a frame.
        if !rest.iter().all(|&b| frame::is_keep_alive(b)) && !self.is_closing() {
            self.partial = rest.to_vec();
        }
        self.count_held();
    }

    fn send(&mut self, kind: u16, channel: u32, body: &[u8]) {
        self.out.extend_from_slice(&frame::build(kind, channel, body));
    }

    fn end(&mut self, reason: Reason) {
        self.out.extend_from_slice(&reason.destroy());
        self.stage = SandboxStage::Closing;
    }

    /// Processes one frame of the client.
    fn frame(&mut self, head: Head, body: &[u8]) {
        let mut reader = Reader(body);
        if head.options & frame::OPTION_ATTRIBUTES != 0 && reader.opaque().is_none() {
            return self.end(Reason::ProtocolError);
        }
        let body = reader.0;
        let longest = match head.kind {
            kind::CREATE_CNL | kind::ACCEPT_CNL | kind::DESTROY_CNL => MAX_OFFER,
            kind::SET_USER_STATUS => MAX_STATUS,
            _ => usize::MAX,
        };
        if body.len() > longest {
            return self.end(Reason::MessageTooLarge);
        }
        match (self.stage, head.kind) {
            (SandboxStage::Connected, kind::HANDSHAKE) => self.handshake(body),
            (SandboxStage::Handshaken, kind::LOGIN) => self.login(body),
            (_, kind::DESTROY_CNL) if head.channel == 0 => self.stage = SandboxStage::Closing,
            (SandboxStage::LoggedIn, kind::CREATE_CNL) => self.create(body),
            (SandboxStage::LoggedIn, kind::ACCEPT_CNL) => self.accept(head.channel, body),
            (SandboxStage::LoggedIn, kind::SEND_ON_CNL) => self.data(head, body),
            (SandboxStage::LoggedIn, kind::DESTROY_CNL) => {
                if let Some(channel) = self.channels.remove(&head.channel) {
                    self.destroy_at_peer(&channel, body);
                    self.forget_all(channel);
                }
            }
            (SandboxStage::LoggedIn, kind::SET_USER_STATUS) => {
                if let Some(user) = &mut self.user {
                    user.status = body.to_vec();
                    self.community.set_user(self.id, user);
                }
                self.send(kind::SET_USER_STATUS, 0, body);
            }
            // Privacy lists, requests to sense services and other messages need no response.
            (SandboxStage::LoggedIn, _) => (),
            _ => self.end(Reason::ProtocolError),
        }
    }

    fn handshake(&mut self, body: &[u8]) {
        self.stage = SandboxStage::Handshaken;
        // After major, minor and master channel, at offset 8, is the address that the server side wrote.
        self.address = body.get(8..12).and_then(|a| a.first_chunk()).map_or(0, |a| u32::from_be_bytes(*a));
        let mut ack = Writer::new();
        // Up to the minor version 0x18 clients do not offer Diffie-Hellman for their password.
        ack.u16(0x001E).u16(0x0018).u32(self.address);
        self.send(kind::HANDSHAKE_ACK, 0, &ack.0);
    }

    fn login(&mut self, body: &[u8]) {
        let Some(login) = bodies::login(body) else { return self.end(Reason::ProtocolError) };
        if login.password().is_some_and(|password| password == WRONG_PASSWORD) {
            return self.end(Reason::LoginRefused);
        }
        if login.name.len() > MAX_NAME {
            return self.end(Reason::MessageTooLarge);
        }
        let user = User::new(login.name, format!("SANDBOX{}", self.id).as_bytes(), login.login_type);
        self.send(kind::LOGIN_ACK, 0, &user.login_ack(self.address));
        self.community.set_user(self.id, &user);
        self.user = Some(user);
        self.stage = SandboxStage::LoggedIn;
    }

    /// A CreateCnl: the client opens a channel.
    fn create(&mut self, body: &[u8]) {
        let Some(create) = bodies::create(body) else { return self.end(Reason::ProtocolError) };
        if self.channels.len() >= MAX_CHANNELS && !self.channels.contains_key(&create.channel) {
            return self.end(Reason::ServerFull);
        }
        let found = self.community.find(create.target);
        let channel = match (create.service, found) {
            (bodies::AWARENESS, _) => Channel::Awareness(HashSet::new()),
            (bodies::RESOLVE, _) => Channel::Resolve,
            (bodies::INSTANT_MESSAGES, Some((None, _))) => Channel::Echo,
            (bodies::INSTANT_MESSAGES, Some((Some(peer), _))) => {
                let Some(creator) = self.user.clone() else { return };
                let offer = ChannelOffer { creator, front: create.front.to_vec(), back: create.back.to_vec() };
                let (from, from_channel, offer) = (self.id, create.channel, Arc::new(offer));
                self.send_to_peer(peer, PeerMessage::CreateChannel { from, from_channel, offer });
                // The peer's AcceptCnl follows.
                self.open(create.channel, Channel::Peer { peer, peer_channel: None });
                return;
            }
            (bodies::INSTANT_MESSAGES, None) => {
                return self.out.extend_from_slice(&destroy(create.channel, NO_USER));
            }
            _ => return self.out.extend_from_slice(&destroy(create.channel, NO_SERVICE)),
        };
        self.open(create.channel, channel);
        self.send(kind::ACCEPT_CNL, create.channel, &bodies::accept(&create));
    }

    /// Adds a channel. One that had the same id is forgotten.
    fn open(&mut self, id: u32, channel: Channel) {
        if let Some(before) = self.channels.insert(id, channel) {
            self.forget_all(before);
        }
    }

    /// Watches a name that a channel did not watch before.
    fn watch(&mut self, name: &[u8]) {
        self.watched = (self.watched.0 + 1, self.watched.1 + name.len());
        self.community.watch(self.id, name);
    }

    /// Forgets the names that a channel has watched, which is no longer open.
    fn forget_all(&mut self, channel: Channel) {
        if let Channel::Awareness(watched) = channel {
            watched.iter().for_each(|name| self.forget(name));
        }
    }

    /// Forgets a name that a channel has watched.
    fn forget(&mut self, name: &[u8]) {
        self.watched = (self.watched.0 - 1, self.watched.1 - name.len());
        let watches = |channel: &Channel| matches!(channel, Channel::Awareness(names) if names.contains(name));
        if !self.channels.values().any(watches) {
            self.community.unwatch(self.id, name);
        }
    }

    /// Watches the users in `data` on `channel`. Returns the snapshot of them; `None`: the session has ended.
    fn add_watched(&mut self, channel: u32, data: &[u8]) -> Option<Vec<u8>> {
        let names = bodies::aware_names(data);
        if names.iter().any(|name| name.len() > MAX_NAME) {
            self.end(Reason::MessageTooLarge);
            return None;
        }
        for name in &names {
            let Some(Channel::Awareness(watched)) = self.channels.get_mut(&channel) else { return None };
            if watched.insert(name.to_vec()) {
                self.watch(name);
            }
            if self.watched.0 > MAX_WATCHED {
                self.end(Reason::ServerFull);
                return None;
            }
        }
        let find = |name| (name, self.community.find(name).map(|(_, user)| user));
        Some(bodies::aware_snapshot(&names.into_iter().take(MAX_WATCHED).map(find).collect::<Vec<_>>()))
    }

    /// Watches the users in `data` on `channel` no more.
    fn remove_watched(&mut self, channel: u32, data: &[u8]) {
        for name in bodies::aware_names(data) {
            let Some(Channel::Awareness(watched)) = self.channels.get_mut(&channel) else { return };
            if watched.remove(name) {
                self.forget(name);
            }
        }
    }

    /// The response to a request to resolve names; `None`: there is none.
    fn resolve(&mut self, data: &[u8]) -> Option<Vec<u8>> {
        let (id, names) = bodies::resolve_names(data)?;
        if names.len() > MAX_ASKED || names.iter().any(|name| name.len() > MAX_NAME) {
            self.end(Reason::MessageTooLarge);
            return None;
        }
        bodies::resolved(id, names, |name| self.community.find(name).is_some())
    }

    /// An AcceptCnl: the client accepts a channel that another session opened.
    fn accept(&mut self, channel: u32, body: &[u8]) {
        let found = self.channels.get(&channel);
        if let (Some(Channel::Peer { peer, peer_channel: Some(theirs) }), Some(user)) = (found, &self.user) {
            let body = bodies::accept_with_user(body, user);
            let message = PeerMessage::AcceptChannel { channel: *theirs, peer_channel: channel, body };
            let peer = *peer;
            self.send_to_peer(peer, message);
        }
    }

    /// A SendOnCnl: data on one of the client's channels.
    fn data(&mut self, Head { channel, options, .. }: Head, body: &[u8]) {
        let mut reader = Reader(body);
        let (message, data) = (reader.u16().unwrap_or_default(), reader.opaque().unwrap_or_default());
        let response = match self.channels.get(&channel) {
            Some(Channel::Echo) => Some(body.to_vec()),
            Some(&Channel::Peer { peer, peer_channel: Some(theirs) }) => {
                let options = options & frame::OPTION_ENCRYPTED;
                self.send_to_peer(peer, PeerMessage::Data { channel: theirs, options, body: body.to_vec() });
                None
            }
            Some(Channel::Awareness(_)) if message == bodies::AWARE_ADD => self.add_watched(channel, data),
            Some(Channel::Awareness(_)) if message == bodies::AWARE_REMOVE => {
                self.remove_watched(channel, data);
                None
            }
            Some(Channel::Resolve) if message == bodies::RESOLVE_ACTION => self.resolve(data),
            _ => None,
        };
        if let Some(response) = response {
            self.send(kind::SEND_ON_CNL, channel, &response);
        }
    }

    /// Ends a channel on its other side, if it has one.
    fn destroy_at_peer(&self, channel: &Channel, body: &[u8]) {
        if let Channel::Peer { peer, peer_channel: Some(theirs) } = channel {
            self.community.send(*peer, PeerMessage::DestroyChannel { channel: *theirs, body: body.to_vec() });
        }
    }

    /// Processes a message of another session.
    fn peer_message(&mut self, message: PeerMessage) {
        match message {
            // Nobody ends the session of another client by opening channels to it.
            PeerMessage::CreateChannel { from, from_channel, .. } if self.channels.len() >= MAX_CHANNELS => {
                let body = destroy(0, Reason::ServerFull.code())[frame::LENGTH + frame::HEADER..].to_vec();
                self.send_to_peer(from, PeerMessage::DestroyChannel { channel: from_channel, body });
            }
            PeerMessage::CreateChannel { from, from_channel, offer } => {
                let id = self.next_channel;
                self.next_channel = self.next_channel.wrapping_add(1) | SERVER_CHANNEL;
                self.channels.insert(id, Channel::Peer { peer: from, peer_channel: Some(from_channel) });
                self.send(kind::CREATE_CNL, 0, &offer.creator.create(id, &offer.front, &offer.back));
            }
            PeerMessage::AcceptChannel { channel, peer_channel: theirs, body } => {
                if let Some(Channel::Peer { peer_channel, .. }) = self.channels.get_mut(&channel) {
                    *peer_channel = Some(theirs);
                    self.send(kind::ACCEPT_CNL, channel, &body);
                }
            }
            PeerMessage::Data { channel, options, body } => {
                self.out.extend_from_slice(&frame::build_with_options(kind::SEND_ON_CNL, options, channel, &body));
            }
            PeerMessage::DestroyChannel { channel, body } => {
                if let Some(channel) = self.channels.remove(&channel) {
                    self.forget_all(channel);
                }
                self.send(kind::DESTROY_CNL, channel, &body);
            }
            PeerMessage::PresenceChanged(name) => {
                let user = self.community.find(&name).map(|(_, user)| user);
                let body = bodies::aware_update(&name, user.as_ref());
                let watches = |channel: &Channel| matches!(channel, Channel::Awareness(names) if names.contains(&name));
                let channels: Vec<u32> =
                    self.channels.iter().filter(|(_, channel)| watches(channel)).map(|(id, _)| *id).collect();
                for channel in channels {
                    self.send(kind::SEND_ON_CNL, channel, &body);
                }
            }
        }
    }
}

impl Drop for SandboxSession {
    fn drop(&mut self) {
        let body = destroy(0, Reason::ConnectionBroken.code())[frame::LENGTH + frame::HEADER..].to_vec();
        for channel in self.channels.values() {
            self.destroy_at_peer(channel, &body);
        }
        self.community.held.fetch_sub(self.held, Relaxed);
        self.community.leave(self.id, self.user.as_ref().map(|user| user.name.as_slice()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::handshake;

    fn login(name: &str, password: &[u8]) -> Vec<u8> {
        let mut body = Writer::new();
        body.u16(0x1003).string(name.as_bytes()).opaque(password).u16(0).u16(0);
        frame::build(kind::LOGIN, 0, &body.0)
    }

    fn create_chat(channel: u32, target: &str) -> Vec<u8> {
        let mut body = Writer::new();
        body.u32(0).u32(channel).string(target.as_bytes()).string(b"").u32(bodies::INSTANT_MESSAGES).u32(0x1000).u32(3);
        body.u32(0).opaque(b"").u8(0).u16(0).opaque(b"");
        frame::build(kind::CREATE_CNL, 0, &body.0)
    }

    /// Takes the output as frames: type, channel and body of each.
    fn output(session: &mut SandboxSession) -> Vec<(u16, u32, Vec<u8>)> {
        let (out, mut frames) = (std::mem::take(&mut session.out), Vec::new());
        let mut rest = &out[..];
        while let First::Whole { head, start, end } = frame::first(rest, MAX_FRAME).expect("frames") {
            frames.push((head.kind, head.channel, rest[start + frame::LENGTH + frame::HEADER..end].to_vec()));
            rest = &rest[end..];
        }
        assert!(rest.is_empty());
        frames
    }

    fn kinds(session: &mut SandboxSession) -> Vec<(u16, u32)> {
        output(session).into_iter().map(|(kind, channel, _)| (kind, channel)).collect()
    }

    fn logged_in(community: &Arc<SandboxCommunity>, name: &str) -> SandboxSession {
        let mut session = SandboxSession::new(Arc::clone(community));
        session.receive(&[handshake(), login(name, b"secret")].concat());
        assert_eq!(kinds(&mut session), [(kind::HANDSHAKE_ACK, 0), (kind::LOGIN_ACK, 0)]);
        session
    }

    #[test]
    fn frames_may_arrive_in_single_bytes() {
        let mut session = SandboxSession::new(Arc::default());
        for byte in [&[frame::KEEP_ALIVE][..], &handshake(), &login("ann", b""), &[frame::KEEP_ALIVE]].concat() {
            session.receive(&[byte]);
        }
        assert_eq!(kinds(&mut session), [(kind::HANDSHAKE_ACK, 0), (kind::LOGIN_ACK, 0)]);
        assert!(session.partial.is_empty() && !session.is_closing());
    }

    #[test]
    fn what_is_not_expected_closes_the_session() {
        for (bytes, expected) in [
            (login("ann", b""), Reason::ProtocolError),
            ([handshake(), handshake()].concat(), Reason::ProtocolError),
            ([handshake(), login("ann", WRONG_PASSWORD)].concat(), Reason::LoginRefused),
            (vec![0x7F, 0xFF, 0xFF, 0xFF], Reason::MessageTooLarge),
            (vec![0, 0, 0, 1], Reason::ProtocolError),
        ] {
            let mut session = SandboxSession::new(Arc::default());
            session.receive(&bytes);
            assert!(session.is_closing());
            assert!(session.out.ends_with(&expected.destroy()), "{bytes:x?}");
        }
    }

    #[test]
    fn two_users_chat_until_one_leaves() {
        let community = Arc::default();
        let (mut ann, mut bob) = (logged_in(&community, "ann"), logged_in(&community, "bob"));
        assert_eq!(community.log_ins(), 2);

        ann.receive(&create_chat(1, "bob"));
        bob.take_peer_messages(1 << 20);
        assert_eq!(kinds(&mut bob), [(kind::CREATE_CNL, 0)]);
        let bobs = SERVER_CHANNEL + 1;
        bob.receive(&frame::build(kind::ACCEPT_CNL, bobs, b"accepted"));
        ann.take_peer_messages(1 << 20);
        assert_eq!(output(&mut ann), [(kind::ACCEPT_CNL, 1, b"accepted".to_vec())]);
        ann.receive(&frame::build(kind::SEND_ON_CNL, 1, b"hello"));
        bob.take_peer_messages(1 << 20);
        assert_eq!(output(&mut bob), [(kind::SEND_ON_CNL, bobs, b"hello".to_vec())]);

        drop(bob);
        ann.take_peer_messages(1 << 20);
        assert_eq!(kinds(&mut ann), [(kind::DESTROY_CNL, 1)]);
        assert_eq!(community.log_ins(), 1);
        ann.receive(&create_chat(2, "bob"));
        assert_eq!(ann.out, destroy(2, NO_USER));
    }
}
