//! A request's body on its way to the web server. It may pause only for so long, and what went wrong with it is known
//! when the web server's response fails.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Sleep, sleep};

/// What went wrong with a body. The client's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ingress::http) enum BodyError {
    /// The client closed within it, or its chunks have a wrong form.
    Broken,
    /// It paused for too long.
    TooSlow,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broken => "the request's body is broken",
            Self::TooSlow => "the request's body does not come",
        })
    }
}

impl std::error::Error for BodyError {}

/// How far a body is.
#[derive(Debug)]
pub(super) struct BodyProgress {
    last: Mutex<Instant>,
    error: Mutex<Option<BodyError>>,
}

impl BodyProgress {
    /// When its last piece came; before that, when it began.
    pub(super) fn last(&self) -> Instant {
        *self.last.lock()
    }

    /// What went wrong.
    pub(super) fn error(&self) -> Option<BodyError> {
        *self.error.lock()
    }
}

/// A body that may pause only for so long.
pub(super) struct TimedBody {
    /// `None`: the request has no body.
    inner: Option<Incoming>,
    timeout: Duration,
    /// Runs while it pauses.
    pause: Option<Pin<Box<Sleep>>>,
    progress: Arc<BodyProgress>,
}

impl TimedBody {
    /// `inner`, which may pause for `timeout`, and how far it is.
    pub(super) fn new(inner: Incoming, timeout: Duration) -> (Self, Arc<BodyProgress>) {
        Self::with(Some(inner), timeout)
    }

    /// The body of a request that has none.
    pub(super) fn none() -> (Self, Arc<BodyProgress>) {
        Self::with(None, Duration::ZERO)
    }

    fn with(inner: Option<Incoming>, timeout: Duration) -> (Self, Arc<BodyProgress>) {
        let progress = Arc::new(BodyProgress { last: Mutex::new(Instant::now()), error: Mutex::new(None) });
        (Self { inner, timeout, pause: None, progress: Arc::clone(&progress) }, progress)
    }

    fn fail(&self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        *self.progress.error.lock() = Some(error);
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for TimedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        match Pin::new(inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.pause = None;
                *self.progress.last.lock() = Instant::now();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => self.fail(BodyError::Broken),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let timeout = self.timeout;
                let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(timeout)));
                ready!(pause.as_mut().poll(cx));
                self.fail(BodyError::TooSlow)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}
