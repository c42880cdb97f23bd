//! Hyper's turn on a connection: from a request's first byte until no request is on its way.

use std::{
    convert::Infallible,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::{
    body::{Body as HttpBody, Frame, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{
    MAX_HEAD, answer,
    backend::Body,
    framing::FramingError,
    guard::{Guarded, Progress},
};
use crate::{
    ingress::{Ingress, Origin},
    stream::Replayed,
    telemetry::outcome::RequestRefusal,
};

/// Serves what `stream` asks until it asks for nothing: then it is given back, for hyper keeps
/// buffers. `None`: the connection has ended.
pub(super) async fn serve<S>(ingress: &Arc<Ingress>, stream: Replayed<S>, origin: Origin) -> Option<Replayed<S>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let patience = ingress.settings.load().login_timeout;
    let noted = AtomicBool::new(false);
    let stream = Guarded::new(stream, patience, |error: FramingError| {
        noted.store(true, Relaxed);
        ingress.odd_request(error.refusal(), &origin);
    });
    let progress = stream.progress();
    let service = service_fn(|request| {
        let (ingress, answered) = (Arc::clone(ingress), Answered(Arc::clone(&progress)));
        // Boxed: hyper can be taken apart only where it may be moved.
        Box::pin(async move {
            let response = answer(&ingress, request, origin).await;
            Ok::<_, Infallible>(response.map(|body| Counted { body, _answered: answered }))
        })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut parting = false;
    let served = poll_fn(|cx| {
        let polled = connection.poll_without_shutdown(cx);
        if polled.is_pending() && !parting && progress.is_idle() {
            // It is idle and would be kept: now it ends, and has nothing left to write.
            parting = true;
            Pin::new(&mut connection).graceful_shutdown();
            return connection.poll_without_shutdown(cx);
        }
        polled
    })
    .await;
    if let Err(error) = served {
        // hyper has bounds, and an opinion on targets, of its own.
        if error.is_parse() && !noted.load(Relaxed) {
            ingress.odd_request(
                if error.is_parse_too_large() { RequestRefusal::HeadTooLong } else { RequestRefusal::Target },
                &origin,
            );
        }
        super::dropped(ingress, &origin, &error);
        return None;
    }
    let parts = connection.into_parts();
    let mut guarded = parts.io.into_inner();
    if !parting {
        if let Err(error) = guarded.shutdown().await {
            super::dropped(ingress, &origin, &error);
        }
        return None;
    }
    let mut stream = guarded.into_inner();
    if !parts.read_buf.is_empty() {
        stream.put_back(parts.read_buf);
    }
    Some(stream)
}

/// Counts a response as answered once hyper lets go of its body.
struct Answered(Arc<Progress>);

impl Drop for Answered {
    fn drop(&mut self) {
        self.0.answered();
    }
}

struct Counted {
    body: Body,
    _answered: Answered,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
