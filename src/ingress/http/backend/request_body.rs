//! A request's body on its way to the web back end: it may not pause for ever, and what went
//! wrong with it is known when the back end's answer fails.

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
    /// Cut off, or not in chunks as it said.
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

/// How far a body has come.
#[derive(Debug)]
pub(super) struct Progress {
    last: Mutex<Instant>,
    fault: Mutex<Option<BodyError>>,
}

impl Progress {
    /// When its last piece came, or it began.
    pub(super) fn last(&self) -> Instant {
        *self.last.lock()
    }

    /// What went wrong.
    pub(super) fn fault(&self) -> Option<BodyError> {
        *self.fault.lock()
    }
}

/// The body.
pub(super) struct Paced {
    inner: Incoming,
    patience: Duration,
    paused: Option<Pin<Box<Sleep>>>,
    progress: Arc<Progress>,
}

impl Paced {
    /// `inner`, which may pause for `patience`; how it gets on.
    pub(super) fn new(inner: Incoming, patience: Duration) -> (Self, Arc<Progress>) {
        let progress = Arc::new(Progress { last: Mutex::new(Instant::now()), fault: Mutex::new(None) });
        (Self { inner, patience, paused: None, progress: Arc::clone(&progress) }, progress)
    }

    fn fail(&self, fault: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        *self.progress.fault.lock() = Some(fault);
        Poll::Ready(Some(Err(fault)))
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.paused = None;
                *self.progress.last.lock() = Instant::now();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => self.fail(BodyError::Broken),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                let patience = self.patience;
                let paused = self.paused.get_or_insert_with(|| Box::pin(sleep(patience)));
                ready!(paused.as_mut().poll(cx));
                self.fail(BodyError::TooSlow)
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
