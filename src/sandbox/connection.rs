//! One client of the sandbox.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{io::AsyncWrite, net::TcpStream};

use super::{
    WRONG_PASSWORD,
    community::{Community, Letter, LetterBox, Offer},
    service::{self, User},
};
use crate::{
    runtime::scratch,
    wire::{
        frame::{self, First, FrameError, Head},
        message::{Reader, Writer, destroy, kind},
        reason::Reason,
    },
};

/// The longest frame that is read.
const MAX_FRAME: u32 = 16 * 1024 * 1024;
/// While so much waits to be written, nothing is read.
const MAX_WAITING: usize = 256 * 1024;
/// Channels that the server side makes have the top bit set.
const SERVER_CHANNEL: u32 = 0x8000_0000;
/// Where the channel is declined: no such service, nobody of that name.
const NO_SERVICE: u32 = 0x8000_000D;
const NO_USER: u32 = 0x8000_0006;

/// A channel that is open on this connection.
enum Channel {
    Echo,
    Aware(HashSet<Vec<u8>>),
    Resolve,
    /// To another connection; its id there once it is known.
    Peer {
        other: u64,
        channel: Option<u32>,
    },
}

#[derive(PartialEq, Eq)]
enum Stage {
    New,
    Handshaken,
    LoggedIn,
    /// What is written yet is the last.
    Closing,
}

/// See the module's page.
pub(super) struct Connection {
    tcp: TcpStream,
    community: Arc<Community>,
    id: u64,
    letters: Arc<LetterBox>,
    stage: Stage,
    user: Option<User>,
    address: u32,
    channels: HashMap<u32, Channel>,
    next_channel: u32,
    /// The part of a frame that was read.
    read: Vec<u8>,
    written: usize,
    out: Vec<u8>,
}

impl Connection {
    pub(super) fn new(tcp: TcpStream, community: Arc<Community>) -> Self {
        let (id, letters) = community.join();
        Self {
            tcp,
            community,
            id,
            letters,
            stage: Stage::New,
            user: None,
            address: 0,
            channels: HashMap::new(),
            next_channel: SERVER_CHANNEL + 1,
            read: Vec::new(),
            written: 0,
            out: Vec::new(),
        }
    }

    fn say(&mut self, kind: u16, channel: u32, body: &[u8]) {
        self.out.extend_from_slice(&frame::build(kind, channel, body));
    }

    fn end(&mut self, reason: Reason) {
        self.out.extend_from_slice(&reason.destroy());
        self.stage = Stage::Closing;
    }

    /// Handles the whole frames among `bytes`, and keeps the rest.
    fn take(&mut self, bytes: &[u8]) {
        let joined;
        let mut rest = bytes;
        if !self.read.is_empty() {
            self.read.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.read);
            rest = &joined;
        }
        while self.stage != Stage::Closing {
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
        // Keep-alives need not be kept.
        if !rest.iter().all(|&b| frame::is_keep_alive(b)) {
            self.read = rest.to_vec();
        }
    }

    fn frame(&mut self, head: Head, body: &[u8]) {
        let mut reader = Reader(body);
        if head.options & frame::OPTION_ATTRIBUTES != 0 && reader.opaque().is_none() {
            return self.end(Reason::ProtocolError);
        }
        let body = reader.0;
        match (&self.stage, head.kind) {
            (Stage::New, kind::HANDSHAKE) => {
                self.stage = Stage::Handshaken;
                // Major, minor, master channel; then the address that the server side wrote.
                let address = body.get(8..12).and_then(|a| a.first_chunk()).map_or(0, |a| u32::from_be_bytes(*a));
                self.address = address;
                let mut ack = Writer::new();
                // Up to minor 0x18 clients offer no Diffie-Hellman for their password.
                ack.u16(0x001E).u16(0x0018).u32(address);
                self.say(kind::HANDSHAKE_ACK, 0, &ack.0);
            }
            (Stage::Handshaken, kind::LOGIN) => self.login(body),
            (_, kind::DESTROY_CNL) if head.channel == 0 => self.stage = Stage::Closing,
            (Stage::LoggedIn, kind::CREATE_CNL) => self.create(body),
            (Stage::LoggedIn, kind::ACCEPT_CNL) => {
                let channel = self.channels.get(&head.channel);
                if let (Some(Channel::Peer { other, channel: Some(theirs) }), Some(user)) = (channel, &self.user) {
                    let body = service::accepted(body, user);
                    self.community.send(*other, Letter::Accept { mine: *theirs, channel: head.channel, body });
                }
            }
            (Stage::LoggedIn, kind::SEND_ON_CNL) => self.data(head, body),
            (Stage::LoggedIn, kind::DESTROY_CNL) => {
                if let Some(Channel::Peer { other, channel: Some(theirs) }) = self.channels.remove(&head.channel) {
                    self.community.send(other, Letter::Destroy { mine: theirs, body: body.to_vec() });
                }
            }
            (Stage::LoggedIn, kind::SET_USER_STATUS) => {
                if let Some(user) = &mut self.user {
                    user.status = body.to_vec();
                    self.community.set_user(self.id, user);
                }
                self.say(kind::SET_USER_STATUS, 0, body);
            }
            // Privacy lists, senses of services and the like are taken in silence.
            (Stage::LoggedIn, _) => (),
            _ => self.end(Reason::ProtocolError),
        }
    }

    fn login(&mut self, body: &[u8]) {
        let Some(login) = service::login(body) else { return self.end(Reason::ProtocolError) };
        if login.password().is_some_and(|password| password == WRONG_PASSWORD) {
            return self.end(Reason::LoginRefused);
        }
        let user = User::new(login.name, format!("SANDBOX{}", self.id).as_bytes(), login.login_type);
        self.say(kind::LOGIN_ACK, 0, &user.login_ack(self.address));
        self.community.set_user(self.id, &user);
        self.user = Some(user);
        self.stage = Stage::LoggedIn;
    }

    fn create(&mut self, body: &[u8]) {
        let Some(create) = service::create(body) else { return self.end(Reason::ProtocolError) };
        let found = self.community.find(create.target);
        let channel = match (create.service, found) {
            (service::AWARENESS, _) => Channel::Aware(HashSet::new()),
            (service::RESOLVE, _) => Channel::Resolve,
            (service::INSTANT_MESSAGES, Some((None, _))) => Channel::Echo,
            (service::INSTANT_MESSAGES, Some((Some(other), _))) => {
                let Some(creator) = self.user.clone() else { return };
                let offer = Offer { creator, front: create.front.to_vec(), back: create.back.to_vec() };
                let letter = Letter::Create { from: self.id, channel: create.channel, offer: Arc::new(offer) };
                self.community.send(other, letter);
                self.channels.insert(create.channel, Channel::Peer { other, channel: None });
                return;
            }
            (service::INSTANT_MESSAGES, None) => {
                return self.out.extend_from_slice(&destroy(create.channel, NO_USER));
            }
            _ => return self.out.extend_from_slice(&destroy(create.channel, NO_SERVICE)),
        };
        self.channels.insert(create.channel, channel);
        self.say(kind::ACCEPT_CNL, create.channel, &service::accept(&create));
    }

    fn data(&mut self, Head { channel, options, .. }: Head, body: &[u8]) {
        let mut reader = Reader(body);
        let (message, data) = (reader.u16().unwrap_or_default(), reader.opaque().unwrap_or_default());
        let answer = match self.channels.get_mut(&channel) {
            Some(Channel::Echo) => Some(body.to_vec()),
            Some(Channel::Peer { other, channel: Some(theirs) }) => {
                self.community.send(
                    *other,
                    Letter::Data { mine: *theirs, options: options & frame::OPTION_ENCRYPTED, body: body.to_vec() },
                );
                None
            }
            Some(Channel::Aware(watched)) if message == service::AWARE_ADD => {
                let names = service::aware_names(data);
                for name in &names {
                    watched.insert(name.to_vec());
                    self.community.watch(self.id, name);
                }
                let users: Vec<_> =
                    names.into_iter().map(|name| (name, self.community.find(name).map(|(_, user)| user))).collect();
                Some(service::aware_snapshot(&users))
            }
            Some(Channel::Aware(watched)) if message == service::AWARE_REMOVE => {
                for name in service::aware_names(data) {
                    watched.remove(name);
                }
                None
            }
            Some(Channel::Resolve) if message == service::RESOLVE_ACTION => {
                service::resolved(data, |name| self.community.find(name).is_some())
            }
            _ => None,
        };
        if let Some(answer) = answer {
            self.say(kind::SEND_ON_CNL, channel, &answer);
        }
    }

    fn letter(&mut self, letter: Letter) {
        match letter {
            Letter::Create { from, channel, offer } => {
                let id = self.next_channel;
                self.next_channel = self.next_channel.wrapping_add(1) | SERVER_CHANNEL;
                self.channels.insert(id, Channel::Peer { other: from, channel: Some(channel) });
                self.say(kind::CREATE_CNL, 0, &offer.creator.create(id, &offer.front, &offer.back));
            }
            Letter::Accept { mine, channel: theirs, body } => {
                if let Some(Channel::Peer { channel, .. }) = self.channels.get_mut(&mine) {
                    *channel = Some(theirs);
                    self.say(kind::ACCEPT_CNL, mine, &body);
                }
            }
            Letter::Data { mine, options, body } => {
                self.out.extend_from_slice(&frame::build_with_options(kind::SEND_ON_CNL, options, mine, &body));
            }
            Letter::Destroy { mine, body } => {
                self.channels.remove(&mine);
                self.say(kind::DESTROY_CNL, mine, &body);
            }
            Letter::Changed(name) => {
                let user = self.community.find(&name).map(|(_, user)| user);
                let body = service::aware_update(&name, user.as_ref());
                let watches = |channel: &Channel| matches!(channel, Channel::Aware(names) if names.contains(&name));
                let channels: Vec<u32> =
                    self.channels.iter().filter(|(_, channel)| watches(channel)).map(|(id, _)| *id).collect();
                for channel in channels {
                    self.say(kind::SEND_ON_CNL, channel, &body);
                }
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.out.len() {
            self.written += ready!(Pin::new(&mut self.tcp).poll_write(cx, &self.out[self.written..]))?;
        }
        (self.out, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.letters.waker.register(cx.waker());
        loop {
            match this.letters.take() {
                Some(letters) => letters.into_iter().for_each(|letter| this.letter(letter)),
                None => return Poll::Ready(()),
            }
            match this.poll_write(cx) {
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(())) if this.stage == Stage::Closing => {
                    let _ = ready!(Pin::new(&mut this.tcp).poll_shutdown(cx));
                    return Poll::Ready(());
                }
                Poll::Pending if this.stage == Stage::Closing || this.out.len() > MAX_WAITING => return Poll::Pending,
                _ => (),
            }
            let Self { tcp, .. } = this;
            // Copied: handling a frame needs all of the connection.
            let read = ready!(scratch::poll_read(tcp, cx, |bytes, _| bytes.to_vec()));
            match read {
                Ok(Some(bytes)) => this.take(&bytes),
                Ok(None) | Err(_) => return Poll::Ready(()),
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for channel in self.channels.values() {
            if let Channel::Peer { other, channel: Some(theirs) } = channel {
                let body = destroy(0, Reason::ConnectionBroken.code())[frame::LENGTH + frame::HEADER..].to_vec();
                self.community.send(*other, Letter::Destroy { mine: *theirs, body });
            }
        }
        self.community.leave(self.id, self.user.as_ref().map(|user| user.name.as_slice()));
    }
}
