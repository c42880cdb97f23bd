//! The client of the streaming tunnel: between a peer, which speaks frames over one connection, and the program, which
//! gets its bytes by POST requests and sends its own in one endless response.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split},
    time::sleep,
};

use super::{
    adapter::{Program, Response, SessionName},
    client::MOST,
    ledger::Ledger,
    pipe::Pipe,
    script::Fate,
};

/// What the endless response begins with: a mark, the name with its length, and six bytes.
const BEGINNING: usize = 3 + SessionName::DIGITS + 6;

/// Why a direction has ended.
enum Ended {
    /// The peer has closed, or the response has ended.
    Orderly,
    /// A connection broke.
    Broken,
    /// A request got another response than 200: the client sends no more.
    Refused,
}

/// Serves the peer at the other end of `peer` until it has closed. `get` is the connection of the GET request.
pub async fn live(
    program: Arc<Program>,
    name: SessionName,
    peer: Pipe,
    get: Pipe,
    fates: Arc<Mutex<VecDeque<Fate>>>,
    ledger: Arc<Mutex<Ledger>>,
) {
    let (peer_end, get_end) = (peer.remote(), get.remote());
    let ((from_peer, to_peer), (from_get, _keep)) = (split(peer), split(get));
    let mut up = Box::pin(carry_up(program, name, from_peer, fates, ledger));
    let mut down = Box::pin(carry_down(from_get, to_peer));
    let ended = tokio::select! {
        biased;
        ended = &mut up => ended,
        ended = &mut down => match ended {
            // The peer reads the end, and closes.
            Ended::Orderly => up.await,
            ended => ended,
        },
    };
    match ended {
        // It closes the connection of its GET request, whatever is on the way there.
        Ended::Orderly => get_end.close_now(),
        Ended::Broken => {
            get_end.reset_now();
            peer_end.reset_now();
        }
        Ended::Refused => {
            get_end.close_now();
            peer_end.close_now();
        }
    }
}

/// Carries what the endless response brings.
async fn carry_down(mut from: ReadHalf<Pipe>, mut to: WriteHalf<Pipe>) -> Ended {
    if from.read_exact(&mut [0; BEGINNING]).await.is_err() {
        return Ended::Broken;
    }
    let mut buffer = vec![0; 65_536];
    loop {
        let n = match from.read(&mut buffer).await {
            Ok(n) => n,
            Err(_) => return Ended::Broken,
        };
        // A peer that has closed is noticed by what it sends.
        if n == 0 || to.write_all(&buffer[..n]).await.is_err() {
            let _ = to.shutdown().await;
            return Ended::Orderly;
        }
    }
}

/// Sends one request after another. Of what the network may do to one, only its delays are for this client: a request
/// or a response that is lost ends the session, as the script's other steps do.
async fn carry_up(
    program: Arc<Program>,
    name: SessionName,
    mut from: ReadHalf<Pipe>,
    fates: Arc<Mutex<VecDeque<Fate>>>,
    ledger: Arc<Mutex<Ledger>>,
) -> Ended {
    let mut buffer = vec![0; MOST];
    loop {
        let n = match from.read(&mut buffer).await {
            Ok(0) => return Ended::Orderly,
            Ok(n) => n,
            Err(_) => return Ended::Broken,
        };
        let (before, after) = match fates.lock().pop_front() {
            Some(Fate::Slow { up, down }) => (up, down),
            _ => (0, 0),
        };
        if before + after > 0 {
            sleep(Duration::from_millis(before)).await;
            ledger.lock().trouble = tokio::time::Instant::now();
        }
        if !matches!(program.upload(name, &buffer[..n]).await, Response::Body(_)) {
            return Ended::Refused;
        }
        sleep(Duration::from_millis(after)).await;
    }
}
