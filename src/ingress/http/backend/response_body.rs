//! The body of the web server's response on its way to the client. It may pause only for so long.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};

use super::failures::{FailedRequest, FailureReports};
use crate::{limits::tally::Permit, telemetry::outcome::WebServerError};

/// The response is not complete. The connection to the client is closed, which shows it.
#[derive(Debug)]
pub(in crate::ingress::http) enum ResponseBroken {
    /// The web server paused for too long.
    Stalled,
    /// The web server closed, or did not send HTTP.
    CutOff(hyper::Error),
}

impl fmt::Display for ResponseBroken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stalled => f.write_str("the response of the web server does not go on"),
            Self::CutOff(error) => write!(f, "the response of the web server is cut off: {error}"),
        }
    }
}

impl std::error::Error for ResponseBroken {}

/// A response's body. The request counts until it is dropped.
pub(in crate::ingress::http) struct WebServerBody {
    inner: Incoming,
    /// How long the web server may send nothing while the client waits.
    timeout: Duration,
    /// Runs while it sends nothing.
    pause: Option<Pin<Box<Sleep>>>,
    request: FailedRequest,
    failures: Arc<FailureReports>,
    _place: Permit,
}

impl WebServerBody {
    pub(super) fn new(
        inner: Incoming,
        timeout: Duration,
        request: FailedRequest,
        failures: Arc<FailureReports>,
        place: Permit,
    ) -> Self {
        Self { inner, timeout, pause: None, request, failures, _place: place }
    }
}

impl Body for WebServerBody {
    type Data = Bytes;
    type Error = ResponseBroken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBroken>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Err(error))) => {
                self.failures.report(WebServerError::CutOff, &self.request, Some(&error));
                Poll::Ready(Some(Err(ResponseBroken::CutOff(error))))
            }
            Poll::Ready(frame) => {
                self.pause = None;
                Poll::Ready(frame.map(|frame| frame.map_err(ResponseBroken::CutOff)))
            }
            Poll::Pending => {
                let timeout = self.timeout;
                ready!(self.pause.get_or_insert_with(|| Box::pin(sleep(timeout))).as_mut().poll(cx));
                self.failures.report(WebServerError::Stalled, &self.request, None);
                Poll::Ready(Some(Err(ResponseBroken::Stalled)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
