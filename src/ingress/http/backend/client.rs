//! The client of the web server: a pool of connections, timeouts, and a bound on the requests at once.

use std::{
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::{
    Request, Response, StatusCode, Uri,
    body::{Body, Frame, Incoming, SizeHint},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::timeout_at;
use tracing::warn;

use super::{BackendError, BackendRefusal, request_body::TimedBody};
use crate::{
    ingress::http::HttpSettings,
    limits::tally::{Permit, Tally},
    log::Throttles,
    net::shortage::{is_shortage, shortage},
    telemetry::{
        Telemetry,
        outcome::{Outcome, WebServerError},
    },
};

/// How long the web server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take to begin its response after the last piece of the request came.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an idle connection is kept for the next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How many idle connections are kept.
const MAX_IDLE: usize = 64;
/// The most bytes of a response that are read at once. Its head has to fit.
const MAX_BUFFER: usize = 64 * 1024;

/// Connections to the web server, and the number of requests that are there.
pub(in crate::ingress::http) struct WebServerClient {
    client: Client<HttpConnector, TimedBody>,
    requests: Arc<Tally>,
    telemetry: Arc<Telemetry>,
    /// For log lines, by [`WebServerError`].
    lines: Throttles,
}

impl WebServerClient {
    pub(in crate::ingress::http) fn new(telemetry: Arc<Telemetry>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_buf_size(MAX_BUFFER)
            .build(connector);
        Self { client, requests: Arc::default(), telemetry, lines: Throttles::new(WebServerError::ALL.len()) }
    }

    /// Sends a request and waits for the head of its response. `url` and `client` are for the log.
    ///
    /// # Errors
    /// There are too many requests at once, the request's body fails, or the web server does.
    pub(super) async fn exchange(
        &self,
        request: Request<Incoming>,
        url: &Uri,
        client: SocketAddr,
        settings: &HttpSettings,
    ) -> Result<Response<WebServerBody>, BackendError> {
        let place = self.requests.enter(settings.max_web_server_requests).map_err(|_| BackendRefusal::Busy)?;
        let (parts, body) = request.into_parts();
        let (body, progress) = TimedBody::new(body, settings.timeout);
        let mut exchange = pin!(self.client.request(Request::from_parts(parts, body)));
        let response = loop {
            // As long as the body comes, the web server need not respond.
            let deadline = progress.last() + RESPONSE_TIMEOUT;
            match timeout_at(deadline.into(), &mut exchange).await {
                Ok(response) => break Some(response),
                Err(_) if progress.last() + RESPONSE_TIMEOUT > Instant::now() => (),
                Err(_) => break None,
            }
        };
        match (response, progress.error()) {
            (Some(Ok(response)), _) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                Err(self.failed(WebServerError::SwitchedProtocols, None, url, client))
            }
            (Some(Ok(response)), _) => Ok(response.map(|inner| WebServerBody { inner, _place: place })),
            // The web server has no response because the request never came to its end.
            (_, Some(error)) => Err(BackendRefusal::Body(error).into()),
            (Some(Err(error)), None) => {
                // The resolver, for example, may not say that it had no descriptor.
                let lacks = is_of_a_shortage(&error) || shortage().is_some();
                let reason = if lacks { WebServerError::Shortage } else { WebServerError::NoResponse };
                Err(self.failed(reason, Some(&error), url, client))
            }
            (None, None) => Err(self.failed(WebServerError::TooSlow, None, url, client)),
        }
    }

    /// Counts and logs that the web server gave no response that can be passed back.
    fn failed(
        &self,
        reason: WebServerError,
        error: Option<&dyn std::error::Error>,
        url: &Uri,
        client: SocketAddr,
    ) -> BackendError {
        self.telemetry.http.web_server_errors.count(reason);
        if let Some(more) = self.lines.pass(reason.index()) {
            // What hyper reports is short, and its source says what happened.
            let source = error.and_then(std::error::Error::source).map(ToString::to_string);
            let error = error.map(ToString::to_string);
            warn!(%client, %url, %reason, error, source, more, "web back end: no response");
        }
        reason.into()
    }
}

/// Whether `error` comes from a lack of descriptors or memory.
fn is_of_a_shortage(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut sources = std::iter::successors(Some(error), |error| error.source());
    sources.any(|error| error.downcast_ref().is_some_and(is_shortage))
}

/// A response's body. The request counts until it is dropped.
pub(in crate::ingress::http) struct WebServerBody {
    inner: Incoming,
    _place: Permit,
}

impl Body for WebServerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
