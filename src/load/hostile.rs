//! A client that attacks the server. The server may do anything to it, but other clients must not notice.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    messages,
    random::SeededRandom,
    setup::{RunState, WorkerSetup, wait_for_end},
};
use crate::wire::message::handshake;

/// How long one attack may take.
const ATTACK_TIMEOUT: Duration = Duration::from_secs(6);
/// The time between two attacks.
const PAUSE: Duration = Duration::from_millis(20);

/// Attacks, each time over a new connection, until the run is over.
pub(super) async fn live(setup: Arc<WorkerSetup>, number: u64, mut run_state: watch::Receiver<RunState>) {
    let mut random = SeededRandom::new(setup.seed ^ number ^ 0x00BA_DBAD);
    let attacks = async {
        loop {
            setup.counters.count_hostile();
            let _ = timeout(ATTACK_TIMEOUT, attack(&setup, &mut random)).await;
            sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = attacks => (),
        () = wait_for_end(&mut run_state) => (),
    }
}

/// The frames with which a client logs in.
fn log_in() -> Vec<u8> {
    [handshake(), messages::login("hostile", b"")].concat()
}

/// One connection and one of the attacks, chosen at random.
async fn attack(setup: &WorkerSetup, random: &mut SeededRandom) -> io::Result<()> {
    let mut stream = setup.route.direct(None).await?;
    let mut garbage = vec![0; 400];
    for byte in &mut garbage {
        *byte = random.next().to_le_bytes()[0];
    }
    match random.next() % 8 {
        // Bytes of no protocol.
        0 => stream.write_all(&garbage).await?,
        // A frame of two gigabytes.
        1 => stream.write_all(&[0x7F, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0]).await?,
        // A frame in single bytes, slowly.
        2 => {
            for byte in handshake() {
                stream.write_all(&[byte]).await?;
                sleep(Duration::from_millis(500)).await;
            }
        }
        // A request head without an end.
        3 => {
            stream.write_all(b"POST /CommunityCBR/CC.39.").await?;
            stream.write_all(&vec![b'A'; 256 * 1024]).await?;
        }
        // A request with a guessed name of another client's session.
        4 => {
            let name: String = garbage.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            let head = format!(
                "POST /CommunityCBR/CC.35.{name}/ HTTP/1.1\r\nHost: mux\r\nContent-Length: 16\r\n\r\n\0\0\0\0\0\0\0\x08"
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&garbage[..8]).await?;
        }
        // A log-in, then a frame that is too long.
        5 => {
            stream.write_all(&log_in()).await?;
            stream.write_all(&[0x10, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 1]).await?;
        }
        // A log-in, then long messages without end, whose echoes are not read.
        6 => {
            stream.write_all(&log_in()).await?;
            stream.write_all(&messages::create_chat()).await?;
            let message = messages::send(&messages::chat_body(&vec![b'x'; 60_000]));
            loop {
                stream.write_all(&message).await?;
            }
        }
        // A connection that closes without a byte.
        _ => return Ok(()),
    }
    let mut received = [0; 1024];
    while stream.read(&mut received).await? > 0 {}
    Ok(())
}
