//! A stream of a trunk as a stream of bytes, at either end.

use std::{
    io, mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::Handle,
    time::timeout,
};

use crate::{stream::StreamError, telemetry::metrics::trunk::Counted};

/// How long an abandoned stream may take to end. Then it is reset.
const ABANDONED: Duration = Duration::from_secs(10);

/// A stream of a trunk.
///
/// ```text
///   sending     open ── poll_shutdown: END_STREAM ──► ended
///   receiving   open ── END_STREAM of the peer ─────► ended
///
///   dropped before both have ended ──► END_STREAM is sent, and DATA is discarded until the peer's ──► reset after 10 s
/// ```
/// A stream is not reset while the peer may still send: HTTP/2 libraries count frames that arrive for streams which are
/// gone, and end the whole connection when there are many.
pub struct TrunkStream {
    send: SendStream<Bytes>,
    receive: Receiving,
    has_sent_all: bool,
    /// The stream is counted, and its connection kept, until this is dropped.
    counted: Option<Box<dyn Send + Sync>>,
}

/// The receiving side.
struct Receiving {
    stream: Option<RecvStream>,
    /// What was received and not read yet.
    rest: Bytes,
}

impl TrunkStream {
    pub(super) fn new(send: SendStream<Bytes>, receive: RecvStream, counted: Box<dyn Send + Sync>) -> Self {
        let receive = Receiving { stream: Some(receive), rest: Bytes::new() };
        Self { send, receive, has_sent_all: false, counted: Some(counted) }
    }

    /// Resets the stream, because the connection behind it failed.
    pub(super) fn reset(&mut self) {
        self.has_sent_all = true;
        self.receive.stream = None;
        self.send.send_reset(Reason::CONNECT_ERROR);
    }

    fn end_sending(&mut self) {
        if !mem::replace(&mut self.has_sent_all, true) {
            // It fails if the stream is closed already.
            let _ = self.send.send_data(Bytes::new(), true);
        }
    }
}

impl Receiving {
    /// The next bytes; empty at the end of the stream. Room in the window is made as bytes are taken out.
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut Bytes>> {
        while self.rest.is_empty() {
            let Some(stream) = &mut self.stream else { break };
            match ready!(stream.poll_data(cx)) {
                Some(Ok(bytes)) => {
                    stream.flow_control().release_capacity(bytes.len()).map_err(io::Error::other)?;
                    self.rest = bytes;
                }
                Some(Err(error)) => {
                    self.stream = None;
                    return Poll::Ready(Err(io::Error::other(error)));
                }
                None => self.stream = None,
            }
        }
        Poll::Ready(Ok(&mut self.rest))
    }
}

impl AsyncRead for TrunkStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let rest = ready!(self.get_mut().receive.poll_bytes(cx))?;
        let n = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..n]);
        rest.advance(n);
        if rest.is_empty() {
            // The buffer of the connection's read is free.
            *rest = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TrunkStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.has_sent_all {
            return Poll::Ready(Err(StreamError::TrunkStreamClosed.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.send.reserve_capacity(buf.len());
        let room = match this.send.capacity() {
            0 => match ready!(this.send.poll_capacity(cx)) {
                Some(Ok(room)) => room,
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(StreamError::TrunkStreamClosed.into())),
            },
            room => room,
        };
        let n = room.min(buf.len());
        this.send.send_data(Bytes::copy_from_slice(&buf[..n]), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().end_sending();
        Poll::Ready(Ok(()))
    }
}

impl Drop for TrunkStream {
    fn drop(&mut self) {
        self.end_sending();
        let Some(mut rest) = self.receive.stream.take().filter(|stream| !stream.is_end_stream()) else { return };
        let counted = self.counted.take();
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            let discarding = async {
                while let Some(Ok(bytes)) = rest.data().await {
                    let _ = rest.flow_control().release_capacity(bytes.len());
                }
            };
            // A stream that has not ended by then is reset when it is dropped.
            let _ = timeout(ABANDONED, discarding).await;
            drop(counted);
        });
    }
}

/// What keeps a stream counted, and `with` it whatever else it needs.
pub(super) fn counted<T: Send + Sync + 'static>(streams: Counted, with: T) -> Box<dyn Send + Sync> {
    Box::new((streams, with))
}
