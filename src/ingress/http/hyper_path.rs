//! Requests that hyper reads: all that do not have the plain form of the tunnel's. hyper has the connection from a
//! request's first byte until no request is incomplete or unanswered.

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
use http_body_util::{Either, Full};
use hyper::{
    Request, Response,
    body::{Body, Frame, Incoming, SizeHint},
    header::HeaderValue,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    HttpContext, MAX_HEAD,
    backend::{self, RequestOrigin, WebServerBody},
    forwarded::{FORWARDED_FOR, client_of},
    framing::FramingError,
    guard::{Guarded, HyperProgress},
    response::PortResponse,
    route::{Destination, PortPage, route},
    tunnel_request::{self, HeldBody},
};
use crate::{
    ingress::Origin,
    limits::budget::HeldBytes,
    net::address::lies_in,
    stream::{ClosingBounds, Replayed, close_in_stages},
    telemetry::outcome::RequestRefusal,
};

/// The body of a response: bytes of this port, or what the web server sends.
type ResponseBody = Either<Full<Bytes>, WebServerBody>;

/// Serves requests of `stream` until hyper is idle, and then returns the stream, because hyper keeps buffers. `None`:
/// the connection has ended.
pub(super) async fn serve<S>(context: &Arc<HttpContext>, stream: Replayed<S>, origin: Origin) -> Option<Replayed<S>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let timeout = context.settings.load().timeout;
    // Whether the present request was counted as refused.
    let recorded = &AtomicBool::new(false);
    let stream = Guarded::new(stream, timeout, |error: FramingError| {
        recorded.store(true, Relaxed);
        context.record_refused_request(error.refusal(), &origin);
    });
    let progress = stream.progress();
    let service = service_fn(|request| {
        let (context, when_dropped) = (Arc::clone(context), ResponseDone(Arc::clone(&progress)));
        // Boxed, because hyper gives its stream back only if it may be moved.
        Box::pin(async move {
            let response = respond(&context, request, origin, recorded).await;
            Ok::<_, Infallible>(response.map(|inner| TrackedBody { inner, _when_dropped: when_dropped }))
        })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeout)
        .half_close(true)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut leaves = false;
    let served = poll_fn(|cx| {
        let polled = connection.poll_without_shutdown(cx);
        if polled.is_pending() && !leaves && progress.is_idle() {
            // hyper would wait for the next request. It ends instead, and has nothing left to write.
            leaves = true;
            Pin::new(&mut connection).graceful_shutdown();
            return connection.poll_without_shutdown(cx);
        }
        polled
    })
    .await;
    if let Err(error) = served {
        // hyper has limits, and rules for targets, of its own.
        if error.is_parse() && !recorded.load(Relaxed) {
            let reason = if error.is_parse_too_large() { RequestRefusal::HeadTooLong } else { RequestRefusal::Target };
            context.record_refused_request(reason, &origin);
        }
        context.record_dropped(&origin, &error);
        // A response that breaks off must not look complete, and a broken connection needs no more.
        if error.is_parse() || error.is_timeout() || error.is_incomplete_message() {
            let stream = connection.into_parts().io.into_inner().into_inner();
            close_in_stages(stream, ClosingBounds::RESPONSE).await;
        }
        return None;
    }
    let parts = connection.into_parts();
    let mut stream = parts.io.into_inner().into_inner();
    if !leaves {
        close_in_stages(stream, ClosingBounds::RESPONSE).await;
        return None;
    }
    if !parts.read_buf.is_empty() {
        stream.put_back(parts.read_buf);
    }
    Some(stream)
}

/// Responds to one request.
async fn respond(
    context: &HttpContext,
    request: Request<Incoming>,
    origin: Origin,
    recorded: &AtomicBool,
) -> Response<ResponseBody> {
    let settings = context.settings.load_full();
    let forwarded: Vec<&HeaderValue> = request.headers().get_all(FORWARDED_FOR).into_iter().collect();
    let lines = forwarded.iter().map(|line| line.as_bytes());
    let client = client_of(&settings.trusted_proxies, lines, origin.client);
    let response = match route(request.method().as_str(), request.uri().path(), settings.web_server.as_ref()) {
        Destination::Tunnel(kind, name) => {
            let held = HeldBytes::none(&context.budget, client.ip());
            match HeldBody::read(request.into_body(), &settings, held).await {
                Ok(body) => tunnel_request::serve(context, kind, name, body, client, origin.port).await,
                // The rest of the body is not read.
                Err(outcome) => tunnel_request::refuse_body(context, kind, outcome).closing(),
            }
        }
        Destination::WebServer(url) => {
            let (is_trusted, is_tls) = (lies_in(&settings.trusted_proxies, origin.client.ip()), origin.is_tls);
            let from = RequestOrigin { peer: origin.client, is_trusted, is_tls };
            let through = (&context.web_server, context.loop_guard.as_ref());
            match backend::pass_on(through, url, request, &from, (client, origin.port.number), &settings).await {
                Ok(response) => return response.map(Either::Right),
                Err(error) => {
                    // The framing guard has counted a body that is broken.
                    if let Some(reason) = error.refusal()
                        && !(reason == RequestRefusal::BodyCutOff && recorded.load(Relaxed))
                    {
                        context.record_refused_request(reason, &origin);
                    }
                    error.into()
                }
            }
        }
        Destination::Page(page) => {
            if page == PortPage::NoSuchTunnel {
                context.telemetry.tunnel.no_such_path();
            }
            page.at(|| context.is_ready()).into()
        }
    };
    encode(response)
}

fn encode(response: PortResponse) -> Response<ResponseBody> {
    Response::from(response).map(|bytes| Either::Left(Full::new(bytes)))
}

/// Counts a response as done when hyper drops its body.
struct ResponseDone(Arc<HyperProgress>);

impl Drop for ResponseDone {
    fn drop(&mut self) {
        self.0.response_done();
    }
}

struct TrackedBody {
    inner: ResponseBody,
    _when_dropped: ResponseDone,
}

impl Body for TrackedBody {
    type Data = Bytes;
    type Error = <ResponseBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
