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
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Waker,
};

use super::{
    WRONG_PASSWORD,
    awareness::{self, AskedId, WatchList},
    bodies::{self, User},
    community::{ChannelOffer, MessageQueue, PeerMessage, SandboxCommunity},
    directory,
    limits::{FREE, MAX_CHANNELS, MAX_FRAME, MAX_HELD, MAX_NAME, MAX_OFFER, MAX_PRIVACY, MAX_STATUS, MAX_WATCHED},
};
use crate::wire::{
    frame::{self, First, FrameError, Head, MAX_BEFORE_LOGIN},
    message::{Reader, Writer, destroy, kind},
    reason::Reason,
};

/// Ids of channels that the server side creates have the top bit set.
const SERVER_CHANNEL: u32 = 0x8000_0000;
/// The reason for which a channel ends when its user leaves.
const NORMAL: u32 = 0;
/// Reasons for which a channel is declined: there is no such service, or no user with that name is on line.
const NO_SERVICE: u32 = 0x8000_000D;
const NO_USER: u32 = 0x8000_0006;

/// What a name or a channel costs beside its bytes.
const ENTRY: usize = 100;

/// A channel that is open in this session.
enum Channel {
    /// To `echo`.
    Echo,
    /// Awareness, with those whom the client watches on this channel.
    Awareness(WatchList),
    /// Resolves names.
    Resolve,
    /// To the session `peer`. `peer_channel` is the channel's id there, once the peer has accepted the channel.
    Peer { peer: u64, peer_channel: Option<u32>, is_encrypted: bool },
}

impl Channel {
    fn watches_user(&self, name: &[u8]) -> bool {
        matches!(self, Self::Awareness(watched) if watched.of_name(name).any(|id| id.is_user()))
    }
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
    /// How many ids are watched, and their bytes, over all channels.
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
            kind::SET_USER_STATUS | kind::SET_USER_NAME => MAX_STATUS,
            kind::SET_PRIVACY_LIST => MAX_PRIVACY,
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
            (SandboxStage::LoggedIn, kind::SET_USER_STATUS) => self.set_status(body),
            (SandboxStage::LoggedIn, kind::SET_PRIVACY_LIST | kind::SET_USER_NAME) => self.send(head.kind, 0, body),
            (SandboxStage::LoggedIn, kind::SENSE_SERVICE) => self.sense_service(body),
            // Other messages get no answer. A client that gets its own Announce logs out.
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
        let login_id = format!("SANDBOX{}", self.id);
        let user = User::new(login.name, login_id.as_bytes(), login.login_type, self.address);
        self.send(kind::LOGIN_ACK, 0, &user.login_ack());
        self.community.set_user(self.id, &user);
        self.user = Some(user);
        self.stage = SandboxStage::LoggedIn;
    }

    /// A SetUserStatus: the client's own status changes when it gets the message back.
    fn set_status(&mut self, body: &[u8]) {
        let (Some(status), Some(user)) = (bodies::status(body), &mut self.user) else {
            return self.end(Reason::ProtocolError);
        };
        user.status = status.to_vec();
        self.community.set_user(self.id, user);
        self.send(kind::SET_USER_STATUS, 0, body);
    }

    /// A SenseService: the client gets it back if the service is there.
    fn sense_service(&mut self, body: &[u8]) {
        if let Some(bodies::AWARENESS | bodies::RESOLVE) = Reader(body).u32() {
            self.send(kind::SENSE_SERVICE, 0, body);
        }
    }

    /// A CreateCnl: the client opens a channel.
    fn create(&mut self, body: &[u8]) {
        let Some(create) = bodies::create(body) else { return self.end(Reason::ProtocolError) };
        if self.channels.len() >= MAX_CHANNELS && !self.channels.contains_key(&create.channel) {
            return self.end(Reason::ServerFull);
        }
        let found = self.community.find(create.target);
        let channel = match (create.service, found) {
            (bodies::AWARENESS, _) => Channel::Awareness(WatchList::default()),
            (bodies::RESOLVE, _) => Channel::Resolve,
            (bodies::INSTANT_MESSAGES, Some((None, _))) => Channel::Echo,
            (bodies::INSTANT_MESSAGES, Some((Some(peer), _))) => {
                let Some(creator) = self.user.clone() else { return };
                let offer = ChannelOffer { creator, front: create.front.to_vec(), back: create.back.to_vec() };
                let (from, from_channel, offer) = (self.id, create.channel, Arc::new(offer));
                self.send_to_peer(peer, PeerMessage::CreateChannel { from, from_channel, offer });
                // The peer's AcceptCnl follows.
                self.open(create.channel, Channel::Peer { peer, peer_channel: None, is_encrypted: false });
                return;
            }
            (bodies::INSTANT_MESSAGES, None) => {
                return self.out.extend_from_slice(&destroy(create.channel, NO_USER));
            }
            _ => return self.out.extend_from_slice(&destroy(create.channel, NO_SERVICE)),
        };
        self.open(create.channel, channel);
        self.send(kind::ACCEPT_CNL, create.channel, &create.accept());
    }

    /// Adds a channel. One that had the same id is forgotten.
    fn open(&mut self, id: u32, channel: Channel) {
        if let Some(before) = self.channels.insert(id, channel) {
            self.forget_all(before);
        }
    }

    /// Forgets those whom a channel has watched, which is no longer open.
    fn forget_all(&mut self, channel: Channel) {
        if let Channel::Awareness(watched) = channel {
            watched.all().for_each(|id| self.forget(id));
        }
    }

    /// Forgets an id that a channel has watched.
    fn forget(&mut self, id: AskedId<'_>) {
        self.watched = (self.watched.0 - 1, self.watched.1 - id.size());
        if id.is_user() && !self.channels.values().any(|channel| channel.watches_user(id.name)) {
            self.community.unwatch(self.id, id.name);
        }
    }

    /// Watches those in `data` on `channel`. Returns the snapshot of them; `None`: the session has ended.
    fn add_watched(&mut self, channel: u32, data: &[u8]) -> Option<Vec<u8>> {
        if awareness::ids(data).any(|id| id.name.len() > MAX_NAME || id.community.len() > MAX_NAME) {
            self.end(Reason::MessageTooLarge);
            return None;
        }
        for id in awareness::ids(data) {
            let Some(Channel::Awareness(watched)) = self.channels.get_mut(&channel) else { return None };
            if watched.add(id) {
                self.watched = (self.watched.0 + 1, self.watched.1 + id.size());
                if id.is_user() {
                    self.community.watch(self.id, id.name);
                }
            }
            if self.watched.0 > MAX_WATCHED {
                self.end(Reason::ServerFull);
                return None;
            }
        }
        let find = |id: AskedId<'_>| id.is_user().then(|| self.community.find(id.name)).flatten();
        let asked = awareness::ids(data).take(MAX_WATCHED).map(|id| (id, find(id).map(|(_, user)| user)));
        Some(awareness::snapshot(&asked.collect::<Vec<_>>()))
    }

    /// Watches those in `data` on `channel` no more.
    fn remove_watched(&mut self, channel: u32, data: &[u8]) {
        for id in awareness::ids(data) {
            let Some(Channel::Awareness(watched)) = self.channels.get_mut(&channel) else { return };
            if watched.remove(id) {
                self.forget(id);
            }
        }
    }

    /// The answer to a request to look up names; `None`: the session has ended.
    fn look_up(&mut self, data: &[u8]) -> Option<Vec<u8>> {
        match directory::look_up(data) {
            Ok(asked) => Some(asked.answer(|name| self.community.look_up(name))),
            Err(reason) => {
                self.end(reason);
                None
            }
        }
    }

    /// An AcceptCnl: the client accepts a channel that another session opened.
    fn accept(&mut self, channel: u32, body: &[u8]) {
        let found = self.channels.get_mut(&channel);
        if let (Some(Channel::Peer { peer, peer_channel: Some(theirs), is_encrypted }), Some(user)) =
            (found, &self.user)
        {
            // What cannot be read is sent on as it is.
            let (body, encrypts) = bodies::completed_accept(body, user).unwrap_or_else(|| (body.to_vec(), false));
            *is_encrypted = encrypts;
            let message =
                PeerMessage::AcceptChannel { channel: *theirs, peer_channel: channel, is_encrypted: encrypts, body };
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
            Some(&Channel::Peer { peer, peer_channel: Some(theirs), is_encrypted }) => {
                // Java clients set the option on channels that are not encrypted, too.
                let options = if is_encrypted { options & frame::OPTION_ENCRYPTED } else { 0 };
                self.send_to_peer(peer, PeerMessage::Data { channel: theirs, options, body: body.to_vec() });
                None
            }
            Some(Channel::Awareness(_)) if message == awareness::ADD => self.add_watched(channel, data),
            Some(Channel::Awareness(_)) if message == awareness::REMOVE => {
                self.remove_watched(channel, data);
                None
            }
            Some(Channel::Resolve) if message == directory::RESOLVE_ACTION => self.look_up(data),
            _ => None,
        };
        if let Some(response) = response {
            self.send(kind::SEND_ON_CNL, channel, &response);
        }
    }

    /// Ends a channel on its other side, if it has one.
    fn destroy_at_peer(&self, channel: &Channel, body: &[u8]) {
        if let Channel::Peer { peer, peer_channel: Some(theirs), .. } = channel {
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
                let Some(user) = &self.user else { return };
                let body = offer.creator.create(id, &offer.front, &offer.back, user);
                let channel = Channel::Peer { peer: from, peer_channel: Some(from_channel), is_encrypted: false };
                self.channels.insert(id, channel);
                self.send(kind::CREATE_CNL, 0, &body);
            }
            PeerMessage::AcceptChannel { channel, peer_channel: theirs, is_encrypted: encrypts, body } => {
                if let Some(Channel::Peer { peer_channel, is_encrypted, .. }) = self.channels.get_mut(&channel) {
                    (*peer_channel, *is_encrypted) = (Some(theirs), encrypts);
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
            PeerMessage::PresenceChanged { name, user } => {
                for (&channel, open) in &self.channels {
                    let Channel::Awareness(watched) = open else { continue };
                    for id in watched.of_name(&name).filter(AskedId::is_user) {
                        let body = awareness::update(id, user.as_deref());
                        self.out.extend_from_slice(&frame::build(kind::SEND_ON_CNL, channel, &body));
                    }
                }
            }
        }
    }
}

impl Drop for SandboxSession {
    fn drop(&mut self) {
        let body = destroy(0, NORMAL)[frame::LENGTH + frame::HEADER..].to_vec();
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
        assert_eq!(std::mem::take(&mut ann.out), destroy(1, NORMAL));
        assert_eq!(community.log_ins(), 1);
        ann.receive(&create_chat(2, "bob"));
        assert_eq!(ann.out, destroy(2, NO_USER));
    }

    /// A CreateCnl for a service, as a Java client sends it.
    fn create_service(channel: u32, service: u32, version: u32) -> Vec<u8> {
        let mut body = Writer::new();
        body.u32(0).u32(channel).string(b"").string(b"").u32(service).u32(service).u32(version);
        body.u32(0).opaque(b"").u8(0).raw(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        frame::build(kind::CREATE_CNL, 0, &body.0)
    }

    fn send(channel: u32, message: u16, data: &[u8]) -> Vec<u8> {
        frame::build(kind::SEND_ON_CNL, channel, &bodies::send(message, data))
    }

    /// A list of users to watch.
    fn users(names: &[&str]) -> Vec<u8> {
        let mut data = Writer::new();
        data.u32(u32::try_from(names.len()).expect("few"));
        names.iter().for_each(|name| _ = data.u16(2).string(name.as_bytes()).string(b""));
        data.0
    }

    /// A SetUserStatus.
    fn set_status(status: u16, text: &str) -> Vec<u8> {
        let mut body = Writer::new();
        body.u16(status).u32(7).string(text.as_bytes());
        frame::build(kind::SET_USER_STATUS, 0, &body.0)
    }

    /// The request to look up `ann`, as a Java client sent it.
    const LOOK_UP: [u8; 21] = [0, 0, 0, 21, 0, 0, 0, 4, 0, 0, 0, 1, 0, 3, b'a', b'n', b'n', 0, 0, 0, 8];

    #[test]
    fn services_that_are_there_are_sensed_and_others_are_declined() {
        let mut ann = logged_in(&Arc::default(), "ann");
        for service in [0x8000_0022, 0x11, 0x15, 0x8000_002D, 0x1A_u32] {
            let sense = frame::build(kind::SENSE_SERVICE, 0, &service.to_be_bytes());
            ann.receive(&sense);
            let is_there = [0x11, 0x15].contains(&service);
            assert_eq!(std::mem::take(&mut ann.out), if is_there { sense } else { Vec::new() }, "{service:#x}");
        }
        ann.receive(&create_service(1, 0x18, 0));
        assert_eq!(std::mem::take(&mut ann.out), destroy(1, NO_SERVICE));
    }

    #[test]
    fn what_a_client_tells_of_itself_comes_back_but_an_announcement_does_not() {
        let mut ann = logged_in(&Arc::default(), "ann");
        let status = set_status(0x60, "at lunch");
        let privacy = frame::build(kind::SET_PRIVACY_LIST, 0, &[0, 0, 0, 0, 0]);
        let name = frame::build(kind::SET_USER_NAME, 0, b"\0\x03Ann");
        for message in [status, privacy, name] {
            ann.receive(&message);
            assert_eq!(std::mem::take(&mut ann.out), message);
        }
        let mut announce = Writer::new();
        announce.u8(0).u16(0).opaque(b"text").u32(1).string(b"@U ann");
        ann.receive(&frame::build(0x0022, 0, &announce.0));
        ann.receive(&frame::build(kind::ONE_TIME, 0, &[0; 26]));
        assert!(ann.out.is_empty() && !ann.is_closing());
        ann.receive(&frame::build(kind::SET_USER_STATUS, 0, &[0, 0x60]));
        assert!(ann.is_closing() && ann.out == Reason::ProtocolError.destroy());
    }

    #[test]
    fn watchers_see_users_come_change_and_go() {
        let community = Arc::default();
        let mut ann = logged_in(&community, "ann");
        ann.receive(&create_service(2, bodies::AWARENESS, 0x0003_0006));
        let accepted = output(&mut ann).remove(0);
        assert_eq!((accepted.0, accepted.1), (kind::ACCEPT_CNL, 2));
        assert_eq!(accepted.2[8..24], [0, 3, 0, 5, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 0], "version and limit");
        ann.receive(&send(2, awareness::ADD, &users(&["bob", "echo"])));
        let snapshot = output(&mut ann).remove(0).2;
        assert_eq!((&snapshot[..2], snapshot[6..10].to_vec()), (&[1, 0xF4][..], vec![0, 0, 0, 2]));

        let mut bob = logged_in(&community, "bob");
        let seen = |ann: &mut SandboxSession, status: Option<(u16, &[u8])>| {
            ann.take_peer_messages(1 << 20);
            let mut expected = Writer::new();
            expected.marked(|entry| {
                entry.u16(2).string(b"bob").string(b"").string(b"").u8(status.is_some().into());
                if let Some((status, text)) = status {
                    let time = if text == STATUS_TEXT { 0 } else { 7 };
                    entry.string(b"bob").u16(status).u32(time).string(text).string(b"bob");
                }
            });
            assert_eq!(output(ann), [(kind::SEND_ON_CNL, 2, bodies::send(0x01F5, &expected.0))]);
        };
        seen(&mut ann, Some((0x20, STATUS_TEXT)));
        for (status, text) in [(0x60, "at lunch"), (0x80, "busy"), (0x20, "back")] {
            bob.receive(&set_status(status, text));
            seen(&mut ann, Some((status, text.as_bytes())));
        }
        bob.receive(&[set_status(0x60, "away"), set_status(0x80, "busy")].concat());
        ann.take_peer_messages(1 << 20);
        assert_eq!(kinds(&mut ann).len(), 2, "every change is seen");
        drop(bob);
        seen(&mut ann, None);
        ann.receive(&send(2, awareness::REMOVE, &users(&["bob"])));
        let _bob = logged_in(&community, "bob");
        ann.take_peer_messages(1 << 20);
        assert_eq!(ann.out, b"", "nobody is watched any more");
    }

    const STATUS_TEXT: &[u8] = b"I am active";

    #[test]
    fn a_group_is_never_on_line_even_if_a_user_has_its_name() {
        let community = Arc::default();
        let (mut ann, _bob) = (logged_in(&community, "ann"), logged_in(&community, "bob"));
        ann.receive(&create_service(2, bodies::AWARENESS, 0x0003_0005));
        output(&mut ann);
        let mut group = Writer::new();
        group.u32(1).u16(3).string(b"bob").string(b"c");
        ann.receive(&send(2, awareness::ADD, &group.0));
        let mut expected = Writer::new();
        expected.u32(1).marked(|entry| _ = entry.u16(3).string(b"bob").string(b"c").string(b"").u8(0));
        assert_eq!(output(&mut ann), [(kind::SEND_ON_CNL, 2, bodies::send(0x01F4, &expected.0))]);
        let other = logged_in(&community, "bob");
        ann.take_peer_messages(1 << 20);
        assert_eq!(ann.out, b"");
        // The user of the same name is watched beside it.
        ann.receive(&send(2, awareness::ADD, &users(&["bob"])));
        output(&mut ann);
        ann.receive(&send(2, awareness::REMOVE, &group.0));
        drop(other);
        ann.take_peer_messages(1 << 20);
        assert_eq!(kinds(&mut ann), [(kind::SEND_ON_CNL, 2)]);
    }

    #[test]
    fn the_option_of_encryption_is_passed_on_only_where_a_channel_is_encrypted() {
        for mode in [0, 0x1000_u16] {
            let community = Arc::default();
            let (mut ann, mut bob) = (logged_in(&community, "ann"), logged_in(&community, "bob"));
            ann.receive(&create_chat(1, "bob"));
            bob.take_peer_messages(1 << 20);
            let bobs = SERVER_CHANNEL + 1;
            let mut accept = Writer::new();
            accept.u32(0x1000).u32(0x1000).u32(3).opaque(b"").u8(0).u16(mode).u32(0).u16(0).u8(0);
            bob.receive(&frame::build(kind::ACCEPT_CNL, bobs, &accept.0));
            ann.take_peer_messages(1 << 20);
            for session in [&mut ann, &mut bob] {
                session.out.clear();
            }
            let options = if mode == 0 { 0 } else { frame::OPTION_ENCRYPTED };
            let sent = |channel| {
                frame::build_with_options(
                    kind::SEND_ON_CNL,
                    frame::OPTION_ENCRYPTED,
                    channel,
                    &bodies::send(0x64, b"hi"),
                )
            };
            let got =
                |channel| frame::build_with_options(kind::SEND_ON_CNL, options, channel, &bodies::send(0x64, b"hi"));
            ann.receive(&sent(1));
            bob.take_peer_messages(1 << 20);
            assert_eq!(bob.out, got(bobs));
            bob.receive(&sent(bobs));
            ann.take_peer_messages(1 << 20);
            assert_eq!(ann.out, got(1));
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_of_clients_make_it_panic(
            steps in proptest::collection::vec(
                (proptest::bool::ANY, 0..14_usize, 0..120_usize, proptest::num::u8::ANY, 0..5_usize),
                0..60,
            ),
        ) {
            let community = Arc::default();
            let mut sessions = [logged_in(&community, "ann"), logged_in(&community, "bob")];
            let mut accept = Writer::new();
            accept.u32(0x1000).u32(0x1000).u32(3).opaque(b"").u8(0).u16(0).u8(7);
            let messages = [
                create_service(1, bodies::AWARENESS, 0x0003_0006),
                create_service(2, bodies::RESOLVE, 0),
                create_chat(3, "bob"),
                create_chat(4, "echo"),
                send(1, awareness::ADD, &users(&["bob", "nobody", "bob"])),
                send(1, awareness::REMOVE, &users(&["nobody", "bob"])),
                send(2, directory::RESOLVE_ACTION, &LOOK_UP),
                frame::build(kind::ACCEPT_CNL, SERVER_CHANNEL + 1, &accept.0),
                send(SERVER_CHANNEL + 1, 0x64, b"hello"),
                send(3, 0x64, b"hello"),
                set_status(0x60, "at lunch"),
                destroy(1, 0),
                destroy(3, 0),
                frame::build(kind::SENSE_SERVICE, 0, &[0, 0, 0, 0x11]),
            ];
            for (who, message, at, byte, change) in steps {
                let mut bytes = messages[message].clone();
                let at = at % bytes.len();
                match change {
                    0 => bytes[at] = byte,
                    1 => {
                        // Cut off, as a whole frame.
                        bytes.truncate(at.max(frame::LENGTH + frame::HEADER));
                        let length = u32::try_from(bytes.len() - frame::LENGTH).expect("short");
                        bytes[..frame::LENGTH].copy_from_slice(&length.to_be_bytes());
                    }
                    _ => (),
                }
                sessions[usize::from(who)].receive(&bytes);
                for (session, name) in sessions.iter_mut().zip(["ann", "bob"]) {
                    session.take_peer_messages(1 << 20);
                    session.out.clear();
                    if session.is_closing() {
                        *session = logged_in(&community, name);
                    }
                }
            }
        }
    }
}
