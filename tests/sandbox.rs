//! The sandbox with real clients: recorded Java clients (toolkits 7.0 and 9.0) are re-enacted through the multiplexer,
//! and libmeanwhile chats with them.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{collections::HashMap, fs, net::SocketAddr};

use serde_json::Value;
use support::{
    client::{Client, Transport},
    frames::{self, Frame, opaque, string},
    hex, in_time,
    mux::{self, Mux},
    peer::{meanwhile, run_meanwhile},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/transcripts");
const TOOLKITS: [&str; 2] = ["7.0", "9.0"];
const SET_STATUS: u16 = 0x0009;
const SENSE: u16 = 0x0011;
const ENCRYPTED: u16 = 0x4000;

/// A frame with its options.
#[derive(Debug, Clone, PartialEq)]
struct Sent {
    options: u16,
    frame: Frame,
}

#[derive(Debug, Clone)]
enum Event {
    Frame(Sent),
    KeepAlive,
    Closed,
}

/// One line of a recording.
#[derive(Debug, Clone)]
struct Line {
    connection: u64,
    is_client: bool,
    event: Event,
}

/// The recording of a toolkit's clients, in an order in which every answer is behind what it answers.
fn recording(toolkit: &str) -> Vec<Line> {
    let text = fs::read_to_string(format!("{FOLDER}/java-{toolkit}-session.jsonl")).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Lines of one millisecond were written by different threads.
    lines.sort_by_key(|line| ((line["t"].as_f64().unwrap() * 1000.0) as u64, line["from"] != "client"));
    let number = |line: &Value, field: &str| {
        u32::from_str_radix(line[field].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    };
    let read = |line: &Value| Line {
        connection: line["conn"].as_u64().unwrap(),
        is_client: line["from"] == "client",
        event: if line["closed"] == true {
            Event::Closed
        } else if line.get("keep_alive").is_some() {
            Event::KeepAlive
        } else {
            Event::Frame(Sent {
                options: number(line, "options") as u16,
                frame: Frame {
                    kind: number(line, "type") as u16,
                    channel: number(line, "channel"),
                    body: hex(line["body"].as_str().unwrap()),
                },
            })
        },
    };
    lines.iter().map(read).collect()
}

/// The first frame of this type that a client of this connection sent in the recording.
fn recorded(toolkit: &str, connection: u64, kind: u16, is_wanted: impl Fn(&Frame) -> bool) -> Sent {
    let found = recording(toolkit).into_iter().find_map(|line| match line.event {
        Event::Frame(sent) if line.is_client && line.connection == connection && sent.frame.kind == kind => {
            is_wanted(&sent.frame).then_some(sent)
        }
        _ => None,
    });
    found.unwrap()
}

/// A client that sends recorded frames.
struct Player {
    from: Box<dyn AsyncRead + Unpin + Send>,
    into: Box<dyn tokio::io::AsyncWrite + Unpin + Send>,
}

impl Player {
    async fn connect(transport: Transport, to: SocketAddr) -> Self {
        let (from, into) = Client::connect(transport, to).await.split();
        Self { from: Box::new(from), into: Box::new(into) }
    }

    /// Logs in as the recorded client of this connection did: 1 is `bea`, 2 is `ann`.
    async fn log_in(toolkit: &str, connection: u64, to: SocketAddr) -> Self {
        let mut player = Self::connect(Transport::Raw, to).await;
        for kind in [frames::HANDSHAKE, frames::LOGIN] {
            player.send(&recorded(toolkit, connection, kind, |_| true)).await;
            assert_eq!(player.recv().await.frame.kind, kind | 0x8000);
        }
        player
    }

    async fn send_bytes(&mut self, bytes: &[u8]) {
        self.into.write_all(bytes).await.unwrap();
        self.into.flush().await.unwrap();
    }

    async fn send(&mut self, sent: &Sent) {
        let mut bytes = sent.frame.bytes();
        bytes[6..8].copy_from_slice(&sent.options.to_be_bytes());
        self.send_bytes(&bytes).await;
    }

    async fn send_frame(&mut self, kind: u16, channel: u32, body: &[u8]) {
        self.send(&Sent { options: 0, frame: Frame::new(kind, channel, body) }).await;
    }

    async fn recv(&mut self) -> Sent {
        in_time("a frame", async {
            let mut head = [0; 12];
            self.from.read_exact(&mut head).await.unwrap();
            let mut body = vec![0; u32::from_be_bytes(head[..4].try_into().unwrap()) as usize - 8];
            self.from.read_exact(&mut body).await.unwrap();
            let kind = u16::from_be_bytes([head[4], head[5]]);
            let channel = u32::from_be_bytes(head[8..12].try_into().unwrap());
            Sent { options: u16::from_be_bytes([head[6], head[7]]), frame: Frame { kind, channel, body } }
        })
        .await
    }

    /// Receives a CreateCnl. Returns it and its channel.
    async fn recv_offer(&mut self) -> (Sent, u32) {
        let offer = self.recv().await;
        assert_eq!(offer.frame.kind, frames::CREATE, "{offer:x?}");
        let channel = u32::from_be_bytes(offer.frame.body[4..8].try_into().unwrap());
        assert!(channel & 0x8000_0000 != 0, "made by the server side");
        (offer, channel)
    }

    /// Receives the message that was sent as `sent`, on a channel that is not encrypted.
    async fn expect(&mut self, channel: u32, sent: &Sent) {
        let frame = Frame { channel, ..sent.frame.clone() };
        assert_eq!(self.recv().await, Sent { options: 0, frame });
    }

    async fn expect_end(&mut self) {
        let mut rest = Vec::new();
        in_time("the end", self.from.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"", "nothing before the end");
    }
}

/// Reads the fields of a body.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (now, rest) = self.0.split_at(n);
        self.0 = rest;
        now
    }

    fn number(&mut self, bytes: usize) -> u32 {
        self.bytes(bytes).iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
    }

    fn string(&mut self) -> String {
        let n = self.number(2);
        String::from_utf8(self.bytes(n as usize).to_vec()).unwrap()
    }

    fn opaque(&mut self) -> &'a [u8] {
        let n = self.number(4);
        self.bytes(n as usize)
    }

    /// A login info block, without what differs between servers: the id of the log-in and the names of the server.
    fn info(&mut self) -> String {
        let name = |name: String| if name == "srv" || name == "sandbox" { "the server".to_owned() } else { name };
        let id = self.string();
        assert!(id.len() >= 4, "{id}");
        let (login_type, user, user_name) = (self.number(2), name(self.string()), name(self.string()));
        let (community, full, description) = (self.string(), self.number(1), self.string());
        let (address, server) = (self.number(4), name(self.string()));
        format!("{login_type:x} {user}/{user_name}/{community}/{full}/{description}/{address:x}/{server}")
    }
}

/// The form of a frame that a Community server sent: what has to be the same in the recording and with the sandbox.
///
/// All of a body is compared, except login info blocks (see [`Fields::info`]), and the end of an AcceptCnl that a client
/// sent: the study Community sent on the short form of Java clients (`u16 0, u8 7`), of which libmeanwhile warns. The
/// sandbox writes the long form, which all clients take.
fn form(sent: &Sent) -> String {
    let (mut fields, kind) = (Fields(&sent.frame.body), sent.frame.kind);
    let text = match kind {
        frames::LOGIN_ACK => fields.info(),
        frames::CREATE => {
            let (front, target) = (fields.bytes(8), (fields.string(), fields.string()));
            let (words, additional, flag) = (fields.bytes(16), fields.opaque(), fields.number(1));
            format!("{front:x?} {target:?} {words:x?} {additional:x?} {flag} {}", fields.info())
        }
        frames::ACCEPT => {
            let (words, additional, flag) = (fields.bytes(12), fields.opaque(), fields.number(1));
            let text = format!("{words:x?} {additional:x?} {flag} {}", fields.info());
            if fields.0 == [0, 0, 7] {
                fields.0 = &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
            }
            text
        }
        _ => String::new(),
    };
    format!("{kind:x} {:x} {:x} {text} {:x?}", sent.options, sent.frame.channel, fields.0)
}

/// Replays a recording. Returns how many frames of the Community were compared.
async fn re_enact(toolkit: &str, transport: Transport) -> usize {
    let mux = mux::start("").await;
    let (mut players, mut logged_out, mut compared) = (HashMap::new(), Vec::new(), 0);
    for (n, Line { connection, is_client, event }) in recording(toolkit).into_iter().enumerate() {
        if is_client && !players.contains_key(&connection) {
            players.insert(connection, Player::connect(transport, mux.raw()).await);
        }
        match (is_client, event) {
            (true, Event::Frame(sent)) => {
                let player: &mut Player = players.get_mut(&connection).unwrap();
                player.send(&sent).await;
                if sent.frame.kind == frames::DESTROY && sent.frame.channel == 0 {
                    player.expect_end().await;
                    logged_out.push(connection);
                }
            }
            (true, Event::KeepAlive) => players.get_mut(&connection).unwrap().send_bytes(&[0x80]).await,
            (false, Event::Frame(expected)) => {
                let got = players.get_mut(&connection).unwrap().recv().await;
                assert_eq!(form(&got), form(&expected), "toolkit {toolkit}, {transport:?}, line {n}: {got:x?}");
                compared += 1;
            }
            // The client is gone, with a log-out or without.
            (true, Event::Closed) => drop(players.insert(connection, Player::gone())),
            (false, _) => (),
        }
    }
    assert_eq!(logged_out.len(), usize::from(toolkit == "9.0"));
    compared
}

impl Player {
    fn gone() -> Self {
        Self { from: Box::new(tokio::io::empty()), into: Box::new(tokio::io::sink()) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_java_clients_get_what_the_recorded_community_sent() {
    for transport in [Transport::Raw, Transport::Tls, Transport::Streaming, Transport::StreamingTls] {
        for (toolkit, frames) in TOOLKITS.into_iter().zip([33, 32]) {
            let compared = re_enact(toolkit, transport).await;
            assert_eq!(compared, frames, "toolkit {toolkit} over {transport:?}");
        }
    }
}

/// The recorded AcceptCnl of a chat, on another channel.
fn accept(toolkit: &str, channel: u32) -> Sent {
    let mut sent = recorded(toolkit, 1, frames::ACCEPT, |_| true);
    sent.frame.channel = channel;
    sent
}

/// The recorded CreateCnl of a chat, for another user.
fn create(toolkit: &str, target: &str) -> (Sent, u32) {
    let mut sent = recorded(toolkit, 2, frames::CREATE, |frame| frame.body[8..].starts_with(&string(b"bea")));
    let body = &sent.frame.body;
    let channel = u32::from_be_bytes(body[4..8].try_into().unwrap());
    sent.frame.body = [&body[..8], &string(target.as_bytes()), &body[13..]].concat();
    (sent, channel)
}

/// A message, as Java clients send it: with the option of encryption on a channel that is not encrypted.
fn message(channel: u32, text: &str) -> Sent {
    Sent { options: ENCRYPTED, frame: frames::message(channel, text.as_bytes()) }
}

/// Checks an AcceptCnl of a chat: it says who accepts, and with which status, and that there is no encryption.
fn assert_accepted(accepted: &Sent, channel: u32, user: &str) {
    assert_eq!((accepted.frame.kind, accepted.frame.channel), (frames::ACCEPT, channel), "{accepted:x?}");
    let mut fields = Fields(&accepted.frame.body);
    assert_eq!((fields.number(4), fields.number(4), fields.number(4)), (0x1000, 0x1000, 3));
    let mut additional = Fields(fields.opaque());
    assert_eq!((additional.number(4), additional.number(4), additional.number(4)), (1, 1, 2));
    assert_ne!(additional.number(2), 0, "a status");
    let _rest = (additional.number(4), additional.string());
    assert_eq!(additional.0, b"");
    assert_eq!(fields.number(1), 1);
    assert!(fields.info().contains(&format!(" {user}/{user}/")), "{accepted:x?}");
    assert_eq!(fields.0, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
}

#[tokio::test]
async fn java_clients_chat_with_echo_and_with_each_other_in_every_pairing() {
    for creator in TOOLKITS {
        for acceptor in TOOLKITS {
            let mux = mux::start("").await;
            let mut bea = Player::log_in(acceptor, 1, mux.raw()).await;
            let mut ann = Player::log_in(creator, 2, mux.raw()).await;
            let (offer, anns) = create(creator, "bea");
            ann.send(&offer).await;
            let (_, beas) = bea.recv_offer().await;
            bea.send(&accept(acceptor, beas)).await;
            assert_accepted(&ann.recv().await, anns, "bea");
            ann.send(&message(anns, "hello bea")).await;
            bea.expect(beas, &message(beas, "hello bea")).await;
            bea.send(&message(beas, "hello ann")).await;
            ann.expect(anns, &message(anns, "hello ann")).await;
            ann.send_frame(frames::DESTROY, anns, &[0; 8]).await;
            assert_eq!(bea.recv().await.frame, Frame::new(frames::DESTROY, beas, &[0; 8]));
        }
        let mux = mux::start("").await;
        let mut ann = Player::log_in(creator, 2, mux.raw()).await;
        let (offer, channel) = create(creator, "echo");
        ann.send(&offer).await;
        assert_accepted(&ann.recv().await, channel, "echo");
        ann.send(&message(channel, "hello echo")).await;
        ann.expect(channel, &message(channel, "hello echo")).await;
        let (mut offer, _) = create(creator, "nobody");
        offer.frame.body[7] = 9;
        ann.send(&offer).await;
        let refused = ann.recv().await.frame;
        assert_eq!((refused.channel, refused.reason()), (9, 0x8000_0006));
    }
}

/// Runs libmeanwhile's client as `bob`.
fn bob(mux: &Mux, steps: &'static [&'static str]) -> tokio::task::JoinHandle<(Option<i32>, String)> {
    let to = mux.raw();
    tokio::spawn(async move { run_meanwhile(&[], to, "bob", "secret", steps).await })
}

/// Waits for the end of libmeanwhile's client. It must not have complained of any message.
async fn ended(bob: tokio::task::JoinHandle<(Option<i32>, String)>) -> String {
    let (code, said) = in_time("the end of libmeanwhile", bob).await.unwrap();
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("warning:"), "{said}");
    said
}

#[tokio::test]
async fn libmeanwhile_and_java_clients_chat_whoever_begins() {
    if meanwhile().is_none() {
        return;
    }
    for toolkit in TOOLKITS {
        let mux = mux::start("").await;
        let mut bea = Player::log_in(toolkit, 1, mux.raw()).await;
        let bob_says = bob(&mux, &["say", "bea", "hello from bob"]);
        let (offer, beas) = bea.recv_offer().await;
        assert!(offer.frame.body.ends_with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]), "no encryption: {offer:x?}");
        bea.send(&accept(toolkit, beas)).await;
        let said = bea.recv().await;
        assert_eq!((said.options, said.frame.channel, said.frame.text()), (0, beas, &b"hello from bob"[..]));
        bea.send(&message(beas, "hello from bea")).await;
        let said = ended(bob_says).await;
        assert!(said.contains("opened bea\n") && said.contains("heard bea: hello from bea\n"), "{said}");
    }
    for toolkit in TOOLKITS {
        let mux = mux::start("").await;
        let mut ann = Player::log_in(toolkit, 2, mux.raw()).await;
        watch(&mut ann, toolkit, "bob").await;
        let bob_waits = bob(&mux, &["status", "0x60", "waiting", "wait", "1"]);
        for status in [0x20, 0x60] {
            assert_eq!(presence(&ann.recv().await), ("bob".to_owned(), Some(status)));
        }
        let (offer, channel) = create(toolkit, "bob");
        ann.send(&offer).await;
        assert_accepted(&ann.recv().await, channel, "bob");
        ann.send(&message(channel, "hello from ann")).await;
        assert_eq!(ann.recv().await.frame.text(), b"hello from ann");
        let said = ended(bob_waits).await;
        assert!(said.contains("heard ann: hello from ann\n"), "{said}");
    }
}

/// Opens an awareness channel as the recorded client did, and watches a user who is off line.
async fn watch(player: &mut Player, toolkit: &str, name: &str) {
    player.send(&recorded(toolkit, 2, frames::CREATE, |frame| frame.body[15] == 0x11)).await;
    assert_eq!(player.recv().await.frame.kind, frames::ACCEPT);
    let list = [&[0, 0, 0, 1, 0, 2][..], &string(name.as_bytes()), &string(b"")].concat();
    player.send_frame(frames::SEND, 2, &[&[0, 0x68][..], &opaque(&list)].concat()).await;
    let snapshot = player.recv().await;
    assert_eq!(snapshot.frame.body[..2], [1, 0xF4]);
    assert_eq!(snapshot.frame.body.last(), Some(&0), "off line");
}

/// The user in an update of awareness, and the status; `None`: off line.
fn presence(sent: &Sent) -> (String, Option<u32>) {
    let mut fields = Fields(&sent.frame.body);
    assert_eq!((sent.frame.kind, fields.number(2)), (frames::SEND, 0x01F5), "{sent:x?}");
    let data = fields.opaque();
    let mut fields = Fields(data);
    assert_eq!((fields.number(4) as usize, fields.number(2)), (data.len(), 2), "the mark, and the type");
    let (name, _community, group, on_line) = (fields.string(), fields.string(), fields.string(), fields.number(1));
    assert_eq!(group, "");
    let status = (on_line == 1).then(|| {
        assert_eq!(fields.string(), name);
        let (status, _time, _text) = (fields.number(2), fields.number(4), fields.string());
        assert_eq!(fields.string(), name);
        status
    });
    assert_eq!(fields.0, b"", "nothing more");
    (name, status)
}

/// A SetUserStatus, which comes back.
async fn set_status(player: &mut Player, status: u8, text: &str) {
    let body = [&[0, status, 0x69, 0, 0, 0][..], &string(text.as_bytes())].concat();
    player.send_frame(SET_STATUS, 0, &body).await;
    assert_eq!(player.recv().await.frame, Frame::new(SET_STATUS, 0, &body));
}

#[tokio::test]
async fn libmeanwhile_and_java_clients_see_who_is_on_line_away_busy_and_off_line() {
    if meanwhile().is_none() {
        return;
    }
    let mux = mux::start("").await;
    let mut bea = Player::log_in("9.0", 1, mux.raw()).await;
    let watching = bob(
        &mux,
        &[
            "sees", "bea", "0x20", "say", "bea", "away", "sees", "bea", "0x60", "say", "bea", "busy", "sees", "bea",
            "0x80", "say", "bea", "bye", "sees", "bea", "0", "sees", "echo", "0x20",
        ],
    );
    let (_, channel) = bea.recv_offer().await;
    bea.send(&accept("9.0", channel)).await;
    for (text, status) in [("away", Some(0x60)), ("busy", Some(0x80)), ("bye", None)] {
        assert_eq!(bea.recv().await.frame.text(), text.as_bytes());
        bea.send(&message(channel, "yes")).await;
        match status {
            Some(status) => set_status(&mut bea, status, text).await,
            None => bea.send(&Sent { options: 0, frame: frames::log_out() }).await,
        }
    }
    ended(watching).await;

    let mut ann = Player::log_in("7.0", 2, mux.raw()).await;
    watch(&mut ann, "7.0", "bob").await;
    let changing = bob(&mux, &["status", "0x60", "at lunch", "status", "0x80", "busy", "say", "echo", "hello"]);
    for status in [Some(0x20), Some(0x60), Some(0x80), None] {
        assert_eq!(presence(&ann.recv().await), ("bob".to_owned(), status));
    }
    ended(changing).await;
}

/// Looks names up on channel 5, which is open. Returns for each its code and its matches.
async fn look_up(player: &mut Player, names: &[&str], flags: u8) -> Vec<(u32, Vec<String>)> {
    let strings: Vec<u8> = names.iter().flat_map(|name| string(name.as_bytes())).collect();
    let data = [&[0; 4][..], &[0, 0, 0, 7, 0, 0, 0, names.len() as u8], &strings, &[0, 0, 0, flags]].concat();
    player.send_frame(frames::SEND, 5, &[&[0, 2][..], &opaque(&data)].concat()).await;
    let answer = player.recv().await.frame;
    let mut fields = Fields(&answer.body);
    assert_eq!((answer.kind, answer.channel, fields.number(2)), (frames::SEND, 5, 2));
    let data = fields.opaque();
    let mut fields = Fields(data);
    assert_eq!(fields.number(4) as usize, data.len(), "the mark of all");
    assert_eq!((fields.number(4), fields.number(4), fields.number(4) as usize), (7, 0, names.len()));
    let mut results = Vec::new();
    for name in names {
        let mark = fields.number(4) as usize;
        let (code, asked) = (fields.number(4), fields.string());
        assert_eq!(asked, *name);
        let matches = (0..fields.number(4)).map(|_| {
            let (id, user, _description) = (fields.string(), fields.string(), fields.string());
            assert_eq!((&id, fields.number(4)), (&user, 1), "a user");
            id
        });
        results.push((code, matches.collect()));
        assert_eq!(mark, data.len() - fields.0.len(), "the mark of {name}");
    }
    assert_eq!(fields.0, b"", "nothing behind the last name");
    results
}

#[tokio::test]
async fn names_are_looked_up_with_one_match_none_and_several() {
    let mux = mux::start("").await;
    let mut zoe = Client::connect(Transport::Raw, mux.raw()).await;
    zoe.log_in("zoe").await;
    let mut zora = Client::connect(Transport::Raw, mux.raw()).await;
    zora.log_in("zora").await;
    for toolkit in TOOLKITS {
        let mut ann = Player::log_in(toolkit, 2, mux.raw()).await;
        ann.send(&recorded(toolkit, 2, frames::CREATE, |frame| frame.body[15] == 0x15)).await;
        let accepted = ann.recv().await.frame;
        assert_eq!((accepted.kind, accepted.channel, &accepted.body[12..16]), (frames::ACCEPT, 5, &[0; 4][..]));
        let names = ["zoe", "nobody", "zo", "echo", "zor", "bea"];
        let found = look_up(&mut ann, &names, 8).await;
        let expected: [(u32, &[&str]); 6] =
            [(0, &["zoe"]), (0x8000_0000, &[]), (0, &["zoe", "zora"]), (0, &["echo"]), (0, &["zora"]), (0, &["bea"])];
        for (n, (code, users)) in expected.into_iter().enumerate() {
            assert_eq!(
                (found[n].0, &found[n].1[..]),
                (code, &users.iter().map(ToString::to_string).collect::<Vec<_>>()[..])
            );
        }
        assert_eq!(look_up(&mut ann, &["zo"], 9).await, [(0x8002_0000, vec![])], "one match is wanted, or none");
        ann.send_frame(frames::DESTROY, 5, &[0; 8]).await;
        ann.send_frame(SENSE, 0, &[0, 0, 0, 0x15]).await;
        assert_eq!(ann.recv().await.frame, Frame::new(SENSE, 0, &[0, 0, 0, 0x15]), "the session continues");
    }
    if meanwhile().is_some() {
        let said = ended(bob(&mux, &["resolve", "zoe", "resolve", "nobody", "resolve", "zo"])).await;
        for line in ["resolved zoe 0x00000000: zoe", "resolved nobody 0x80000000:", "resolved zo 0x00000000: zoe zora"]
        {
            assert!(said.lines().any(|l| l == line), "{line} in\n{said}");
        }
    }
}
