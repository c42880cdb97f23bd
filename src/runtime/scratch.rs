//! The buffer that all streams of a thread are read into.
//!
//! An idle session holds no buffer of its own: what is read is looked at, passed on, and only
//! what has to wait is copied away.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

use super::core_sharing;

/// Bytes read at once, at the most: what fits into a core's first cache with what is done to it.
pub const SIZE: usize = 32 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SIZE].into_boxed_slice());
}

/// Reads into the thread's buffer and hands it to `with`; `None` at the end of the stream.
/// `with` must not read by this function itself.
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

/// As [`poll_read`], `most` bytes at the most.
///
/// # Errors
/// The stream's.
pub fn poll_read_some<S: AsyncRead + Unpin, T>(
    stream: &mut S,
    cx: &mut Context<'_>,
    most: usize,
    with: impl FnOnce(&[u8], &mut Context<'_>) -> T,
) -> Poll<io::Result<Option<T>>> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut into = ReadBuf::new(&mut buffer[..most.min(SIZE)]);
        ready!(Pin::new(stream).poll_read(cx, &mut into))?;
        let bytes = into.filled();
        core_sharing::count_read(bytes.len());
        Poll::Ready(Ok(if bytes.is_empty() { None } else { Some(with(bytes, cx)) }))
    })
}
