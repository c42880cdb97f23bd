//! A session and a client of its own making, over a network that loses, doubles and delays.

use proptest::prelude::*;

use super::*;
use crate::wire::{
    message::{Reader, Writer},
    tunnel::cipher::agree_with,
};

/// The client's side, as the recordings show it.
struct Client {
    kind: TunnelKind,
    version: u32,
    cipher: Cipher,
    token: Token,
    acknowledgement_iv: [u8; BLOCK],
    acknowledgement: Option<[u8; BLOCK]>,
    sent_iv: [u8; BLOCK],
    received_iv: [u8; BLOCK],
    received: Vec<u8>,
}

fn pair(kind: TunnelKind, version: u32) -> (Client, TunnelSession) {
    let (client_secret, server_secret) = ([3; 32], [5; 32]);
    let client_public = agree_with(&[3], &client_secret).expect("legal").public;
    let server = agree_with(&client_public, &server_secret).expect("legal");
    let cipher = agree_with(&server.public, &client_secret).expect("legal").cipher;
    let token = token(0);
    let client = Client {
        kind,
        version,
        cipher,
        token,
        acknowledgement_iv: FIRST_IV,
        acknowledgement: None,
        sent_iv: FIRST_IV,
        received_iv: FIRST_IV,
        received: Vec::new(),
    };
    (client, TunnelSession::new(kind, version, 1, server.cipher, token))
}

fn token(n: u64) -> Token {
    let [_, _, _, rest @ ..] = n.to_be_bytes();
    rest
}

impl Client {
    fn request(&mut self, data: &[u8]) -> Vec<u8> {
        let acknowledgement = *self.acknowledgement.get_or_insert_with(|| {
            let secret = self.cipher.encrypt(&mut self.acknowledgement_iv, &self.token);
            secret.try_into().expect("one block")
        });
        let clear = if self.kind == TunnelKind::Hybrid { envelope::record(1, data) } else { data.to_vec() };
        let payload =
            if self.version == 0 || clear.is_empty() { clear } else { self.cipher.encrypt(&mut self.sent_iv, &clear) };
        let mut out = Writer::new();
        out.u32(0).opaque(&acknowledgement).raw(&payload);
        out.0
    }

    fn receive(&mut self, body: &[u8]) {
        let mut reader = Reader(body);
        self.token = reader.opaque().and_then(|t| t.try_into().ok()).expect("a token");
        let padding = reader.u8().expect("padding");
        reader.bytes(padding.into()).expect("padding");
        self.acknowledgement = None;
        if reader.0.is_empty() {
            return;
        }
        let clear = if self.version == 0 {
            reader.0.to_vec()
        } else {
            self.cipher.decrypt(&mut self.received_iv, reader.0).expect("decrypts")
        };
        match self.kind {
            TunnelKind::Polling => self.received.extend(clear),
            TunnelKind::Hybrid => envelope::each_record(&clear, |on, data| {
                assert_eq!(on, 1);
                self.received.extend_from_slice(data);
            })
            .expect("records"),
        }
    }
}

const WAYS: [(TunnelKind, u32); 4] =
    [(TunnelKind::Polling, 0), (TunnelKind::Polling, 1), (TunnelKind::Hybrid, 0), (TunnelKind::Hybrid, 1)];

#[test]
fn a_lost_answer_comes_again_and_nothing_is_consumed_twice() {
    for (kind, version) in WAYS {
        let (mut client, mut session) = pair(kind, version);
        let login = client.request(b"login");
        assert_eq!(session.accept(&login), Ok(Accepted::New(b"login".to_vec())));
        session.push(b"answer");
        let _lost = session.respond(token(1));
        assert_eq!(session.accept(&login), Ok(Accepted::Again));
        session.push(b", and more");
        client.receive(&session.respond(token(2)));
        assert_eq!(session.accept(&client.request(b"")), Ok(Accepted::New(vec![])));
        assert_eq!(session.unacknowledged(), 0);
        session.push(b"!");
        client.receive(&session.respond(token(3)));
        assert_eq!(client.received, b"answer, and more!");
    }
}

#[test]
fn a_buffer_that_is_hardly_used_any_more_is_given_back() {
    let capacity_after = |capacity: usize, left: usize| {
        let (mut client, mut session) = pair(TunnelKind::Polling, 0);
        session.accept(&client.request(b"")).expect("new");
        session.outbound.reserve_exact(capacity);
        session.push(&vec![7; capacity]);
        client.receive(&session.respond_some(token(1), capacity - left));
        session.accept(&client.request(b"")).expect("new");
        assert_eq!(session.unacknowledged(), left);
        session.outbound.capacity()
    };
    assert_eq!(capacity_after(100, 0), 0, "an idle session has no buffer");
    assert_eq!(capacity_after(2 * 1000 + 4096, 1000), 6096, "so much may be unused");
    assert_eq!(capacity_after(2 * 1000 + 4097, 1000), 1000);
}

#[test]
fn errors_say_what_is_wrong_with_a_request() {
    let errors = [
        RequestError::Envelope(EnvelopeError::CutOff),
        RequestError::Acknowledgement,
        RequestError::Payload,
        RequestError::Unread,
    ];
    let texts: std::collections::HashSet<String> = errors.iter().map(ToString::to_string).collect();
    assert!(texts.len() == errors.len() && texts.iter().all(|text| text.contains(' ')), "{texts:?}");
}

#[test]
fn the_response_before_the_newest_acknowledges_only_what_it_carried() {
    let (mut client, mut session) = pair(TunnelKind::Hybrid, 1);
    let poll = client.request(b"");
    session.accept(&poll).expect("new");
    session.push(b"one");
    let first = session.respond(token(1));
    session.accept(&poll).expect("again");
    session.push(b"two");
    let _lost = session.respond(token(2));
    client.receive(&first);
    session.accept(&client.request(b"")).expect("the one before the newest");
    assert_eq!(session.unacknowledged(), 3);
    client.receive(&session.respond(token(3)));
    assert_eq!(client.received, b"onetwo");
}

#[test]
fn late_copies_do_not_cost_the_answer_that_was_read() {
    for (kind, version) in WAYS {
        let (mut client, mut session) = pair(kind, version);
        let poll = client.request(b"");
        session.accept(&poll).expect("new");
        session.push(b"one");
        let read = session.respond(token(1));
        // Copies that a slow proxy held, each answered on a connection that nobody reads.
        for n in 2..8 {
            assert_eq!(session.accept(&poll), Ok(Accepted::Again));
            session.push(b"more");
            let _lost = session.respond(token(n));
        }
        client.receive(&read);
        session.accept(&client.request(b"")).expect("what was read is acknowledged");
        client.receive(&session.respond(token(9)));
        assert_eq!(client.received, [&b"one"[..], &b"more".repeat(6)].concat());
    }
}

#[test]
fn however_many_requests_go_unanswered_none_is_consumed_twice() {
    let (mut client, mut session) = pair(TunnelKind::Hybrid, 0);
    let first = client.request(b"first");
    session.accept(&first).expect("new");
    let mut refused = 0;
    for n in 0u32..100 {
        match session.accept(&client.request(&n.to_be_bytes())) {
            Ok(Accepted::New(_)) => assert_eq!(refused, 0),
            other => {
                assert_eq!(other, Err(RequestError::Unread));
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
    assert_eq!(session.accept(&first), Ok(Accepted::Stale));
}

#[test]
fn late_retries_steal_nothing() {
    let (mut client, mut session) = pair(TunnelKind::Hybrid, 0);
    let poll = client.request(b"");
    let data = client.request(b"hello");
    session.accept(&poll).expect("new");
    session.accept(&data).expect("new");
    session.push(b"answer");
    let answer = session.respond(token(1));
    // The old poll again, beside its successor (recording hybrid-lost-response).
    assert_eq!(session.accept(&poll), Ok(Accepted::Stale));
    assert_eq!(session.empty(), envelope::response(&token(0), &[]));
    client.receive(&answer);
    session.accept(&client.request(b"")).expect("new");
    assert_eq!(session.unacknowledged(), 0);
    // And again when its epoch is over.
    assert_eq!(session.accept(&poll), Ok(Accepted::Stale));
    assert_eq!(session.accept(&data), Ok(Accepted::Stale));
}

#[test]
fn a_superseded_response_that_is_read_after_all_does_no_harm() {
    let (mut client, mut session) = pair(TunnelKind::Hybrid, 0);
    session.accept(&client.request(b"")).expect("new");
    client.receive(&session.respond(token(1)));
    session.accept(&client.request(b"")).expect("new");
    session.push(b"kept");
    let _lost = session.respond(token(2));
    client.receive(&session.empty());
    session.accept(&client.request(b"")).expect("a token that claims nothing");
    client.receive(&session.respond(token(3)));
    assert_eq!(client.received, b"kept");
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    for (kind, version) in WAYS {
        let (mut client, mut session) = pair(kind, version);
        let first = client.request(b"");
        session.accept(&first).expect("new");
        session.push(b"x");
        client.receive(&session.respond(token(1)));
        for (body, error) in [
            (&b"\0\0\0\x01"[..], RequestError::Envelope(EnvelopeError::RequestStart)),
            (b"\0\0\0\0\0\0\0\x09abc", RequestError::Envelope(EnvelopeError::CutOff)),
            (b"\0\0\0\0\0\0\0\0", RequestError::Acknowledgement),
            (b"\0\0\0\0\0\0\0\x08abcdefgh", RequestError::Acknowledgement),
            (b"\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\0", RequestError::Acknowledgement),
        ] {
            assert_eq!(session.accept(body), Err(error));
        }
        // Epochs that are long over: not even late.
        for n in 2..10 {
            session.accept(&client.request(b"")).expect("new");
            client.receive(&session.respond(token(n)));
        }
        assert_eq!(session.accept(&first), Err(RequestError::Acknowledgement));
        assert!(matches!(session.accept(&client.request(b"y")), Ok(Accepted::New(data)) if data == b"y"));
    }
}

/// What the network does to one request, or to its response.
#[derive(Debug, Clone)]
enum Fate {
    Fine,
    RequestLost,
    ResponseLost,
    /// A copy of the request arrives once more, so many steps later.
    Doubled(usize),
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        4 => Just(Fate::Fine),
        1 => Just(Fate::RequestLost),
        2 => Just(Fate::ResponseLost),
        2 => (0usize..5).prop_map(Fate::Doubled),
    ]
}

/// One step of a conversation: what client and Community say, whether a hybrid client posts
/// beside a held request, and what the network does.
fn step() -> impl Strategy<Value = (Vec<u8>, Vec<u8>, bool, Fate)> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..40);
    (bytes(), bytes(), any::<bool>(), fate())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    /// Requests and responses lost, doubled and delayed: every byte once and in order, both
    /// ways. The client sends new data only when the request before has arrived, since the
    /// protocol has no numbers by which the order of two could be told.
    #[test]
    fn every_byte_once_and_in_order(way in 0usize..4, steps in proptest::collection::vec(step(), 1..60)) {
        let (kind, version) = WAYS[way];
        let (mut client, mut session) = pair(kind, version);
        let (mut sent, mut consumed, mut said) = (Vec::new(), Vec::new(), Vec::new());
        let mut late: Vec<(usize, Vec<u8>)> = Vec::new();
        let mut tokens = 1..;
        let mut held = None;
        for (now, (data, answer, beside, fate)) in steps.iter().enumerate() {
            // Copies whose time has come: consumed before, so nothing is consumed now.
            for (_, copy) in late.extract_if(.., |(due, _)| *due <= now) {
                prop_assert!(!matches!(session.accept(&copy), Ok(Accepted::New(_))));
            }
            let body = client.request(data);
            let fresh = !data.is_empty() || held.as_ref() != Some(&body);
            sent.extend_from_slice(data);
            if matches!(fate, Fate::RequestLost) {
                late.retain(|(_, copy)| copy != &body);
            }
            let accepted = session.accept(&body);
            match accepted {
                Ok(Accepted::New(bytes)) => consumed.extend(bytes),
                // The same words in the same epoch can't be told from a retry; see below.
                Ok(Accepted::Again | Accepted::Stale) if !fresh || data.is_empty() => (),
                other => {
                    prop_assert!(held.is_some() && kind == TunnelKind::Hybrid && version == 0, "{other:?}");
                    sent.truncate(sent.len() - data.len());
                }
            }
            if let Fate::Doubled(steps) = fate {
                late.push((now + 1 + steps, body.clone()));
            }
            session.push(answer);
            said.extend_from_slice(answer);
            if kind == TunnelKind::Hybrid && *beside {
                // Not answered yet; the next request supersedes it.
                held = Some(body);
                continue;
            }
            held = None;
            let mut response = session.respond(token(tokens.next().expect("endless")));
            if matches!(fate, Fate::ResponseLost | Fate::RequestLost) {
                // The identical request again, until a response comes through.
                prop_assert!(matches!(session.accept(&body), Ok(Accepted::Again | Accepted::Stale)));
                response = session.respond(token(tokens.next().expect("endless")));
            }
            client.receive(&response);
        }
        session.accept(&client.request(b"the end")).expect("new");
        client.receive(&session.respond(token(tokens.next().expect("endless"))));
        prop_assert_eq!(consumed, sent);
        prop_assert_eq!(client.received, said);
    }
}
