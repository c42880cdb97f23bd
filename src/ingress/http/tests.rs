//! What the parts of this room have to agree on.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, StatusCode, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::TcpStream,
};

use super::{
    HttpContext, Origin,
    backend::every_error,
    connection::{serve, serve_fast},
    fast_path::FastRequest,
    response::{PortResponse, status_of},
    route::PortPage,
    tunnel_request::{body_refusal, respond},
    unread_refusal,
};
use crate::{
    ingress::tunnel::TunnelResponse,
    limits::tally::Permit,
    stream::Replayed,
    telemetry::outcome::{ConnectionDrop, Outcome, Refusal, RequestRefusal, TunnelOutcome},
};

/// Every response that a client port makes itself, and some that carry bytes of the tunnel.
fn every_response() -> Vec<PortResponse> {
    use TunnelOutcome::*;
    let bytes = [0, 3, 100_000].map(|length| PortResponse::tunnel(vec![b'x'; length].into()));
    let pages = [
        PortPage::TunnelReady,
        PortPage::TunnelMethods,
        PortPage::TunnelNotReady,
        PortPage::TunnelTakesPost,
        PortPage::NoSuchTunnel,
        PortPage::NoWebServer,
    ];
    let unread = [ConnectionDrop::Connections, ConnectionDrop::NoCertificate].map(unread_refusal);
    let bodies = [TooLarge, CutOff, TooSlow, HeldBytes].map(body_refusal);
    let failed = [Malformed, Unknown, OtherAddress, Gone, NotAcknowledged, Busy, Failed].map(TunnelResponse::Failed);
    let full = TunnelResponse::Refused(Refusal::TunnelSessions, Full);
    let core = Refusal::ALL.iter().map(|refusal| TunnelResponse::Refused(*refusal, Refused));
    let tunnel = failed.into_iter().chain([full]).chain(core).map(respond);
    let backend = every_error().into_iter().map(PortResponse::from);
    bytes
        .into_iter()
        .chain(pages.map(PortResponse::from))
        .chain(unread)
        .chain(bodies)
        .chain(tunnel)
        .chain(backend)
        .collect()
}

/// What hyper writes for `response` when the request has these header lines.
async fn written_by_hyper(response: PortResponse, lines: &str) -> Vec<u8> {
    let length = response.body().len();
    let (mut client, server) = duplex(64 * 1024);
    let response = parking_lot::Mutex::new(Some(response));
    let service = service_fn(|_| async {
        let response = response.lock().take().expect("one request");
        Ok::<_, Infallible>(Response::<Bytes>::from(response).map(Full::new))
    });
    let serving = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(server), service);
    let exchange = async {
        let request = format!("POST /a HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: 0\r\n\r\n");
        client.write_all(request.as_bytes()).await.expect("written");
        let mut written = Vec::new();
        let is_complete = |written: &[u8]| {
            written.windows(4).position(|four| four == b"\r\n\r\n").is_some_and(|at| written.len() >= at + 4 + length)
        };
        while !is_complete(&written) {
            assert!(client.read_buf(&mut written).await.expect("read") > 0, "{}", written.escape_ascii());
        }
        drop(client);
        written
    };
    tokio::join!(exchange, async { drop(serving.await) }).0
}

/// A response, the date's value aside.
fn without_date(bytes: &[u8]) -> String {
    let text = String::from_utf8(bytes.to_vec()).expect("text");
    let (front, rest) = text.split_once("\r\ndate: ").expect("a date");
    let (date, rest) = rest.split_once("\r\n").expect("its end");
    assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
    format!("{front}\r\ndate: \r\n{rest}")
}

#[tokio::test]
async fn both_encoders_write_the_same_bytes() {
    let count = every_response().len();
    assert!(count > 40, "{count}");
    for at in 0..count {
        let response = || every_response().swap_remove(at);
        let kept = written_by_hyper(response(), "Connection: keep-alive\r\n").await;
        assert_eq!(without_date(&kept), without_date(&response().to_bytes()));
        let whole = without_date(&response().closing().to_bytes());
        assert!(whole.contains("\r\nconnection: close\r\n"), "{whole}");
        let closed = written_by_hyper(response(), "Connection: close\r\n").await;
        assert_eq!(without_date(&closed), whole, "the client closes");
        let closed = written_by_hyper(response().closing(), "").await;
        assert_eq!(without_date(&closed), whole, "this port closes");
    }
}

#[test]
fn every_outcome_of_a_request_has_a_status() {
    let statuses = RequestRefusal::ALL.iter().map(|refusal| (refusal.name(), status_of(*refusal)));
    for (name, status) in statuses {
        assert!((400..600).contains(&status.as_u16()) && status != 500, "{name}: {status}");
    }
    for outcome in TunnelOutcome::ALL {
        let status = status_of(*outcome);
        assert_eq!(status == StatusCode::INTERNAL_SERVER_ERROR, *outcome == TunnelOutcome::Failed, "{outcome}");
    }
}

/// The size of the future that `serve` returns.
fn size<A, B, C, D, F>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
    size_of::<F>()
}

/// A connection's memory while it is idle, and what its box adds while a request is held: see docs/notes/memory.md.
#[test]
fn an_idle_connection_and_a_held_request_are_small() {
    type Tcp = Replayed<TcpStream>;
    let idle = size(|context, stream: Tcp, origin: Origin, place: Permit| serve(context, stream, origin, place));
    let held = size(
        |context: &'static HttpContext, stream: &'static mut Tcp, request: FastRequest, origin: &'static Origin| {
            serve_fast(context, stream, request, origin)
        },
    );
    println!("an idle connection: {idle} bytes; a held request: {held} bytes more");
    assert!(idle <= 560, "{idle}");
    assert!(held <= 1_280, "{held}");
}
