//! The stream that hyper reads requests from and writes responses to: what could be read in two
//! ways never gets there, and a reader that takes nothing does not stay for ever.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::framing::{Framing, FramingError};

/// In place of a fault, hyper reads what it answers with 400 and a close wherever it stands: in
/// a head, in a chunk's size, behind a chunk. So what was asked before the fault is answered
/// first. The empty line lets hyper look at a head at once.
const REFUSED: &[u8] = b"\0\r\n\r\n";

/// How far hyper has come with what it was given.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Whole requests read; [`Self::WITHIN`] while another has begun or is refused.
    read: AtomicU64,
    /// Responses that hyper has to their end.
    answered: AtomicU64,
    /// The client would not take what is written.
    stalled: AtomicBool,
}

impl Progress {
    const WITHIN: u64 = u64::MAX;

    /// Hyper has a response to its end.
    pub(super) fn answered(&self) {
        self.answered.fetch_add(1, Relaxed);
    }

    /// Whether hyper, when it waits, waits for a request's first byte, and has answered before.
    pub(super) fn is_idle(&self) -> bool {
        let answered = self.answered.load(Relaxed);
        answered > 0 && self.read.load(Relaxed) == answered && !self.stalled.load(Relaxed)
    }
}

/// A stream between a client and hyper.
pub(super) struct Guarded<S, F> {
    inner: S,
    framing: Framing,
    on_fault: F,
    /// After a fault: how much of [`REFUSED`] was read.
    refused: Option<usize>,
    /// How long the client may take nothing of what is written.
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    progress: Arc<Progress>,
}

impl<S, F: Fn(FramingError)> Guarded<S, F> {
    /// Guards `inner`; `on_fault` is told of the fault, at most once.
    pub(super) fn new(inner: S, patience: Duration, on_fault: F) -> Self {
        let (framing, progress) = (Framing::default(), Arc::default());
        Self { inner, framing, on_fault, refused: None, patience, stalled: None, progress }
    }

    /// How far hyper has come; stays true.
    pub(super) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// The stream behind the guard.
    pub(super) fn into_inner(self) -> S {
        self.inner
    }

    fn note_read(&self) {
        let between = self.refused.is_none() && self.framing.at_boundary();
        self.progress.read.store(if between { self.framing.requests() } else { Progress::WITHIN }, Relaxed);
    }

    fn read_refused(&mut self, buf: &mut ReadBuf<'_>) {
        if let Some(read) = &mut self.refused {
            let rest = &REFUSED[*read..];
            let n = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..n]);
            *read += n;
        }
    }

    /// `written`, or an error when that takes too long.
    fn in_time<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            self.progress.stalled.store(false, Relaxed);
            return written;
        }
        self.progress.stalled.store(true, Relaxed);
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of the answer")))
    }
}

impl<S: AsyncRead + Unpin, F: Fn(FramingError) + Unpin> AsyncRead for Guarded<S, F> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.refused.is_none() {
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
            let followed = this.framing.follow(&buf.filled()[before..]);
            if let Err((at, fault)) = followed {
                buf.set_filled(before + at);
                (this.on_fault)(fault);
                this.refused = Some(0);
            }
            this.note_read();
            if followed.is_ok() {
                return Poll::Ready(Ok(()));
            }
        }
        this.read_refused(buf);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin, F: Fn(FramingError) + Unpin> AsyncWrite for Guarded<S, F> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.in_time(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        // A stream without a buffer has nothing to flush: that says nothing about the client.
        if flushed.is_ready() { flushed } else { self.in_time(cx, flushed) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.in_time(cx, shut)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.in_time(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
