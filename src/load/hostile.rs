//! The client that means no good. Whatever is done to it is right; the others must not suffer.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    random::Random,
    setup::{Setup, Signal, over},
};
use crate::wire::{
    frame,
    message::{Writer, kind},
};

/// How long one of its connections may take.
const PATIENCE: Duration = Duration::from_secs(6);
const PAUSE: Duration = Duration::from_millis(20);

/// Goes on until the run is over.
pub(super) async fn live(setup: Arc<Setup>, n: u64, mut signal: watch::Receiver<Signal>) {
    let mut random = Random::new(setup.seed ^ n ^ 0x00BA_DBAD);
    let misbehave = async {
        loop {
            setup.counters.hostile();
            let _ = timeout(PATIENCE, misbehave(&setup, &mut random)).await;
            sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = misbehave => (),
        () = over(&mut signal) => (),
    }
}

fn handshake() -> Vec<u8> {
    let mut hello = Writer::new();
    hello.u16(0xFFFF).u16(0).u32(0).u32(0).u16(0x1003).u32(0);
    frame::build(kind::HANDSHAKE, 0, &hello.0)
}

fn login() -> Vec<u8> {
    let mut login = Writer::new();
    login.u16(0x1003).string(b"hostile").opaque(b"").u16(0).u16(0);
    frame::build(kind::LOGIN, 0, &login.0)
}

async fn misbehave(setup: &Setup, random: &mut Random) -> std::io::Result<()> {
    let mut stream = setup.route.direct(None).await?;
    let mut rubbish = vec![0; 400];
    for byte in &mut rubbish {
        *byte = random.next().to_le_bytes()[0];
    }
    match random.next() % 8 {
        // No protocol at all.
        0 => stream.write_all(&rubbish).await?,
        // A frame of two gigabytes.
        1 => stream.write_all(&[0x7F, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0]).await?,
        // A frame in single bytes, slowly.
        2 => {
            for byte in handshake() {
                stream.write_all(&[byte]).await?;
                sleep(Duration::from_millis(500)).await;
            }
        }
        // A head without an end.
        3 => {
            stream.write_all(b"POST /CommunityCBR/CC.39.").await?;
            stream.write_all(&vec![b'A'; 256 * 1024]).await?;
        }
        // Someone else's session.
        4 => {
            let name: String = rubbish.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            let head = format!(
                "POST /CommunityCBR/CC.35.{name}/ HTTP/1.1\r\nHost: mux\r\nContent-Length: 16\r\n\r\n\0\0\0\0\0\0\0\x08"
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&rubbish[..8]).await?;
        }
        // In, and then a frame that is too long.
        5 => {
            stream.write_all(&[handshake(), login()].concat()).await?;
            stream.write_all(&[0x10, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 1]).await?;
        }
        // In, and then all talk and no ear.
        6 => {
            stream.write_all(&[handshake(), login()].concat()).await?;
            let mut create = Writer::new();
            create.u32(0).u32(1).string(b"echo").string(b"").u32(0x1000).u32(0x1000).u32(3).u32(0);
            create.opaque(&[0, 0, 0, 1, 0, 0, 0, 1]).u8(0).u16(0).opaque(b"");
            stream.write_all(&frame::build(kind::CREATE_CNL, 0, &create.0)).await?;
            let mut body = Writer::new();
            body.u16(0x0064).opaque(&vec![b'x'; 60_000]);
            let talk = frame::build(kind::SEND_ON_CNL, 1, &body.0);
            loop {
                stream.write_all(&talk).await?;
            }
        }
        // Gone before a word.
        _ => return Ok(()),
    }
    let mut answer = [0; 1024];
    while stream.read(&mut answer).await? > 0 {}
    Ok(())
}
