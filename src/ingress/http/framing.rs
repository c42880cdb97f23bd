//! The strict form of HTTP/1 requests: where each one ends.
//!
//! Request smuggling needs bytes that two parsers read differently. [`Framing`] follows a connection's bytes on their
//! way to a parser, and lets only that form of RFC 9112 pass which every parser reads in the same way. It knows no
//! socket, keeps no request, and reports only where the first error is.
//!
//! These are the values of `FramingState`. An arrow without a word is taken at the first byte that belongs to the next
//! state. A byte without an arrow is an error, and nothing is followed after it. `Target` stands for two states: behind a
//! `?`, it is `Query`.
//!
//! ```text
//!  Between ─▶ Method ─▶ Target ─▶ Version ─▶ RequestLineLf ─▶ HeaderStart ─▶ HeaderName ─▶ HeaderValue ─▶ HeaderLf
//!   ▲ ▲ │ CR                                                  ▲     │ CR                                     │
//!   │ │ ▼                                                     └─────│────────────────────────────────────────┘
//!   │ └ BetweenLf (an empty line)                                   ▼
//!   │                                                             HeadLf
//!   │◀─────────────────────── no length, or 0 ──────────────────────┤
//!   │◀── Body ◀────────────── Content-Length ───────────────────────┤
//!   │                                                               │ chunked
//!   │                                                               ▼
//!   │           ┌───────────────────────────────────────────▶ ChunkSize ─▶ ChunkExtension
//!   │           │                                                   │            │
//!   │           │                                                   ▼            │
//!   │     ChunkDataLf ◀── ChunkDataCr ◀── ChunkData ◀── size > 0 ── ChunkSizeLf ◀┘
//!   │                                                               │ size 0
//!   │                                                               ▼
//!   └── TrailersLf ◀───────────────── CR ───────────────────── TrailerStart ─▶ TrailerName ─▶ TrailerValue
//!                                                                   ▲                              │
//!                                                                   └───────── TrailerLf ◀─────────┘
//! ```

use crate::telemetry::outcome::RequestRefusal;

mod words;

use FramingState::*;
pub use words::MAX_WORD;
use words::{LengthHeader, NOT_IN_PATH, NOT_IN_TARGET, PATH, QUERY, ShortWord, TOKEN, VALUE, unimportant_line};

/// What is wrong with a request. The client's fault; the connection ends with a 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FramingError {
    /// The first line is not `method SP target SP HTTP/1.0|1.1`, each of visible ASCII.
    RequestLine,
    /// The target has a character that no target may have.
    Target,
    /// A line does not end with CR LF.
    LineEnd,
    /// A name is not a token, or there is a space before a colon, a folded line or a control character.
    Header,
    /// Content-Length appears twice, or is not made of digits alone.
    ContentLength,
    /// Transfer-Encoding appears twice, is not `chunked` alone, or appears in HTTP/1.0.
    TransferEncoding,
    /// The request has both Content-Length and Transfer-Encoding.
    BothLengths,
    /// A chunk has no valid size, or its data is longer than its size.
    Chunk,
    /// A trailer would change the length or the host.
    Trailer,
}

impl FramingError {
    /// How the request is counted.
    pub fn refusal(self) -> RequestRefusal {
        match self {
            Self::RequestLine => RequestRefusal::RequestLine,
            Self::Target => RequestRefusal::Target,
            Self::LineEnd => RequestRefusal::LineEnd,
            Self::Header => RequestRefusal::Header,
            Self::ContentLength => RequestRefusal::ContentLength,
            Self::TransferEncoding => RequestRefusal::TransferEncoding,
            Self::BothLengths => RequestRefusal::BothLengths,
            Self::Chunk => RequestRefusal::Chunk,
            Self::Trailer => RequestRefusal::Trailer,
        }
    }
}

/// The most digits of a Content-Length: enough for an exabyte.
const LENGTH_DIGITS: usize = 18;
/// The most digits of a chunk's size: 4 GiB.
const CHUNK_DIGITS: u8 = 8;
/// The most bytes of a chunk's extension.
const MAX_EXTENSION: u16 = 256;
/// The end of nearly every request's first line.
const VERSION: &[u8] = b"HTTP/1.1\r\n";
/// What both versions begin with.
const VERSION_START: &[u8] = b"HTTP/1.";

/// Where a connection's bytes are. `...Lf`: a CR was read, and LF has to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FramingState {
    /// Between two requests. Empty lines are skipped: some old clients send one behind a body.
    Between,
    BetweenLf,
    Method,
    Target {
        is_empty: bool,
    },
    /// Behind the `?` of a target.
    Query,
    /// So many bytes of `HTTP/1.x` were read. `0 <= n <= 8`.
    Version(usize),
    RequestLineLf,
    HeaderStart,
    HeaderName,
    HeaderValue(LengthHeader),
    HeaderLf(LengthHeader),
    /// Behind the CR of the empty line that ends a head.
    HeadLf,
    /// So many bytes of the body are to come; never 0.
    Body(u64),
    ChunkSize {
        size: u32,
        digits: u8,
    },
    ChunkExtension {
        size: u32,
        length: u16,
    },
    ChunkSizeLf(u32),
    /// So many bytes of the chunk are to come; never 0.
    ChunkData(u32),
    ChunkDataCr,
    ChunkDataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    /// Behind the CR of the empty line that ends the trailers.
    TrailersLf,
}

/// Follows one connection's bytes.
#[derive(Debug, Clone)]
pub struct Framing {
    state: FramingState,
    /// A header's name, and then its value where that decides a length.
    word: ShortWord,
    /// Whether the request is in HTTP/1.0.
    is_old: bool,
    /// Content-Length.
    length: Option<u64>,
    /// Whether the request has `Transfer-Encoding: chunked`.
    is_chunked: bool,
    /// Complete requests so far.
    requests: u64,
}

impl Default for Framing {
    fn default() -> Self {
        Self { state: Between, word: ShortWord::default(), is_old: false, length: None, is_chunked: false, requests: 0 }
    }
}

impl Framing {
    /// Complete requests so far, bodies included.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Whether the bytes so far end where a request ends.
    pub fn at_boundary(&self) -> bool {
        self.state == Between
    }

    /// Follows `bytes`, the connection's next ones.
    ///
    /// # Errors
    /// The first error, and the number of `bytes` in front of it. Nothing may be followed after it.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<(), (usize, FramingError)> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            let left = &bytes[at..];
            // Most of a connection's bytes are skipped in runs, which do not change what the state means.
            match self.run(left) {
                0 => {
                    self.state = self.next(byte).map_err(|error| (at, error))?;
                    at += 1;
                }
                n => {
                    self.state = self.skip(&left[..n]);
                    at += n;
                }
            }
        }
        Ok(())
    }

    /// How many bytes can be skipped at once.
    fn run(&self, left: &[u8]) -> usize {
        match self.state {
            Body(n) => usize::try_from(n).unwrap_or(usize::MAX).min(left.len()),
            ChunkData(n) => (n as usize).min(left.len()),
            Method | HeaderName | TrailerName => TOKEN.run(left),
            Target { .. } => PATH.run(left),
            Query => QUERY.run(left),
            Version(0) if left.starts_with(VERSION) => VERSION.len(),
            HeaderStart => unimportant_line(left),
            HeaderValue(LengthHeader::Other) | TrailerValue => VALUE.run(left),
            _ => 0,
        }
    }

    /// The state behind a run, which is not empty.
    fn skip(&mut self, run: &[u8]) -> FramingState {
        match self.state {
            Body(n) if n == run.len() as u64 => self.done(),
            Body(n) => Body(n - run.len() as u64),
            ChunkData(n) if n as usize == run.len() => ChunkDataCr,
            // The run is shorter than `n`, so its length fits.
            #[allow(clippy::cast_possible_truncation)]
            ChunkData(n) => ChunkData(n - run.len() as u32),
            Target { .. } => Target { is_empty: false },
            Version(_) => HeaderStart,
            same @ (HeaderName | TrailerName) => {
                self.word.push(run);
                same
            }
            same => same,
        }
    }

    /// The state behind `byte`, which is not part of a run.
    fn next(&mut self, byte: u8) -> Result<FramingState, FramingError> {
        let lf = |then: FramingState| if byte == b'\n' { Ok(then) } else { Err(FramingError::LineEnd) };
        Ok(match self.state {
            Between if byte == b'\r' => BetweenLf,
            BetweenLf => lf(Between)?,
            Between | Method => match byte {
                b' ' if self.state == Method => Target { is_empty: true },
                _ if TOKEN.has(byte) => Method,
                b'\n' => return Err(FramingError::LineEnd),
                _ => return Err(FramingError::RequestLine),
            },
            Target { is_empty } => match byte {
                b' ' if !is_empty => Version(0),
                b'?' if !is_empty => Query,
                _ if NOT_IN_TARGET.contains(&byte) || NOT_IN_PATH.contains(&byte) => return Err(FramingError::Target),
                _ => return Err(FramingError::RequestLine),
            },
            Query => match byte {
                b' ' => Version(0),
                _ if NOT_IN_TARGET.contains(&byte) => return Err(FramingError::Target),
                _ => return Err(FramingError::RequestLine),
            },
            Version(n) => match (VERSION_START.get(n), byte) {
                (Some(expected), _) if *expected == byte => Version(n + 1),
                (None, b'0' | b'1') if n == 7 => {
                    self.is_old = byte == b'0';
                    Version(8)
                }
                (None, b'\r') if n == 8 => RequestLineLf,
                (None, b'\n') if n == 8 => return Err(FramingError::LineEnd),
                _ => return Err(FramingError::RequestLine),
            },
            RequestLineLf => lf(HeaderStart)?,
            HeaderStart if byte == b'\r' => HeadLf,
            TrailerStart if byte == b'\r' => TrailersLf,
            HeaderStart | HeaderName | TrailerStart | TrailerName => self.name(byte)?,
            HeaderValue(name) => match byte {
                b'\r' => HeaderLf(name),
                _ if VALUE.has(byte) => {
                    self.word.push(&[byte]);
                    HeaderValue(name)
                }
                b'\n' => return Err(FramingError::LineEnd),
                _ => return Err(FramingError::Header),
            },
            HeaderLf(name) => {
                lf(HeaderStart)?;
                self.value(name)?;
                HeaderStart
            }
            HeadLf => {
                lf(Between)?;
                self.head_done()?
            }
            ChunkSize { .. } | ChunkExtension { .. } => self.chunk_size(byte)?,
            ChunkSizeLf(0) => lf(TrailerStart)?,
            ChunkSizeLf(size) => lf(ChunkData(size))?,
            ChunkDataCr if byte == b'\r' => ChunkDataLf,
            ChunkDataCr => return Err(FramingError::Chunk),
            ChunkDataLf => lf(ChunkSize { size: 0, digits: 0 })?,
            TrailerValue => match byte {
                b'\r' => TrailerLf,
                b'\n' => return Err(FramingError::LineEnd),
                _ => return Err(FramingError::Header),
            },
            TrailerLf => lf(TrailerStart)?,
            TrailersLf => {
                lf(Between)?;
                self.done()
            }
            // Never empty, so these bytes are always skipped.
            same @ (Body(_) | ChunkData(_)) => same,
        })
    }

    /// The state behind a byte of a header's or a trailer's name.
    fn name(&mut self, byte: u8) -> Result<FramingState, FramingError> {
        let (begins, is_trailer) = match self.state {
            HeaderStart => (true, false),
            TrailerStart => (true, true),
            TrailerName => (false, true),
            _ => (false, false),
        };
        if begins {
            self.word.clear();
        }
        if TOKEN.has(byte) {
            self.word.push(&[byte]);
            return Ok(if is_trailer { TrailerName } else { HeaderName });
        }
        match byte {
            b':' if !begins => (),
            b'\n' => return Err(FramingError::LineEnd),
            // A space in front of a name folds the line; behind a name, it hides the name from some parsers.
            _ => return Err(FramingError::Header),
        }
        let name = LengthHeader::named(&self.word);
        let is_host = self.word.is(b"host");
        self.word.clear();
        match (is_trailer, name) {
            (false, name) => Ok(HeaderValue(name)),
            (true, LengthHeader::Other) if !is_host => Ok(TrailerValue),
            (true, _) => Err(FramingError::Trailer),
        }
    }

    /// Takes the value of a header, which is complete.
    fn value(&mut self, name: LengthHeader) -> Result<(), FramingError> {
        let value = self.word.get().trim_ascii();
        match name {
            LengthHeader::Other => (),
            LengthHeader::ContentLength => {
                let is_number = (1..=LENGTH_DIGITS).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
                if !is_number || self.length.is_some() {
                    return Err(FramingError::ContentLength);
                }
                self.length = Some(value.iter().fold(0, |length, digit| 10 * length + u64::from(digit - b'0')));
            }
            LengthHeader::TransferEncoding => {
                if !value.eq_ignore_ascii_case(b"chunked") || self.is_chunked || self.is_old {
                    return Err(FramingError::TransferEncoding);
                }
                self.is_chunked = true;
            }
        }
        Ok(())
    }

    /// The state behind a head.
    fn head_done(&mut self) -> Result<FramingState, FramingError> {
        match (self.is_chunked, self.length) {
            (true, Some(_)) => Err(FramingError::BothLengths),
            (true, None) => Ok(ChunkSize { size: 0, digits: 0 }),
            (false, Some(length)) if length > 0 => Ok(Body(length)),
            (false, _) => Ok(self.done()),
        }
    }

    /// The state behind a byte of the line with a chunk's size.
    fn chunk_size(&mut self, byte: u8) -> Result<FramingState, FramingError> {
        let digit = char::from(byte).to_digit(16);
        match (self.state, byte, digit) {
            (ChunkSize { size, digits }, _, Some(digit)) if digits < CHUNK_DIGITS => {
                Ok(ChunkSize { size: size << 4 | digit, digits: digits + 1 })
            }
            (ChunkSize { size, digits: 1.. } | ChunkExtension { size, .. }, b'\r', _) => Ok(ChunkSizeLf(size)),
            (ChunkSize { size, digits: 1.. }, b';', _) => Ok(ChunkExtension { size, length: 0 }),
            (ChunkExtension { size, length }, b'\t' | 0x20..=0x7E, _) if length < MAX_EXTENSION => {
                Ok(ChunkExtension { size, length: length + 1 })
            }
            (_, b'\n', _) => Err(FramingError::LineEnd),
            _ => Err(FramingError::Chunk),
        }
    }

    /// The state behind a complete request.
    fn done(&mut self) -> FramingState {
        *self = Self { requests: self.requests + 1, ..Self::default() };
        Between
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Complete requests, and the error with the bytes in front of it.
    fn follow(bytes: &[u8]) -> (u64, Option<(usize, FramingError)>) {
        let mut framing = Framing::default();
        let followed = framing.follow(bytes);
        (framing.requests(), followed.err())
    }

    #[test]
    fn the_plain_form_passes() {
        for (requests, bytes) in [
            (1, &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..]),
            (1, b"GET / HTTP/1.0\r\n\r\n"),
            (1, b"GET /a|[b]{c}^?d?[]{}|\\^` HTTP/1.1\r\n\r\n"),
            (1, b"GET /? HTTP/1.1\r\n\r\n"),
            (1, b"\r\nPOST /a?b HTTP/1.1\r\nContent-Length:  3 \r\nX:\r\nY: \t\xE9\r\n\r\nabc"),
            (2, b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n"),
            (1, b"POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=\"b\"\r\n\r\n\n\r\n00\r\nX: y\r\n\r\n"),
            (0, b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nabcd"),
            (0, b"GET / HTTP/1.1\r\nHost: x\r\n"),
            (0, b""),
        ] {
            assert_eq!(follow(bytes), (requests, None), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_does_not() {
        use FramingError::*;
        let head = |line: &[u8]| [b"POST / HTTP/1.1\r\n", line, b"\r\n\r\n"].concat();
        let chunk = |line: &[u8]| [b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", line].concat();
        for (bytes, fault) in [
            (b"GET /\r\n".to_vec(), RequestLine),
            (b"GET / HTTP/2.0\r\n".to_vec(), RequestLine),
            (b"GET / HTTP/1.1 \r\n".to_vec(), RequestLine),
            (b"GET  / HTTP/1.1\r\n".to_vec(), RequestLine),
            (b"GET /a b HTTP/1.1\r\n".to_vec(), RequestLine),
            (b"GET /\xC3 HTTP/1.1\r\n".to_vec(), RequestLine),
            (b"G\0T / HTTP/1.1\r\n".to_vec(), RequestLine),
            (b"GET /a#b HTTP/1.1\r\n".to_vec(), Target),
            (b"GET /a?b#c HTTP/1.1\r\n".to_vec(), Target),
            (b"GET /a\"b HTTP/1.1\r\n".to_vec(), Target),
            (b"GET /a\\b HTTP/1.1\r\n".to_vec(), Target),
            (b"GET http://x<y/ HTTP/1.1\r\n".to_vec(), Target),
            (b"GET ?a HTTP/1.1\r\n".to_vec(), Target),
            (b"GET /a?b\x7F HTTP/1.1\r\n".to_vec(), RequestLine),
            (b" GET / HTTP/1.1\r\n".to_vec(), RequestLine),
            (b"GET / HTTP/1.1\n".to_vec(), LineEnd),
            (b"GET / HTTP/1.1\r\r\n".to_vec(), LineEnd),
            (b"\n".to_vec(), LineEnd),
            (head(b"A: b\nC: d"), LineEnd),
            (head(b"A: b\rC: d"), LineEnd),
            (head(b"A: b\r\n c"), Header),
            (head(b"A : b"), Header),
            (head(b"A\0: b"), Header),
            (head(b"A: \0"), Header),
            (head(b": b"), Header),
            (head(b"A"), Header),
            (head(b"Content-Length: 1\r\nContent-Length: 1"), ContentLength),
            (head(b"Content-Length: +1"), ContentLength),
            (head(b"Content-Length: 1, 1"), ContentLength),
            (head(b"Content-Length: 0x1"), ContentLength),
            (head(b"Content-Length:"), ContentLength),
            (head(b"Content-Length: 9999999999999999999"), ContentLength),
            (head(b"Content-Length:                                   5"), ContentLength),
            (head(b"Transfer-Encoding: gzip, chunked"), TransferEncoding),
            (head(b"Transfer-Encoding: xchunked"), TransferEncoding),
            (head(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), TransferEncoding),
            (head(b"Transfer-Encoding: \x0bchunked"), Header),
            (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(), TransferEncoding),
            (head(b"Content-Length: 1\r\nTransfer-Encoding: chunked"), BothLengths),
            (head(b"Transfer-Encoding: chunked\r\nContent-Length: 1"), BothLengths),
            (chunk(b"5 \r\n"), Chunk),
            (chunk(b"\r\n"), Chunk),
            (chunk(b"g\r\n"), Chunk),
            (chunk(b"-1\r\n"), Chunk),
            (chunk(b"0x5\r\n"), Chunk),
            (chunk(b"100000005\r\n"), Chunk),
            (chunk(b"3\n"), LineEnd),
            (chunk(b"3;a\n"), LineEnd),
            (chunk(b"3\r\nabcd\r\n"), Chunk),
            (chunk(b"3\r\nabc\n"), Chunk),
            (chunk(&[b"3;".as_slice(), &[b'x'; 300]].concat()), Chunk),
            (chunk(b"0\r\nContent-Length: 5\r\n"), Trailer),
            (chunk(b"0\r\n A: b\r\n"), Header),
        ] {
            let (requests, found) = follow(&bytes);
            assert_eq!((requests, found.map(|(_, fault)| fault)), (0, Some(fault)), "{}", bytes.escape_ascii());
        }
        // The bytes in front of the error are reported.
        assert_eq!(follow(b"GET / HTTP/1.1\r\n\r\nG\n"), (1, Some((19, LineEnd))));
    }

    proptest! {
        #[test]
        fn any_fragmentation_is_followed_in_the_same_way(
            pieces in proptest::collection::vec(0usize..12, 1..12),
            cuts in proptest::collection::vec(1usize..30, 1..40),
        ) {
            const PARTS: [&[u8]; 12] = [
                b"GET / HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\n", b"Host: x\r\n", b"Content-Length: 4\r\n", b"\r\n",
                b"Transfer-Encoding: chunked\r\n\r\n", b"4\r\nabcd\r\n", b"0\r\n\r\n", b"abcd", b"\n", b"a : b\r\n", b"\0",
            ];
            let stream: Vec<u8> = pieces.iter().flat_map(|at| PARTS[*at].iter().copied()).collect();
            let (requests, fault) = follow(&stream);
            let (mut framing, mut at, mut found) = (Framing::default(), 0, None);
            for cut in cuts.iter().cycle() {
                let piece = &stream[at..(at + cut).min(stream.len())];
                if piece.is_empty() { break }
                if let Err((before, fault)) = framing.follow(piece) {
                    found = Some((at + before, fault));
                    break;
                }
                at += piece.len();
            }
            prop_assert_eq!((framing.requests(), found), (requests, fault));
        }
    }
}
