//! Requests that wait, on a clock that stands still while there is something to do.

use super::*;
use crate::{
    ingress::tunnel::{session::TunnelSession, token::Token},
    limits::{
        budget::{Budget, HeldBytes},
        tally::Tally,
    },
    wire::{
        message::Writer,
        tunnel::{
            cipher::{Cipher, FIRST_IV},
            envelope,
        },
    },
};

const KEY: [u8; 16] = *b"sixteen secrets!";
const WINDOW: usize = 10_000;
const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
const SECOND: Duration = Duration::from_secs(1);

fn settings() -> TunnelSettings {
    TunnelSettings {
        hold: SECOND * 25,
        reply_wait: SECOND / 10,
        session_timeout: SECOND * 90,
        stream_keep_alive: None,
        version: 0,
        window: WINDOW,
        same_address: false,
        sessions: 1,
        sessions_per_address: 0,
        exempt: vec![],
    }
}

fn session(kind: TunnelKind, budget: &Arc<Budget>) -> Arc<SessionHandle> {
    let session = TunnelSession::new(kind, 0, 1, Cipher::new(&KEY), Token::default());
    let place = Arc::<Tally>::default().enter(1).expect("room");
    SessionHandle::new(LiveSession::new(session, WINDOW, HeldBytes::none(budget, CLIENT), place, Instant::now()))
}

/// A request of the first epoch.
fn body(kind: TunnelKind, data: &[u8]) -> Vec<u8> {
    let acknowledgement = Cipher::new(&KEY).encrypt(&mut { FIRST_IV }, &Token::default());
    let payload = if kind == TunnelKind::Hybrid { envelope::record(1, data) } else { data.to_vec() };
    let mut out = Writer::new();
    out.u32(0).opaque(&acknowledgement).raw(&payload);
    out.0
}

/// Sends a request. Returns its outcome, and how many milliseconds it took.
async fn request(session: &SessionHandle, body: Vec<u8>) -> (TunnelOutcome, u128) {
    let start = Instant::now();
    let response = session.request(body, &settings()).await.expect("the client's");
    (response.outcome(), start.elapsed().as_millis())
}

#[tokio::test(start_paused = true)]
async fn a_request_is_answered_after_its_time_and_one_that_fills_the_inbox_after_the_longest() {
    let budget = Budget::new(1 << 20, 0, &[]);
    // What a request waits that brings data, one that brings more than the core takes, and one without data.
    for (kind, waits) in [(TunnelKind::Polling, [100, 25_000, 0]), (TunnelKind::Hybrid, [100, 900, 25_000])] {
        for (data, longest) in [&[1; 10][..], &[2; WINDOW], &[]].into_iter().zip(waits) {
            let (outcome, took) = request(&session(kind, &budget), body(kind, data)).await;
            assert_eq!(outcome, TunnelOutcome::Empty);
            assert!((longest..=longest + 2).contains(&took), "{kind:?} {} {took}", data.len());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_without_room_waits_for_room_and_is_refused_in_the_end() {
    let kind = TunnelKind::Hybrid;
    let budget = Budget::new(4 * WINDOW, 0, &[]);
    let session = session(kind, &budget);
    // One payload passes in any case.
    assert_eq!(request(&session, body(kind, &[0; WINDOW])).await.0, TunnelOutcome::Empty);
    let mut another = HeldBytes::none(&budget, [127, 0, 0, 2].into());
    another.set(4 * WINDOW);
    let (outcome, took) = request(&session, body(kind, &[1; WINDOW])).await;
    assert_eq!(outcome, TunnelOutcome::Busy);
    assert!((90_000..90_050).contains(&took), "{took}");
    let late = Arc::clone(&session);
    let late = tokio::spawn(async move { request(&late, body(kind, &[1; WINDOW])).await });
    sleep(SECOND * 80).await;
    another.set(0);
    let (outcome, took) = late.await.expect("no panic");
    assert_eq!(outcome, TunnelOutcome::Empty, "there is room now");
    assert!((80_000..82_000).contains(&took), "{took}");
}
