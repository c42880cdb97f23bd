//! Watches what the other end sends, and ends the connection of one that floods.
//!
//! The `h2` crate bounds the memory that frames need, but it answers or ignores any number of PING, SETTINGS and similar
//! frames, and a request that is reset at once has already cost a connection to the target. An end that is in order sends
//! few of them. So their number is bounded here: at once, and by time.
//!
//! ```text
//!  TLS or TCP ── bytes ──► FrameWatch: the heads of the frames ──► h2
//!                              └── too many of a kind ──► the connection ends as `flood`
//! ```

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Instant,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::stream::StreamError;

/// The bytes with which a near end begins, before its first frame (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// The bytes of the head of a frame: length, type, flags, stream (RFC 9113, section 4.1).
const HEAD: usize = 9;
/// END_STREAM of a DATA frame.
const END_STREAM: u8 = 1;

/// How many frames that carry nothing an end may send at once, and how many more each second.
const CONTROL: (u32, u32) = (1_000, 100);
/// How many requests an end may reset each second. At once, it may reset all that there may be twice.
const RESETS_PER_SECOND: u32 = 100;

/// The kinds of frames that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flood {
    /// RST_STREAM: requests that are taken back.
    Resets,
    /// PING, SETTINGS, PRIORITY, CONTINUATION, DATA without bytes, and frames of unknown types.
    Control,
}

impl Flood {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Resets => "too many requests were reset",
            Self::Control => "too many frames that carry nothing",
        }
    }
}

/// A number that frames use up, and that time gives back.
#[derive(Debug)]
struct Allowance {
    left: u32,
    most: u32,
    per_second: u32,
    since: Instant,
}

impl Allowance {
    fn new((most, per_second): (u32, u32), now: Instant) -> Self {
        Self { left: most, most, per_second, since: now }
    }

    /// Takes one. `false`: there is none left.
    fn take(&mut self, now: Instant) -> bool {
        let seconds = u32::try_from(now.saturating_duration_since(self.since).as_secs()).unwrap_or(u32::MAX);
        if seconds > 0 {
            self.left = self.left.saturating_add(seconds.saturating_mul(self.per_second)).min(self.most);
            self.since = now;
        }
        let has_one = self.left > 0;
        self.left = self.left.saturating_sub(1);
        has_one
    }
}

/// Follows the frames of one direction by their heads. No I/O.
#[derive(Debug)]
pub(super) struct FrameWatch {
    /// Bytes of the preface, or of the present frame's payload, that are to come.
    skips: usize,
    head: [u8; HEAD],
    head_len: usize,
    control: Allowance,
    resets: Allowance,
}

impl FrameWatch {
    /// Watches an end that may have `streams` requests at once. `begins_with_preface`: it is a near end.
    pub(super) fn new(begins_with_preface: bool, streams: u32, now: Instant) -> Self {
        Self {
            skips: if begins_with_preface { PREFACE } else { 0 },
            head: [0; HEAD],
            head_len: 0,
            control: Allowance::new(CONTROL, now),
            resets: Allowance::new((streams.saturating_mul(2).saturating_add(CONTROL.0), RESETS_PER_SECOND), now),
        }
    }

    /// Follows bytes in the order in which they come.
    ///
    /// # Errors
    /// The end floods.
    pub(super) fn follow(&mut self, mut bytes: &[u8], now: impl Fn() -> Instant) -> Result<(), Flood> {
        while !bytes.is_empty() {
            let skipped = self.skips.min(bytes.len());
            self.skips -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEAD - self.head_len).min(bytes.len());
            self.head[self.head_len..self.head_len + taken].copy_from_slice(&bytes[..taken]);
            self.head_len += taken;
            bytes = &bytes[taken..];
            if self.head_len == HEAD {
                self.head_len = 0;
                let [l0, l1, l2, kind, flags, ..] = self.head;
                self.skips = u32::from_be_bytes([0, l0, l1, l2]) as usize;
                self.count(kind, flags, now())?;
            }
        }
        Ok(())
    }

    fn count(&mut self, kind: u8, flags: u8, now: Instant) -> Result<(), Flood> {
        match kind {
            // DATA that has bytes or ends the stream, HEADERS, GOAWAY, WINDOW_UPDATE: they belong to a stream's bytes.
            0 if self.skips > 0 || flags & END_STREAM != 0 => Ok(()),
            1 | 7 | 8 => Ok(()),
            3 if self.resets.take(now) => Ok(()),
            3 => Err(Flood::Resets),
            _ if self.control.take(now) => Ok(()),
            _ => Err(Flood::Control),
        }
    }
}

/// A stream whose frames are watched.
pub(super) struct WatchedStream<S> {
    inner: S,
    watch: FrameWatch,
    flood: Arc<OnceLock<Flood>>,
}

impl<S> WatchedStream<S> {
    /// Watches `inner`. Where it ends because the other end floods, the second value says how.
    pub(super) fn new(inner: S, watch: FrameWatch) -> (Self, Arc<OnceLock<Flood>>) {
        let flood = Arc::<OnceLock<Flood>>::default();
        (Self { inner, watch, flood: Arc::clone(&flood) }, flood)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WatchedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf)).map_err(StreamError::in_tls)?;
        Poll::Ready(self.watch.follow(&buf.filled()[before..], Instant::now).map_err(|flood| {
            let _ = self.flood.set(flood);
            StreamError::TrunkFlood.into()
        }))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WatchedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// A frame with a payload of so many bytes.
    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let [_, l0, l1, l2] = u32::try_from(length).expect("a short frame").to_be_bytes();
        [&[l0, l1, l2, kind, flags, 0, 0, 0, 1][..], &vec![7; length]].concat()
    }

    /// How many of these frames are taken, of at most 100,000 at the same moment.
    fn taken(bytes: &[u8]) -> usize {
        let now = Instant::now();
        let mut watch = FrameWatch::new(false, 10, now);
        (0..100_000).take_while(|_| watch.follow(bytes, || now).is_ok()).count()
    }

    #[test]
    fn what_carries_bytes_of_streams_is_not_counted_and_everything_else_is() {
        for (kind, flags, length) in [(0, 0, 1), (0, END_STREAM, 0), (1, 4, 20), (7, 0, 8), (8, 0, 4)] {
            assert_eq!(taken(&frame(kind, flags, length)), 100_000, "{kind}");
        }
        for (kind, flags, length) in [(0, 0, 0), (2, 0, 5), (4, 0, 0), (4, 1, 0), (6, 0, 8), (9, 0, 100), (99, 0, 3)] {
            assert_eq!(taken(&frame(kind, flags, length)), 1_000, "{kind}");
        }
        assert_eq!(taken(&frame(3, 0, 4)), 1_020, "all requests twice, and some more");
    }

    #[test]
    fn time_gives_frames_back() {
        let begin = Instant::now();
        let mut watch = FrameWatch::new(false, 10, begin);
        let ping = frame(6, 0, 8);
        for second in 0..60 {
            for n in 0..100 {
                assert_eq!(watch.follow(&ping, || begin + Duration::from_secs(second)), Ok(()), "{second} {n}");
            }
        }
        let mut more = || watch.follow(&ping, || begin + Duration::from_secs(59));
        assert_eq!((0..2_000).take_while(|_| more().is_ok()).count(), 1_000 - 100, "never more than at once");
    }

    #[tokio::test]
    async fn an_end_without_close_notify_is_named_as_everywhere() {
        struct CutOff;

        impl AsyncRead for CutOff {
            fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                // As rustls reports it.
                Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
            }
        }

        let (mut stream, flood) = WatchedStream::new(CutOff, FrameWatch::new(false, 10, Instant::now()));
        let error = tokio::io::AsyncReadExt::read_u8(&mut stream).await.expect_err("the end");
        assert_eq!((StreamError::of(&error), flood.get()), (Some(StreamError::Truncated), None));
    }

    proptest! {
        #[test]
        fn frames_are_counted_however_they_are_cut(
            kinds in proptest::collection::vec((0u8..12, 0u8..2, 0usize..40), 0..60),
            cuts in proptest::collection::vec(1usize..50, 1..20),
            is_near in any::<bool>(),
        ) {
            let now = Instant::now();
            let mut bytes = if is_near { b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec() } else { Vec::new() };
            bytes.extend(kinds.iter().flat_map(|(kind, flags, length)| frame(*kind, *flags, *length)));
            let mut watch = FrameWatch::new(is_near, 0, now);
            let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let piece;
                (piece, rest) = rest.split_at((*cuts.next().expect("endless")).min(rest.len()));
                prop_assert_eq!(watch.follow(piece, || now), Ok(()));
            }
            let counted = kinds.iter().filter(|(kind, flags, length)| {
                !matches!(kind, 1 | 3 | 7 | 8) && (*kind != 0 || *length == 0 && flags & END_STREAM == 0)
            });
            prop_assert_eq!(watch.control.left as usize, 1_000 - counted.count());
            let resets = kinds.iter().filter(|(kind, ..)| *kind == 3).count();
            prop_assert_eq!(watch.resets.left as usize, 1_000 - resets);
            prop_assert_eq!((watch.head_len, watch.skips), (0, 0));
        }
    }
}
