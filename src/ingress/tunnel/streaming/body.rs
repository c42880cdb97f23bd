//! The body without an end: in chunks for HTTP/1.1, and as it is for HTTP/1.0, where the end of the connection is the
//! end of the body.

use std::{
    io::{self, IoSlice, Write},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::AsyncWrite;

/// What ends a chunk.
const CHUNK_END: &[u8] = b"\r\n";
/// The last chunk, and no trailers.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// Room for the first line of a chunk: 16 digits, CR and LF.
const CHUNK_LINE: usize = 18;

/// The body of one response. Whoever writes gives it the stream each time.
#[derive(Debug)]
pub(super) struct EndlessBody {
    is_chunked: bool,
    /// Bytes that have to be written before anything else: the response's head, the rest of a chunk's line, ...
    pending: Vec<u8>,
    /// How many of them are written: `0 <= written < pending.len()`, or both are 0.
    written: usize,
    /// How many bytes of the present chunk are to come. Its line, which says so, is written or pending.
    chunk_left: usize,
    is_ended: bool,
}

impl EndlessBody {
    /// A body whose first bytes are `beginning`, behind the response's `head`.
    pub(super) fn new(is_chunked: bool, head: Vec<u8>, beginning: &[u8]) -> Self {
        let mut body = Self { is_chunked, pending: head, written: 0, chunk_left: 0, is_ended: false };
        body.append(beginning);
        body
    }

    /// Adds `bytes` behind everything that is pending. Only between two chunks.
    fn append(&mut self, bytes: &[u8]) {
        let (line, length) = chunk_line(bytes.len());
        let (before, after) = if self.is_chunked { (&line[..length], CHUNK_END) } else { (&[][..], &[][..]) };
        for part in [before, bytes, after] {
            self.pending.extend_from_slice(part);
        }
    }

    /// Adds `bytes`, if nothing is on its way.
    pub(super) fn try_append(&mut self, bytes: &[u8]) -> bool {
        let is_free = self.pending.is_empty() && self.chunk_left == 0 && !self.is_ended;
        if is_free {
            self.append(bytes);
        }
        is_free
    }

    /// Writes what is pending.
    pub(super) fn poll_pending<S: AsyncWrite + Unpin>(
        &mut self,
        to: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.written < self.pending.len() {
            match ready!(Pin::new(&mut *to).poll_write(cx, &self.pending[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
        }
        (self.pending, self.written) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    /// Writes some of `bytes`, which are not empty, and returns how many.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        to: &mut S,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            if !self.pending.is_empty() {
                ready!(self.poll_pending(to, cx))?;
            }
            if !self.is_chunked {
                return Pin::new(to).poll_write(cx, bytes);
            }
            // All three parts of a chunk go with one system call.
            let (line, length) = chunk_line(bytes.len());
            let line = if self.chunk_left == 0 { &line[..length] } else { &[] };
            let left = if self.chunk_left == 0 { bytes.len() } else { self.chunk_left };
            let data = &bytes[..left.min(bytes.len())];
            let end = if data.len() == left { CHUNK_END } else { &[] };
            let parts = [IoSlice::new(line), IoSlice::new(data), IoSlice::new(end)];
            let written = ready!(Pin::new(&mut *to).poll_write_vectored(cx, &parts))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_data = written.saturating_sub(line.len()).min(data.len());
            self.chunk_left = left - of_data;
            if written < line.len() {
                self.pending = line[written..].to_vec();
            } else if self.chunk_left == 0 {
                self.pending = end[written - line.len() - of_data..].to_vec();
            }
            if of_data > 0 {
                return Poll::Ready(Ok(of_data));
            }
        }
    }

    /// Ends the body. A chunk that is not complete stays so: its reader sees that bytes are missing.
    pub(super) fn poll_end<S: AsyncWrite + Unpin>(&mut self, to: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_ended {
            self.is_ended = true;
            if self.is_chunked && self.chunk_left == 0 {
                self.pending.extend_from_slice(LAST_CHUNK);
            }
        }
        self.poll_pending(to, cx)
    }
}

/// The first line of a chunk of `n` bytes, and the line's length.
fn chunk_line(n: usize) -> ([u8; CHUNK_LINE], usize) {
    let mut line = [0; CHUNK_LINE];
    let mut room = &mut line[..];
    // There is room for every number.
    let _ = write!(room, "{n:x}\r\n");
    let left = room.len();
    (line, CHUNK_LINE - left)
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    /// A receiver that takes a few bytes at a time, and sometimes none.
    struct Slow {
        received: Vec<u8>,
        takes: Vec<usize>,
        calls: usize,
    }

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let takes = self.takes[self.calls % self.takes.len()].min(bytes.len());
            self.calls += 1;
            if takes == 0 {
                return Poll::Pending;
            }
            self.received.extend_from_slice(&bytes[..takes]);
            Poll::Ready(Ok(takes))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            parts: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
            self.poll_write(cx, &all)
        }

        fn is_write_vectored(&self) -> bool {
            true
        }
    }

    /// The data of a chunked body, which has to be complete.
    fn unchunked(mut body: &[u8]) -> Vec<u8> {
        let mut data = Vec::new();
        loop {
            let at = body.windows(2).position(|two| two == b"\r\n").expect("a line");
            let n = usize::from_str_radix(std::str::from_utf8(&body[..at]).expect("text"), 16).expect("a number");
            data.extend_from_slice(&body[at + 2..at + 2 + n]);
            assert_eq!(&body[at + 2 + n..at + 4 + n], b"\r\n");
            body = &body[at + 4 + n..];
            if n == 0 {
                assert_eq!(body, b"");
                return data;
            }
        }
    }

    #[tokio::test]
    async fn one_write_makes_one_chunk() {
        let (mut near, mut far) = duplex(1000);
        let mut body = EndlessBody::new(true, b"head;".to_vec(), b"begin");
        let n = poll_fn(|cx| body.poll_write(&mut near, cx, b"bytes of a frame")).await.expect("room");
        assert_eq!(n, 16);
        poll_fn(|cx| body.poll_end(&mut near, cx)).await.expect("room");
        drop(near);
        let mut received = String::new();
        far.read_to_string(&mut received).await.expect("text");
        assert_eq!(received, "head;5\r\nbegin\r\n10\r\nbytes of a frame\r\n0\r\n\r\n");
    }

    #[tokio::test]
    async fn an_old_client_gets_the_bytes_as_they_are() {
        let (mut near, mut far) = duplex(1000);
        let mut body = EndlessBody::new(false, b"head;".to_vec(), b"begin");
        poll_fn(|cx| body.poll_write(&mut near, cx, b";frame")).await.expect("room");
        poll_fn(|cx| body.poll_end(&mut near, cx)).await.expect("room");
        drop(near);
        let mut received = String::new();
        far.read_to_string(&mut received).await.expect("text");
        assert_eq!(received, "head;begin;frame");
    }

    #[test]
    fn nothing_is_put_into_the_middle_of_a_chunk() {
        let mut to = Slow { received: Vec::new(), takes: vec![4, 0, 100], calls: 0 };
        let mut cx = Context::from_waker(Waker::noop());
        let mut body = EndlessBody::new(true, Vec::new(), b"");
        body.pending.clear();
        assert!(matches!(body.poll_write(&mut to, &mut cx, b"abcdef"), Poll::Ready(Ok(1))));
        assert!(!body.try_append(b"\x80"));
        assert!(body.poll_write(&mut to, &mut cx, b"bcdef").is_pending());
        assert!(matches!(body.poll_write(&mut to, &mut cx, b"bcdef"), Poll::Ready(Ok(5))));
        assert!(body.try_append(b"\x80"));
        while body.poll_pending(&mut to, &mut cx).is_pending() {}
        assert_eq!(to.received, b"6\r\nabcdef\r\n1\r\n\x80\r\n");
    }

    proptest! {
        #[test]
        fn any_receiver_gets_every_byte_once(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 1..12),
            takes in proptest::collection::vec(0usize..30, 1..12),
            is_chunked in any::<bool>(),
        ) {
            prop_assume!(takes.iter().any(|n| *n > 0));
            let mut to = Slow { received: Vec::new(), takes, calls: 0 };
            let mut cx = Context::from_waker(Waker::noop());
            let mut body = EndlessBody::new(is_chunked, b"head\r\n".to_vec(), b"begin");
            let mut expected = b"begin".to_vec();
            for piece in &pieces {
                let mut at = 0;
                while at < piece.len() {
                    // More bytes may be there at the next attempt than at this one.
                    let until = (at + 1 + to.calls % 7).min(piece.len());
                    if let Poll::Ready(written) = body.poll_write(&mut to, &mut cx, &piece[at..until]) {
                        let written = written.expect("it fails never");
                        prop_assert!(written > 0, "who writes would take it for a receiver that takes nothing any more");
                        at += written;
                    }
                }
                expected.extend_from_slice(piece);
            }
            // A chunk may have been announced longer than what was there to the end; so the rest fills it.
            while body.chunk_left > 0 {
                if let Poll::Ready(written) = body.poll_write(&mut to, &mut cx, b"z") {
                    expected.extend_from_slice(&b"z"[..written.expect("it fails never")]);
                }
            }
            while body.poll_end(&mut to, &mut cx).is_pending() {}
            let received = to.received.strip_prefix(b"head\r\n").expect("the head is first");
            prop_assert_eq!(if is_chunked { unchunked(received) } else { received.to_vec() }, expected);
        }
    }
}
