use std::{
    pin::pin,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::{
    community::{Balance, Check},
    wire::reason::Reason,
};

const CLIENT: &str = "192.0.2.9:4000";

fn trunks() -> Arc<Trunks> {
    Trunks::new(vec![tokio::runtime::Handle::current()], crate::telemetry::Telemetry::new("0"))
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound").to_string();
    (listener, address)
}

async fn closed_port() -> String {
    listener().await.1
}

fn settings(servers: &[&str], balance: Balance) -> CommunitySettings {
    CommunitySettings {
        servers: servers.iter().map(|s| ServerAddress::Address((*s).to_owned()).into()).collect(),
        balance,
        recalculate_after: 1,
        slow_start: Duration::ZERO,
        send_proxy_protocol: false,
        trunk: crate::trunk::TrunkSettings::unused(),
        connect_timeout: Duration::from_secs(5),
        handshake_timeout: Duration::from_secs(30),
        check: Check::Connect,
        check_interval: None,
    }
}

/// For a client that sends more than its Handshake: the answer of the server is not waited for.
async fn connect(pool: &Pool) -> Result<Link, LinkError> {
    let opened = pool.connect(CLIENT.parse().expect("address"), b"hello", pin!(async {})).await;
    opened.map(|(link, _no_answer)| link)
}

/// For a client that waits for the answer, which is returned with the link.
async fn connect_and_wait(pool: &Pool) -> Result<(Link, Vec<u8>), LinkError> {
    pool.connect(CLIENT.parse().expect("address"), b"hello", pin!(std::future::pending())).await
}

/// A server that hangs: its connections are accepted, and it answers only when the returned flag is set.
async fn hanging() -> (Arc<AtomicBool>, String) {
    let ((listener, address), answers) = (listener().await, Arc::new(AtomicBool::new(false)));
    let set = Arc::clone(&answers);
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.expect("accepted");
            let set = Arc::clone(&set);
            tokio::spawn(async move {
                while tcp.read(&mut [0; 64]).await.is_ok_and(|n| n > 0) {
                    until(|| set.load(Relaxed)).await;
                    let _ = tcp.write_all(b"answer").await;
                }
            });
        }
    });
    (answers, address)
}

/// Waits until `there` returns true.
async fn until(mut there: impl FnMut() -> bool) {
    let since = Instant::now();
    while !there() {
        assert!(since.elapsed() < Duration::from_secs(30), "never came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn names(pool: &Pool, n: usize) -> (Vec<String>, Vec<Link>) {
    let mut links = Vec::new();
    for _ in 0..n {
        links.push(connect(pool).await.expect("a link"));
    }
    (links.iter().map(|link| link.server.to_string()).collect(), links)
}

#[tokio::test]
async fn clients_are_spread_as_configured() {
    let ((_a, a), (_b, b)) = (listener().await, listener().await);
    let pool = |balance, after| {
        let mut settings = settings(&[&a, &b], balance);
        settings.recalculate_after = after;
        Pool::start(settings, None, OwnListeners::default(), trunks())
    };
    assert_eq!(names(&pool(Balance::Failover, 1), 3).await.0, [&*a, &a, &a]);
    assert_eq!(names(&pool(Balance::RoundRobin, 1), 3).await.0, [&*a, &b, &a]);
    assert_eq!(names(&pool(Balance::LeastSessions, 1), 4).await.0, [&*a, &b, &a, &b]);
    assert_eq!(names(&pool(Balance::LeastSessions, 2), 6).await.0, [&*a, &a, &b, &b, &a, &a]);
}

#[tokio::test]
async fn a_server_gets_clients_by_its_weight_and_few_at_first_when_it_is_back() {
    let (a, (_b, b)) = (closed_port().await, listener().await);
    let mut settings = settings(&[&a, &b], Balance::RoundRobin);
    settings.servers[0].weight = 2;
    settings.slow_start = Duration::from_secs(3600);
    let pool = Pool::start(settings.clone(), None, OwnListeners::default(), trunks());
    until(|| pool.status()[0].last_error.is_some()).await;
    let _back = TcpListener::bind(&a).await.expect("its port again");
    until(|| pool.status()[0].state == ServerState::Up).await;
    let clients_of_a = async |pool: &Pool| names(pool, 60).await.0.iter().filter(|name| **name == a).count();
    assert!(clients_of_a(&pool).await <= 2, "1 % of its share, and at the most 1 % more for each 36 seconds");
    settings.slow_start = Duration::ZERO;
    pool.reconfigure(settings, None);
    assert!((39..=41).contains(&clients_of_a(&pool).await), "two of three");
}

#[tokio::test]
async fn sessions_are_counted_until_their_link_is_dropped() {
    let (_a, a) = listener().await;
    let pool = Pool::start(settings(&[&a], Balance::Failover), None, OwnListeners::default(), trunks());
    let (_, links) = names(&pool, 3).await;
    assert_eq!(pool.status()[0].sessions, 3);
    drop(links);
    assert_eq!(pool.status()[0].sessions, 0);
}

#[tokio::test]
async fn a_server_that_refuses_is_skipped_and_taken_up_again() {
    let (a, (_b, b)) = (closed_port().await, listener().await);
    let pool = Pool::start(settings(&[&a, &b], Balance::Failover), None, OwnListeners::default(), trunks());
    assert_eq!(*connect(&pool).await.expect("the other").server, *b);
    let status = pool.status();
    assert_eq!(status[0].state, ServerState::Down);
    assert!(status[0].last_error.as_ref().expect("an error").contains("refused"));
    let _back = TcpListener::bind(&a).await.expect("its port again");
    until(|| pool.status()[0].state == ServerState::Up).await;
    assert_eq!(*connect(&pool).await.expect("the first").server, *a);
}

#[tokio::test]
async fn without_any_server_the_client_is_told_and_all_comes_back() {
    let a = closed_port().await;
    let pool = Pool::start(settings(&[&a], Balance::LeastSessions), None, OwnListeners::default(), trunks());
    let error = connect(&pool).await.expect_err("nobody there");
    assert_eq!(error.failure.reason(), Reason::CannotConnect);
    assert!(error.detail.contains(&a), "{}", error.detail);
    assert!(!pool.any_up());
    let _back = TcpListener::bind(&a).await.expect("its port again");
    until(|| pool.any_up()).await;
    connect(&pool).await.expect("up again");
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_said() {
    let pool = Pool::start(
        settings(&["no-such-host.invalid:1533"], Balance::Failover),
        None,
        OwnListeners::default(),
        trunks(),
    );
    let error = connect(&pool).await.expect_err("no address");
    assert!(error.detail.contains("no-such-host.invalid:1533"), "{}", error.detail);
}

#[tokio::test]
async fn a_server_that_stays_keeps_its_sessions_and_one_that_goes_drains() {
    let ((_a, a), (_b, b)) = (listener().await, listener().await);
    let pool = Pool::start(settings(&[&a, &b], Balance::RoundRobin), None, OwnListeners::default(), trunks());
    let (_, links) = names(&pool, 2).await;
    pool.reconfigure(settings(&[&b], Balance::RoundRobin), None);
    let status = pool.status();
    assert_eq!((&*status[0].address, status[0].sessions), (&*b, 1));
    assert_eq!((&*status[1].address, status[1].state, status[1].sessions), (&*a, ServerState::Draining, 1));
    assert_eq!(names(&pool, 2).await.0, [&*b, &b]);
    drop(links);
    assert_eq!(pool.status().len(), 1);
}

#[tokio::test]
async fn the_server_is_told_who_the_client_is() {
    let (server, a) = listener().await;
    let mut settings = settings(&[&a], Balance::Failover);
    settings.send_proxy_protocol = true;
    let pool = Pool::start(settings, None, OwnListeners::default(), trunks());
    let link = connect(&pool).await.expect("a link");
    let expected = crate::wire::proxy_protocol::v2(CLIENT.parse().expect("address"), a.parse().expect("address"));
    loop {
        // The check of the pool sends nothing.
        let (mut tcp, _) = server.accept().await.expect("accepted");
        let mut seen = vec![0; expected.len()];
        if tcp.read_exact(&mut seen).await.is_ok() {
            assert_eq!(seen, expected);
            break;
        }
    }
    drop(link);
}

#[tokio::test]
async fn a_server_that_hangs_is_skipped_until_it_answers() {
    let ((hangs, a), (fine, b)) = (hanging().await, hanging().await);
    fine.store(true, Relaxed);
    let mut settings = settings(&[&a, &b], Balance::Failover);
    settings.handshake_timeout = Duration::from_millis(200);
    let pool = Pool::start(settings, None, OwnListeners::default(), trunks());
    let (link, answer) = connect_and_wait(&pool).await.expect("the one that answers");
    assert_eq!(*link.server, *b);
    assert_eq!(answer, b"answer", "the first bytes of the server");
    // It is checked by a Handshake, and it is down as long as that is not answered, although its system accepts
    // connections.
    until(|| pool.status()[0].state == ServerState::Down).await;
    let error = pool.status()[0].last_error.clone().expect("an error");
    assert!(error.contains("no answer to the Handshake"), "{error}");
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(pool.status()[0].state, ServerState::Down, "a connection proves nothing");
    }
    hangs.store(true, Relaxed);
    until(|| pool.status()[0].state == ServerState::Up).await;
    assert_eq!(*connect_and_wait(&pool).await.expect("the first again").0.server, *a);
}

#[tokio::test]
async fn who_speaks_on_is_not_kept_waiting_and_who_waits_in_vain_is_told() {
    let (_hangs, a) = hanging().await;
    let mut settings = settings(&[&a], Balance::Failover);
    settings.handshake_timeout = Duration::from_millis(200);
    let pool = Pool::start(settings, None, OwnListeners::default(), trunks());
    connect(&pool).await.expect("a link without an answer");
    let error = connect_and_wait(&pool).await.expect_err("no answer");
    assert_eq!(error.failure.reason(), Reason::NotResponding);
    assert!(error.detail.contains("no answer to the Handshake within 200ms"), "{}", error.detail);
    until(|| !pool.any_up()).await;
    assert_eq!(connect(&pool).await.expect_err("down").failure.reason(), Reason::NotResponding);
}

#[tokio::test]
async fn a_client_that_a_server_hangs_up_on_takes_no_server_away() {
    // A server that answers a Handshake, and closes on anything else.
    let (server, a) = listener().await;
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = server.accept().await.expect("accepted");
            tokio::spawn(async move {
                let mut said = [0; 5];
                if tcp.read_exact(&mut said).await.is_ok() && &said != b"hello" {
                    let _ = tcp.write_all(b"answer").await;
                    let _ = tcp.read(&mut [0; 64]).await;
                }
            });
        }
    });
    let pool = Pool::start(settings(&[&a], Balance::Failover), None, OwnListeners::default(), trunks());
    until(|| pool.any_up()).await;
    for _ in 0..5 {
        let error = connect_and_wait(&pool).await.expect_err("hung up on");
        assert!(error.detail.contains("closed before it answered"), "{}", error.detail);
        assert!(pool.any_up(), "one client is not enough");
    }
    until(|| !pool.current.load().endpoints[0].view(Instant::now()).is_suspect).await;
    assert!(pool.any_up());
}

#[tokio::test]
async fn a_look_by_handshake_finds_a_server_that_hangs_without_a_client() {
    let (hangs, a) = hanging().await;
    let mut settings = settings(&[&a], Balance::Failover);
    (settings.check, settings.handshake_timeout) = (Check::Handshake, Duration::from_millis(200));
    let pool = Pool::start(settings, None, OwnListeners::default(), trunks());
    until(|| pool.status()[0].last_error.is_some()).await;
    assert!(!pool.any_up());
    hangs.store(true, Relaxed);
    until(|| pool.any_up()).await;
}
