//! A model of a tunnel session, its client, and a network that loses, repeats and delays requests and responses.
//!
//! Every byte arrives once and in order in both directions. A response that the client no longer reads carries no
//! payload.

use sametime_mux::{
    ingress::tunnel::{
        Token,
        session::{Accepted, TunnelSession},
    },
    wire::tunnel::{cipher::Cipher, envelope::TunnelKind},
};

use super::{
    Choices,
    client::{CONNECTION, Client, carries_payload},
};

/// The tunnels and their versions.
const TUNNELS: [(TunnelKind, u32); 4] =
    [(TunnelKind::Polling, 0), (TunnelKind::Polling, 1), (TunnelKind::Hybrid, 0), (TunnelKind::Hybrid, 1)];
/// The key that client and server agreed on.
const KEY: [u8; 16] = *b"sixteen secrets!";
/// The most copies of requests that are on their way at the same time.
const UNDER_WAY: usize = 12;
/// The most late copies of a request that are answered between a response that the client reads and the request
/// that acknowledges it. The limit holds before the client reads that response, and again after it. Real clients
/// send five copies.
const OVERTAKING: usize = 6;
/// The most requests that a client sends in parallel without reading a response. A real client sends one a second.
const UNREAD: usize = 60;

/// A copy of a request that is on its way.
struct Copy {
    connection: usize,
    body: Vec<u8>,
}

/// A request that the server has received and not answered yet.
struct Waiting {
    connection: usize,
    number: usize,
}

/// The newest request of the client, which has no response yet.
struct Current {
    body: Vec<u8>,
    /// Whether a copy of it has arrived.
    arrived: bool,
}

/// A response on its way to the client.
struct Response {
    connection: usize,
    body: Vec<u8>,
    /// How many responses were made since.
    overtaken: usize,
}

/// Client, network and server.
struct World {
    kind: TunnelKind,
    client: Client,
    session: TunnelSession,
    current: Option<Current>,
    /// The connection that the client reads: the one that it opened last.
    connection: usize,
    under_way: Vec<Copy>,
    waiting: Vec<Waiting>,
    /// The number of the newest request at the server, which supersedes the others.
    newest: usize,
    tokens: u64,
    on_its_way: Option<Response>,
    /// Requests since a response was read.
    unread: usize,
    /// Late copies since a response was read.
    late: usize,
    /// The bytes that the client sent.
    client_sent: Vec<u8>,
    /// The bytes of the client that the server took.
    server_took: Vec<u8>,
    /// The bytes that the Community sent.
    community_sent: Vec<u8>,
    /// The number of texts so far.
    texts: u16,
}

/// The first byte chooses the tunnel; the others choose the steps.
pub fn check(input: &[u8]) {
    let mut choices = Choices(input);
    let (kind, version) = TUNNELS[choices.below(TUNNELS.len())];
    let token = Token::default();
    let mut world = World {
        kind,
        client: Client::new(kind, version, Cipher::new(&KEY), token),
        session: TunnelSession::new(kind, version, CONNECTION, Cipher::new(&KEY), token),
        current: None,
        connection: 0,
        under_way: Vec::new(),
        waiting: Vec::new(),
        newest: 0,
        tokens: 0,
        on_its_way: None,
        unread: 0,
        late: 0,
        client_sent: Vec::new(),
        server_took: Vec::new(),
        community_sent: Vec::new(),
        texts: 0,
    };
    while !choices.is_over() {
        match choices.below(8) {
            0 | 1 => world.post(&mut choices),
            2 | 3 => world.arrive(&mut choices),
            4 => world.answer(&mut choices),
            5 => world.receive(),
            6 => world.community_sends(&mut choices),
            _ => world.stranger_posts(&mut choices),
        }
        world.check_order();
    }
    world.network_recovers();
}

impl World {
    /// A text that was not sent before, so that no two requests are the same by chance.
    fn new_text(&mut self, n: usize) -> Vec<u8> {
        self.texts += 1;
        let [a, b] = self.texts.to_be_bytes();
        [a, b].into_iter().chain((0..n).map(|i| (i % 251) as u8)).collect()
    }

    /// The client sends a new request, or a copy of the newest one.
    fn post(&mut self, choices: &mut Choices<'_>) {
        let choice = choices.byte();
        let in_parallel = self.kind == TunnelKind::Hybrid && choice & 1 == 1;
        match &self.current {
            // The client waits for the response. Only a hybrid client with data sends a second request.
            Some(current) if !(in_parallel && current.arrived && self.unread < UNREAD) => (),
            current => {
                let data = if current.is_some() || choice & 2 == 2 {
                    self.new_text(usize::from(choice >> 2))
                } else {
                    Vec::new()
                };
                self.client_sent.extend_from_slice(&data);
                let body = self.client.request(&data);
                self.current = Some(Current { body, arrived: false });
                self.unread += 1;
            }
        }
        self.send();
    }

    /// Sends the newest request on a new connection.
    fn send(&mut self) {
        let Some(current) = &self.current else { return };
        self.connection += 1;
        if self.under_way.len() == UNDER_WAY {
            self.under_way.remove(0);
        }
        self.under_way.push(Copy { connection: self.connection, body: current.body.clone() });
    }

    /// One of the copies on their way arrives. It may arrive again later.
    fn arrive(&mut self, choices: &mut Choices<'_>) {
        if self.under_way.is_empty() {
            return;
        }
        let at = choices.below(self.under_way.len());
        let again = choices.byte() & 3 == 0;
        if self.late == OVERTAKING
            && self.current.as_ref().is_none_or(|current| current.body != self.under_way[at].body)
        {
            return;
        }
        let copy = if again {
            Copy { connection: self.under_way[at].connection, body: self.under_way[at].body.clone() }
        } else {
            self.under_way.remove(at)
        };
        self.take(copy);
    }

    /// The server accepts a copy.
    fn take(&mut self, copy: Copy) {
        let current = self.current.as_mut().filter(|current| current.body == copy.body);
        let is_newest = current.is_some();
        let first = current.is_some_and(|current| !std::mem::replace(&mut current.arrived, true));
        match self.session.accept(&copy.body) {
            Ok(Accepted::New(data)) => {
                assert!(first, "consumed twice");
                self.late = 0;
                self.server_took.extend(data);
            }
            Ok(Accepted::Again) => {
                assert!(!first);
                self.late += usize::from(!is_newest);
            }
            Ok(Accepted::Stale) => {
                assert!(!is_newest, "the newest request is not late");
                assert!(!carries_payload(&self.session.empty()));
                return;
            }
            Ok(Accepted::NoRoom(_)) => panic!("there is always room"),
            // Only a copy of a request from a much older epoch may be refused.
            Err(refused) => return assert!(!is_newest, "{refused:?}"),
        }
        self.newest += 1;
        self.waiting.push(Waiting { connection: copy.connection, number: self.newest });
    }

    /// The server answers one of the requests that wait. The response arrives at once, arrives later, or is lost.
    fn answer(&mut self, choices: &mut Choices<'_>) {
        if self.waiting.is_empty() {
            return;
        }
        let at = choices.below(self.waiting.len());
        let waiting = self.waiting.remove(at);
        // 0: it is lost, 1: it arrives later, 2 and 3: it arrives at once.
        let fate = choices.byte() & 3;
        let response = self.respond(&waiting);
        if fate == 0 || waiting.connection != self.connection {
            return;
        }
        self.on_its_way = Some(response);
        if fate > 1 {
            self.receive();
        }
    }

    /// The server's response to a request that waits.
    fn respond(&mut self, waiting: &Waiting) -> Response {
        let body = if waiting.number == self.newest {
            self.tokens += 1;
            let [_, _, _, token @ ..] = self.tokens.to_be_bytes();
            if let Some(response) = &mut self.on_its_way {
                response.overtaken += 1;
            }
            self.on_its_way.take_if(|response| response.overtaken > OVERTAKING);
            self.session.respond(token)
        } else {
            self.session.empty()
        };
        assert!(waiting.number == self.newest || !carries_payload(&body), "payload in a superseded response");
        Response { connection: waiting.connection, body, overtaken: 0 }
    }

    /// The response on its way arrives, if the client still reads its connection.
    fn receive(&mut self) {
        if let Some(response) = self.on_its_way.take_if(|response| response.connection == self.connection)
            && self.current.take().is_some()
        {
            self.client.receive(&response.body);
            self.unread = 0;
        }
    }

    fn community_sends(&mut self, choices: &mut Choices<'_>) {
        let n = choices.below(60);
        let data = self.new_text(n);
        self.session.push(&data);
        self.community_sent.extend(data);
    }

    /// Someone who knows the session's name, but not its acknowledgement, sends a request.
    fn stranger_posts(&mut self, choices: &mut Choices<'_>) {
        let n = choices.below(64);
        let mut body = choices.bytes(n).to_vec();
        if let (true, Some(current)) = (body.len() < 8, &self.current) {
            // The client's own request with its acknowledgement changed: bytes 8..16.
            body = current.body.clone();
        }
        if let Some(acknowledgement) = body.get_mut(8..16) {
            // A fuzzer sees what its bytes are compared with, and would find the right ones. So they are mixed.
            let mixed = acknowledgement.iter().fold(1u64, |mixed, byte| {
                (mixed ^ u64::from(*byte)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
            });
            acknowledgement.copy_from_slice(&mixed.to_be_bytes());
        }
        let before = self.session.unacknowledged();
        let accepted = self.session.accept(&body);
        assert!(accepted.is_err(), "{accepted:?}");
        assert_eq!(self.session.unacknowledged(), before);
    }

    /// The bytes that arrived are a beginning of the bytes that were sent.
    fn check_order(&self) {
        assert!(
            self.client_sent.starts_with(&self.server_took),
            "the Community received bytes that were not sent, or not in order"
        );
        assert!(
            self.community_sent.starts_with(&self.client.received),
            "the client received bytes that were not sent, or not in order"
        );
        assert!(self.session.unacknowledged() <= self.community_sent.len());
    }

    /// The network works again: the client repeats its newest request, then fetches the rest. Every byte arrives.
    fn network_recovers(&mut self) {
        self.receive();
        for _ in 0..4 {
            if self.current.is_none() {
                let body = self.client.request(&[]);
                self.current = Some(Current { body, arrived: false });
            }
            self.send();
            let copy = self.under_way.pop().expect("just sent");
            self.take(copy);
            if let Some(waiting) = self.waiting.pop() {
                self.on_its_way = Some(self.respond(&waiting));
                self.receive();
            }
            self.check_order();
        }
        assert_eq!(self.server_took, self.client_sent, "lost on the way to the Community");
        assert_eq!(self.client.received, self.community_sent, "lost on the way to the client");
        assert_eq!(self.session.unacknowledged(), 0, "the session is not over");
    }
}
