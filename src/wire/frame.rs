//! Frames: `u32 length, u16 type, u16 options, u32 channel, body`. Between two frames there may be single keep-alive
//! bytes, whose top bit is set.

use std::fmt;

/// Size of the length field in bytes. A frame's length does not include this field.
pub const LENGTH: usize = 4;
/// Size of the header after the length field in bytes: type, options, channel.
pub const HEADER: usize = 8;
/// The longest frame that a client may send before it is logged in, in bytes. The frames of real clients are much
/// shorter: the first one has 107 or 108 bytes, a log-in has a few hundred.
pub const MAX_BEFORE_LOGIN: u32 = 64 * 1024;
/// The keep-alive byte that clients and servers send.
pub const KEEP_ALIVE: u8 = 0x80;
/// Option bit: there is an opaque with attributes between header and body.
pub const OPTION_ATTRIBUTES: u16 = 0x8000;
/// Option bit: the body is encrypted.
pub const OPTION_ENCRYPTED: u16 = 0x4000;

/// Whether `byte`, at a frame boundary, is a keep-alive or a message counter, and not the first byte of a length.
#[inline]
pub fn is_keep_alive(byte: u8) -> bool {
    byte & 0x80 != 0
}

/// The length field and the header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The number of bytes after the length field, including the header.
    pub length: u32,
    /// The message type, see [`super::message::kind`].
    pub kind: u16,
    /// The option bits.
    pub options: u16,
    /// The channel's id; 0 is the master channel.
    pub channel: u32,
}

impl Head {
    fn read(bytes: &[u8; LENGTH + HEADER]) -> Self {
        let [l0, l1, l2, l3, k0, k1, o0, o1, c0, c1, c2, c3] = *bytes;
        Self {
            length: u32::from_be_bytes([l0, l1, l2, l3]),
            kind: u16::from_be_bytes([k0, k1]),
            options: u16::from_be_bytes([o0, o1]),
            channel: u32::from_be_bytes([c0, c1, c2, c3]),
        }
    }
}

/// An invalid frame. After it, the beginning of the next frame is unknown, so it ends the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The length has no room for the header.
    TooShort {
        /// The length field, in bytes.
        length: u32,
    },
    /// The length is above the limit.
    TooLong {
        /// The length field, in bytes.
        length: u32,
        /// The limit, in bytes.
        limit: u32,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { length } => {
                write!(f, "a frame of {length} bytes is shorter than its header of {HEADER}")
            }
            Self::TooLong { length, limit } => {
                write!(f, "a frame of {length} bytes is over the limit of {limit}")
            }
        }
    }
}

impl std::error::Error for FrameError {}

fn check(length: u32, limit: u32) -> Result<(), FrameError> {
    if (length as usize) < HEADER {
        Err(FrameError::TooShort { length })
    } else if length > limit {
        Err(FrameError::TooLong { length, limit })
    } else {
        Ok(())
    }
}

/// Follows a stream of frames without storing it. Between two reads it keeps at most the head of one frame.
///
/// ```text
///   keep-alive      first byte of a length        12th byte of the head
///      ┌──┐        ┌──────────────────────► head ─────────────────────► body
///      │  ▼        │                                                      │
///     boundary ────┴── a whole head in one read ─────────────────────────►│
///         ▲                                                               │
///         └──────────────────── no byte of the body is left ──────────────┘
/// ```
///
/// | state | `head_len` | `body_left` |
/// |---|---|---|
/// | boundary | 0 | 0 |
/// | head | 1 to 11 | 0 |
/// | body | 0 | 1 or more |
///
/// Whether a frame is valid is known when its length is whole. Who relays the bytes holds the length back until then: see
/// [`Scanner::held_back`] and [`Relayable`].
#[derive(Debug, Default, Clone)]
pub struct Scanner {
    /// Bytes of the current frame's body that have not been read yet.
    body_left: u32,
    /// The bytes of a head that is not complete. The last byte of a head is used at once and not stored.
    head: [u8; LENGTH + HEADER - 1],
    head_len: u8,
}

impl Scanner {
    /// A scanner at a frame boundary.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the bytes so far end at a frame boundary.
    #[inline]
    pub fn at_boundary(&self) -> bool {
        self.body_left == 0 && self.head_len == 0
    }

    /// The bytes of a length that is not whole.
    #[inline]
    pub fn held_back(&self) -> HeldBack {
        let [b0, b1, b2, ..] = self.head;
        let len = if usize::from(self.head_len) < LENGTH { self.head_len } else { 0 };
        HeldBack { bytes: [b0, b1, b2], len }
    }

    /// Forgets a frame whose length is not whole, or is that of an invalid frame: the bytes end where it begins. Nothing
    /// that comes after this may be relayed.
    pub fn forget_held_back(&mut self) {
        if usize::from(self.head_len) <= LENGTH {
            self.head_len = 0;
        }
    }

    /// Follows `bytes` and calls `on_head` once for each frame whose head is complete.
    ///
    /// # Errors
    /// A frame is shorter than its header or longer than `limit` bytes (without its length field). The number is how
    /// many of `bytes` are before that frame.
    pub fn scan(&mut self, bytes: &[u8], limit: u32, mut on_head: impl FnMut(Head)) -> Result<(), (usize, FrameError)> {
        let mut at = 0;
        while at < bytes.len() {
            if self.body_left > 0 {
                let step = (bytes.len() - at).min(self.body_left as usize);
                // `step` is at most `body_left`, so it fits.
                #[allow(clippy::cast_possible_truncation)]
                {
                    self.body_left -= step as u32;
                }
                at += step;
                continue;
            }
            if self.head_len == 0 {
                if is_keep_alive(bytes[at]) {
                    at += 1;
                    continue;
                }
                // The common case: the whole head is in this read.
                if let Some(head) = bytes[at..].first_chunk::<{ LENGTH + HEADER }>() {
                    let head = Head::read(head);
                    check(head.length, limit).map_err(|error| (at, error))?;
                    on_head(head);
                    #[allow(clippy::cast_possible_truncation)]
                    {
                        self.body_left = head.length - HEADER as u32;
                    }
                    at += LENGTH + HEADER;
                    continue;
                }
            }
            let start = at.saturating_sub(usize::from(self.head_len));
            let byte = bytes[at];
            at += 1;
            let Some(next) = self.head.get_mut(usize::from(self.head_len)) else {
                let mut whole = [byte; LENGTH + HEADER];
                whole[..LENGTH + HEADER - 1].copy_from_slice(&self.head);
                let head = Head::read(&whole);
                on_head(head);
                #[allow(clippy::cast_possible_truncation)]
                {
                    self.body_left = head.length - HEADER as u32;
                }
                self.head_len = 0;
                continue;
            };
            *next = byte;
            self.head_len += 1;
            if usize::from(self.head_len) == LENGTH {
                let [l0, l1, l2, l3, ..] = self.head;
                check(u32::from_be_bytes([l0, l1, l2, l3]), limit).map_err(|error| (start, error))?;
            }
        }
        Ok(())
    }
}

/// The bytes of a length that is not whole: up to three.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeldBack {
    bytes: [u8; LENGTH - 1],
    len: u8,
}

impl HeldBack {
    /// Whether there are none.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

impl AsRef<[u8]> for HeldBack {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// What may be relayed when a read was scanned: everything up to an invalid frame, and up to a length that is not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relayable<'a> {
    /// Bytes that were held back before the read, and come first.
    pub before: HeldBack,
    /// Bytes of the read.
    pub bytes: &'a [u8],
}

impl<'a> Relayable<'a> {
    /// `before` is what `scanner` held back before it scanned `bytes`, and `scanned` what [`Scanner::scan`] returned.
    #[inline]
    pub fn new(before: HeldBack, bytes: &'a [u8], scanned: Result<(), (usize, FrameError)>, scanner: &Scanner) -> Self {
        let held_back = scanner.held_back();
        let valid = match scanned {
            Ok(()) => bytes.len().saturating_sub(usize::from(held_back.len)),
            Err((at, _)) => at,
        };
        // If nothing of the read may be relayed, neither may what is in front of it.
        let before = if valid == 0 { HeldBack::default() } else { before };
        Self { before, bytes: &bytes[..valid] }
    }
}

/// The first frame of a stream whose bytes are being collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// More bytes are needed.
    Partial,
    /// The frame is `start..end` of the bytes. There may be keep-alive bytes before it.
    Whole {
        /// Its head.
        head: Head,
        /// Where its length field begins.
        start: usize,
        /// Where the next frame begins.
        end: usize,
    },
}

/// Looks for the first whole frame in `bytes`.
///
/// # Errors
/// The frame is shorter than its header or longer than `limit` bytes (without its length field).
pub fn first(bytes: &[u8], limit: u32) -> Result<First, FrameError> {
    let start = bytes.iter().position(|&b| !is_keep_alive(b)).unwrap_or(bytes.len());
    let rest = &bytes[start..];
    let Some(length) = rest.first_chunk::<LENGTH>() else {
        return Ok(First::Partial);
    };
    let length = u32::from_be_bytes(*length);
    check(length, limit)?;
    match rest.first_chunk::<{ LENGTH + HEADER }>() {
        Some(head) if rest.len() >= LENGTH + length as usize => {
            Ok(First::Whole { head: Head::read(head), start, end: start + LENGTH + length as usize })
        }
        _ => Ok(First::Partial),
    }
}

/// Builds a frame.
///
/// # Panics
/// When `body` is longer than 4 GiB, which no caller has.
pub fn build(kind: u16, channel: u32, body: &[u8]) -> Vec<u8> {
    build_with_options(kind, 0, channel, body)
}

/// Builds a frame with option bits.
///
/// # Panics
/// When `body` is longer than 4 GiB, which no caller has.
pub fn build_with_options(kind: u16, options: u16, channel: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).expect("a frame under 4 GiB");
    let mut frame = Vec::with_capacity(LENGTH + HEADER + body.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&options.to_be_bytes());
    frame.extend_from_slice(&channel.to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn heads(scanner: &mut Scanner, bytes: &[u8]) -> Vec<Head> {
        let mut out = Vec::new();
        scanner.scan(bytes, 1 << 20, |h| out.push(h)).expect("legal stream");
        out
    }

    #[test]
    fn keep_alives_pass_between_frames() {
        let mut stream = vec![KEEP_ALIVE, 0x81];
        stream.extend(build(1, 7, b"abc"));
        stream.push(0xFF);
        let mut scanner = Scanner::new();
        let seen = heads(&mut scanner, &stream);
        assert_eq!(seen, [Head { length: 11, kind: 1, options: 0, channel: 7 }]);
        assert!(scanner.at_boundary());
    }

    #[test]
    fn lengths_out_of_bounds_are_faults_at_their_frame() {
        let mut stream = build(1, 0, b"");
        stream.extend(7u32.to_be_bytes());
        let fault = Scanner::new().scan(&stream, 100, |_| ()).expect_err("too short");
        assert_eq!(fault, (12, FrameError::TooShort { length: 7 }));
        let fault = Scanner::new().scan(&101u32.to_be_bytes(), 100, |_| ()).expect_err("too long");
        assert_eq!(fault, (0, FrameError::TooLong { length: 101, limit: 100 }));
    }

    #[test]
    fn lengths_at_the_bounds_are_legal() {
        let mut stream = build(1, 0, b"");
        stream.extend(build(2, 0, &[7; 92]));
        assert_eq!(Scanner::new().scan(&stream, 100, |_| ()), Ok(()));
        assert_eq!(MAX_BEFORE_LOGIN, 65_536, "a client that is not logged in makes nobody hold more");
    }

    #[test]
    fn errors_say_which_length_is_wrong() {
        let texts =
            [FrameError::TooShort { length: 7 }, FrameError::TooLong { length: 9, limit: 8 }].map(|e| e.to_string());
        assert_eq!(
            texts,
            ["a frame of 7 bytes is shorter than its header of 8", "a frame of 9 bytes is over the limit of 8"]
        );
    }

    /// What is relayed of a stream that comes in these pieces, up to an invalid frame.
    fn relayed<'a>(pieces: impl Iterator<Item = &'a [u8]>, limit: u32) -> (Vec<u8>, bool) {
        let (mut scanner, mut relayed) = (Scanner::new(), Vec::new());
        for piece in pieces {
            let before = scanner.held_back();
            let scanned = scanner.scan(piece, limit, |_| ());
            let relayable = Relayable::new(before, piece, scanned, &scanner);
            relayed.extend_from_slice(relayable.before.as_ref());
            relayed.extend_from_slice(relayable.bytes);
            if scanned.is_err() {
                return (relayed, true);
            }
        }
        (relayed, false)
    }

    #[test]
    fn the_first_frame_is_found_behind_keep_alives() {
        let mut bytes = vec![KEEP_ALIVE];
        bytes.extend(build(0, 0, &[9; 20]));
        assert_eq!(first(&bytes[..20], 100), Ok(First::Partial));
        bytes.push(0x80);
        let Ok(First::Whole { start, end, head }) = first(&bytes, 100) else { panic!("whole") };
        assert_eq!((start, end, head.length), (1, 33, 28));
    }

    proptest! {
        // However the stream is cut, the same frames are seen.
        #[test]
        fn any_fragmentation_shows_the_same_frames(
            frames in proptest::collection::vec((any::<u16>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..60), 0usize..3), 1..12),
            cuts in proptest::collection::vec(1usize..40, 1..200),
        ) {
            let mut stream = Vec::new();
            for (kind, channel, body, keep_alives) in &frames {
                stream.extend(std::iter::repeat_n(KEEP_ALIVE, *keep_alives));
                stream.extend(build(*kind, *channel, body));
            }
            let whole = heads(&mut Scanner::new(), &stream);
            prop_assert_eq!(whole.len(), frames.len());
            let (mut scanner, mut seen, mut rest) = (Scanner::new(), Vec::new(), &stream[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                seen.extend(heads(&mut scanner, now));
                rest = later;
            }
            prop_assert_eq!(seen, whole);
            prop_assert!(scanner.at_boundary());
        }

        // However the stream is cut, everything is relayed up to the frame that is invalid or whose length is not whole.
        #[test]
        fn any_fragmentation_relays_the_same_bytes(
            frames in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..20), 0usize..3), 0..6),
            last in proptest::collection::vec(0..=1u8, 0..14),
            cuts in proptest::collection::vec(1usize..7, 1..60),
        ) {
            let mut stream = Vec::new();
            for (body, keep_alives) in &frames {
                stream.extend(std::iter::repeat_n(KEEP_ALIVE, *keep_alives));
                stream.extend(build(1, 0, body));
            }
            let is_valid = last.first_chunk().is_some_and(|length| check(u32::from_be_bytes(*length), 300).is_ok());
            let expected = if is_valid { [&stream[..], &last].concat() } else { stream.clone() };
            stream.extend(&last);
            let (mut pieces, mut rest) = (Vec::new(), &stream[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                pieces.push(now);
                rest = later;
            }
            let (relayed, is_invalid) = relayed(pieces.into_iter(), 300);
            prop_assert_eq!(relayed, expected);
            prop_assert_eq!(is_invalid, !is_valid && last.len() >= LENGTH);
        }
    }
}
