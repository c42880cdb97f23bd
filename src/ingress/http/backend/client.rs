//! The client of the web server: a pool of connections, timeouts, and a bound on the requests at once.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::{Body, Incoming},
};
use hyper_util::{
    client::legacy::{self, Client},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::timeout_at;

use super::{
    BackendError, BackendRefusal,
    connector::{Connector, ServerConnectionUse, Unreached},
    failures::{FailedRequest, FailureReports},
    request_body::{BodyProgress, TimedBody},
    response_body::WebServerBody,
};
use crate::{
    ingress::http::HttpSettings,
    limits::tally::Tally,
    net::own::OwnListeners,
    telemetry::{Telemetry, outcome::WebServerError},
};

/// How long an idle connection is kept for the next request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How many idle connections are kept.
const MAX_IDLE: usize = 64;
/// The most bytes of a response that are read at once. Its head has to fit.
const MAX_BUFFER: usize = 64 * 1024;
/// Methods of which a request that is sent twice does the same as one that is sent once (RFC 9110, 9.2.2).
const IDEMPOTENT: [Method; 5] = [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE];

/// Connections to the web server, and the number of requests that are there.
pub(in crate::ingress::http) struct WebServerClient {
    /// Keeps its connections for further requests.
    keeping: Client<Connector, TimedBody>,
    /// Makes a connection for each request.
    fresh: Client<Connector, TimedBody>,
    requests: Arc<Tally>,
    failures: Arc<FailureReports>,
}

/// What became of one attempt.
enum Attempt {
    Response(Response<Incoming>),
    Failed(legacy::Error),
    TimedOut,
}

impl WebServerClient {
    /// A client that does not connect to `own`.
    pub(in crate::ingress::http) fn new(own: OwnListeners, telemetry: Arc<Telemetry>) -> Self {
        let connector = Connector::new(own);
        let client = |idle| {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .pool_max_idle_per_host(idle)
                .http1_max_buf_size(MAX_BUFFER)
                .build(connector.clone())
        };
        let failures = Arc::new(FailureReports::new(telemetry));
        Self { keeping: client(MAX_IDLE), fresh: client(0), requests: Arc::default(), failures }
    }

    /// Sends a request and waits for the head of its response. `url`, `client` and `port` are for the log.
    ///
    /// A web server may close a kept connection at any time, also when a request is on its way. Then a request that may
    /// be repeated is sent again, on a new connection.
    ///
    /// # Errors
    /// There are too many requests at once, the request's body fails, the web server fails, or it is this program.
    pub(super) async fn exchange(
        &self,
        request: Request<Incoming>,
        url: &Uri,
        client: SocketAddr,
        port: u16,
        settings: &HttpSettings,
    ) -> Result<Response<WebServerBody>, BackendError> {
        let place = self.requests.enter(settings.max_web_server_requests).map_err(|_| BackendRefusal::Busy)?;
        let (parts, body) = request.into_parts();
        let may_repeat = IDEMPOTENT.contains(&parts.method) && body.is_end_stream();
        let again = may_repeat.then(|| parts.clone());
        let (body, progress) = TimedBody::new(body, settings.timeout);
        let timeout = settings.web_server_timeout;
        let mut attempt = attempt(&self.keeping, Request::from_parts(parts, body), &progress, timeout).await;
        if let (Some(parts), Attempt::Failed(error)) = (again, &attempt)
            && was_closed_between_requests(error)
        {
            let (body, progress) = TimedBody::none();
            attempt = self::attempt(&self.fresh, Request::from_parts(parts, body), &progress, timeout).await;
        }
        let about = FailedRequest { client, port, url: url.clone() };
        match (attempt, progress.error()) {
            (Attempt::Response(response), _) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                self.failures.report(WebServerError::SwitchedProtocols, &about, None);
                Err(WebServerError::SwitchedProtocols.into())
            }
            (Attempt::Response(response), _) => {
                Ok(response.map(|inner| WebServerBody::new(inner, timeout, about, Arc::clone(&self.failures), place)))
            }
            // The web server has no response because the request never came to its end.
            (_, Some(error)) => Err(BackendRefusal::Body(error).into()),
            (Attempt::Failed(error), None) => match Unreached::of(&error) {
                Some(unreached) if unreached.is_own() => Err(BackendRefusal::Loop.into()),
                Some(unreached) if unreached.is_of_a_shortage() => {
                    self.failures.report(WebServerError::Shortage, &about, Some(unreached));
                    Err(WebServerError::Shortage.into())
                }
                Some(unreached) => {
                    self.failures.report(WebServerError::Unreachable, &about, Some(unreached));
                    Err(WebServerError::Unreachable.into())
                }
                None => {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    self.failures.report(WebServerError::NoResponse, &about, Some(&source.unwrap_or_default()));
                    Err(WebServerError::NoResponse.into())
                }
            },
            (Attempt::TimedOut, None) => {
                self.failures.report(WebServerError::TooSlow, &about, None);
                Err(WebServerError::TooSlow.into())
            }
        }
    }
}

/// Sends a request once. The web server may take so long to begin its response after the last piece of the request came.
async fn attempt(
    client: &Client<Connector, TimedBody>,
    request: Request<TimedBody>,
    progress: &BodyProgress,
    timeout: Duration,
) -> Attempt {
    let mut exchange = pin!(client.request(request));
    loop {
        // As long as the body comes, the web server need not respond.
        let deadline = progress.last() + timeout;
        match timeout_at(deadline.into(), &mut exchange).await {
            Ok(Ok(response)) => {
                if let Some(connection) = response.extensions().get::<ServerConnectionUse>() {
                    connection.note();
                }
                break Attempt::Response(response);
            }
            Ok(Err(error)) => break Attempt::Failed(error),
            Err(_) if progress.last() + timeout > Instant::now() => (),
            Err(_) => break Attempt::TimedOut,
        }
    }
}

/// Whether the web server has closed a connection that had a request before, without a response to the present one.
fn was_closed_between_requests(error: &legacy::Error) -> bool {
    let is_kept = ServerConnectionUse::of(error).is_some_and(|connection| connection.note());
    // What is not HTTP is a response, although a wrong one.
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<hyper::Error>());
    is_kept && source.is_some_and(|error| !error.is_parse())
}
