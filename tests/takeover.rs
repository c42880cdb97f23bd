//! A tunnel session is its client's: nobody else can use it, keep it, or find out that it is there.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{net::SocketAddr, time::Instant};

use support::{
    Random,
    community::Community,
    frames,
    http::{self, exchange, post},
    mux::{self, Mux},
    record, soon,
    tunnel::{Kind, Session},
};
use tokio::net::{TcpSocket, TcpStream};

async fn from(source: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

/// One request on a connection of its own, from `source`.
async fn ask(mux: &Mux, source: &str, path: &str, body: &[u8]) -> http::Response {
    let mut stream = from(source, mux.raw()).await;
    soon("a response", exchange(&mut stream, &post(path, body))).await.unwrap()
}

/// A session that is opened and has said its Handshake.
async fn opened(mux: &Mux, kind: Kind) -> Session {
    let mut session = Session::new(kind);
    session.opened(&ask(mux, "127.0.0.1", &session.path(), &session.opening()).await.body);
    let body = session.request(&frames::handshake().bytes());
    let path = session.path();
    session.response(&ask(mux, "127.0.0.1", &path, &body).await.body);
    session
}

async fn outcome(mux: &Mux, outcome: &str) -> f64 {
    mux.metric(&format!("sametime_mux_tunnel_requests_total{{kind=\"http_polling\",outcome=\"{outcome}\"}}")).await
}

/// A request with an acknowledgement that nobody was given.
fn unfitting() -> Vec<u8> {
    [&[0; 4][..], &frames::opaque(b"8 bytes."), &frames::log_out().bytes()].concat()
}

#[tokio::test]
async fn another_source_may_go_on_by_default_and_an_acknowledgement_that_does_not_fit_may_not() {
    let community = Community::start_echo().await;
    let mux = mux::start(&community.setting()).await;
    let mut session = opened(&mux, Kind::Polling).await;
    let path = session.path();
    let seen = community.seen(0);
    let stolen = ask(&mux, "127.0.0.66", &path, &unfitting()).await;
    assert_eq!(stolen.status, 404);
    assert_eq!(outcome(&mux, "not_acknowledged").await, 1.0);
    assert_eq!(community.seen(0), seen, "not a byte came through");
    // The client itself, by another proxy.
    let body = session.request(&frames::login("bob", "secret").bytes());
    let went_on = ask(&mux, "127.0.0.2", &path, &body).await;
    assert_eq!(went_on.status, 200);
    let ack = session.response(&went_on.body);
    assert_eq!(&ack[4..6], &frames::LOGIN_ACK.to_be_bytes());
}

#[tokio::test]
async fn another_source_is_refused_where_that_is_configured() {
    let community = Community::start_echo().await;
    let mux = mux::start(&format!("{}[tunnel]\nsame_address = true\n", community.setting())).await;
    let mut session = opened(&mux, Kind::Polling).await;
    let path = session.path();
    let body = session.request(&frames::login("bob", "secret").bytes());
    assert_eq!(ask(&mux, "127.0.0.2", &path, &body).await.status, 404);
    assert_eq!(outcome(&mux, "other_address").await, 1.0);
    let own = ask(&mux, "127.0.0.1", &path, &body).await;
    assert_eq!(own.status, 200, "nothing was taken from it");
    assert_eq!(&session.response(&own.body)[4..6], &frames::LOGIN_ACK.to_be_bytes());
}

#[tokio::test]
async fn a_stranger_does_not_keep_a_session_alive() {
    let community = Community::start_echo().await;
    let toml = format!("{}[tunnel]\nsession_timeout = \"1s\"\n", community.setting());
    let mux = mux::start(&toml).await;
    let session = opened(&mux, Kind::Polling).await;
    soon("the session's end", async {
        while mux.server.sessions() > 0 {
            ask(&mux, "127.0.0.66", &session.path(), &unfitting()).await;
        }
    })
    .await;
}

/// Everything of a response but its date.
async fn bytes_of(mux: &Mux, path: &str, body: &[u8]) -> String {
    let response = ask(mux, "127.0.0.66", path, body).await;
    let (dates, head): (Vec<&str>, Vec<&str>) =
        response.head.split("\r\n").partition(|line| line.starts_with("date: "));
    assert_eq!(dates.len(), 1, "{}", response.head);
    head.join("\r\n") + &String::from_utf8(response.body).unwrap()
}

/// What a guesser can send to a name, whoever's it is.
fn guesses() -> Vec<(&'static str, Vec<u8>)> {
    let long = [&[0; 4][..], &frames::opaque(&[7; 64])].concat();
    vec![
        ("an acknowledgement that does not fit", unfitting()),
        ("one that is too long", long),
        ("none", [&[0; 4][..], &frames::opaque(b"")].concat()),
        ("not the tunnel's", b"rubbish".to_vec()),
        ("nothing", Vec::new()),
        ("an opening", Session::new(Kind::Polling).opening()),
        ("large", vec![0; 100_000]),
    ]
}

#[tokio::test]
async fn no_byte_tells_a_live_name_from_a_dead_one() {
    let community = Community::start_echo().await;
    let mux = mux::start(&community.setting()).await;
    let mut compared = 0;
    for kind in [Kind::Polling, Kind::Hybrid] {
        let live = opened(&mux, kind).await;
        let other = if kind == Kind::Polling { Kind::Hybrid } else { Kind::Polling };
        let dead = |digit: &str| format!("/CommunityCBR/CC.{}.{}/", kind.number(), digit.repeat(32));
        let not_a_name = format!("/CommunityCBR/CC.{}.{}/", kind.number(), "x".repeat(32));
        let of_the_other_kind =
            live.path().replace(&format!("CC.{}", kind.number()), &format!("CC.{}", other.number()));
        for (what, body) in guesses() {
            let expected = bytes_of(&mux, &dead("0"), &body).await;
            assert!(expected.starts_with("HTTP/1.1 404 "), "{expected}");
            for path in [&live.path(), &dead("f"), &not_a_name, &of_the_other_kind] {
                assert_eq!(bytes_of(&mux, path, &body).await, expected, "{kind:?}, {what}: {path}");
                compared += 1;
            }
        }
        assert_eq!(community.sessions(), usize::from(kind == Kind::Hybrid) + 1);
    }
    for n in 0..2 {
        assert_eq!(community.seen(n).len(), frames::handshake().bytes().len(), "not a byte came through");
    }
    record::attack(
        "a session's name without its acknowledgement",
        &format!("{compared} requests: {} bodies, live and dead names, both kinds", guesses().len()),
        "the same 404, byte for byte, as for a name that does not exist",
        "nothing: not a byte came through",
        "no_byte_tells_a_live_name_from_a_dead_one",
    );
}

/// How much of one sample lies behind the other: 0.5 where they are of one kind (Mann and Whitney's
/// U, as a share of the pairs).
fn share_behind(a: &[u128], b: &[u128]) -> f64 {
    let pairs = (a.len() * b.len()) as f64;
    let behind: f64 =
        a.iter().flat_map(|x| b.iter().map(move |y| if x > y { 1.0 } else { f64::from(u8::from(x == y)) / 2.0 })).sum();
    behind / pairs
}

/// Every other request is for the live session, at random, so that whatever else the machine does
/// falls on both alike. `share_behind` of 120 and 120 from one population strays from 0.5 by 0.04
/// (one standard deviation); 0.2 away is no chance.
#[tokio::test]
async fn no_moment_tells_a_live_name_from_a_dead_one() {
    let community = Community::start_echo().await;
    let mux = mux::start(&community.setting()).await;
    let session = opened(&mux, Kind::Polling).await;
    let (live, dead) = (session.path(), format!("/CommunityCBR/CC.35.{}/", "0".repeat(32)));
    let (mut random, mut took) = (Random(7), [Vec::new(), Vec::new()]);
    let mut stream = from("127.0.0.66", mux.raw()).await;
    while took[0].len() < 120 || took[1].len() < 120 {
        let which = random.below(2) as usize;
        let path = if which == 0 { &dead } else { &live };
        let began = Instant::now();
        let response = exchange(&mut stream, &post(path, &unfitting())).await.unwrap();
        took[which].push(began.elapsed().as_nanos());
        assert_eq!(response.status, 404);
    }
    let share = share_behind(&took[0], &took[1]);
    assert!((0.3..=0.7).contains(&share), "{share}");
}

#[test]
fn a_difference_would_be_seen() {
    let sample = |least| (0..200u128).map(|n| least + n * n % 97).collect::<Vec<_>>();
    assert!((0.45..=0.55).contains(&share_behind(&sample(0), &sample(0))));
    assert!(share_behind(&sample(60), &sample(0)) > 0.7);
}

#[tokio::test]
async fn guessing_is_slow_and_counted() {
    let community = Community::start_echo().await;
    let mux = mux::start(&community.setting()).await;
    let session = opened(&mux, Kind::Polling).await;
    let (mut random, mut sent) = (Random(11), 0);
    // 50 a second are answered soon: with 400 at a time, some are late unless the machine is.
    while mux.metric("sametime_mux_tunnel_guesses_delayed_total").await == 0.0 {
        assert!(sent < 40_000, "none is late");
        let mut guessers = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let name = |random: &mut Random| {
                (0..32).map(|_| char::from_digit(random.below(16) as u32, 16).unwrap()).collect::<String>()
            };
            let names: Vec<String> = (0..10).map(|_| name(&mut random)).collect();
            let to = mux.raw();
            guessers.spawn(async move {
                let mut stream = from("127.0.0.66", to).await;
                for name in names {
                    let path = format!("/CommunityCBR/CC.35.{name}/");
                    assert_eq!(exchange(&mut stream, &post(&path, &unfitting())).await.unwrap().status, 404);
                }
            });
        }
        while let Some(guessed) = soon("the answers", guessers.join_next()).await {
            guessed.unwrap();
        }
        sent += 400;
    }
    assert_eq!(outcome(&mux, "unknown").await, f64::from(sent));
    let late = mux.metric("sametime_mux_tunnel_guesses_delayed_total").await;
    // Others are not held back by it.
    let path = session.path();
    assert_eq!(ask(&mux, "127.0.0.1", &path, &unfitting()).await.status, 404);
    assert_eq!(mux.metric("sametime_mux_tunnel_guesses_delayed_total").await, late);
    record::attack(
        "guessed names of tunnel sessions",
        &format!("{sent}, 40 connections at once"),
        &format!("404, {late} of them a second late; another address is not delayed"),
        "nothing: none of 2^128 names was guessed",
        "guessing_is_slow_and_counted",
    );
}
