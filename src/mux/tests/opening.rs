//! How sessions open: the client's first frame, and what both sides do before there is an answer.

use super::*;
use crate::stream::{LinkError, LinkFailure, StreamError};

/// A Community server that answers as the test says.
struct ScriptedServer {
    link: Mutex<Option<Stream>>,
    answer: Result<Vec<u8>, LinkFailure>,
    /// Whether it does not answer before the client sends more, or closes.
    waits_for_more: bool,
    place: Arc<Places>,
}

impl Community for ScriptedServer {
    fn connect<'a>(&'a self, _: SocketAddr, hello: &'a [u8], more: MoreFromClient<'a>) -> Linking<'a> {
        let mut stream = self.link.lock().take().expect("one session");
        let lease = Box::new(Place(Arc::clone(&self.place)));
        Box::pin(async move {
            if self.waits_for_more {
                more.await;
            }
            let answer = self.answer.clone().map_err(|failure| LinkError { failure, detail: "refused".to_owned() })?;
            stream.write_all(hello).await.expect("room");
            Ok((Link { stream, server: "one".into(), lease }, answer))
        })
    }
}

/// A client whose connection has ended: reads fail once, and then there is the end.
struct Ended(Option<io::Error>);

impl AsyncRead for Ended {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.take().map_or(Ok(()), Err))
    }
}

impl AsyncWrite for Ended {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Case {
    settings: MuxSettings,
    answer: Result<Vec<u8>, LinkFailure>,
    waits_for_more: bool,
    /// What was read of the client's stream already.
    first: Vec<u8>,
}

impl Default for Case {
    fn default() -> Self {
        Self { settings: settings(), answer: Ok(Vec::new()), waits_for_more: false, first: Vec::new() }
    }
}

impl Case {
    /// A session of a client with this stream. Returns the Community's end, too.
    fn start(self, client: Stream) -> (DuplexStream, Program) {
        let (link, server, _) = stream(1 << 20);
        let place = Arc::<Places>::default();
        let (answer, waits_for_more) = (self.answer, self.waits_for_more);
        let community =
            ScriptedServer { link: Mutex::new(Some(link)), answer, waits_for_more, place: Arc::clone(&place) };
        let mux = Mux::start(self.settings, Arc::new(community), Telemetry::new("0"));
        let address = SocketAddr::from(([192, 0, 2, 1], 4000));
        let via =
            Via { client: address, port: 1533.into(), transport: Transport::Raw, accepted: Instant::now().into_std() };
        mux.take(Arrival { stream: client, first: self.first.into(), via }).expect("there is room");
        (server, Program { mux, place })
    }
}

/// The Handshake as a Community gets it from this client.
fn handshake() -> Vec<u8> {
    let mut handshake = message::handshake();
    message::stamp_client_address(&mut handshake, [192, 0, 2, 1].into());
    handshake
}

#[tokio::test(start_paused = true)]
async fn bytes_that_were_read_before_come_first() {
    let (near, mut client, _) = stream(BUFFER);
    let first = message::handshake()[..30].to_vec();
    let (mut server, program) = Case { first, ..Case::default() }.start(near);
    client.write_all(&message::handshake()[30..]).await.expect("room");
    client.write_all(&said(1)).await.expect("room");
    assert_eq!(read(&mut server, handshake().len()).await, handshake());
    assert_eq!(read(&mut server, 100).await, said(1));
    drop(client);
    assert!(read_to_end(&mut server).await.is_empty());
    drop(server);
    program.ends_as(SessionEnd::ClientClosed).await;
}

#[tokio::test(start_paused = true)]
async fn keep_alives_may_come_before_the_first_frame_but_not_without_end() {
    for (keep_alives, is_too_much) in [(100_000, false), (140_000, true)] {
        let (near, client, _) = stream(BUFFER);
        let (server, program) = Case::default().start(near);
        let mut bytes = vec![frame::KEEP_ALIVE; keep_alives];
        bytes.extend(message::handshake());
        tokio::spawn(async move {
            let mut client = client;
            let _ = client.write_all(&bytes).await;
        });
        let mut server = server;
        if is_too_much {
            program.ends_as(SessionEnd::FrameTooShort).await;
        } else {
            let received = read(&mut server, keep_alives + handshake().len()).await;
            assert_eq!(received[keep_alives..], handshake());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_frame_that_is_no_handshake_on_the_master_channel_is_refused() {
    for first in [said(1), frame::build(kind::SEND_ON_CNL, 0, &[7; 88]), frame::build(kind::HANDSHAKE, 5, &[7; 88])] {
        let (near, mut client, _) = stream(BUFFER);
        let (_server, program) = Case { first, ..Case::default() }.start(near);
        assert_eq!(read_to_end(&mut client).await, crate::wire::reason::Reason::ProtocolError.destroy());
        drop(client);
        program.ends_as(SessionEnd::NotAHandshake).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_has_some_time_for_its_first_frame() {
    let (near, mut client, _) = stream(BUFFER);
    let (_server, program) = Case { first: vec![0], ..Case::default() }.start(near);
    let since = Instant::now();
    assert_eq!(read_to_end(&mut client).await, crate::wire::reason::Reason::TimedOut.destroy());
    assert_eq!(since.elapsed().as_secs(), 30);
    drop(client);
    program.ends_as(SessionEnd::LoginTimeout).await;
}

#[tokio::test(start_paused = true)]
async fn how_a_client_ends_before_and_after_its_first_frame_is_told_apart() {
    let cut_off = || Some(StreamError::Truncated.into());
    let reset = || Some(Errno::CONNRESET.into());
    let ends = [
        ([None, None], SessionEnd::NoHandshake, SessionEnd::ClientClosed),
        ([cut_off(), cut_off()], SessionEnd::NoHandshake, SessionEnd::ClientClosed),
        ([reset(), reset()], SessionEnd::ClientBroken, SessionEnd::ClientBroken),
    ];
    for ([first, second], before, after) in ends {
        let client = Stream::other(Ended(first));
        let (_server, program) = Case { first: vec![0], ..Case::default() }.start(client);
        program.ends_as(before).await;
        let client = Stream::other(Ended(second));
        let case = Case { first: message::handshake(), waits_for_more: true, ..Case::default() };
        let (mut server, program) = case.start(client);
        assert_eq!(read_to_end(&mut server).await, handshake(), "the Community gets what was sent before");
        drop(server);
        program.ends_as(after).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_client_sends_before_the_answer_follows_its_handshake() {
    for (more, end) in [(said(1), None), (vec![0, 0, 0, 1], Some(SessionEnd::FrameTooShort))] {
        let (near, mut client, _) = stream(BUFFER);
        let answer = Ok(said(7));
        let case = Case { first: message::handshake(), waits_for_more: true, answer, ..Case::default() };
        let (mut server, program) = case.start(near);
        sleep(SECOND).await;
        client.write_all(&more).await.expect("room");
        assert_eq!(read(&mut client, 100).await, said(7));
        if let Some(end) = end {
            assert_eq!(read_to_end(&mut server).await, handshake(), "and nothing of an invalid frame");
            drop((client, server));
            program.ends_as(end).await;
        } else {
            assert_eq!(read(&mut server, handshake().len() + 100).await, [handshake(), more].concat());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_first_frame_needs_room() {
    let first = frame::build(kind::HANDSHAKE, 0, &[7; 20_000]);
    for (held_bytes, has_room) in [(1 << 20, true), (10_000, false)] {
        let (near, mut client, _) = stream(BUFFER);
        let settings = MuxSettings { held_bytes, ..settings() };
        // The last byte is missing.
        let case = Case { first: first[..first.len() - 1].to_vec(), settings, ..Case::default() };
        let (mut server, program) = case.start(near);
        if has_room {
            sleep(SECOND).await;
            assert_eq!(program.mux.held_bytes(), first.len() - 1);
            client.write_all(&first[first.len() - 1..]).await.expect("room");
            assert_eq!(read(&mut server, first.len()).await.len(), first.len());
        } else {
            assert_eq!(read_to_end(&mut client).await, crate::wire::reason::Reason::ServerFull.destroy());
            drop(client);
            program.ends_as(SessionEnd::HeldBytes).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_gets_the_whole_answer_before_an_invalid_frame() {
    let valid = much()[..20_000].to_vec();
    let answer = Ok([&valid[..], &[0, 0, 0, 1]].concat());
    let (near, mut client, _) = stream(BUFFER);
    let (server, program) = Case { first: message::handshake(), answer, ..Case::default() }.start(near);
    sleep(SECOND).await;
    drop(server);
    let received = read_slowly(&mut client, BUFFER, SECOND * 10).await;
    assert!(received[..valid.len()] == valid);
    assert_eq!(received[valid.len()..], crate::wire::reason::Reason::ConnectionBroken.destroy());
    drop(client);
    program.ends_as(SessionEnd::CommunityFault).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_no_server_has_is_not_waited_for() {
    let (near, _client, _) = stream(10);
    let answer = Err(LinkFailure::CannotConnect);
    let (_server, program) = Case { first: message::handshake(), answer, ..Case::default() }.start(near);
    let took = program.ends_as(SessionEnd::NoCommunity).await;
    assert!((3.0..4.0).contains(&took), "it does not read its farewell message: {took}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_ends_and_its_client_is_told() {
    let idle = MuxSettings { idle_timeout: Some(SECOND * 60), ..settings() };
    for is_reconfigured in [false, true] {
        let settings = if is_reconfigured { settings() } else { idle.clone() };
        let Session { mut client, server, program, .. } = start_with(settings, BUFFER).await;
        assert_eq!((program.mux.sessions(), program.mux.logging_in()), (1, 1));
        if is_reconfigured {
            program.mux.reconfigure(MuxSettings { held_bytes: 10, ..idle.clone() });
            assert!(program.mux.0.budget.lacks_in_total(11));
        }
        let since = Instant::now();
        assert_eq!(read_to_end(&mut client).await, crate::wire::reason::Reason::IdleTooLong.destroy());
        assert!((59..=61).contains(&since.elapsed().as_secs()), "{:?}", since.elapsed());
        drop((client, server));
        program.ends_as(SessionEnd::Idle).await;
    }
}

#[tokio::test(start_paused = true)]
async fn clients_are_logging_in_until_the_community_says_so() {
    let Session { mut client, mut server, program, .. } = start().await;
    assert_eq!(program.mux.logging_in(), 1);
    server.write_all(&frame::build(kind::LOGIN_ACK, 0, &[])).await.expect("room");
    read(&mut client, 12).await;
    assert_eq!(program.mux.logging_in(), 0);
}
