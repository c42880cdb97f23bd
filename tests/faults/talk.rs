//! Clients that talk on while something fails.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{io::AsyncWriteExt, task::JoinHandle};

use crate::support::{
    client::{Client, Way},
    frames::{self, Frame},
    program::Program,
    route::Route,
    soon,
    tunnel::Pace,
    until,
};

/// Who speaks only when it has its answer needs no patience: none of its requests overtakes another.
const PACE: Pace =
    Pace { idle: Duration::from_millis(20), patience: Duration::from_millis(50), retry: Duration::from_millis(200) };

/// How a conversation ended for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It was stopped by the test.
    Nothing,
    /// A DestroyCnl with that reason.
    Reason(u32),
    /// The end of the stream, without a word.
    End,
}

/// A client that says numbers to `echo`, one after the other, and hears each once and in order: so what was
/// answered was not lost.
pub struct Talker {
    pub way: Way,
    heard: Arc<AtomicU32>,
    over: Arc<AtomicBool>,
    task: JoinHandle<Told>,
}

async fn talk(client: Client, channel: u32, heard: Arc<AtomicU32>, over: Arc<AtomicBool>) -> Told {
    let (mut from, mut into) = client.split();
    for n in 0u32.. {
        if over.load(Relaxed) {
            break;
        }
        // Where the end is on its way already, it is read below.
        let _ = into.write_all(&frames::message(channel, &n.to_be_bytes()).bytes()).await;
        let _ = into.flush().await;
        match soon("an echo", Frame::read(&mut from)).await {
            Some(frame) if frame.kind == frames::SEND => assert_eq!(frame.text(), n.to_be_bytes(), "in order, once"),
            Some(frame) => return Told::Reason(frame.reason()),
            None => return Told::End,
        }
        heard.store(n + 1, Relaxed);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _ = into.write_all(&frames::log_out().bytes()).await;
    let _ = into.flush().await;
    let _ = tokio::time::timeout(Duration::from_secs(5), Frame::read(&mut from)).await;
    Told::Nothing
}

impl Talker {
    pub async fn start(way: Way, to: SocketAddr) -> Self {
        Self::start_by(way, &to.into()).await
    }

    pub async fn start_by(way: Way, route: &Route) -> Self {
        let mut client = Client::connect_by(way, route, PACE).await.unwrap();
        client.log_in("bob").await;
        let channel = client.open_chat("echo").await;
        let (heard, over) = (Arc::default(), Arc::default());
        let task = tokio::spawn(talk(client, channel, Arc::clone(&heard), Arc::clone(&over)));
        let this = Self { way, heard, over, task };
        this.goes_on().await;
        this
    }

    /// One over each way in.
    pub async fn start_all(to: SocketAddr) -> Vec<Self> {
        let starting: Vec<_> = Way::ALL.map(|way| tokio::spawn(Self::start(way, to))).into();
        let mut all = Vec::new();
        for one in starting {
            all.push(one.await.unwrap());
        }
        all
    }

    pub fn heard(&self) -> u32 {
        self.heard.load(Relaxed)
    }

    /// Waits for further echoes.
    pub async fn goes_on(&self) {
        let before = self.heard();
        until("further echoes", || self.heard() > before + 2 || self.task.is_finished()).await;
        assert!(!self.task.is_finished(), "{:?}: it has ended", self.way);
    }

    /// Waits for its end: how, and how many messages were answered.
    pub async fn told(self) -> (Told, u32) {
        let told = soon("its end", self.task).await.unwrap();
        (told, self.heard.load(Relaxed))
    }

    /// Stops it: it must have gone on until now.
    pub async fn stop(self) -> u32 {
        self.over.store(true, Relaxed);
        let (told, heard) = self.told().await;
        assert_eq!(told, Told::Nothing);
        heard
    }
}

/// Waits until every one has heard more.
pub async fn all_go_on(talkers: &[Talker]) {
    for talker in talkers {
        talker.goes_on().await;
    }
}

/// Stops all; how many messages were answered.
pub async fn stop_all(talkers: Vec<Talker>) -> u32 {
    let mut sum = 0;
    for talker in talkers {
        sum += talker.stop().await;
    }
    sum
}

/// What all were told, and how many messages were answered.
pub async fn all_told(talkers: Vec<Talker>) -> (Vec<(Way, Told)>, u32) {
    let (mut all, mut sum) = (Vec::new(), 0);
    for talker in talkers {
        let way = talker.way;
        let (told, heard) = talker.told().await;
        all.push((way, told));
        sum += heard;
    }
    (all, sum)
}

/// A log-in and a message, or what the client is told instead.
pub async fn try_one(way: Way, to: SocketAddr) -> Result<Client, Told> {
    let told = |frame: Option<Frame>, wanted: u16| match frame {
        Some(frame) if frame.kind == wanted => Ok(()),
        Some(frame) => Err(Told::Reason(frame.reason())),
        None => Err(Told::End),
    };
    let mut client = Client::connect_paced(way, to, PACE).await;
    client.send_frame(&frames::handshake()).await;
    told(client.recv().await, frames::HANDSHAKE_ACK)?;
    client.send_frame(&frames::login("ann", "secret")).await;
    told(client.recv().await, frames::LOGIN_ACK)?;
    let channel = client.open_chat("echo").await;
    client.say(channel, b"well?").await;
    assert_eq!(client.recv().await.expect("an echo").text(), b"well?", "{way:?}");
    Ok(client)
}

/// Waits until a log-in over every way works, all at once; how long that took.
pub async fn all_is_well(to: SocketAddr) -> Duration {
    let since = Instant::now();
    let trying = Way::ALL.map(|way| {
        tokio::spawn(async move {
            loop {
                match try_one(way, to).await {
                    Ok(mut client) => {
                        let took = since.elapsed();
                        client.log_out().await;
                        let _ = client.recv().await;
                        return took;
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        })
    });
    let mut longest = Duration::ZERO;
    for one in trying {
        longest = longest.max(soon("a log-in", one).await.unwrap());
    }
    longest
}

/// Waits until the program has no more than `n` sessions, and holds nothing for anybody.
pub async fn sessions_come_to(program: &Program, n: u32) {
    soon("the sessions' end", async {
        loop {
            let (sessions, logging_in) = (
                program.metric("sametime_mux_sessions").await,
                program.metric("sametime_mux_sessions_logging_in").await,
            );
            let on_servers = program.metric("sametime_mux_community_sessions").await;
            if (sessions, logging_in, on_servers) == (f64::from(n), 0.0, f64::from(n)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}
