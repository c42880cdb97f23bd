//! A connection's requests, one after another.

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
    Collected, ask, dropped,
    fast_path::{self, Call, Look},
    forwarded::client_of,
    guard::Guarded,
    hyper_path, refusal,
    response::unavailable,
};
use crate::{
    ingress::{
        Ingress, Origin,
        tunnel::{TunnelResponse, transport},
    },
    limits::{
        budget::{HeldBytes, LITTLE},
        tally::Permit,
    },
    net::address::lies_in,
    runtime::scratch,
    stream::Replayed,
    telemetry::outcome::TunnelOutcome,
};

/// How long the rest of a request is waited for before hyper waits for it.
const REST: Duration = Duration::from_millis(500);

/// Serves HTTP/1 on `stream` until it closes.
///
/// Between two requests nothing is kept but the stream. Requests of the tunnel, as nearly every
/// client writes them, are answered here; all others are hyper's, which has the stream for as
/// long as there are requests to serve.
/// `place` is the connection's, for as long as it lasts.
// Not `async fn`, whose arguments lie in its future twice.
#[allow(clippy::manual_async_fn)]
pub(in crate::ingress) fn serve<S>(
    ingress: Arc<Ingress>,
    mut stream: Replayed<S>,
    origin: Origin,
    place: Permit,
) -> impl Future<Output = ()> + Send
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    async move {
        let _place = &place;
        let patience = ingress.settings.load().login_timeout;
        let (mut since, mut timer) = (Instant::now(), pin!(sleep(patience)));
        loop {
            let look =
                match poll_fn(|cx| poll_next(&ingress, &mut stream, &origin, timer.as_mut(), since + patience, cx))
                    .await
                {
                    Ok(Some(Look::Begun(bytes))) => Box::pin(rest(&ingress, &mut stream, &origin, bytes)).await,
                    Ok(Some(look)) => look,
                    Ok(None) => {
                        let ended = Box::pin(async move { Guarded::new(stream, patience, |_| ()).shutdown().await });
                        return ended.await.unwrap_or_else(|error| dropped(&ingress, &origin, &error));
                    }
                    Err(error) => return dropped(&ingress, &origin, &error),
                };
            match look {
                Look::Call(call) => {
                    // Boxed: between two requests it is not carried along.
                    if let Err(error) = Box::pin(serve_call(&ingress, &mut stream, call, &origin)).await {
                        return dropped(&ingress, &origin, &error);
                    }
                }
                Look::Begun(bytes) | Look::Other(bytes) => {
                    stream.put_back(bytes);
                    match Box::pin(hyper_path::serve(&ingress, stream, origin)).await {
                        Some(back) => stream = back,
                        None => return,
                    }
                }
            }
            since = Instant::now();
        }
    }
}

/// Looks at a request's bytes.
fn look(ingress: &Ingress, origin: &Origin, bytes: &[u8]) -> Look {
    fast_path::look(bytes, lies_in(&ingress.settings.load().forwarded_for_from, origin.client.ip()))
}

/// What comes next; `None` at the stream's end.
fn poll_next<S: AsyncRead + Unpin>(
    ingress: &Ingress,
    stream: &mut Replayed<S>,
    origin: &Origin,
    mut timer: Pin<&mut Sleep>,
    deadline: Instant,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Option<Look>>> {
    if let Poll::Ready(read) = scratch::poll_read(stream, cx, |bytes, _| look(ingress, origin, bytes)) {
        return Poll::Ready(read);
    }
    // Set when it has run out, not for each request.
    while timer.as_mut().poll(cx).is_ready() {
        if Instant::now() >= deadline {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no request for limits.login_timeout")));
        }
        timer.as_mut().reset(deadline.into());
    }
    Poll::Pending
}

/// Waits a moment for the rest of a request. What does not come then is for hyper to wait for.
async fn rest<S: AsyncRead + Unpin>(
    ingress: &Ingress,
    stream: &mut Replayed<S>,
    origin: &Origin,
    begun: Bytes,
) -> Look {
    let mut bytes = Vec::from(begun);
    let looked = timeout(REST, async {
        loop {
            match poll_fn(|cx| scratch::poll_read(stream, cx, |more, _| bytes.extend_from_slice(more))).await {
                Ok(Some(())) => match look(ingress, origin, &bytes) {
                    Look::Begun(_) => (),
                    look => break Some(look),
                },
                // Hyper will read the end, or the error, for itself.
                Ok(None) | Err(_) => break None,
            }
        }
    });
    looked.await.ok().flatten().unwrap_or_else(|| Look::Other(bytes.into()))
}

/// Answers one request that is no matter for hyper.
async fn serve_call<S>(ingress: &Ingress, stream: &mut Replayed<S>, call: Call, origin: &Origin) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Call { kind, name, body, forwarded } = call;
    let client = match &forwarded {
        None => origin.client,
        Some(line) => client_of(&ingress.settings.load().forwarded_for_from, iter::once(&line[..]), origin.client),
    };
    drop(forwarded);
    let mut held = HeldBytes::none(&ingress.budget, client.ip());
    if body.len() > LITTLE && !held.grow(body.len()) {
        ingress.telemetry.tunnel.request(transport(kind), TunnelOutcome::HeldBytes);
        return write(ingress, stream, &fast_path::written(&unavailable("held_bytes"))).await;
    }
    let body = Collected { bytes: body, _held: held };
    let mut answering = pin!(ask(ingress, kind, name, body, client, origin.port));
    let answered = poll_fn(|cx| {
        if let Poll::Ready(answered) = answering.as_mut().poll(cx) {
            return Poll::Ready(io::Result::Ok(answered));
        }
        // A client that hangs up is waited for no longer. The next request can wait.
        while !stream.has_first() {
            match ready!(scratch::poll_read(stream, cx, |bytes, _| Bytes::copy_from_slice(bytes)))? {
                Some(bytes) => stream.put_back(bytes),
                None => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            }
        }
        Poll::Pending
    });
    match answered.await? {
        TunnelResponse::Body(body, _) if body.len() <= LITTLE => {
            write(ingress, stream, &fast_path::tunnelled(&body)).await
        }
        // Not copied: it is counted where it lies.
        TunnelResponse::Body(body, _) => {
            write(ingress, stream, &fast_path::head(body.len())).await?;
            write(ingress, stream, &body).await
        }
        refused => write(ingress, stream, &fast_path::written(&refusal(&refused))).await,
    }
}

async fn write<S>(ingress: &Ingress, stream: &mut Replayed<S>, bytes: &[u8]) -> io::Result<()>
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
        let patience = ingress.settings.load().login_timeout;
        Box::pin(async {
            let mut to = Guarded::new(stream, patience, |_| ());
            to.write_all(&bytes[written..]).await?;
            to.flush().await
        })
        .await?;
    }
    Ok(())
}
