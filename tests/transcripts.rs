//! Replays the recorded Java client against the multiplexer: on the same connections, in the same order, with the same
//! lost responses.
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod support;

use std::{collections::HashMap, fs, path::PathBuf, time::Duration};

use serde_json::Value;
use support::{
    community::{Community, Connection},
    frames::{self, Frame},
    hex,
    http::{self, Stream},
    in_time, mux,
    tunnel::{self, Chain, Kind, Session},
    wait_until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/transcripts");

/// One recording.
struct Transcript {
    name: String,
    events: Vec<Value>,
}

fn transcripts() -> Vec<Transcript> {
    let mut files: Vec<PathBuf> = fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    let transcripts: Vec<_> = files
        .into_iter()
        .map(|file| Transcript {
            name: file.file_stem().unwrap().to_string_lossy().into_owned(),
            events: fs::read_to_string(&file).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect(),
        })
        .collect();
    assert_eq!(transcripts.len(), 8, "the recordings are in {FOLDER}");
    transcripts
}

fn text<'e>(event: &'e Value, field: &str) -> &'e str {
    event[field].as_str().unwrap_or_default()
}

fn bytes(event: &Value, field: &str) -> Vec<u8> {
    hex(text(event, field))
}

impl Transcript {
    fn kind(&self) -> Kind {
        let first = self.events.iter().find(|event| event["ev"] == "request").unwrap();
        if text(first, "line").contains("CC.35.") { Kind::Polling } else { Kind::Hybrid }
    }

    fn version(&self) -> u8 {
        // u32 0, empty string, u32 version.
        let first = self.events.iter().find(|event| event["ev"] == "response").unwrap();
        bytes(first, "body")[9]
    }

    /// The payload of the request that is event `n`, decrypted.
    fn payload(&self, n: usize) -> Vec<u8> {
        let body = bytes(&self.events[n], "body");
        if self.version() == 0 || body.len() == 16 {
            return body[16..].to_vec();
        }
        let mut clear = bytes(&self.events[n + 1], "data");
        assert_eq!(self.events[n + 1]["ev"], "decrypted");
        clear.truncate(clear.len() - usize::from(*clear.last().unwrap()));
        clear
    }

    /// The frames that the recording Community server received, without those of repeated requests, which a multiplexer
    /// does not pass on.
    fn frames(&self) -> Vec<Frame> {
        let (mut seen, mut again, mut frames) = (Vec::new(), false, Vec::new());
        for event in &self.events {
            match text(event, "ev") {
                "request" => {
                    let body = text(event, "body").to_owned();
                    again = seen.contains(&body);
                    seen.push(body);
                }
                "frame" if !again => frames.push(Frame {
                    kind: u16::from_str_radix(text(event, "type").trim_start_matches("0x"), 16).unwrap(),
                    channel: u32::try_from(event["chan"].as_u64().unwrap()).unwrap(),
                    body: bytes(event, "body"),
                }),
                _ => (),
            }
        }
        frames
    }

    /// The payload that the client received, in order.
    fn received(&self) -> Vec<Vec<u8>> {
        let newest = self.events.iter().filter(|event| event["ev"] == "response" && event["newest"] == true);
        newest.map(|event| bytes(event, "payload")).filter(|payload| !payload.is_empty()).collect()
    }
}

/// A script that answers Handshake and Login as the recording Community server did.
async fn answer(mut connection: Connection, answers: Vec<Vec<u8>>) {
    let mut answers = answers.into_iter();
    while let Some(frame) = connection.recv().await {
        match frame.kind {
            frames::HANDSHAKE | frames::LOGIN => connection.send(&answers.next().unwrap_or_default()).await,
            frames::DESTROY => return,
            _ => (),
        }
    }
}

/// Replays one recording.
async fn replay(transcript: &Transcript) {
    let name = &transcript.name;
    let answers = transcript.received();
    assert_eq!(answers.len(), 2, "{name}: HandshakeAck and LoginAck");
    let script = answers.clone();
    let community = Community::start(move |connection| answer(connection, script.clone())).await;
    let toml = format!("{}[tunnel]\nversion = {}\n", community.setting(), transcript.version());
    let mux = mux::start(&toml).await;
    let mut session = Session::new(transcript.kind());
    let mut connections: HashMap<u64, Stream> = HashMap::new();
    // What was sent for each recorded body. A copy of a request has the same bytes.
    let mut sent: HashMap<String, Vec<u8>> = HashMap::new();
    let mut received = Vec::new();
    for (n, event) in transcript.events.iter().enumerate() {
        let connection = event["conn"].as_u64().unwrap_or(0);
        match text(event, "ev") {
            "open" => {
                connections.insert(connection, http::connect(mux.raw(), false).await);
            }
            "request" => {
                let recorded = text(event, "body").to_owned();
                let body = match sent.get(&recorded) {
                    Some(body) => body.clone(),
                    None if session.name.is_empty() => session.opening(),
                    None => {
                        let payload = transcript.payload(n);
                        let data = if session.kind == Kind::Hybrid { tunnel::records(&payload) } else { payload };
                        session.request(&data)
                    }
                };
                sent.insert(recorded, body.clone());
                let request = http::post(&session.path(), &body);
                connections.get_mut(&connection).unwrap().write_all(&request).await.unwrap();
                // The recorded requests are a second apart. With this pause they arrive in the same order.
                tokio::time::sleep(Duration::from_millis(60)).await;
            }
            "response" => {
                let stream = connections.get_mut(&connection).unwrap();
                let response = in_time(name, http::read_response(stream)).await.unwrap();
                assert_eq!(response.status, 200, "{name}, event {n}: {}", response.head);
                if session.name.is_empty() {
                    session.opened(&response.body);
                    assert_eq!(session.version, u32::from(transcript.version()));
                } else if event["newest"] == true {
                    received.extend(session.response(&response.body));
                } else {
                    assert!(
                        session.ignored_payload(&response.body).is_empty(),
                        "{name}, event {n}: superseded, so empty"
                    );
                }
            }
            "drop" => {
                // The response arrives, and the client does not read it.
                let mut stream = connections.remove(&connection).unwrap();
                in_time(name, stream.read_u8()).await.unwrap();
            }
            "close" => {
                connections.remove(&connection);
            }
            _ => (),
        }
    }
    assert_eq!(received, answers.concat(), "{name}: every byte once and in order");
    let mut expected: Vec<u8> = transcript.frames().iter().flat_map(Frame::bytes).collect();
    expected[20..24].copy_from_slice(&[127, 0, 0, 1]);
    wait_until(name, || community.sessions() == 1 && community.received(0).len() >= expected.len()).await;
    assert_eq!(community.received(0), expected, "{name}: every frame once and in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recorded_client_is_served() {
    for transcript in transcripts() {
        replay(&transcript).await;
    }
}

/// The test kit's cryptography gives the same bytes as the recorded client's.
#[test]
fn every_recorded_acknowledgement_is_recomputed() {
    let mut count = 0;
    for transcript in transcripts() {
        let first = transcript.events.iter().find(|event| event.get("rc2_key").is_some()).unwrap();
        let secret = num_bigint::BigUint::parse_bytes(text(first, "server_secret").as_bytes(), 16).unwrap();
        let request = transcript.events.iter().find(|event| event["ev"] == "request").unwrap();
        let request = bytes(request, "body");
        let n = usize::from(request[11]);
        let key = tunnel::key(&request[12..12 + n], &secret);
        assert_eq!(key, bytes(first, "rc2_key"), "{}", transcript.name);
        let (cipher, mut chain, mut inbound) = (tunnel::cipher(&key), Chain::default(), Chain::default());
        let (mut last, mut seen) = (Vec::new(), Vec::new());
        for (n, event) in transcript.events.iter().enumerate() {
            let body = bytes(event, "body");
            if event["ev"] != "request" || event.get("ack").is_none() || seen.contains(&body) {
                continue;
            }
            seen.push(body.clone());
            if last != body[8..16] {
                assert_eq!(chain.decrypt(&cipher, &body[8..16]), &bytes(event, "ack")[..5], "{}", transcript.name);
                last = body[8..16].to_vec();
                count += 1;
            }
            if transcript.version() > 0 && body.len() > 16 {
                assert_eq!(inbound.decrypt(&cipher, &body[16..]), transcript.payload(n), "{}", transcript.name);
            }
        }
    }
    assert!(count > 40, "{count} acknowledgements");
}
