//! One client's life: log in, chat with `echo`, leave, come back.

use std::{
    collections::VecDeque,
    future::poll_fn,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    io,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt,
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Way,
    connect::connect_failure,
    random::Random,
    setup::{Setup, Signal, over},
    tunnel,
};
use crate::{
    runtime::scratch,
    stream::Stream,
    wire::{
        frame::{self, First},
        message::{Reader, Writer, destroy, kind},
        tunnel::envelope::TunnelKind as Kind,
    },
};

/// The user that sends back what it is told.
const ECHO: &[u8] = b"echo";
const LOGIN_TYPE: u16 = 0x1003;
const INSTANT_MESSAGES: u32 = 0x1000;
const TEXT: u16 = 0x0064;
const CHANNEL: u32 = 1;
/// The longest frame that is taken.
const MAX_FRAME: u32 = 16 * 1024 * 1024;
/// How long connection and log-in may take.
const LOGIN_PATIENCE: Duration = Duration::from_secs(60);
/// How long echoes are waited for when a client leaves.
const LAST_ECHOES: Duration = Duration::from_secs(15);
/// Bytes between a client and its tunnel.
const PIPE: usize = 256 * 1024;
/// Coming back: the first wait is up to this, each further one up to twice the one before.
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How a session ended.
enum Ended {
    /// The run is over.
    Over,
    /// The client logged out, to log in again.
    Left,
    /// The network was cut.
    Cut,
    Failed(String),
}

/// Lives until the run is over; `planned` is when the log-in is to begin.
pub(super) async fn live(setup: Arc<Setup>, n: u64, mut planned: Instant, mut signal: watch::Receiver<Signal>) {
    let (way, mut random) = (setup.scenario.mix.way(n), Random::new(setup.seed ^ n));
    let mut failures = 0;
    loop {
        tokio::select! {
            () = sleep_until(planned) => (),
            () = over(&mut signal) => return,
        }
        let mut pending = VecDeque::new();
        let ended = Box::pin(session(&setup, way, n, planned, &mut random, &mut signal, &mut pending)).await;
        setup.counters.update(way, |figures| match ended {
            Ended::Over | Ended::Left => figures.lost += pending.len() as u64,
            Ended::Cut | Ended::Failed(_) => figures.cut_off += pending.len() as u64,
        });
        failures = match ended {
            Ended::Over => return,
            Ended::Left => 0,
            Ended::Cut => 1,
            Ended::Failed(reason) => {
                setup.counters.error(reason);
                failures + 1
            }
        };
        planned = Instant::now() + wait_after(failures, &mut random);
    }
}

/// Spread, so that those who left together do not come back together.
fn wait_after(failures: u32, random: &mut Random) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let at_most = (FIRST_WAIT * 2u32.saturating_pow((failures - 1).min(10))).min(LONGEST_WAIT);
    at_most.mul_f64(random.share())
}

/// True when the run is over, false when `other` holds.
async fn over_or(signal: &mut watch::Receiver<Signal>, other: impl Fn(&Signal) -> bool) -> bool {
    signal.wait_for(|signal| signal.over || other(signal)).await.map_or(true, |signal| signal.over)
}

/// A message that has no echo yet.
struct Pending {
    number: u64,
    digest: u64,
    planned: Instant,
}

fn digest(data: &[u8]) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(data)
}

/// A connection that frames go over.
struct Link {
    stream: Stream,
    /// A tunnel's driver, which knows why it ended.
    driver: Option<JoinHandle<Result<(), String>>>,
    read: Vec<u8>,
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(driver) = &self.driver {
            driver.abort();
        }
    }
}

impl Link {
    async fn open(setup: &Setup, way: Way) -> Result<Self, String> {
        let (stream, driver) = match way {
            Way::Raw => (setup.route.direct(None).await.map_err(|error| connect_failure(&error))?, None),
            Way::Tls => (setup.route.direct(Some(&setup.tls)).await.map_err(|error| connect_failure(&error))?, None),
            Way::Polling | Way::Hybrid => {
                let kind = if way == Way::Polling { Kind::Polling } else { Kind::Hybrid };
                let (near, far) = tokio::io::duplex(PIPE);
                let driver = tokio::spawn(tunnel::drive(kind, Arc::clone(&setup.route), setup.scenario.poll, far));
                (Stream::other(near), Some(driver))
            }
        };
        Ok(Self { stream, driver, read: Vec::new() })
    }

    async fn send(&mut self, frame: &[u8]) -> Result<(), String> {
        let sent = async {
            self.stream.write_all(frame).await?;
            self.stream.flush().await
        };
        match sent.await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.why(Some(error)).await),
        }
    }

    /// The next frame: type, channel, body. Can be dropped and asked again.
    async fn recv(&mut self) -> Result<(u16, u32, Vec<u8>), String> {
        loop {
            match frame::first(&self.read, MAX_FRAME).map_err(|fault| format!("protocol: {fault}"))? {
                First::Whole { head, start, end } => {
                    let body = self.read[start + frame::LENGTH + frame::HEADER..end].to_vec();
                    self.read.drain(..end);
                    if self.read.is_empty() {
                        self.read = Vec::new();
                    }
                    return Ok((head.kind, head.channel, body));
                }
                First::Partial => (),
            }
            let (stream, into) = (&mut self.stream, &mut self.read);
            match poll_fn(|cx| scratch::poll_read(stream, cx, |bytes, _| into.extend_from_slice(bytes))).await {
                Ok(Some(())) => (),
                Ok(None) => return Err(self.why(None).await),
                Err(error) => return Err(self.why(Some(error)).await),
            }
        }
    }

    /// Why the stream has ended: a tunnel's driver knows more than the pipe to it.
    async fn why(&mut self, error: Option<io::Error>) -> String {
        if let Some(driver) = self.driver.take()
            && let Ok(Err(failure)) = driver.await
        {
            return failure;
        }
        error.map_or_else(|| "closed by the server".to_owned(), |error| format!("broken: {}", error.kind()))
    }
}

fn unexpected(kind: u16, channel: u32, body: &[u8]) -> String {
    if kind == kind::DESTROY_CNL && channel == 0 {
        let code = Reader(body).u32().unwrap_or_default();
        return format!("refused: {code:#010x}");
    }
    format!("protocol: an unexpected message of type {kind:#06x}")
}

/// Handshake, log-in, a channel to `echo`.
async fn log_in(setup: &Setup, way: Way, n: u64) -> Result<Link, String> {
    let mut link = Link::open(setup, way).await?;
    let mut hello = Writer::new();
    hello.u16(0xFFFF).u16(0).u32(0).u32(0).u16(LOGIN_TYPE).u32(0);
    link.send(&frame::build(kind::HANDSHAKE, 0, &hello.0)).await?;
    expect(&mut link, kind::HANDSHAKE_ACK).await?;
    let (name, mut login) = (format!("load-{n}"), Writer::new());
    login.u16(LOGIN_TYPE).string(name.as_bytes()).opaque(b"load").u16(0).u16(0);
    link.send(&frame::build(kind::LOGIN, 0, &login.0)).await?;
    expect(&mut link, kind::LOGIN_ACK).await?;
    Ok(link)
}

async fn expect(link: &mut Link, wanted: u16) -> Result<(), String> {
    let (kind, channel, body) = link.recv().await?;
    if kind == wanted { Ok(()) } else { Err(unexpected(kind, channel, &body)) }
}

async fn open_chat(link: &mut Link) -> Result<(), String> {
    let mut create = Writer::new();
    create.u32(0).u32(CHANNEL).string(ECHO).string(b"");
    create.u32(INSTANT_MESSAGES).u32(INSTANT_MESSAGES).u32(3).u32(0).opaque(&[0, 0, 0, 1, 0, 0, 0, 1]);
    create.u8(0).u16(0).opaque(b"");
    link.send(&frame::build(kind::CREATE_CNL, 0, &create.0)).await?;
    expect(link, kind::ACCEPT_CNL).await
}

/// A text of `size` bytes or a few more, which begins with its number.
fn text(number: u64, size: usize) -> Vec<u8> {
    let mut text = format!("{number:x} ").into_bytes();
    let filler = (number..).map(|i| b'a' + u8::try_from(i * 7 % 26).unwrap_or_default());
    text.extend(filler.take(size.saturating_sub(text.len())));
    text
}

#[allow(clippy::too_many_arguments)]
async fn session(
    setup: &Setup,
    way: Way,
    n: u64,
    planned: Instant,
    random: &mut Random,
    signal: &mut watch::Receiver<Signal>,
    pending: &mut VecDeque<Pending>,
) -> Ended {
    setup.counters.update(way, |figures| figures.attempts += 1);
    let cuts = signal.borrow().cuts;
    let takes_part = |signal: &Signal| signal.cuts > cuts && cut_share(setup, n);
    let mut link = tokio::select! {
        link = timeout(LOGIN_PATIENCE, log_in(setup, way, n)) => match link {
            Ok(Ok(link)) => link,
            Ok(Err(reason)) => return Ended::Failed(reason),
            Err(_) => return Ended::Failed("log-in: no answer within 60 s".to_owned()),
        },
        () = over(signal) => return Ended::Over,
    };
    let login = planned.elapsed();
    setup.counters.update(way, |figures| {
        figures.log_ins += 1;
        figures.login.record(login);
    });
    let _present = setup.counters.present(way);
    if !setup.scenario.think_time.is_zero() {
        match timeout(LOGIN_PATIENCE, open_chat(&mut link)).await {
            Ok(Ok(())) => (),
            Ok(Err(reason)) => return Ended::Failed(reason),
            Err(_) => return Ended::Failed("channel: no answer within 60 s".to_owned()),
        }
    }
    let never = Instant::now() + Duration::from_secs(30 * 24 * 60 * 60);
    let after = |random: &mut Random, mean: Duration| match mean.is_zero() {
        true => never,
        false => Instant::now() + random.pause(mean),
    };
    let (leave, mut next, mut number) =
        (after(random, setup.scenario.stay), after(random, setup.scenario.think_time), 0);
    let ended = loop {
        tokio::select! {
            received = link.recv() => match received {
                Ok(frame) => if let Err(reason) = echoed(setup, way, pending, &frame) {
                    return Ended::Failed(reason);
                },
                Err(reason) => return Ended::Failed(reason),
            },
            () = sleep_until(next) => {
                let said = text(number, random.size(setup.scenario.sizes));
                if let Err(reason) = say(&mut link, setup, way, &said, number, next, pending).await {
                    return Ended::Failed(reason);
                }
                number += 1;
                // The plan does not wait for the server.
                next += random.pause(setup.scenario.think_time);
            }
            () = sleep_until(leave) => break Ended::Left,
            is_over = over_or(signal, takes_part) => match is_over {
                false => return Ended::Cut,
                true => break Ended::Over,
            },
        }
    };
    let last = async {
        while !pending.is_empty() {
            let frame = link.recv().await?;
            echoed(setup, way, pending, &frame)?;
        }
        link.send(&destroy(0, 0)).await
    };
    match timeout(LAST_ECHOES, last).await {
        Ok(Err(reason)) => return Ended::Failed(reason),
        Ok(Ok(())) if link.driver.is_some() => {
            // A tunnel's last words go with a request of their own.
            let _ = timeout(LAST_ECHOES, link.recv()).await;
        }
        _ => (),
    }
    ended
}

fn cut_share(setup: &Setup, n: u64) -> bool {
    setup.scenario.cut.is_some_and(|cut| Random::new(n.wrapping_add(7)).share() < cut.share)
}

async fn say(
    link: &mut Link,
    setup: &Setup,
    way: Way,
    text: &[u8],
    number: u64,
    planned: Instant,
    pending: &mut VecDeque<Pending>,
) -> Result<(), String> {
    let (mut data, mut body) = (Writer::new(), Writer::new());
    data.u32(1).string(text);
    body.u16(TEXT).opaque(&data.0);
    pending.push_back(Pending { number, digest: digest(&body.0), planned });
    setup.counters.update(way, |figures| {
        figures.sent += 1;
        figures.bytes += text.len() as u64;
    });
    link.send(&frame::build(kind::SEND_ON_CNL, CHANNEL, &body.0)).await
}

/// Takes an echo in: once, in order, whole.
fn echoed(
    setup: &Setup,
    way: Way,
    pending: &mut VecDeque<Pending>,
    (kind, channel, body): &(u16, u32, Vec<u8>),
) -> Result<(), String> {
    if *kind != kind::SEND_ON_CNL {
        return Err(unexpected(*kind, *channel, body));
    }
    let whole = digest(body);
    let Some(front) = pending.front() else {
        setup.counters.update(way, |figures| figures.disordered += 1);
        return Ok(());
    };
    if front.digest == whole {
        let latency = front.planned.elapsed();
        pending.pop_front();
        setup.counters.update(way, |figures| {
            figures.echoed += 1;
            figures.bytes += body.len() as u64;
            figures.echo.record(latency);
        });
        return Ok(());
    }
    // Another one of ours, out of its turn; or none that was sent.
    let later = pending.iter().position(|other| other.digest == whole);
    let repeated = said_number(body).is_some_and(|number| number < front.number);
    match later {
        Some(at) => drop(pending.remove(at)),
        None if repeated => (),
        None => drop(pending.pop_front()),
    }
    setup.counters.update(way, |figures| match (later, repeated) {
        (None, false) => figures.corrupt += 1,
        _ => figures.disordered += 1,
    });
    Ok(())
}

fn said_number(body: &[u8]) -> Option<u64> {
    let mut reader = Reader(body);
    reader.u16()?;
    let mut data = Reader(reader.opaque()?);
    data.u32()?;
    let text = std::str::from_utf8(data.string()?).ok()?;
    u64::from_str_radix(text.split(' ').next()?, 16).ok()
}
