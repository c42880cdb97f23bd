//! The life of one client: it logs in, chats with `echo`, leaves and comes back.
//!
//! ```text
//!   waiting ── planned time ──▶ logging in ──▶ opening a chat ──▶ chatting
//!      ▲                            │                │            │  │  │
//!      │                            │                │            │  │  └─ time to leave, end of the run
//!      ├◀───── an error ────────────┴────────────────┴────────────┘  │             │
//!      ├◀───── a cut of the network ─────────────────────────────────┘             ▼
//!      └◀───── logged out ◀─────────────────────────────────────── waiting for the last echoes
//! ```
//!
//! A client that left logs in again at once. One whose session failed or was cut waits first.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::{
    frame_connection::{FrameConnection, ReceivedFrame},
    messages,
    pending::{Echo, PendingMessages},
    random::SeededRandom,
    scenario::LoadTransport,
    setup::{RunState, WorkerSetup, wait_for_end},
};
use crate::wire::message::{Reader, destroy, handshake, kind};

/// How long connection and log-in may take.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client that leaves waits for the echoes of its messages.
const LAST_ECHOES_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest wait before a log-in that follows one failed session; each further failure doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// The longest wait before a log-in after any number of failures.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Longer than any run.
const NEVER: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How a session ended.
enum ClientSessionEnd {
    /// The run is over.
    RunOver,
    /// The client logged out, to log in again.
    LoggedOut,
    /// The network was cut, as the scenario has it.
    Cut,
    /// An error, with its text for the report.
    Failed(String),
}

/// One client, over all of its sessions.
struct LoadClient {
    setup: Arc<WorkerSetup>,
    /// Its number among the clients of the run.
    number: u64,
    transport: LoadTransport,
    random: SeededRandom,
    run_state: watch::Receiver<RunState>,
}

/// Runs client `number` until the run is over. Its first log-in begins at `planned`.
pub(super) async fn live(
    setup: Arc<WorkerSetup>,
    number: u64,
    mut planned: Instant,
    run_state: watch::Receiver<RunState>,
) {
    let transport = setup.scenario.mix.transport_of(number);
    let random = SeededRandom::new(setup.seed ^ number);
    let mut client = LoadClient { setup, number, transport, random, run_state };
    let mut failures = 0;
    loop {
        tokio::select! {
            () = sleep_until(planned) => (),
            () = wait_for_end(&mut client.run_state) => return,
        }
        let mut pending = PendingMessages::default();
        let end = Box::pin(client.session(planned, &mut pending)).await;
        client.setup.counters.update(transport, |figures| match end {
            ClientSessionEnd::RunOver | ClientSessionEnd::LoggedOut => figures.lost += pending.count(),
            ClientSessionEnd::Cut | ClientSessionEnd::Failed(_) => figures.cut_off += pending.count(),
        });
        failures = match end {
            ClientSessionEnd::RunOver => return,
            ClientSessionEnd::LoggedOut => 0,
            ClientSessionEnd::Cut => 1,
            ClientSessionEnd::Failed(reason) => {
                client.setup.counters.count_error(reason);
                failures + 1
            }
        };
        planned = Instant::now() + wait_after(failures, &mut client.random);
    }
}

/// How long a client waits before it logs in again: a random share of a limit that grows with the failures
/// in a row, so that clients that failed together do not come back together.
fn wait_after(failures: u32, random: &mut SeededRandom) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let longest = (FIRST_WAIT * 2u32.saturating_pow((failures - 1).min(10))).min(LONGEST_WAIT);
    longest.mul_f64(random.share())
}

/// Waits until the run is over (returns true) or `is_cut` holds (returns false).
async fn over_or_cut(run_state: &mut watch::Receiver<RunState>, is_cut: impl Fn(&RunState) -> bool) -> bool {
    run_state.wait_for(|state| state.is_over || is_cut(state)).await.map_or(true, |state| state.is_over)
}

impl LoadClient {
    /// One session, from the connection to its end. Messages without an echo stay in `pending`.
    async fn session(&mut self, planned: Instant, pending: &mut PendingMessages) -> ClientSessionEnd {
        match self.try_session(planned, pending).await {
            Ok(end) => end,
            Err(reason) => ClientSessionEnd::Failed(reason),
        }
    }

    async fn try_session(
        &mut self,
        planned: Instant,
        pending: &mut PendingMessages,
    ) -> Result<ClientSessionEnd, String> {
        let (setup, transport) = (Arc::clone(&self.setup), self.transport);
        setup.counters.update(transport, |figures| figures.attempts += 1);
        let cuts = self.run_state.borrow().cuts;
        let has_cut = is_cut_client(&setup, self.number);
        let is_cut = |state: &RunState| has_cut && state.cuts > cuts;
        let mut connection = tokio::select! {
            connection = timeout(LOGIN_TIMEOUT, log_in(&setup, transport, self.number)) => {
                connection.map_err(|_| "log-in: no answer within 60 s".to_owned())??
            }
            () = wait_for_end(&mut self.run_state) => return Ok(ClientSessionEnd::RunOver),
        };
        let latency = planned.elapsed();
        setup.counters.update(transport, |figures| {
            figures.log_ins += 1;
            figures.login.record(latency);
        });
        let _logged_in = setup.counters.logged_in(transport);
        if !setup.scenario.think_time.is_zero() {
            let opened = timeout(LOGIN_TIMEOUT, open_chat(&mut connection)).await;
            opened.map_err(|_| "channel: no answer within 60 s".to_owned())??;
        }
        let leave = self.random_time(setup.scenario.stay);
        let (mut next, mut number) = (self.random_time(setup.scenario.think_time), 0);
        let end = loop {
            tokio::select! {
                received = connection.recv() => take_echo(&setup, transport, pending, &received?)?,
                () = sleep_until(next) => {
                    let text = messages::numbered_text(number, self.random.size(setup.scenario.sizes));
                    let body = messages::text_body(&text);
                    pending.add(number, &body, next);
                    setup.counters.update(transport, |figures| {
                        figures.sent += 1;
                        figures.bytes += text.len() as u64;
                    });
                    connection.send(&messages::send(&body)).await?;
                    number += 1;
                    // Counted from the planned time: the schedule does not wait for the server.
                    next += self.random.pause(setup.scenario.think_time);
                }
                () = sleep_until(leave) => break ClientSessionEnd::LoggedOut,
                is_over = over_or_cut(&mut self.run_state, is_cut) => match is_over {
                    false => return Ok(ClientSessionEnd::Cut),
                    true => break ClientSessionEnd::RunOver,
                },
            }
        };
        log_out(&setup, transport, &mut connection, pending).await?;
        Ok(end)
    }

    /// A random time from now, `mean` from now on average; never if `mean` is zero.
    fn random_time(&mut self, mean: Duration) -> Instant {
        Instant::now() + if mean.is_zero() { NEVER } else { self.random.pause(mean) }
    }
}

/// Whether client `number` is among those whose connections the scenario cuts.
fn is_cut_client(setup: &WorkerSetup, number: u64) -> bool {
    setup.scenario.cut.is_some_and(|cut| SeededRandom::new(number.wrapping_add(7)).share() < cut.share)
}

/// Connects, and sends Handshake and Login.
async fn log_in(setup: &WorkerSetup, transport: LoadTransport, number: u64) -> Result<FrameConnection, String> {
    let mut connection = FrameConnection::open(setup, transport).await?;
    connection.send(&handshake()).await?;
    expect(&mut connection, kind::HANDSHAKE_ACK).await?;
    connection.send(&messages::login(&format!("load-{number}"), b"load")).await?;
    expect(&mut connection, kind::LOGIN_ACK).await?;
    Ok(connection)
}

/// Opens a channel to `echo`.
async fn open_chat(connection: &mut FrameConnection) -> Result<(), String> {
    connection.send(&messages::create_chat()).await?;
    expect(connection, kind::ACCEPT_CNL).await
}

/// Waits for the last echoes and logs out. Echoes that do not arrive in time stay in `pending`.
async fn log_out(
    setup: &WorkerSetup,
    transport: LoadTransport,
    connection: &mut FrameConnection,
    pending: &mut PendingMessages,
) -> Result<(), String> {
    let last = async {
        while !pending.is_empty() {
            let frame = connection.recv().await?;
            take_echo(setup, transport, pending, &frame)?;
        }
        connection.send(&destroy(0, 0)).await
    };
    match timeout(LAST_ECHOES_TIMEOUT, last).await {
        Ok(Err(reason)) => return Err(reason),
        Ok(Ok(())) if connection.is_tunnel() => {
            // The tunnel sends the log-out with a request of its own, and needs time for it.
            let _ = timeout(LAST_ECHOES_TIMEOUT, connection.recv()).await;
        }
        Ok(Ok(())) | Err(_) => (),
    }
    Ok(())
}

/// The next frame must be of type `wanted`.
async fn expect(connection: &mut FrameConnection, wanted: u16) -> Result<(), String> {
    let frame = connection.recv().await?;
    if frame.kind == wanted { Ok(()) } else { Err(unexpected(&frame)) }
}

/// The error for a frame that is not the expected one. A DestroyCnl on the master channel is a refusal.
fn unexpected(frame: &ReceivedFrame) -> String {
    if frame.kind == kind::DESTROY_CNL && frame.channel == 0 {
        let code = Reader(&frame.body).u32().unwrap_or_default();
        return format!("refused: {code:#010x}");
    }
    format!("protocol: an unexpected message of type {:#06x}", frame.kind)
}

/// Takes a frame that must be an echo, and counts it.
fn take_echo(
    setup: &WorkerSetup,
    transport: LoadTransport,
    pending: &mut PendingMessages,
    frame: &ReceivedFrame,
) -> Result<(), String> {
    if frame.kind != kind::SEND_ON_CNL {
        return Err(unexpected(frame));
    }
    let (echo, now) = (pending.take_echo(&frame.body), Instant::now());
    setup.counters.update(transport, |figures| match echo {
        Echo::InOrder { planned } => {
            figures.echoed += 1;
            figures.bytes += frame.body.len() as u64;
            figures.echo.record(now.duration_since(planned));
        }
        Echo::OutOfOrder => figures.disordered += 1,
        Echo::Corrupt => figures.corrupt += 1,
    });
    Ok(())
}
