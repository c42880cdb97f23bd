//! A live session with a client and a core that are values: no socket, no task, and a clock that the tests set.

use super::*;
use crate::{
    limits::{budget::Budget, tally::Tally},
    wire::{
        message::{Reader, Writer},
        tunnel::cipher::{BLOCK, Cipher, FIRST_IV},
    },
};

const KEY: [u8; 16] = *b"sixteen secrets!";
const CONNECTION: u32 = 1;
const WINDOW: usize = 10_000;
const TIMEOUT: Duration = Duration::from_secs(90);
const LINGER: Duration = Duration::from_secs(15);

fn settings() -> TunnelSettings {
    TunnelSettings {
        hold: Duration::from_secs(25),
        reply_wait: Duration::from_millis(100),
        session_timeout: TIMEOUT,
        stream_keep_alive: None,
        version: 0,
        window: WINDOW,
        same_address: false,
        sessions: 1,
        sessions_per_address: 0,
        exempt: vec![],
    }
}

/// The client's side, and the session.
struct World {
    kind: TunnelKind,
    cipher: Cipher,
    acknowledgement_iv: [u8; BLOCK],
    /// The token that the client received last.
    token: Token,
    tokens: u8,
    live: LiveSession,
    start: Instant,
}

fn world_of(kind: TunnelKind, budget: &std::sync::Arc<Budget>) -> World {
    let (token, start) = (Token::default(), Instant::now());
    let session = TunnelSession::new(kind, 0, CONNECTION, Cipher::new(&KEY), token);
    let place = std::sync::Arc::<Tally>::default().enter(1).expect("room");
    let live = LiveSession::new(session, WINDOW, HeldBytes::none(budget, [127, 0, 0, 1].into()), place, start);
    World { kind, cipher: Cipher::new(&KEY), acknowledgement_iv: FIRST_IV, token, tokens: 0, live, start }
}

fn world(kind: TunnelKind) -> World {
    world_of(kind, &Budget::new(1 << 20, 0, &[]))
}

impl World {
    /// The body of the next request.
    fn body(&mut self, data: &[u8]) -> Vec<u8> {
        let acknowledgement = self.cipher.encrypt(&mut self.acknowledgement_iv, &self.token);
        self.same_epoch(&acknowledgement, data)
    }

    /// The body of a request with the acknowledgement of another one.
    fn same_epoch(&self, acknowledgement: &[u8], data: &[u8]) -> Vec<u8> {
        let payload = if self.kind == TunnelKind::Hybrid { envelope::record(CONNECTION, data) } else { data.to_vec() };
        let mut out = Writer::new();
        out.u32(0).opaque(acknowledgement).raw(&payload);
        out.0
    }

    fn arrive(&mut self, body: &[u8]) -> Received {
        self.live.arrive();
        self.live.receive(body, &settings()).expect("the client's")
    }

    /// A request arrives and is held.
    fn held(&mut self, body: &[u8]) -> HeldRequest {
        match self.arrive(body) {
            Received::Held(request) => request,
            Received::Response(response) => panic!("{response:?}"),
            Received::NoRoom => panic!("no room"),
        }
    }

    /// The outcome of a request that is held, and whether it is due.
    fn respond(&mut self, request: &HeldRequest, is_due: bool) -> Option<TunnelResponse> {
        self.respond_late(request, is_due, false)
    }

    /// As [`Self::respond`]. `is_late`: the request has waited as long as it may.
    fn respond_late(&mut self, request: &HeldRequest, is_due: bool, is_late: bool) -> Option<TunnelResponse> {
        self.tokens += 1;
        self.live.respond(request, is_due, is_late, || [self.tokens; 5])
    }

    /// What the client reads: the outcome and the payload.
    fn take(&mut self, response: Option<TunnelResponse>) -> (TunnelOutcome, Vec<u8>) {
        let Some(TunnelResponse::Body(body, outcome)) = response else { panic!("{response:?}") };
        let mut reader = Reader(&body);
        self.token = reader.opaque().expect("a token").try_into().expect("five bytes");
        assert_eq!(reader.u8(), Some(0));
        let mut data = Vec::new();
        match self.kind {
            TunnelKind::Polling => data.extend_from_slice(reader.0),
            TunnelKind::Hybrid => {
                envelope::each_record(reader.0, |_, bytes| data.extend_from_slice(bytes)).expect("records");
            }
        }
        (outcome, data)
    }

    /// What the core reads; an empty text is the end of the stream.
    fn read(&mut self) -> Option<Result<Vec<u8>, StreamError>> {
        let mut buffer = [0; 2 * WINDOW];
        let mut read = ReadBuf::new(&mut buffer);
        self.live.read(&mut read).map(|result| result.map(|()| read.filled().to_vec()))
    }

    fn woken(&mut self) -> Vec<Waiter> {
        let wakes = self.live.take_wakes();
        Waiter::ALL.into_iter().filter(|waiter| wakes.include(*waiter)).collect()
    }
}

#[test]
fn a_state_changes_only_as_drawn() {
    use Event::{Acknowledged, CoreEnded, TimedOut as Expired, Written};
    use TunnelState::{Ending, Open, Over, TimedOut};
    for (before, event, unacknowledged, after) in [
        (Open, Written, 1, Open),
        (Open, Acknowledged, 0, Open),
        (Open, CoreEnded, 1, Ending),
        (Open, CoreEnded, 0, Over),
        (Ending, Acknowledged, 1, Ending),
        (Ending, Acknowledged, 0, Over),
        (Ending, CoreEnded, 1, Ending),
        (Ending, Written, 1, Ending),
        (Over, Acknowledged, 0, Over),
        (Over, CoreEnded, 0, Over),
        (Over, Written, 1, Ending),
        (Open, Expired, 0, TimedOut),
        (Ending, Expired, 1, TimedOut),
        (Over, Expired, 0, TimedOut),
        (TimedOut, Written, 1, TimedOut),
        (TimedOut, Acknowledged, 0, TimedOut),
        (TimedOut, CoreEnded, 0, TimedOut),
        (TimedOut, Expired, 0, TimedOut),
    ] {
        assert_eq!(before.after(event, unacknowledged), after, "{before:?}, {event:?}, {unacknowledged}");
    }
}

#[test]
fn what_a_request_brings_the_core_reads_and_what_the_core_writes_a_request_fetches() {
    for kind in [TunnelKind::Polling, TunnelKind::Hybrid] {
        let mut world = world(kind);
        assert_eq!(world.read(), None);
        let body = world.body(b"hello");
        let request = world.held(&body);
        assert_eq!(request.timeout, settings().reply_wait);
        assert_eq!(world.woken(), [Waiter::Reader, Waiter::Writer, Waiter::Request]);
        assert_eq!(world.read(), Some(Ok(b"hello".to_vec())));
        assert_eq!(world.read(), None);
        assert!(world.respond(&request, false).is_none());
        assert_eq!(world.live.write(b"world"), Some(Ok(5)));
        assert_eq!(world.woken(), [Waiter::Request]);
        let response = world.respond(&request, false);
        assert_eq!(world.take(response), (TunnelOutcome::Payload, b"world".to_vec()));
    }
}

#[test]
fn how_long_a_request_without_data_is_held_depends_on_the_tunnel() {
    for (kind, timeout) in [(TunnelKind::Polling, Duration::ZERO), (TunnelKind::Hybrid, settings().hold)] {
        let mut world = world(kind);
        let body = world.body(b"");
        let request = world.held(&body);
        assert_eq!(request.timeout, timeout);
        let response = world.respond(&request, true);
        assert_eq!(world.take(response), (TunnelOutcome::Empty, vec![]));
    }
}

#[test]
fn only_the_newest_request_gets_the_payload() {
    let mut world = world(TunnelKind::Hybrid);
    let acknowledgement = world.cipher.encrypt(&mut FIRST_IV.clone(), &world.token);
    let first = world.same_epoch(&acknowledgement, b"");
    let second = world.same_epoch(&acknowledgement, b"x");
    let (first_held, second_held) = (world.held(&first), world.held(&second));
    world.live.write(b"answer").expect("room").expect("open");
    let late = world.arrive(&first);
    assert!(matches!(late, Received::Response(TunnelResponse::Body(_, TunnelOutcome::Stale))), "{late:?}");
    let again = world.held(&second);
    for superseded in [first_held, second_held] {
        let response = world.respond(&superseded, true);
        assert_eq!(world.take(response), (TunnelOutcome::Superseded, vec![]));
    }
    let response = world.respond(&again, false);
    assert_eq!(world.take(response), (TunnelOutcome::Retry, b"answer".to_vec()));
    assert_eq!(world.read(), Some(Ok(b"x".to_vec())), "once");
    assert_eq!(world.read(), None);
}

#[test]
fn the_end_comes_after_the_last_bytes() {
    let mut world = world(TunnelKind::Polling);
    world.live.write(b"bye").expect("room").expect("open");
    world.live.shut_down();
    assert_eq!((world.live.state, world.read()), (TunnelState::Ending, None));
    let body = world.body(b"");
    let request = world.held(&body);
    let response = world.respond(&request, true);
    assert_eq!(world.take(response), (TunnelOutcome::Payload, b"bye".to_vec()));
    assert_eq!((world.live.state, world.read()), (TunnelState::Ending, None));
    world.woken();
    let body = world.body(b"");
    let gone = world.arrive(&body);
    assert!(matches!(gone, Received::Response(TunnelResponse::Failed(TunnelOutcome::Gone))), "{gone:?}");
    assert_eq!(world.live.state, TunnelState::Over);
    assert_eq!(world.woken(), [Waiter::Reader]);
    assert_eq!(world.read(), Some(Ok(vec![])), "the client has nothing to add");
    // The same request again: its "gone" was lost.
    let request = world.held(&body);
    let response = world.respond(&request, false);
    assert_eq!(world.take(response), (TunnelOutcome::Retry, vec![]));
}

#[test]
fn a_core_may_write_after_it_has_shut_down() {
    let mut world = world(TunnelKind::Hybrid);
    world.live.shut_down();
    assert_eq!(world.live.state, TunnelState::Over);
    world.live.write(b"farewell").expect("room").expect("open");
    assert_eq!((world.live.state, world.read()), (TunnelState::Ending, None));
    let body = world.body(b"");
    let request = world.held(&body);
    let response = world.respond(&request, false);
    assert_eq!(world.take(response), (TunnelOutcome::Payload, b"farewell".to_vec()));
}

#[test]
fn requests_that_wait_are_answered_when_the_core_ends() {
    for end in [LiveSession::shut_down, LiveSession::let_go] {
        let mut world = world(TunnelKind::Hybrid);
        let body = world.body(b"");
        let request = world.held(&body);
        assert!(world.respond(&request, false).is_none());
        world.woken();
        end(&mut world.live);
        assert!(world.woken().contains(&Waiter::Request));
        let response = world.respond(&request, false);
        assert_eq!(world.take(response), (TunnelOutcome::Empty, vec![]));
    }
}

#[test]
fn when_the_core_has_let_go_data_is_dropped_and_nobody_waits_for_room() {
    let budget = Budget::new(1 << 20, 0, &[]);
    let mut world = world_of(TunnelKind::Hybrid, &budget);
    world.live.write(b"bye").expect("room").expect("open");
    let body = world.body(&[1; WINDOW]);
    let request = world.held(&body);
    assert!(world.live.inbox_is_full() && budget.held() > WINDOW);
    world.live.let_go();
    assert!(!world.live.inbox_is_full());
    assert_eq!(budget.held(), 3);
    let response = world.respond(&request, false);
    assert_eq!(world.take(response), (TunnelOutcome::Payload, b"bye".to_vec()));
    let body = world.body(b"more");
    let gone = world.arrive(&body);
    assert!(matches!(gone, Received::Response(TunnelResponse::Failed(TunnelOutcome::Gone))), "{gone:?}");
    assert!(world.live.inbox.is_empty());
}

#[test]
fn a_request_is_taken_when_it_arrives_and_only_its_response_waits_for_room() {
    for (kind, longest) in [(TunnelKind::Polling, settings().hold), (TunnelKind::Hybrid, DATA_RESPONSE)] {
        let mut world = world(kind);
        let first = world.body(&[1; WINDOW]);
        let request = world.held(&first);
        assert_eq!((request.timeout, request.longest), (settings().reply_wait, longest));
        assert!(world.respond_late(&request, true, false).is_none(), "the inbox is full");
        let acknowledgement = first[8..16].to_vec();
        // The next one does not overtake it, whenever the core reads.
        let second = world.same_epoch(&acknowledgement, b"second");
        let beside = world.held(&second);
        let superseded = world.respond(&request, false);
        assert_eq!(world.take(superseded), (TunnelOutcome::Superseded, vec![]));
        let read = world.read().expect("both are there").expect("open");
        assert_eq!((read.len(), &read[WINDOW..]), (WINDOW + 6, &b"second"[..]));
        assert!(world.woken().contains(&Waiter::Request), "there is room");
        let response = world.respond_late(&beside, true, false);
        assert_eq!(world.take(response), (TunnelOutcome::Empty, vec![]));
    }
}

#[test]
fn a_response_waits_for_room_no_longer_than_it_may_and_not_at_all_where_it_has_payload() {
    let mut world = world(TunnelKind::Polling);
    let body = world.body(&[1; WINDOW]);
    let request = world.held(&body);
    assert!(world.respond_late(&request, true, false).is_none());
    let response = world.respond_late(&request, true, true);
    assert_eq!(world.take(response), (TunnelOutcome::Empty, vec![]));
    let body = world.body(b"more");
    let request = world.held(&body);
    assert!(world.respond_late(&request, true, false).is_none());
    assert_eq!(world.live.write(b"echo"), Some(Ok(4)));
    let response = world.respond_late(&request, false, false);
    assert_eq!(world.take(response), (TunnelOutcome::Payload, b"echo".to_vec()));
}

#[test]
fn an_acknowledgement_makes_room_for_the_core_however_full_the_inbox_is() {
    let mut world = world(TunnelKind::Hybrid);
    let body = world.body(&[1; WINDOW]);
    let request = world.held(&body);
    assert_eq!(world.live.write(&[2; 2 * WINDOW]), Some(Ok(WINDOW)));
    assert_eq!(world.live.write(b"more"), None, "the core waits, and does not read");
    let response = world.respond(&request, false);
    assert_eq!(world.take(response).1.len(), WINDOW);
    let body = world.body(&[3; WINDOW]);
    world.held(&body);
    assert!(world.woken().contains(&Waiter::Writer));
    assert_eq!(world.live.write(b"more"), Some(Ok(4)));
}

#[test]
fn a_payload_without_room_in_the_budget_is_not_taken_and_none_overtakes_it() {
    let budget = Budget::new(2 * WINDOW, 0, &[]);
    let mut world = world_of(TunnelKind::Hybrid, &budget);
    assert_eq!(world.live.write(&[1; 100]), Some(Ok(100)));
    let body = world.body(b"zero");
    let request = world.held(&body);
    let response = world.respond(&request, false);
    world.take(response);
    let mut another = HeldBytes::none(&budget, [127, 0, 0, 2].into());
    another.set(2 * WINDOW);
    let first = world.body(&[1; WINDOW]);
    assert!(matches!(world.arrive(&first), Received::NoRoom));
    assert_eq!(world.live.session.unacknowledged(), 0, "its acknowledgement counts");
    assert!(world.woken().contains(&Waiter::Writer));
    let acknowledgement = first[8..16].to_vec();
    let second = world.same_epoch(&acknowledgement, b"second");
    assert!(matches!(world.arrive(&second), Received::NoRoom), "it is behind the first");
    another.set(0);
    assert!(matches!(world.arrive(&second), Received::NoRoom), "it is behind the first");
    world.held(&first);
    world.held(&second);
    let read = world.read().expect("both are there").expect("open");
    assert_eq!((&read[..4], read.len(), &read[4 + WINDOW..]), (&b"zero"[..], WINDOW + 10, &b"second"[..]));
    assert!(world.live.without_room.is_empty());
    // One payload passes, whatever its length, so that the session goes on.
    another.set(2 * WINDOW);
    let third = world.same_epoch(&acknowledgement, &[3; WINDOW]);
    world.held(&third);
    let fourth = world.same_epoch(&acknowledgement, &[4; WINDOW]);
    assert!(matches!(world.arrive(&fourth), Received::NoRoom));
}

#[test]
fn payloads_without_room_are_taken_in_the_order_of_their_arrival() {
    let budget = Budget::new(4 * WINDOW, 0, &[]);
    let mut world = world_of(TunnelKind::Hybrid, &budget);
    let zero = world.body(b"zero");
    world.held(&zero);
    let mut another = HeldBytes::none(&budget, [127, 0, 0, 2].into());
    another.set(4 * WINDOW);
    let acknowledgement = zero[8..16].to_vec();
    let bodies = [1, 2, 3].map(|n| world.same_epoch(&acknowledgement, &[n; WINDOW / 2]));
    for body in &bodies {
        assert!(matches!(world.arrive(body), Received::NoRoom));
    }
    another.set(0);
    for [next, later] in [[0, 1], [0, 2], [1, 2]] {
        assert!(matches!(world.arrive(&bodies[later]), Received::NoRoom), "{later} is behind {next}");
        world.held(&bodies[next]);
    }
    world.held(&bodies[2]);
    let read = world.read().expect("all are there").expect("open");
    let expected: Vec<u8> = [1, 2, 3].into_iter().flat_map(|n| [n; WINDOW / 2]).collect();
    assert_eq!(read.len(), 4 + expected.len());
    assert!(read[4..] == expected, "once and in order");
}

#[test]
fn a_little_passes_although_the_budget_has_no_room() {
    let budget = Budget::new(2 * WINDOW, 0, &[]);
    let mut world = world_of(TunnelKind::Polling, &budget);
    let zero = world.body(b"zero");
    world.held(&zero);
    let mut another = HeldBytes::none(&budget, [127, 0, 0, 2].into());
    another.set(2 * WINDOW);
    let acknowledgement = zero[8..16].to_vec();
    let taken = (1..=255).take_while(|n| {
        let body = world.same_epoch(&acknowledgement, &[*n; 100]);
        matches!(world.arrive(&body), Received::Held(_))
    });
    // Each takes 100 bytes, and what a piece takes in addition.
    assert_eq!(taken.count(), (LITTLE - 4 - PIECE) / (100 + PIECE));
}

#[test]
fn bodies_without_room_may_exceed_the_limit_of_an_address_by_some_windows_together() {
    let budget = Budget::new(1 << 20, LITTLE, &[]);
    let mut world = world_of(TunnelKind::Polling, &budget);
    let mut body_of = |bytes: usize| {
        let mut held = HeldBytes::none(&budget, [127, 0, 0, 1].into());
        held.except(world.live.exception());
        held.grow(bytes).then_some(held)
    };
    let first = body_of(WINDOW).expect("one alone may in any case");
    let second = body_of((EXCEPTED_WINDOWS - 1) * WINDOW).expect("all together have so much");
    assert!(body_of(LITTLE + 1).is_none(), "and not more");
    drop((first, second));
    assert!(body_of(2 * EXCEPTED_WINDOWS * WINDOW).is_some(), "one alone may");
}

#[test]
fn a_read_makes_room_and_wakes_a_request_only_then() {
    let budget = Budget::new(1 << 20, 0, &[]);
    let mut world = world_of(TunnelKind::Polling, &budget);
    for (length, wakes) in [(WINDOW / 2, vec![]), (WINDOW, vec![Waiter::Request])] {
        let body = world.body(&vec![1; length]);
        let request = world.held(&body);
        world.woken();
        assert_eq!(budget.held(), length + PIECE);
        world.read().expect("bytes").expect("open");
        assert_eq!((world.woken(), budget.held()), (wakes, 0), "{length}");
        let response = world.respond(&request, true);
        world.take(response);
    }
}

#[test]
fn while_there_is_payload_for_the_client_a_second_payload_passes_and_no_third_one() {
    let budget = Budget::new(2 * WINDOW, 0, &[]);
    let mut world = world_of(TunnelKind::Hybrid, &budget);
    let mut another = HeldBytes::none(&budget, [127, 0, 0, 2].into());
    another.set(2 * WINDOW);
    assert_eq!(world.live.write(b"for the client"), Some(Ok(14)));
    for n in [1, 2] {
        let body = world.body(&[n; WINDOW]);
        let request = world.held(&body);
        let response = world.respond(&request, false);
        assert_eq!(world.take(response).0, TunnelOutcome::Payload);
        assert_eq!(world.live.write(b"more"), Some(Ok(4)));
    }
    let third = world.body(b"a third one");
    assert!(matches!(world.arrive(&third), Received::NoRoom));
    world.read().expect("two payloads").expect("open");
    world.held(&third);
}

#[test]
fn the_limit_of_an_address_gives_way_to_eight_payloads_for_each_acknowledgement() {
    let budget = Budget::new(1 << 20, LITTLE, &[]);
    let mut world = world_of(TunnelKind::Hybrid, &budget);
    let first = world.body(&[0; WINDOW]);
    world.held(&first);
    let acknowledgement = first[8..16].to_vec();
    let beside = |world: &World, n: u8| world.same_epoch(&acknowledgement, &[n; WINDOW]);
    let early = beside(&world, 100);
    assert!(matches!(world.arrive(&early), Received::NoRoom), "the client waits for nothing");
    assert_eq!(world.live.write(&[7; WINDOW]), Some(Ok(LITTLE)), "the little that each session has");
    // The second one of all has room in any case.
    world.held(&early);
    for n in 0..MOST_BEYOND {
        let body = beside(&world, n + 1);
        let request = world.held(&body);
        let response = world.respond(&request, false);
        assert_eq!(world.take(response).1.len(), LITTLE);
    }
    let ninth = beside(&world, 200);
    assert!(matches!(world.arrive(&ninth), Received::NoRoom));
    // The client acknowledges what it has received, and so the Community may write more.
    let tenth = world.body(&[9; WINDOW]);
    assert!(matches!(world.arrive(&tenth), Received::NoRoom), "it is behind the ninth");
    assert_eq!(world.live.write(&[7; WINDOW]), Some(Ok(LITTLE)));
    assert!(matches!(world.arrive(&tenth), Received::NoRoom), "it is behind the ninth");
    world.live.without_room.clear();
    world.held(&tenth);
    // The total limit gives way to nothing.
    let mut another = HeldBytes::none(&budget, [127, 0, 0, 2].into());
    another.set(1 << 20);
    let acknowledgement = tenth[8..16].to_vec();
    let eleventh = world.same_epoch(&acknowledgement, b"little");
    assert!(matches!(world.arrive(&eleventh), Received::NoRoom));
}

#[test]
fn a_request_that_gets_gone_gives_back_what_it_acknowledges() {
    let budget = Budget::new(1 << 20, 0, &[]);
    let mut world = world_of(TunnelKind::Polling, &budget);
    world.live.write(b"the last bytes");
    world.live.shut_down();
    let body = world.body(b"");
    let request = world.held(&body);
    let response = world.respond(&request, false);
    assert_eq!((world.take(response).1.len(), budget.held()), (14, 14));
    let body = world.body(b"");
    let response = world.arrive(&body);
    assert!(matches!(response, Received::Response(TunnelResponse::Failed(TunnelOutcome::Gone))), "{response:?}");
    assert_eq!(budget.held(), 0);
}

#[test]
fn the_window_bounds_what_the_core_may_write_until_the_client_acknowledges_it() {
    let mut world = world(TunnelKind::Polling);
    assert_eq!(world.live.write(&[1; 2 * WINDOW]), Some(Ok(WINDOW)));
    assert_eq!(world.live.write(b"more"), None);
    let body = world.body(b"");
    let request = world.held(&body);
    assert!(!world.woken().contains(&Waiter::Writer), "nothing is acknowledged yet");
    let response = world.respond(&request, true);
    assert_eq!(world.take(response).1.len(), WINDOW);
    let body = world.body(b"");
    world.held(&body);
    assert!(world.woken().contains(&Waiter::Writer));
    assert_eq!(world.live.write(b"more"), Some(Ok(4)));
}

#[test]
fn a_response_is_short_when_the_budget_has_no_room_for_it() {
    let budget = Budget::new(WINDOW + 1, 0, &[]);
    let mut world = world_of(TunnelKind::Hybrid, &budget);
    assert_eq!(world.live.write(&[1; WINDOW]), Some(Ok(WINDOW)));
    for part in [LITTLE, LITTLE, WINDOW - 2 * LITTLE] {
        let body = world.body(b"");
        let request = world.held(&body);
        let response = world.respond(&request, false);
        assert_eq!(world.take(response).1.len(), part);
    }
}

#[test]
fn a_session_without_requests_times_out() {
    let mut world = world(TunnelKind::Hybrid);
    let body = world.body(b"");
    let request = world.held(&body);
    world.woken();
    let departs = world.start + TIMEOUT;
    assert!(!world.live.expire(departs, TIMEOUT, LINGER), "a request is there");
    world.live.depart(true, departs);
    assert!(!world.live.expire(departs + TIMEOUT - Duration::from_millis(1), TIMEOUT, LINGER));
    // A request that is not the client's does not keep the session.
    let stranger = world.same_epoch(&[9; BLOCK], b"");
    world.live.arrive();
    let refused = world.live.receive(&stranger, &settings());
    assert!(matches!(refused, Err(RequestError::Acknowledgement)), "{refused:?}");
    world.live.depart(false, departs + TIMEOUT);
    assert!(world.live.expire(departs + TIMEOUT, TIMEOUT, LINGER));
    assert_eq!(world.woken(), [Waiter::Reader, Waiter::Writer]);
    assert_eq!(world.read(), Some(Err(StreamError::SessionTimeout)));
    assert_eq!(world.live.write(b"x"), Some(Err(StreamError::SessionTimeout)));
    // A request that has found the session before it was forgotten.
    let response = world.respond(&request, false);
    assert!(matches!(response, Some(TunnelResponse::Failed(TunnelOutcome::Gone))), "{response:?}");
}

#[test]
fn a_session_that_is_over_is_forgotten_when_its_client_does_not_retry_any_more() {
    let mut world = world(TunnelKind::Polling);
    assert!(!world.live.expire(world.start + LINGER, TIMEOUT, LINGER), "it is open");
    world.live.let_go();
    assert!(!world.live.expire(world.start + LINGER - Duration::from_millis(1), TIMEOUT, LINGER));
    assert!(world.live.expire(world.start + LINGER, TIMEOUT, LINGER));
    assert_eq!(world.live.state, TunnelState::Over);
}
