//! The requests of one connection, one after another.
//!
//! ```text
//!  idle ── bytes ──▶ first look ──┬── complete ────────────────▶ fast path ──▶ idle
//!   │                  ▲          ├── begun ──▶ the rest ──┐
//!   │                  │          │                 │      │ not within 500 ms
//!   │                  └──────────│─────────────────┘      ▼
//!   │                             └── other ─────────────▶ hyper path ─────▶ idle, or closed
//!   └── the stream's end, or no byte within limits.login_timeout ──▶ closed
//! ```
//! A client may close its sending side behind a request, and still gets the response.

use std::{
    future::{Future, poll_fn},
    io, iter,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::{Sleep, sleep, timeout},
};

use super::{
    HttpContext,
    fast_path::{FastRequest, FirstLook, StreamRequest, first_look},
    forwarded::client_behind,
    guard::Guarded,
    hyper_path::{self, AfterHyper},
    response::{PortResponse, Reuse},
    streaming,
    tunnel_request::{self, BodyRoom, HeldBody},
};
use crate::{
    ingress::Origin,
    limits::{budget::LITTLE, tally::Permit},
    net::address::lies_in,
    runtime::scratch,
    stream::{ClosingBounds, Replayed, StreamError, close_in_stages},
    telemetry::outcome::TunnelOutcome,
};

/// How long the fast path waits for the rest of a request. Then hyper waits for it.
const REST_TIMEOUT: Duration = Duration::from_millis(500);

/// How long another node of the cluster may keep a connection without a request. It closes the connection earlier.
const PEER_IDLE: Duration = Duration::from_secs(60);

/// Serves HTTP/1 on `stream` until it closes. `place` counts the connection until then.
///
/// Between two requests it keeps nothing but the stream. Requests of the tunnel in the form in which nearly every
/// client writes them are served here; for all others, hyper has the stream until it is idle.
// Not an `async fn`, whose future stores its arguments twice.
#[allow(clippy::manual_async_fn)]
pub(in crate::ingress) fn serve<S>(
    context: Arc<HttpContext>,
    mut stream: Replayed<S>,
    origin: Origin,
    mut place: Permit,
) -> impl Future<Output = ()> + Send
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    async move {
        if origin.is_peer {
            // Its requests are of sessions that there are.
            place.settle();
        }
        let timeout = if origin.is_peer { PEER_IDLE } else { context.settings.load().timeout };
        let (mut since, mut timer) = (Instant::now(), pin!(sleep(timeout)));
        loop {
            let next = poll_fn(|cx| poll_next(&context, &mut stream, &origin, timer.as_mut(), since + timeout, cx));
            let look = match next.await {
                Ok(Some(FirstLook::Begun(bytes))) => Box::pin(rest(&context, &mut stream, &origin, bytes)).await,
                Ok(Some(look)) => look,
                Ok(None) => return Box::pin(close_in_stages(stream, ClosingBounds::RESPONSE)).await,
                Err(error) => {
                    context.record_dropped(&origin, &error);
                    if StreamError::of(&error) == Some(StreamError::NoRequest) {
                        Box::pin(close_in_stages(stream, ClosingBounds::RESPONSE)).await;
                    }
                    return;
                }
            };
            match look {
                FirstLook::Complete(request) => {
                    // Boxed, so that the connection does not carry its memory between two requests.
                    match Box::pin(serve_fast(&context, &mut stream, request, &origin)).await {
                        Ok(Reuse::KeptAlive) => (),
                        Ok(Reuse::Closes | Reuse::ClosesOld) => {
                            return Box::pin(close_behind_response(&context, stream, &origin)).await;
                        }
                        Err(error) => return context.record_dropped(&origin, &error),
                    }
                }
                FirstLook::Stream(request) => {
                    return Box::pin(open_stream(&context, stream, request, &origin)).await;
                }
                FirstLook::Begun(bytes) | FirstLook::Other(bytes) => {
                    stream.put_back(bytes);
                    match Box::pin(serve_by_hyper(&context, stream, origin)).await {
                        Some(back) => stream = back,
                        None => return,
                    }
                }
            }
            place.settle();
            since = Instant::now();
        }
    }
}

/// Closes a connection on which the client sends no further request. All of the last one was read, so nothing is on its
/// way here that could make the system destroy the response: it is enough to close.
async fn close_behind_response<S>(context: &HttpContext, stream: Replayed<S>, origin: &Origin)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if stream.has_first() {
        return close_in_stages(stream, ClosingBounds::RESPONSE).await;
    }
    let closed = Guarded::new(stream, context.settings.load().timeout, |_| ()).shutdown().await;
    closed.unwrap_or_else(|error| context.record_dropped(origin, &error));
}

/// Serves requests by hyper until it is idle. `None`: the connection has ended, or has become a streaming session.
async fn serve_by_hyper<S>(context: &Arc<HttpContext>, stream: Replayed<S>, origin: Origin) -> Option<Replayed<S>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match hyper_path::serve(context, stream, origin).await {
        AfterHyper::Idle(stream) => return Some(stream),
        AfterHyper::Stream(stream, request) => open_stream(context, stream, request, &origin).await,
        AfterHyper::Closed => (),
    }
    None
}

/// Makes the connection a streaming session.
async fn open_stream<S>(context: &HttpContext, stream: Replayed<S>, request: StreamRequest, origin: &Origin)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if let Err(error) = streaming::open(context, stream, request, origin).await {
        context.record_dropped(origin, &error);
    }
}

/// Looks at a request's bytes.
fn look(context: &HttpContext, origin: &Origin, bytes: &[u8]) -> FirstLook {
    let wants_forwarded = origin.is_peer || lies_in(&context.settings.load().trusted_proxies, origin.client.ip());
    first_look(bytes, wants_forwarded)
}

/// Waits for the next request until `deadline`. `None` at the stream's end.
fn poll_next<S: AsyncRead + Unpin>(
    context: &HttpContext,
    stream: &mut Replayed<S>,
    origin: &Origin,
    mut timer: Pin<&mut Sleep>,
    deadline: Instant,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Option<FirstLook>>> {
    if let Poll::Ready(read) = scratch::poll_read(stream, cx, |bytes, _| look(context, origin, bytes)) {
        return Poll::Ready(truncation_is_the_end(read));
    }
    // The timer is set anew when it has run out, and not for each request.
    while timer.as_mut().poll(cx).is_ready() {
        if Instant::now() >= deadline {
            return Poll::Ready(Err(StreamError::NoRequest.into()));
        }
        timer.as_mut().reset(deadline.into());
    }
    Poll::Pending
}

/// Reads an end without close_notify as an end: a request has a length, so a missing part of one is noticed.
fn truncation_is_the_end<T>(read: io::Result<Option<T>>) -> io::Result<Option<T>> {
    match read {
        Err(error) if StreamError::of(&error) == Some(StreamError::Truncated) => Ok(None),
        read => read,
    }
}

/// Waits a moment for the rest of a request. If it does not come, hyper waits for it.
async fn rest<S: AsyncRead + Unpin>(
    context: &HttpContext,
    stream: &mut Replayed<S>,
    origin: &Origin,
    begun: Bytes,
) -> FirstLook {
    let mut bytes = Vec::from(begun);
    let looked = timeout(REST_TIMEOUT, async {
        loop {
            match poll_fn(|cx| scratch::poll_read(stream, cx, |more, _| bytes.extend_from_slice(more))).await {
                Ok(Some(())) => match look(context, origin, &bytes) {
                    FirstLook::Begun(_) => (),
                    look => break Some(look),
                },
                // hyper reads the end, or the error, itself.
                Ok(None) | Err(_) => break None,
            }
        }
    });
    looked.await.ok().flatten().unwrap_or_else(|| FirstLook::Other(bytes.into()))
}

/// Serves one request of the fast path.
pub(super) async fn serve_fast<S>(
    context: &HttpContext,
    stream: &mut Replayed<S>,
    request: FastRequest,
    origin: &Origin,
) -> io::Result<Reuse>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let FastRequest { call, body, forwarded, reuse } = request;
    let client = match &forwarded {
        None => origin.client,
        Some(line) => client_behind(&context.settings.load().trusted_proxies, iter::once(&line[..]), origin),
    };
    drop(forwarded);
    let Some(body) = HeldBody::new(body, BodyRoom::new(context, &call, client.ip())) else {
        let refused = tunnel_request::refuse_body(context, call, TunnelOutcome::HeldBytes);
        write_response(context, stream, &refused.with_reuse(reuse)).await?;
        return Ok(reuse);
    };
    let mut serving = pin!(tunnel_request::serve(context, call, body, client, origin));
    let mut has_ended = false;
    let response = poll_fn(|cx| {
        if let Poll::Ready(response) = serving.as_mut().poll(cx) {
            return Poll::Ready(io::Result::Ok(response));
        }
        // A client whose connection breaks is not served further. Bytes of its next request are kept. One that has closed
        // its sending side may still read.
        while !stream.has_first() && !has_ended {
            let read = ready!(scratch::poll_read(stream, cx, |bytes, _| Bytes::copy_from_slice(bytes)));
            match truncation_is_the_end(read)? {
                Some(bytes) => stream.put_back(bytes),
                None => has_ended = true,
            }
        }
        Poll::Pending
    });
    let response = response.await?;
    write_response(context, stream, &response.with_reuse(reuse)).await?;
    Ok(reuse)
}

async fn write_response<S>(context: &HttpContext, stream: &mut Replayed<S>, response: &PortResponse) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if response.body().len() <= LITTLE {
        return write(context, stream, &response.to_bytes()).await;
    }
    // A long body is not copied: it counts in the budget where it is.
    write(context, stream, &response.head()).await?;
    write(context, stream, response.body()).await
}

async fn write<S>(context: &HttpContext, stream: &mut Replayed<S>, bytes: &[u8]) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let done = poll_fn(|cx| {
        let mut to = Pin::new(&mut *stream);
        let written = match to.as_mut().poll_write(cx, bytes) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        let flushed = written == bytes.len() && to.poll_flush(cx)?.is_ready();
        Poll::Ready(io::Result::Ok((written, flushed)))
    });
    if let (written, false) = done.await? {
        // Rare: the client reads slowly.
        let timeout = context.settings.load().timeout;
        Box::pin(async {
            let mut to = Guarded::new(stream, timeout, |_| ());
            to.write_all(&bytes[written..]).await?;
            to.flush().await
        })
        .await?;
    }
    Ok(())
}
