//! A tunnel session with a client and a network that loses, repeats and delays messages and breaks connections. Every
//! byte arrives once and in order in both directions, and a response that the client does not read any more carries
//! none.

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

const WAYS: [(TunnelKind, u32); 4] =
    [(TunnelKind::Polling, 0), (TunnelKind::Polling, 1), (TunnelKind::Hybrid, 0), (TunnelKind::Hybrid, 1)];
/// The key that client and server have agreed on.
const KEY: [u8; 16] = *b"sixteen secrets!";
/// The most copies of requests that are under way.
const UNDER_WAY: usize = 12;
/// The most late copies of a request that are answered between the response that the client reads and the request that
/// acknowledges it, before and after it is read. Real clients send five.
const OVERTAKING: usize = 6;

/// The most requests that a client sends in parallel without reading a response. It sends one per second.
const UNREAD: usize = 60;

/// A copy of a request, on its own connection.
struct Copy {
    connection: usize,
    body: Vec<u8>,
}

/// A request that the server has received and has not answered.
struct Waiting {
    connection: usize,
    number: usize,
}

/// The request for which the client waits.
struct Current {
    body: Vec<u8>,
    /// A copy of it has arrived at the server.
    arrived: bool,
}

/// A response on its way to the client, and how many responses were made since.
struct Response {
    connection: usize,
    body: Vec<u8>,
    overtaken: usize,
}

struct World {
    kind: TunnelKind,
    client: Client,
    session: TunnelSession,
    current: Option<Current>,
    /// The connection that the client reads: the one that it opened last.
    connection: usize,
    under_way: Vec<Copy>,
    waiting: Vec<Waiting>,
    /// The number of the newest request at the server. Each request supersedes the one before it.
    newest: usize,
    tokens: u64,
    on_its_way: Option<Response>,
    /// Number of requests since a response was read.
    unread: usize,
    /// Number of late copies since a response was read.
    late: usize,
    /// What the client has sent, what the server has taken of it, and what the Community has sent.
    sent: Vec<u8>,
    consumed: Vec<u8>,
    said: Vec<u8>,
    words: u16,
}

/// The first byte selects the tunnel, and each further byte a step.
pub fn check(input: &[u8]) {
    let mut choices = Choices(input);
    let (kind, version) = WAYS[choices.below(WAYS.len())];
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
        sent: Vec::new(),
        consumed: Vec::new(),
        said: Vec::new(),
        words: 0,
    };
    while !choices.is_over() {
        match choices.below(8) {
            0 | 1 => world.post(&mut choices),
            2 | 3 => world.arrive(&mut choices),
            4 => world.answer(&mut choices),
            5 => world.receive(),
            6 => world.community_says(&mut choices),
            _ => world.stranger(&mut choices),
        }
        world.holds();
    }
    world.heals();
}

impl World {
    /// Data that was not sent before, so that no two requests are equal by chance.
    fn words(&mut self, n: usize) -> Vec<u8> {
        self.words += 1;
        let [a, b] = self.words.to_be_bytes();
        [a, b].into_iter().chain((0..n).map(|i| (i % 251) as u8)).collect()
    }

    /// The client posts a new request, or the same one again.
    fn post(&mut self, choices: &mut Choices<'_>) {
        let choice = choices.byte();
        let beside = self.kind == TunnelKind::Hybrid && choice & 1 == 1;
        match &self.current {
            // The client waits. Only a hybrid client with data opens a second connection.
            Some(current) if !(beside && current.arrived && self.unread < UNREAD) => (),
            current => {
                let data = if current.is_some() || choice & 2 == 2 {
                    self.words(usize::from(choice >> 2))
                } else {
                    Vec::new()
                };
                self.sent.extend_from_slice(&data);
                let body = self.client.request(&data);
                self.current = Some(Current { body, arrived: false });
                self.unread += 1;
            }
        }
        self.send();
    }

    /// Sends the current request on a new connection.
    fn send(&mut self) {
        let Some(current) = &self.current else { return };
        self.connection += 1;
        if self.under_way.len() == UNDER_WAY {
            self.under_way.remove(0);
        }
        self.under_way.push(Copy { connection: self.connection, body: current.body.clone() });
    }

    /// One of the copies under way arrives, and perhaps arrives again later.
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

    fn take(&mut self, copy: Copy) {
        let current = self.current.as_mut().filter(|current| current.body == copy.body);
        let in_hand = current.is_some();
        let first = current.is_some_and(|current| !std::mem::replace(&mut current.arrived, true));
        match self.session.accept(&copy.body) {
            Ok(Accepted::New(data)) => {
                assert!(first, "consumed twice");
                self.late = 0;
                self.consumed.extend(data);
            }
            Ok(Accepted::Again) => {
                assert!(!first);
                self.late += usize::from(!in_hand);
            }
            Ok(Accepted::Stale) => {
                assert!(!in_hand, "the current request is not a late one");
                assert!(!carries_payload(&self.session.empty()));
                return;
            }
            Ok(Accepted::NoRoom(_)) => panic!("there is always room"),
            // Only a request of an epoch that ended long ago is refused.
            Err(refused) => return assert!(!in_hand, "{refused:?}"),
        }
        self.newest += 1;
        self.waiting.push(Waiting { connection: copy.connection, number: self.newest });
    }

    /// One of the waiting requests is answered. The response arrives, is lost, or arrives later.
    fn answer(&mut self, choices: &mut Choices<'_>) {
        if self.waiting.is_empty() {
            return;
        }
        let at = choices.below(self.waiting.len());
        let waiting = self.waiting.remove(at);
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

    /// A response arrives, if the client still reads that connection.
    fn receive(&mut self) {
        if let Some(response) = self.on_its_way.take_if(|response| response.connection == self.connection)
            && self.current.take().is_some()
        {
            self.client.receive(&response.body);
            self.unread = 0;
        }
    }

    fn community_says(&mut self, choices: &mut Choices<'_>) {
        let n = choices.below(60);
        let data = self.words(n);
        self.session.push(&data);
        self.said.extend(data);
    }

    /// A stranger, who knows the session's name but not its acknowledgement, sends a request.
    fn stranger(&mut self, choices: &mut Choices<'_>) {
        let n = choices.below(64);
        let mut body = choices.bytes(n).to_vec();
        if let (true, Some(current)) = (body.len() < 8, &self.current) {
            // The client's own request with another acknowledgement, which is in the bytes 8..16.
            body = current.body.clone();
        }
        if let Some(acknowledgement) = body.get_mut(8..16) {
            // The fuzzer sees what its bytes are compared with, and would find the right ones.
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

    fn holds(&self) {
        assert!(self.sent.starts_with(&self.consumed), "the Community got what was not said, or not in order");
        assert!(self.said.starts_with(&self.client.received), "the client got what was not said, or not in order");
        assert!(self.session.unacknowledged() <= self.said.len());
    }

    /// The network works again: the client repeats its current request, and then fetches the rest.
    fn heals(&mut self) {
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
            self.holds();
        }
        assert_eq!(self.consumed, self.sent, "lost on the way to the Community");
        assert_eq!(self.client.received, self.said, "lost on the way to the client");
        assert_eq!(self.session.unacknowledged(), 0, "the session is not over");
    }
}
