//! One client's side of the protocol: it takes the bytes that the client sent and the messages of other sessions,
//! and makes the bytes for the client. It knows no socket.
//!
//! ```text
//!  Connected ── Handshake ──▶ Handshaken ── Login ──▶ LoggedIn ── DestroyCnl on channel 0 ──▶ Closing
//!      │                          │                      │                                       ▲
//!      └──── any other message, or a wrong password ─────┴── a frame that cannot be read ────────┘
//! ```
//!
//! In the state `Closing` nothing is read any more: the output is written, then the connection is closed.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    task::Waker,
};

use super::{
    WRONG_PASSWORD,
    bodies::{self, User},
    community::{ChannelOffer, MessageQueue, PeerMessage, SandboxCommunity},
};
use crate::wire::{
    frame::{self, First, FrameError, Head},
    message::{Reader, Writer, destroy, kind},
    reason::Reason,
};

/// The longest frame that is read, in bytes after the length field.
const MAX_FRAME: u32 = 16 * 1024 * 1024;
/// Ids of channels that the server side creates have the top bit set.
const SERVER_CHANNEL: u32 = 0x8000_0000;
/// Reasons for which a channel is declined: there is no such service, or no user with that name is online.
const NO_SERVICE: u32 = 0x8000_000D;
const NO_USER: u32 = 0x8000_0006;

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

    /// Takes the messages of other sessions. Returns false if there are too many: the connection must be closed.
    pub(super) fn take_peer_messages(&mut self) -> bool {
        let Some(messages) = self.queue.take() else { return false };
        messages.into_iter().for_each(|message| self.peer_message(message));
        true
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
            match frame::first(rest, MAX_FRAME) {
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
        if !rest.iter().all(|&b| frame::is_keep_alive(b)) {
            self.partial = rest.to_vec();
        }
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
        let user = User::new(login.name, format!("SANDBOX{}", self.id).as_bytes(), login.login_type);
        self.send(kind::LOGIN_ACK, 0, &user.login_ack(self.address));
        self.community.set_user(self.id, &user);
        self.user = Some(user);
        self.stage = SandboxStage::LoggedIn;
    }

    /// A CreateCnl: the client opens a channel.
    fn create(&mut self, body: &[u8]) {
        let Some(create) = bodies::create(body) else { return self.end(Reason::ProtocolError) };
        let found = self.community.find(create.target);
        let channel = match (create.service, found) {
            (bodies::AWARENESS, _) => Channel::Awareness(HashSet::new()),
            (bodies::RESOLVE, _) => Channel::Resolve,
            (bodies::INSTANT_MESSAGES, Some((None, _))) => Channel::Echo,
            (bodies::INSTANT_MESSAGES, Some((Some(peer), _))) => {
                let Some(creator) = self.user.clone() else { return };
                let offer = ChannelOffer { creator, front: create.front.to_vec(), back: create.back.to_vec() };
                let (from, from_channel, offer) = (self.id, create.channel, Arc::new(offer));
                self.community.send(peer, PeerMessage::CreateChannel { from, from_channel, offer });
                // The peer's AcceptCnl follows.
                self.channels.insert(create.channel, Channel::Peer { peer, peer_channel: None });
                return;
            }
            (bodies::INSTANT_MESSAGES, None) => {
                return self.out.extend_from_slice(&destroy(create.channel, NO_USER));
            }
            _ => return self.out.extend_from_slice(&destroy(create.channel, NO_SERVICE)),
        };
        self.channels.insert(create.channel, channel);
        self.send(kind::ACCEPT_CNL, create.channel, &bodies::accept(&create));
    }

    /// An AcceptCnl: the client accepts a channel that another session opened.
    fn accept(&mut self, channel: u32, body: &[u8]) {
        let found = self.channels.get(&channel);
        if let (Some(Channel::Peer { peer, peer_channel: Some(theirs) }), Some(user)) = (found, &self.user) {
            let body = bodies::accept_with_user(body, user);
            let message = PeerMessage::AcceptChannel { channel: *theirs, peer_channel: channel, body };
            self.community.send(*peer, message);
        }
    }

    /// A SendOnCnl: data on one of the client's channels.
    fn data(&mut self, Head { channel, options, .. }: Head, body: &[u8]) {
        let mut reader = Reader(body);
        let (message, data) = (reader.u16().unwrap_or_default(), reader.opaque().unwrap_or_default());
        let response = match self.channels.get_mut(&channel) {
            Some(Channel::Echo) => Some(body.to_vec()),
            Some(Channel::Peer { peer, peer_channel: Some(theirs) }) => {
                let options = options & frame::OPTION_ENCRYPTED;
                self.community.send(*peer, PeerMessage::Data { channel: *theirs, options, body: body.to_vec() });
                None
            }
            Some(Channel::Awareness(watched)) if message == bodies::AWARE_ADD => {
                let names = bodies::aware_names(data);
                for name in &names {
                    watched.insert(name.to_vec());
                    self.community.watch(self.id, name);
                }
                let users: Vec<_> =
                    names.into_iter().map(|name| (name, self.community.find(name).map(|(_, user)| user))).collect();
                Some(bodies::aware_snapshot(&users))
            }
            Some(Channel::Awareness(watched)) if message == bodies::AWARE_REMOVE => {
                for name in bodies::aware_names(data) {
                    watched.remove(name);
                }
                None
            }
            Some(Channel::Resolve) if message == bodies::RESOLVE_ACTION => {
                bodies::resolved(data, |name| self.community.find(name).is_some())
            }
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
                self.channels.remove(&channel);
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
        assert!(bob.take_peer_messages());
        assert_eq!(kinds(&mut bob), [(kind::CREATE_CNL, 0)]);
        let bobs = SERVER_CHANNEL + 1;
        bob.receive(&frame::build(kind::ACCEPT_CNL, bobs, b"accepted"));
        assert!(ann.take_peer_messages());
        assert_eq!(output(&mut ann), [(kind::ACCEPT_CNL, 1, b"accepted".to_vec())]);
        ann.receive(&frame::build(kind::SEND_ON_CNL, 1, b"hello"));
        assert!(bob.take_peer_messages());
        assert_eq!(output(&mut bob), [(kind::SEND_ON_CNL, bobs, b"hello".to_vec())]);

        drop(bob);
        assert!(ann.take_peer_messages());
        assert_eq!(kinds(&mut ann), [(kind::DESTROY_CNL, 1)]);
        assert_eq!(community.log_ins(), 1);
        ann.receive(&create_chat(2, "bob"));
        assert_eq!(ann.out, destroy(2, NO_USER));
    }
}
