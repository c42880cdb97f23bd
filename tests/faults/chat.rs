//! Clients that chat while something fails.

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
    client::{Client, Transport},
    frames::{self, Frame},
    in_time,
    program::Program,
    route::Route,
    tunnel::Pace,
    wait_until,
};

/// A client that sends a message only after the echo of the one before may wait little: none of its requests can
/// overtake another.
const PACE: Pace = Pace {
    idle: Duration::from_millis(20),
    held_timeout: Duration::from_millis(50),
    retry: Duration::from_millis(200),
};

/// How a chat ended, as its client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatEnd {
    /// The test stopped it.
    Stopped,
    /// With a DestroyCnl that has this reason.
    Reason(u32),
    /// With the end of the stream, without a reason.
    Closed,
}

/// A client that sends numbers to `echo`, one after the other. It asserts that each echo arrives once and in order, so
/// no message that was answered is lost.
pub struct ChatClient {
    pub transport: Transport,
    answered: Arc<AtomicU32>,
    over: Arc<AtomicBool>,
    task: JoinHandle<ChatEnd>,
}

async fn chat(client: Client, channel: u32, answered: Arc<AtomicU32>, over: Arc<AtomicBool>) -> ChatEnd {
    let (mut from, mut into) = client.split();
    for n in 0u32.. {
        if over.load(Relaxed) {
            break;
        }
        // If the session is ending already, its end is read below.
        let _ = into.write_all(&frames::message(channel, &n.to_be_bytes()).bytes()).await;
        let _ = into.flush().await;
        match in_time("an echo", Frame::read(&mut from)).await {
            Some(frame) if frame.kind == frames::SEND => assert_eq!(frame.text(), n.to_be_bytes(), "in order, once"),
            Some(frame) => return ChatEnd::Reason(frame.reason()),
            None => return ChatEnd::Closed,
        }
        answered.store(n + 1, Relaxed);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _ = into.write_all(&frames::log_out().bytes()).await;
    let _ = into.flush().await;
    let _ = tokio::time::timeout(Duration::from_secs(5), Frame::read(&mut from)).await;
    ChatEnd::Stopped
}

impl ChatClient {
    pub async fn start(transport: Transport, to: SocketAddr) -> Self {
        Self::start_through(transport, &to.into()).await
    }

    pub async fn start_through(transport: Transport, route: &Route) -> Self {
        let mut client = Client::connect_through(transport, route, PACE).await.unwrap();
        client.log_in("bob").await;
        let channel = client.open_chat("echo").await;
        let (answered, over) = (Arc::default(), Arc::default());
        let task = tokio::spawn(chat(client, channel, Arc::clone(&answered), Arc::clone(&over)));
        let this = Self { transport, answered, over, task };
        this.continues().await;
        this
    }

    /// Starts one client over each transport.
    pub async fn start_all(to: SocketAddr) -> Vec<Self> {
        let starting: Vec<_> = Transport::ALL.map(|transport| tokio::spawn(Self::start(transport, to))).into();
        let mut all = Vec::new();
        for one in starting {
            all.push(one.await.unwrap());
        }
        all
    }

    pub fn answered(&self) -> u32 {
        self.answered.load(Relaxed)
    }

    /// Waits for further echoes, which shows that the chat continues.
    pub async fn continues(&self) {
        let before = self.answered();
        wait_until("further echoes", || self.answered() > before + 2 || self.task.is_finished()).await;
        assert!(!self.task.is_finished(), "{:?}: the chat has ended", self.transport);
    }

    /// Waits until the chat ends. Returns how, and how many messages were answered.
    pub async fn ended(self) -> (ChatEnd, u32) {
        let ended = in_time("its end", self.task).await.unwrap();
        (ended, self.answered.load(Relaxed))
    }

    /// Stops the chat, which must have continued until now. Returns how many messages were answered.
    pub async fn stop(self) -> u32 {
        self.over.store(true, Relaxed);
        let (ended, answered) = self.ended().await;
        assert_eq!(ended, ChatEnd::Stopped);
        answered
    }
}

/// Waits until every client has further echoes.
pub async fn all_continue(clients: &[ChatClient]) {
    for client in clients {
        client.continues().await;
    }
}

/// Stops all chats. Returns how many messages were answered.
pub async fn stop_all(clients: Vec<ChatClient>) -> u32 {
    let mut sum = 0;
    for client in clients {
        sum += client.stop().await;
    }
    sum
}

/// Waits until all chats end. Returns how, and how many messages were answered.
pub async fn all_ended(clients: Vec<ChatClient>) -> (Vec<(Transport, ChatEnd)>, u32) {
    let (mut all, mut sum) = (Vec::new(), 0);
    for client in clients {
        let transport = client.transport;
        let (ended, answered) = client.ended().await;
        all.push((transport, ended));
        sum += answered;
    }
    (all, sum)
}

/// Logs in and exchanges a message. The error is how the session ended instead.
pub async fn try_log_in(transport: Transport, to: SocketAddr) -> Result<Client, ChatEnd> {
    let check = |frame: Option<Frame>, wanted: u16| match frame {
        Some(frame) if frame.kind == wanted => Ok(()),
        Some(frame) => Err(ChatEnd::Reason(frame.reason())),
        None => Err(ChatEnd::Closed),
    };
    let mut client = Client::connect_paced(transport, to, PACE).await;
    client.send_frame(&frames::handshake()).await;
    check(client.recv().await, frames::HANDSHAKE_ACK)?;
    client.send_frame(&frames::login("ann", "secret")).await;
    check(client.recv().await, frames::LOGIN_ACK)?;
    let channel = client.open_chat("echo").await;
    client.send_text(channel, b"hello").await;
    assert_eq!(client.recv().await.expect("an echo").text(), b"hello", "{transport:?}");
    Ok(client)
}

/// Waits until clients can log in over every transport, all at the same time. Returns how long the last one took.
pub async fn all_can_log_in(to: SocketAddr) -> Duration {
    let since = Instant::now();
    let trying = Transport::ALL.map(|transport| {
        tokio::spawn(async move {
            loop {
                match try_log_in(transport, to).await {
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
        longest = longest.max(in_time("a log-in", one).await.unwrap());
    }
    longest
}

/// Waits until the program has exactly `n` sessions, each with a Community server, and no client that is logging in.
pub async fn wait_for_sessions(program: &Program, n: u32) {
    in_time("the sessions' end", async {
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
