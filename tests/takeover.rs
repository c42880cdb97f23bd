//! A tunnel session belongs to its client: nobody else can use it, keep it alive, or detect that it exists.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{net::SocketAddr, time::Instant};

use support::{
    Random,
    community::Community,
    frames,
    http::{self, exchange, post},
    in_time,
    mux::{self, Mux},
    record,
    tunnel::{Kind, Session},
};
use tokio::net::{TcpSocket, TcpStream};

/// Connects from the address `source`.
async fn connect_from(source: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(SocketAddr::new(source.parse().unwrap(), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

/// Sends one request on a new connection from `source`.
async fn send_request(mux: &Mux, source: &str, path: &str, body: &[u8]) -> http::Response {
    let mut stream = connect_from(source, mux.raw()).await;
    in_time("a response", exchange(&mut stream, &post(path, body))).await.unwrap()
}

/// Opens a session and sends its Handshake.
async fn open_session(mux: &Mux, kind: Kind) -> Session {
    let mut session = Session::new(kind);
    session.opened(&send_request(mux, "127.0.0.1", &session.path(), &session.opening()).await.body);
    let body = session.request(&frames::handshake().bytes());
    let path = session.path();
    session.response(&send_request(mux, "127.0.0.1", &path, &body).await.body);
    session
}

/// How many requests of polling sessions had this outcome.
async fn outcome(mux: &Mux, outcome: &str) -> f64 {
    mux.metric(&format!("sametime_mux_tunnel_requests_total{{kind=\"http_polling\",outcome=\"{outcome}\"}}")).await
}

/// The body of a request with an acknowledgement that no session has.
fn wrong_acknowledgement() -> Vec<u8> {
    [&[0; 4][..], &frames::opaque(b"8 bytes."), &frames::log_out().bytes()].concat()
}

#[tokio::test]
async fn another_address_may_continue_a_session_but_only_with_its_acknowledgement() {
    let community = Community::start_echo().await;
    let mux = mux::start(&community.setting()).await;
    let mut session = open_session(&mux, Kind::Polling).await;
    let path = session.path();
    let seen = community.received(0);
    let stolen = send_request(&mux, "127.0.0.66", &path, &wrong_acknowledgement()).await;
    assert_eq!(stolen.status, 404);
    assert_eq!(outcome(&mux, "not_acknowledged").await, 1.0);
    assert_eq!(community.received(0), seen, "not a byte came through");
    // The client itself continues, through another proxy.
    let body = session.request(&frames::login("bob", "secret").bytes());
    let went_on = send_request(&mux, "127.0.0.2", &path, &body).await;
    assert_eq!(went_on.status, 200);
    let ack = session.response(&went_on.body);
    assert_eq!(&ack[4..6], &frames::LOGIN_ACK.to_be_bytes());
}

#[tokio::test]
async fn another_address_is_refused_if_this_is_configured() {
    let community = Community::start_echo().await;
    let mux = mux::start(&format!("{}[tunnel]\nsame_address = true\n", community.setting())).await;
    let mut session = open_session(&mux, Kind::Polling).await;
    let path = session.path();
    let body = session.request(&frames::login("bob", "secret").bytes());
    assert_eq!(send_request(&mux, "127.0.0.2", &path, &body).await.status, 404);
    assert_eq!(outcome(&mux, "other_address").await, 1.0);
    let own = send_request(&mux, "127.0.0.1", &path, &body).await;
    assert_eq!(own.status, 200, "nothing was taken from it");
    assert_eq!(&session.response(&own.body)[4..6], &frames::LOGIN_ACK.to_be_bytes());
}

#[tokio::test]
async fn a_stranger_does_not_keep_a_session_alive() {
    let community = Community::start_echo().await;
    let toml = format!("{}[tunnel]\nsession_timeout = \"1s\"\n", community.setting());
    let mux = mux::start(&toml).await;
    let session = open_session(&mux, Kind::Polling).await;
    in_time("the session's end", async {
        while mux.server.sessions() > 0 {
            send_request(&mux, "127.0.0.66", &session.path(), &wrong_acknowledgement()).await;
        }
    })
    .await;
}

/// All bytes of a response except its date.
async fn response_without_date(mux: &Mux, path: &str, body: &[u8]) -> String {
    let response = send_request(mux, "127.0.0.66", path, body).await;
    let (dates, head): (Vec<&str>, Vec<&str>) =
        response.head.split("\r\n").partition(|line| line.starts_with("date: "));
    assert_eq!(dates.len(), 1, "{}", response.head);
    head.join("\r\n") + &String::from_utf8(response.body).unwrap()
}

/// The bodies that a guesser can send to a session name.
fn guesses() -> Vec<(&'static str, Vec<u8>)> {
    let long = [&[0; 4][..], &frames::opaque(&[7; 64])].concat();
    vec![
        ("an acknowledgement that does not fit", wrong_acknowledgement()),
        ("one that is too long", long),
        ("none", [&[0; 4][..], &frames::opaque(b"")].concat()),
        ("not the tunnel's", b"rubbish".to_vec()),
        ("nothing", Vec::new()),
        ("an opening", Session::new(Kind::Polling).opening()),
        ("large", vec![0; 100_000]),
    ]
}

#[tokio::test]
async fn the_bytes_of_a_response_do_not_show_whether_a_session_exists() {
    let community = Community::start_echo().await;
    let mux = mux::start(&community.setting()).await;
    let mut compared = 0;
    for kind in [Kind::Polling, Kind::Hybrid] {
        let live = open_session(&mux, kind).await;
        let other = if kind == Kind::Polling { Kind::Hybrid } else { Kind::Polling };
        let dead = |digit: &str| format!("/CommunityCBR/CC.{}.{}/", kind.number(), digit.repeat(32));
        let not_a_name = format!("/CommunityCBR/CC.{}.{}/", kind.number(), "x".repeat(32));
        let of_the_other_kind =
            live.path().replace(&format!("CC.{}", kind.number()), &format!("CC.{}", other.number()));
        for (what, body) in guesses() {
            let expected = response_without_date(&mux, &dead("0"), &body).await;
            assert!(expected.starts_with("HTTP/1.1 404 "), "{expected}");
            for path in [&live.path(), &dead("f"), &not_a_name, &of_the_other_kind] {
                assert_eq!(response_without_date(&mux, path, &body).await, expected, "{kind:?}, {what}: {path}");
                compared += 1;
            }
        }
        assert_eq!(community.sessions(), usize::from(kind == Kind::Hybrid) + 1);
    }
    for n in 0..2 {
        assert_eq!(community.received(n).len(), frames::handshake().bytes().len(), "not a byte came through");
    }
    record::attack(
        "a session's name without its acknowledgement",
        &format!("{compared} requests: {} bodies, live and dead names, both kinds", guesses().len()),
        "the same 404, byte for byte, as for a name that does not exist",
        "nothing: not a byte came through",
        "the_bytes_of_a_response_do_not_show_whether_a_session_exists",
    );
}

/// The share of all pairs in which the value of `a` is greater than that of `b`: about 0.5 if both samples have the same
/// distribution (Mann and Whitney's U, divided by the number of pairs).
fn share_greater(a: &[u128], b: &[u128]) -> f64 {
    let pairs = (a.len() * b.len()) as f64;
    let greater: f64 =
        a.iter().flat_map(|x| b.iter().map(move |y| if x > y { 1.0 } else { f64::from(u8::from(x == y)) / 2.0 })).sum();
    greater / pairs
}

/// Each request is at random for the existing session or for a missing one, so that other work on the machine affects
/// both alike. For two samples of 120 from the same distribution, [`share_greater`] has a standard deviation of 0.04, so
/// a difference of 0.2 from 0.5 is not a coincidence.
#[tokio::test]
async fn the_time_of_a_response_does_not_show_whether_a_session_exists() {
    let community = Community::start_echo().await;
    let mux = mux::start(&community.setting()).await;
    let session = open_session(&mux, Kind::Polling).await;
    let (live, dead) = (session.path(), format!("/CommunityCBR/CC.35.{}/", "0".repeat(32)));
    let (mut random, mut took) = (Random(7), [Vec::new(), Vec::new()]);
    let mut stream = connect_from("127.0.0.66", mux.raw()).await;
    while took[0].len() < 120 || took[1].len() < 120 {
        let which = random.below(2) as usize;
        let path = if which == 0 { &dead } else { &live };
        let began = Instant::now();
        let response = exchange(&mut stream, &post(path, &wrong_acknowledgement())).await.unwrap();
        took[which].push(began.elapsed().as_nanos());
        assert_eq!(response.status, 404);
    }
    let share = share_greater(&took[0], &took[1]);
    assert!((0.3..=0.7).contains(&share), "{share}");
}

#[test]
fn the_comparison_of_times_detects_a_difference() {
    let sample = |least| (0..200u128).map(|n| least + n * n % 97).collect::<Vec<_>>();
    assert!((0.45..=0.55).contains(&share_greater(&sample(0), &sample(0))));
    assert!(share_greater(&sample(60), &sample(0)) > 0.7);
}

#[tokio::test]
async fn guessing_is_slow_and_counted() {
    let community = Community::start_echo().await;
    let mux = mux::start(&community.setting()).await;
    let session = open_session(&mux, Kind::Polling).await;
    let (mut random, mut sent) = (Random(11), 0);
    // 50 guesses a second have a response without delay. Of 400 at once, some are delayed, unless the machine is slow.
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
                let mut stream = connect_from("127.0.0.66", to).await;
                for name in names {
                    let path = format!("/CommunityCBR/CC.35.{name}/");
                    assert_eq!(
                        exchange(&mut stream, &post(&path, &wrong_acknowledgement())).await.unwrap().status,
                        404
                    );
                }
            });
        }
        while let Some(guessed) = in_time("the answers", guessers.join_next()).await {
            guessed.unwrap();
        }
        sent += 400;
    }
    assert_eq!(outcome(&mux, "unknown").await, f64::from(sent));
    let late = mux.metric("sametime_mux_tunnel_guesses_delayed_total").await;
    // Requests of other addresses are not delayed.
    let path = session.path();
    assert_eq!(send_request(&mux, "127.0.0.1", &path, &wrong_acknowledgement()).await.status, 404);
    assert_eq!(mux.metric("sametime_mux_tunnel_guesses_delayed_total").await, late);
    record::attack(
        "guessed names of tunnel sessions",
        &format!("{sent}, 40 connections at once"),
        &format!("404, {late} of them a second late; another address is not delayed"),
        "nothing: none of 2^128 names was guessed",
        "guessing_is_slow_and_counted",
    );
}
