//! The buffer that all streams of a thread are read into.
//!
//! An idle session has no buffer of its own: bytes are examined and passed on in this one, and only bytes that have to
//! wait are copied.
//!
//! During a read, the buffer is borrowed by that read. `with` may still do anything, also write to a stream that reads
//! through this module itself: such an inner read gets another buffer.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

use super::core_sharing;

/// The most bytes of one read. They fit into the first-level cache of a core together with what is done with them.
pub const SIZE: usize = 32 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SIZE].into_boxed_slice());
}

/// Reads into the thread's buffer and gives the bytes to `with`. `None` at the end of the stream. A read may yield the
/// core to another worker.
///
/// # Errors
/// The stream's.
pub fn poll_read<S: AsyncRead + Unpin, T>(
    stream: &mut S,
    cx: &mut Context<'_>,
    with: impl FnOnce(&[u8], &mut Context<'_>) -> T,
) -> Poll<io::Result<Option<T>>> {
    poll_read_some(stream, cx, SIZE, with)
}

/// As [`poll_read`], but at most `most` bytes.
///
/// # Errors
/// The stream's.
pub fn poll_read_some<S: AsyncRead + Unpin, T>(
    stream: &mut S,
    cx: &mut Context<'_>,
    most: usize,
    with: impl FnOnce(&[u8], &mut Context<'_>) -> T,
) -> Poll<io::Result<Option<T>>> {
    BUFFER.with(|shared| {
        let (mut borrowed, mut own);
        let buffer: &mut [u8] = if let Ok(shared) = shared.try_borrow_mut() {
            borrowed = shared;
            &mut borrowed
        } else {
            own = vec![0; SIZE];
            &mut own
        };
        let mut into = ReadBuf::new(&mut buffer[..most.min(SIZE)]);
        ready!(Pin::new(stream).poll_read(cx, &mut into))?;
        let bytes = into.filled();
        core_sharing::count_read(bytes.len());
        Poll::Ready(Ok(if bytes.is_empty() { None } else { Some(with(bytes, cx)) }))
    })
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Reads `bytes` through the thread's buffer.
    fn read(mut bytes: &[u8], with: impl FnOnce(&[u8])) {
        let mut cx = Context::from_waker(Waker::noop());
        let read = poll_read(&mut bytes, &mut cx, |bytes, _| with(bytes));
        assert!(matches!(read, Poll::Ready(Ok(_))));
    }

    #[test]
    fn a_read_during_a_read_has_another_buffer() {
        let mut seen = Vec::new();
        read(b"outer", |outer| {
            read(b"inner", |inner| seen.push(inner.to_vec()));
            seen.push(outer.to_vec());
        });
        read(b"next", |next| seen.push(next.to_vec()));
        assert_eq!(seen, [&b"inner"[..], b"outer", b"next"]);
    }

    #[test]
    fn a_read_is_bounded_and_the_end_is_none() {
        let (mut cx, mut bytes) = (Context::from_waker(Waker::noop()), &b"abc"[..]);
        let mut read = || poll_read_some(&mut bytes, &mut cx, 2, |bytes, _| bytes.to_vec());
        for expected in [Some(&b"ab"[..]), Some(b"c"), None] {
            let Poll::Ready(Ok(read)) = read() else { panic!("a slice is always ready") };
            assert_eq!(read.as_deref(), expected);
        }
    }
}
