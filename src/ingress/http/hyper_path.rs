//! Requests that hyper reads: all that do not have the plain form of the tunnel's. hyper has the connection from a
//! request's first byte until no request is incomplete or unanswered.

use std::{
    convert::Infallible,
    future::{pending, poll_fn},
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
    Request, Response, Version,
    body::{Body, Frame, Incoming, SizeHint},
    header::HeaderValue,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    HttpContext, MAX_HEAD,
    backend::{self, RequestOrigin, WebServerBody},
    fast_path::{StreamRequest, TunnelCall, joined},
    forwarded::{FORWARDED_FOR, client_behind},
    framing::FramingError,
    guard::{Guarded, HyperProgress},
    response::PortResponse,
    route::{Destination, PortPage, StreamSigns, route},
    tunnel_request::{self, BodyRoom, HeldBody},
};
use crate::{
    ingress::Origin,
    net::address::lies_in,
    stream::{ClosingBounds, Replayed, close_in_stages},
    telemetry::outcome::RequestRefusal,
};

/// The body of a response: bytes of this port, or what the web server sends.
type ResponseBody = Either<Full<Bytes>, WebServerBody>;

/// What becomes of a connection after hyper.
pub(super) enum AfterHyper<S> {
    /// hyper is idle. It would keep its buffers, so it has given the stream back.
    Idle(Replayed<S>),
    /// The last request opens a stream. hyper has written nothing for it.
    Stream(Replayed<S>, StreamRequest),
    /// The connection has ended.
    Closed,
}

/// Serves requests of `stream` until hyper is idle, or until a request opens a stream.
pub(super) async fn serve<S>(context: &Arc<HttpContext>, stream: Replayed<S>, origin: Origin) -> AfterHyper<S>
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
    let opening = Mutex::new(None);
    let service = service_fn(|request| {
        let (context, when_dropped) = (Arc::clone(context), ResponseDone(Arc::clone(&progress)));
        let opens_stream = stream_request(&request);
        let is_stream = opens_stream.is_some();
        if is_stream {
            *opening.lock() = opens_stream;
        }
        // Boxed, because hyper gives its stream back only if it may be moved.
        Box::pin(async move {
            if is_stream {
                // The connection is taken from hyper.
                pending::<()>().await;
            }
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
        // Responses in front of it are written first.
        if polled.is_pending() && !progress.is_stalled() && opening.lock().is_some() {
            return Poll::Ready(Ok(()));
        }
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
        return AfterHyper::Closed;
    }
    let parts = connection.into_parts();
    let mut stream = parts.io.into_inner().into_inner();
    let opening = opening.lock().take();
    if let Some(request) = opening {
        return AfterHyper::Stream(stream, request);
    }
    if !leaves {
        close_in_stages(stream, ClosingBounds::RESPONSE).await;
        return AfterHyper::Closed;
    }
    if !parts.read_buf.is_empty() {
        stream.put_back(parts.read_buf);
    }
    AfterHyper::Idle(stream)
}

/// The request as one that opens a stream, if it does.
fn stream_request(request: &Request<Incoming>) -> Option<StreamRequest> {
    let headers = request.headers();
    let signs = StreamSigns::of(headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())));
    if route(request.method().as_str(), request.uri().path(), signs, None) != Destination::OpenStream {
        return None;
    }
    let lines: Vec<&[u8]> = headers.get_all(FORWARDED_FOR).into_iter().map(HeaderValue::as_bytes).collect();
    Some(StreamRequest { is_chunked: request.version() == Version::HTTP_11, forwarded: joined(&lines) })
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
    let client = client_behind(&settings.trusted_proxies, lines, &origin);
    let (method, path, signs) = (request.method().as_str(), request.uri().path(), StreamSigns::default());
    let call = match route(method, path, signs, settings.web_server.as_ref()) {
        Destination::Tunnel(kind, name) => TunnelCall::Named(kind, name),
        Destination::Upload => TunnelCall::Upload,
        Destination::WebServer(url) => {
            let (is_trusted, is_tls) = (lies_in(&settings.trusted_proxies, origin.client.ip()), origin.is_tls);
            let from = RequestOrigin { peer: origin.client, is_trusted, is_tls };
            let through = (&context.web_server, context.loop_guard.as_ref());
            return match backend::pass_on(through, url, request, &from, (client, origin.port.number), &settings).await {
                Ok(response) => response.map(Either::Right),
                Err(error) => {
                    // The framing guard has counted a body that is broken.
                    if let Some(reason) = error.refusal()
                        && !(reason == RequestRefusal::BodyCutOff && recorded.load(Relaxed))
                    {
                        context.record_refused_request(reason, &origin);
                    }
                    encode(error.into())
                }
            };
        }
        Destination::Page(page) => {
            if page == PortPage::NoSuchTunnel {
                context.telemetry.tunnel.no_such_path();
            }
            return encode(page.at(|| context.is_ready()).into());
        }
        // Without signs, no request opens a stream.
        Destination::OpenStream => return encode(PortPage::NoSuchTunnel.into()),
    };
    let room = BodyRoom::new(context, &call, client.ip());
    encode(match HeldBody::read(request.into_body(), &settings, room).await {
        Ok(body) => tunnel_request::serve(context, call, body, client, &origin).await,
        // The rest of the body is not read.
        Err(outcome) => tunnel_request::refuse_body(context, call, outcome).closing(),
    })
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
