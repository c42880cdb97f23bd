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
    streaming::{self, Down},
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

/// The recordings of polling and hybrid clients.
fn transcripts() -> Vec<Transcript> {
    let is_wanted =
        |transcript: &Transcript| ["polling-", "hybrid-"].iter().any(|kind| transcript.name.starts_with(kind));
    let transcripts: Vec<_> = all_transcripts().into_iter().filter(is_wanted).collect();
    assert_eq!(transcripts.len(), 8, "the recordings are in {FOLDER}");
    transcripts
}

fn all_transcripts() -> Vec<Transcript> {
    let mut files: Vec<PathBuf> = fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    files
        .into_iter()
        .map(|file| Transcript {
            name: file.file_stem().unwrap().to_string_lossy().into_owned(),
            events: fs::read_to_string(&file).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect(),
        })
        .collect()
}

fn text<'e>(event: &'e Value, field: &str) -> &'e str {
    event[field].as_str().unwrap_or_default()
}

fn bytes(event: &Value, field: &str) -> Vec<u8> {
    hex(text(event, field))
}

impl Transcript {
    fn is_streaming(&self) -> bool {
        self.name.starts_with("streaming-")
    }

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

/// A script that answers as the recording Community server did, and closes behind the last answer if `closes`.
async fn answer_stream(mut connection: Connection, answers: Vec<Vec<u8>>, closes: bool) {
    let mut answers = answers.into_iter().peekable();
    while let Some(frame) = connection.recv().await {
        match frame.kind {
            frames::HANDSHAKE | frames::LOGIN | frames::CREATE | frames::SEND => {
                connection.send(&answers.next().unwrap_or_default()).await;
            }
            frames::DESTROY => return,
            _ => (),
        }
        if closes && answers.peek().is_none() {
            return;
        }
    }
}

/// The recorded request, with the present session's name in its body.
fn streaming_request(event: &Value, headers: &[&str], name: &[u8]) -> Vec<u8> {
    let recorded = bytes(event, "body");
    let line = text(event, "line");
    let mut request = format!("{line}\r\n");
    for header in headers.iter().filter(|header| !header.starts_with("Content-Length")) {
        request.push_str(&format!("{header}\r\n"));
    }
    if recorded.is_empty() {
        return format!("{request}\r\n").into_bytes();
    }
    assert_eq!(recorded[..5], *b"\xFF\0\x02S1", "the recorded session's name");
    let body = streaming::body(name, &recorded[5..]);
    [format!("{request}Content-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat()
}

/// Replays one recording of the streaming tunnel.
async fn replay_streaming(transcript: &Transcript) {
    let name = &transcript.name;
    let of = |kind: &'static str| transcript.events.iter().filter(move |event| event["ev"] == kind);
    // The keep-alives of the recording come from its study server.
    let answers: Vec<Vec<u8>> = of("stream").map(|event| bytes(event, "payload")).filter(|p| *p != [0x80]).collect();
    let (script, closes) = (answers.clone(), of("cut").next().is_some());
    let community = Community::start(move |connection| answer_stream(connection, script.clone(), closes)).await;
    let mux = mux::start(&community.setting()).await;
    let mut connections: HashMap<u64, Stream> = HashMap::new();
    let (mut down, mut expected, mut received) = (None, Vec::new(), Vec::new());
    let mut session = Vec::new();
    for (n, event) in transcript.events.iter().enumerate() {
        let connection = event["conn"].as_u64().unwrap_or(0);
        match text(event, "ev") {
            "open" => {
                connections.insert(connection, http::connect(mux.raw(), false).await);
            }
            "request" => {
                let headers: Vec<&str> =
                    event["headers"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
                let request = streaming_request(event, &headers, &session);
                connections.get_mut(&connection).unwrap().write_all(&request).await.unwrap();
                expected.extend(bytes(event, "body").into_iter().skip(5));
            }
            "response-begins" => {
                let (from, into) = tokio::io::split(connections.remove(&connection).unwrap());
                let begun = in_time(name, Down::begin(from)).await.unwrap();
                session.clone_from(&begun.name);
                down = Some((begun, into));
            }
            "response" => {
                let stream = connections.get_mut(&connection).unwrap();
                let response = in_time(name, http::read_response(stream)).await.unwrap();
                assert_eq!(response.status, 200, "{name}, event {n}: {}", response.head);
                assert_eq!(response.body, streaming::body(&session, b""), "{name}, event {n}");
            }
            "stream" if bytes(event, "payload") != [0x80] => {
                let wanted = received.len() + bytes(event, "payload").len();
                while let (Some((down, _)), true) = (&mut down, received.len() < wanted) {
                    let mut some = vec![0; wanted - received.len()];
                    let read = in_time(name, down.read(&mut some)).await.unwrap();
                    assert!(read > 0, "{name}, event {n}: the stream has ended");
                    received.extend_from_slice(&some[..read]);
                }
            }
            "drop" => {
                // The response arrives, and the client does not read it.
                let mut stream = connections.remove(&connection).unwrap();
                in_time(name, stream.read_u8()).await.unwrap();
            }
            "cut" => {
                let (down, _) = down.as_mut().unwrap();
                assert_eq!(in_time(name, down.read(&mut [0; 64])).await.unwrap(), 0, "{name}: nothing more");
            }
            "close" if connections.remove(&connection).is_none() => down = None,
            // The study server could not answer this request of a client that has closed its other connection.
            "error" => {
                let stream = connections.get_mut(&connection).unwrap();
                let response = in_time(name, http::read_response(stream)).await.unwrap();
                assert_eq!((response.status, response.body), (200, streaming::body(&session, b"")), "{name}");
            }
            _ => (),
        }
    }
    assert_eq!(received, answers.concat(), "{name}: every byte once and in order");
    expected[20..24].copy_from_slice(&[127, 0, 0, 1]);
    wait_until(name, || community.sessions() == 1 && community.received(0).len() >= expected.len()).await;
    assert_eq!(community.received(0), expected, "{name}: every frame once and in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recorded_streaming_client_is_served() {
    let transcripts: Vec<_> = all_transcripts().into_iter().filter(Transcript::is_streaming).collect();
    assert_eq!(transcripts.len(), 4, "the recordings are in {FOLDER}");
    for transcript in &transcripts {
        replay_streaming(transcript).await;
    }
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
