//! Requests of the tunnel, from either path: their bodies, what the tunnel makes of them, and the response.

use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::time::{sleep_until, timeout};

use super::{
    HttpContext, HttpSettings,
    fast_path::TunnelCall,
    passing::{self, PassedOn},
    response::{PortResponse, status_of},
};
use crate::{
    ingress::{
        Origin,
        tunnel::{Service, TunnelResponse, transport},
    },
    limits::budget::{HeldBytes, LITTLE},
    net::Port,
    telemetry::outcome::{Outcome, TunnelOutcome},
    wire::{
        Transport,
        tunnel::{name::UrlName, stream},
    },
};

/// A request for a session that does not exist is answered a multiple of this after it was read.
const MISS_STEP: Duration = Duration::from_millis(20);
/// And so much later when its address sends very many of them.
const MISS_DELAY: Duration = Duration::from_secs(1);
/// A body may pause for this long, whatever the settings say.
const MIN_PAUSE: Duration = Duration::from_secs(1);
/// The slowest rate, in bytes per second. No body takes longer than the longest one does at this rate, and one pause.
const SLOWEST_RATE: u64 = 1024;

/// The room for a request's body.
pub(super) struct BodyRoom<'a> {
    held: HeldBytes,
    /// Where the session is asked for an exception; `None`: it was asked.
    tunnel: Option<&'a Service>,
    call: &'a TunnelCall,
}

impl<'a> BodyRoom<'a> {
    /// For a request of `client`.
    pub(super) fn new(context: &'a HttpContext, call: &'a TunnelCall, client: IpAddr) -> Self {
        Self { held: HeldBytes::none(&context.budget, client), tunnel: Some(&context.tunnel), call }
    }

    /// Counts `n` more bytes, if there is room for them. `begun` is the body so far.
    fn grow(&mut self, n: usize, begun: &[u8]) -> bool {
        if self.held.grow(n) {
            return true;
        }
        // This is rare. It may be the session's own bytes that use the limit of its address up, or those of other clients
        // behind the same proxy. A streaming client gives up when it is refused.
        let exception = self.tunnel.take().and_then(|tunnel| match self.call {
            TunnelCall::Named(kind, UrlName::Session(name)) => tunnel.exception(*kind, name),
            TunnelCall::Named(..) => None,
            TunnelCall::Upload => match stream::post(begun)?.name {
                UrlName::Session(name) => tunnel.upload_exception(&name),
                UrlName::Empty | UrlName::NotAName { .. } => None,
            },
        });
        exception.is_some_and(|exception| {
            self.held.except(exception);
            self.held.grow(n)
        })
    }
}

/// A request's body. Its bytes count in the budget until it is dropped.
pub(super) struct HeldBody {
    bytes: Vec<u8>,
    held: HeldBytes,
}

impl HeldBody {
    /// A body that was read already; `None` when it is long and the budget has no room for it.
    pub(super) fn new(bytes: Vec<u8>, mut room: BodyRoom<'_>) -> Option<Self> {
        (bytes.len() <= LITTLE || room.grow(bytes.len(), &bytes)).then_some(Self { bytes, held: room.held })
    }

    /// Reads a body, which has a bound in bytes, for its pauses, and for all of its time: see [`longest_time`].
    ///
    /// # Errors
    /// What went wrong. The rest of the body has not been read then.
    pub(super) async fn read<B: Body<Data = Bytes> + Unpin>(
        mut body: B,
        settings: &HttpSettings,
        mut room: BodyRoom<'_>,
    ) -> Result<Self, TunnelOutcome> {
        let limit = settings.max_tunnel_request;
        if body.size_hint().lower() > limit as u64 {
            return Err(TunnelOutcome::TooLarge);
        }
        let pause = settings.timeout.max(MIN_PAUSE);
        let reading = async {
            let mut bytes = Vec::new();
            while let Some(frame) = timeout(pause, body.frame()).await.map_err(|_| TunnelOutcome::TooSlow)? {
                let Ok(piece) = frame.map_err(|_| TunnelOutcome::CutOff)?.into_data() else { continue };
                if bytes.len() + piece.len() > limit {
                    return Err(TunnelOutcome::TooLarge);
                }
                // Short bodies are always read, so that sessions continue and what they hold becomes less.
                if bytes.len() + piece.len() > LITTLE
                    && !room.grow(piece.len(), if bytes.is_empty() { &piece } else { &bytes })
                {
                    return Err(TunnelOutcome::HeldBytes);
                }
                bytes.extend_from_slice(&piece);
            }
            Ok(Self { bytes, held: room.held })
        };
        timeout(longest_time(pause, limit), reading).await.unwrap_or(Err(TunnelOutcome::TooSlow))
    }
}

impl TunnelCall {
    /// The transport that the request counts as.
    pub(super) fn transport(self) -> Transport {
        match self {
            Self::Named(kind, _) => transport(kind),
            Self::Upload => Transport::HttpStreaming,
        }
    }
}

/// How long a body of at most `limit` bytes may take, which never pauses for `pause`.
fn longest_time(pause: Duration, limit: usize) -> Duration {
    pause + Duration::from_secs(limit as u64 / SLOWEST_RATE)
}

impl AsRef<[u8]> for HeldBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Gives a request to the tunnel and makes the response.
// Not an `async fn`, whose future would store its arguments twice.
#[allow(clippy::manual_async_fn)]
pub(super) fn serve<'a>(
    context: &'a HttpContext,
    call: TunnelCall,
    body: HeldBody,
    client: SocketAddr,
    origin: &'a Origin,
) -> impl Future<Output = PortResponse> + Send + 'a {
    async move {
        let port = origin.port;
        // From here on, the client cannot change how long the response takes.
        let began = Instant::now();
        if let Some(passed_on) = passing::destination(context, call, body.as_ref(), origin) {
            // Boxed, because most requests are for this node.
            return serve_passed(context, passed_on, call, body, client, port, began).await;
        }
        let returned = match call {
            TunnelCall::Named(kind, UrlName::Empty) => context.tunnel.open(kind, body.as_ref(), client, port),
            TunnelCall::Named(kind, UrlName::Session(name)) => {
                context.tunnel.request(kind, name, body, client.ip()).await
            }
            TunnelCall::Named(_, UrlName::NotAName { .. }) => Service::unknown(),
            TunnelCall::Upload => upload(context, body).await,
        };
        // What is kept is not what is awaited above: the future would have room for both at once.
        let response = counted(context, call, returned);
        match &response {
            TunnelResponse::Failed(_) if response.status() == 404 => {
                wait_after_miss(context, client, port.number, began).await
            }
            TunnelResponse::Refused(refusal, TunnelOutcome::Full) => {
                context.record_refused_session(*refusal, client, port.number)
            }
            _ => (),
        }
        respond(response)
    }
}

/// Makes the response to a request that is for a session of another node.
// Not an `async fn`: a caller that boxes its future would have room for it, too.
fn serve_passed<'a>(
    context: &'a HttpContext,
    passed_on: PassedOn,
    call: TunnelCall,
    body: HeldBody,
    client: SocketAddr,
    port: Port,
    began: Instant,
) -> Pin<Box<dyn Future<Output = PortResponse> + Send + 'a>> {
    Box::pin(async move {
        let outcome = match passed_on {
            PassedOn::To(peer) => match passing::pass(context, &peer, call, body, client, port.number).await {
                Ok(response) => return response,
                Err(outcome) => outcome,
            },
            PassedOn::Refused => TunnelOutcome::NotThisNode,
        };
        let response = counted(context, call, TunnelResponse::Failed(outcome));
        if response.status() == 404 {
            wait_after_miss(context, client, port.number, began).await;
        }
        respond(response)
    })
}

/// Gives a streaming client's POST request to its session.
async fn upload(context: &HttpContext, HeldBody { bytes, held }: HeldBody) -> TunnelResponse {
    match stream::post(&bytes) {
        None => TunnelResponse::Failed(TunnelOutcome::Malformed),
        Some(stream::StreamPost { name: UrlName::Session(name), payload_at }) => {
            context.tunnel.upload(name, bytes, payload_at, held).await
        }
        Some(_) => Service::unknown(),
    }
}

/// Counts what a request came to.
fn counted(context: &HttpContext, call: TunnelCall, response: TunnelResponse) -> TunnelResponse {
    context.telemetry.tunnel.request(call.transport(), response.outcome());
    response
}

/// Refuses a request for its body, and counts it.
pub(super) fn refuse_body(context: &HttpContext, call: TunnelCall, outcome: TunnelOutcome) -> PortResponse {
    context.telemetry.tunnel.request(call.transport(), outcome);
    body_refusal(outcome)
}

/// The response to a request with such a body.
pub(super) fn body_refusal(outcome: TunnelOutcome) -> PortResponse {
    match outcome {
        TunnelOutcome::HeldBytes => no_room(outcome, outcome.name()),
        _ => PortResponse::page(status_of(outcome), ""),
    }
}

/// The response for what the tunnel has returned.
pub(super) fn respond(response: TunnelResponse) -> PortResponse {
    let (outcome, reason) = (response.outcome(), response.reason());
    match response {
        TunnelResponse::Body(body, _) => PortResponse::tunnel(body),
        _ if response.status() == 503 => no_room(outcome, reason),
        _ => PortResponse::page(
            status_of(outcome),
            match outcome {
                TunnelOutcome::Malformed => "Not a request of the tunnel.\n",
                TunnelOutcome::Failed => "No session could be made.\n",
                _ => "No such session.\n",
            },
        ),
    }
}

fn no_room(outcome: TunnelOutcome, reason: &str) -> PortResponse {
    PortResponse::page(status_of(outcome), format!("No room for this client now: {reason}.\n"))
}

/// Waits before the response to a request for a session that does not exist.
async fn wait_after_miss(context: &HttpContext, client: SocketAddr, port: u16, began: Instant) {
    let mut due = miss_due(began, Instant::now());
    if context.counters.miss(client.ip()) {
        context.record_delayed_guess(client, port);
        due += MISS_DELAY;
    }
    sleep_until(due.into()).await;
}

/// When such a request is answered: a whole number of steps after `began`, and not before `now`. So the time of the
/// response does not show how long the search took.
fn miss_due(began: Instant, now: Instant) -> Instant {
    let mut due = began + MISS_STEP;
    while due < now {
        due += MISS_STEP;
    }
    due
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        future::Future,
        pin::Pin,
        task::{Context, Poll, ready},
    };

    use hyper::body::Frame;
    use tokio::time::{Instant as Clock, Sleep, sleep};

    use super::*;
    use crate::limits::Budget;

    /// A body of which a byte comes after each interval, for ever.
    struct Drip(Duration, Pin<Box<Sleep>>);

    impl Body for Drip {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            ready!(self.1.as_mut().poll(cx));
            self.1 = Box::pin(sleep(self.0));
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
        }
    }

    /// What becomes of such a body of at most `limit` bytes, and when.
    async fn drip(interval: Duration, limit: usize) -> (Option<TunnelOutcome>, Duration) {
        let settings = HttpSettings {
            trusted_proxies: Vec::new(),
            timeout: Duration::from_secs(30),
            max_tunnel_request: limit,
            web_server: None,
            max_web_server_requests: 1,
            web_server_timeout: Duration::from_secs(60),
            longest_passed: 1,
            passed_timeout: Duration::from_secs(60),
        };
        let held = HeldBytes::none(&Budget::new(1 << 20, 0, &[]), [127, 0, 0, 1].into());
        let began = Clock::now();
        let read = HeldBody::read(
            Drip(interval, Box::pin(sleep(interval))),
            &settings,
            BodyRoom { held, tunnel: None, call: &TunnelCall::Upload },
        )
        .await;
        (read.err(), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_takes_no_longer_than_the_slowest_rate_allows() {
        let limit = 66 * 1024;
        let (outcome, after) = drip(Duration::from_secs(29), limit).await;
        assert_eq!(outcome, Some(TunnelOutcome::TooSlow));
        assert!(after >= Duration::from_secs(96) && after < Duration::from_secs(97), "{after:?}");
        // At the slowest rate, and with a pause that is too long.
        let (outcome, after) = drip(Duration::from_millis(1), 2 * 1024).await;
        assert_eq!((outcome, after.as_secs() < 30), (Some(TunnelOutcome::TooLarge), true), "it was read");
        assert_eq!(drip(Duration::from_secs(31), limit).await.0, Some(TunnelOutcome::TooSlow));
    }

    #[test]
    fn a_miss_is_answered_at_a_time_that_says_nothing() {
        let began = Instant::now();
        let after = |micros| miss_due(began, began + Duration::from_micros(micros)) - began;
        for looking in [0, 1, 100, 5_000, 19_999, 20_000] {
            assert_eq!(after(looking), MISS_STEP, "{looking}");
        }
        assert_eq!(after(20_001), 2 * MISS_STEP, "a slow machine");
    }
}
