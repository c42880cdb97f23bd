//! A connection in memory: two byte streams, each with a bounded buffer that stands for all buffers on the way.
//!
//! It ends as TCP does. After [`Pipe::shutdown_now`] the other end reads what is left, and then the end of the stream.
//! After [`Pipe::close_now`] its writes fail as well. After [`Pipe::reset_now`], and when an end of the multiplexer is
//! dropped with bytes in it that were not read, what is on the way is destroyed in both directions.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// One direction of a connection.
#[derive(Debug, Default)]
struct Direction {
    buffer: VecDeque<u8>,
    capacity: usize,
    /// The writer has written its last byte, and when.
    ended: Option<Instant>,
    /// Nobody reads any more.
    deaf: bool,
    /// The connection was reset.
    reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Direction {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    fn end(&mut self) {
        self.ended.get_or_insert_with(Instant::now);
        self.wake();
    }

    fn deafen(&mut self) {
        self.deaf = true;
        self.buffer = VecDeque::new();
        self.wake();
    }

    fn destroy(&mut self) {
        self.end();
        self.reset = true;
        self.buffer = VecDeque::new();
        self.wake();
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct Pipe {
    incoming: Arc<Mutex<Direction>>,
    outgoing: Arc<Mutex<Direction>>,
}

/// Looks at what comes in at one end, whoever has that end.
#[derive(Debug, Clone)]
pub struct Watch(Arc<Mutex<Direction>>);

impl Watch {
    /// When the other side wrote its last byte, or let go.
    pub fn ended(&self) -> Option<Instant> {
        self.0.lock().ended
    }
}

/// Ends a connection whose end is in use elsewhere.
#[derive(Debug, Clone)]
pub struct Remote {
    incoming: Arc<Mutex<Direction>>,
    outgoing: Arc<Mutex<Direction>>,
}

impl Remote {
    /// As [`Pipe::close_now`].
    pub fn close_now(&self) {
        self.outgoing.lock().end();
        self.incoming.lock().deafen();
    }

    /// As [`Pipe::reset_now`].
    pub fn reset_now(&self) {
        self.outgoing.lock().destroy();
        self.incoming.lock().destroy();
    }
}

/// A connection with `capacity` bytes of buffer in each direction.
pub fn pipe(capacity: usize) -> (Pipe, Pipe) {
    let direction = || Arc::new(Mutex::new(Direction { capacity: capacity.max(1), ..Direction::default() }));
    let (one, other) = (direction(), direction());
    (Pipe { incoming: Arc::clone(&one), outgoing: Arc::clone(&other) }, Pipe { incoming: other, outgoing: one })
}

impl Pipe {
    /// Ends the connection from elsewhere.
    pub fn remote(&self) -> Remote {
        Remote { incoming: Arc::clone(&self.incoming), outgoing: Arc::clone(&self.outgoing) }
    }

    /// Looks at what comes in.
    pub fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.incoming))
    }

    /// Writes no more; still reads.
    pub fn shutdown_now(&self) {
        self.outgoing.lock().end();
    }

    /// Neither writes nor reads any more. What was written arrives.
    pub fn close_now(&self) {
        self.remote().close_now();
    }

    /// Destroys what is on the way, in both directions.
    pub fn reset_now(&self) {
        self.remote().reset_now();
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut from = self.incoming.lock();
        if from.buffer.is_empty() {
            if from.reset {
                return Poll::Ready(Err(Errno::CONNRESET.into()));
            }
            if from.ended.is_some() {
                return Poll::Ready(Ok(()));
            }
            from.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        while buf.remaining() > 0 && !from.buffer.is_empty() {
            let (front, _) = from.buffer.as_slices();
            let n = front.len().min(buf.remaining());
            buf.put_slice(&front[..n]);
            from.buffer.drain(..n);
        }
        if let Some(writer) = from.writer.take() {
            writer.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut to = self.outgoing.lock();
        if to.reset {
            return Poll::Ready(Err(Errno::CONNRESET.into()));
        }
        if to.deaf || to.ended.is_some() {
            return Poll::Ready(Err(Errno::PIPE.into()));
        }
        let n = buf.len().min(to.capacity.saturating_sub(to.buffer.len()));
        if n == 0 && !buf.is_empty() {
            to.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        to.buffer.extend(&buf[..n]);
        if let Some(reader) = to.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut to = self.outgoing.lock();
        if to.reset {
            return Poll::Ready(Err(Errno::NOTCONN.into()));
        }
        to.end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // The system resets a connection that is closed with unread bytes in it.
        let unread = {
            let incoming = self.incoming.lock();
            !incoming.deaf && !incoming.buffer.is_empty()
        };
        if unread { self.reset_now() } else { self.close_now() }
    }
}
