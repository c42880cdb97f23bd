//! HTTP/1 requests by the letter: where a request ends, and that everybody reads it so.
//!
//! Request smuggling lives on bytes that two parsers read differently. This follows a
//! connection's bytes on their way to hyper and lets only the plain form of RFC 9112 pass: what
//! any parser reads in the same way. It knows no socket, stores no request, and tells only
//! where the first fault stands.
//!
//! ```text
//!  ┌─▶ request line ─▶ headers ─┬─ Content-Length ─▶ body ──────────────────────┐
//!  │                            ├─ chunked ─▶ size ─▶ data ─▶ ... ─▶ trailers ──┤
//!  │                            └─ neither ─────────────────────────────────────┤
//!  └────────────────────────────────────────────────────────────────────────────┘
//! ```

use crate::telemetry::outcome::RequestRefusal;

/// What is wrong. The client's fault; it ends the connection with a 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FramingError {
    /// Not `method SP target SP HTTP/1.0|1.1`, each of visible ASCII.
    RequestLine,
    /// A line end that is not CR LF.
    LineEnd,
    /// A name that is no token, a space before the colon, a folded line, a control byte.
    Header,
    /// Content-Length twice, or not of digits alone.
    ContentLength,
    /// Transfer-Encoding twice, not `chunked` alone, or in HTTP/1.0.
    TransferEncoding,
    /// Content-Length and Transfer-Encoding.
    BothLengths,
    /// A chunk's size that is none, or data longer than it.
    Chunk,
    /// A trailer that would be a length.
    Trailer,
}

impl FramingError {
    /// As requests are counted that are refused.
    pub fn refusal(self) -> RequestRefusal {
        match self {
            Self::RequestLine => RequestRefusal::RequestLine,
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

/// Digits of a Content-Length, at the most: an exabyte is enough.
const LENGTH_DIGITS: usize = 18;
/// Digits of a chunk's size, at the most: 4 GiB.
const CHUNK_DIGITS: u8 = 8;
/// Bytes of a chunk's extension, at the most.
const MAX_EXTENSION: u16 = 256;
/// Bytes of a name or a value that decides a length, at the most, the white space around a value
/// counted. What is longer is none that matters: such a value is a fault.
pub const WORD: usize = 24;

/// A short word.
#[derive(Debug, Default, Clone, Copy)]
struct Word {
    bytes: [u8; WORD],
    len: usize,
}

impl Word {
    fn push(&mut self, bytes: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.len..) {
            let fits = bytes.len().min(room.len());
            room[..fits].copy_from_slice(&bytes[..fits]);
        }
        self.len = self.len.saturating_add(bytes.len());
    }

    fn clear(&mut self) {
        self.len = 0;
    }

    /// The word; of one too long, nothing that could be meant.
    fn get(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(b"?")
    }

    /// In large or small letters.
    fn is(&self, word: &[u8]) -> bool {
        self.get().eq_ignore_ascii_case(word)
    }
}

const CONTENT_LENGTH: &[u8] = b"content-length";
const TRANSFER_ENCODING: &[u8] = b"transfer-encoding";
/// The end of nearly every request's first line.
const VERSION: &[u8] = b"HTTP/1.1\r\n";

/// The length of the header line that `bytes` begin with, if it is whole and of the plain form, and its
/// name can't be one that matters here. Else 0: then it is read byte by byte.
fn indifferent_line(bytes: &[u8]) -> usize {
    let name = TOKEN.run(bytes);
    let Some((b':', rest)) = bytes[name..].split_first() else { return 0 };
    if [0, CONTENT_LENGTH.len(), TRANSFER_ENCODING.len()].contains(&name) {
        return 0;
    }
    let value = VALUE.run(rest);
    if rest[value..].starts_with(b"\r\n") { name + 1 + value + 2 } else { 0 }
}

/// A header whose value matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    ContentLength,
    TransferEncoding,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between two requests. Empty lines are skipped: old clients end a body with one.
    Between,
    BetweenLf,
    Method,
    Target {
        empty: bool,
    },
    /// So many bytes of `HTTP/1.x` were read.
    Version(usize),
    LineLf,
    HeaderStart,
    HeaderName,
    HeaderValue(Name),
    HeaderLf(Name),
    HeadLf,
    /// So many bytes of the body are to come.
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
    ChunkData(u32),
    ChunkCr,
    ChunkLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
}

/// Follows one connection's bytes.
#[derive(Debug, Clone)]
pub struct Framing {
    state: State,
    /// The header's name, then its value where that matters.
    word: Word,
    old: bool,
    length: Option<u64>,
    chunked: bool,
    requests: u64,
}

impl Default for Framing {
    fn default() -> Self {
        Self { state: State::Between, word: Word::default(), old: false, length: None, chunked: false, requests: 0 }
    }
}

/// Which bytes are of one kind.
struct Class([bool; 256]);

/// Bytes of a method or a header's name (RFC 9110, 5.6.2).
static TOKEN: Class = {
    let (mut class, marks) = ([false; 256], b"!#$%&'*+-.^_`|~");
    let mut byte: u8 = 0;
    while byte < 128 {
        class[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut i = 0;
    while i < marks.len() {
        class[marks[i] as usize] = true;
        i += 1;
    }
    Class(class)
};
/// Bytes of a target: visible.
static TARGET: Class = Class::between(0x21, 0x7E);
/// Bytes of a header's value.
static VALUE: Class = {
    let Class(mut class) = Class::between(0x20, 0xFF);
    class[0x7F] = false;
    class[b'\t' as usize] = true;
    Class(class)
};

impl Class {
    const fn between(first: u8, last: u8) -> Self {
        let mut class = [false; 256];
        let mut byte = first as usize;
        while byte <= last as usize {
            class[byte] = true;
            byte += 1;
        }
        Self(class)
    }

    fn has(&self, byte: u8) -> bool {
        self.0[usize::from(byte)]
    }

    /// How many bytes are of it, up to the first that is not.
    fn run(&self, bytes: &[u8]) -> usize {
        let (eights, _) = bytes.as_chunks::<8>();
        let all = |eight: &&[u8; 8]| eight.iter().fold(true, |all, byte| all & self.has(*byte));
        let whole = 8 * eights.iter().take_while(all).count();
        whole + bytes[whole..].iter().take_while(|byte| self.has(**byte)).count()
    }
}

impl Framing {
    /// Whole requests so far, bodies included.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Whether the bytes so far end where a request ends.
    pub fn at_boundary(&self) -> bool {
        self.state == State::Between
    }

    /// Follows `bytes`.
    ///
    /// # Errors
    /// The first fault, with the count of `bytes` in front of it. Nothing may follow then.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<(), (usize, FramingError)> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            let left = &bytes[at..];
            // What makes up most of a connection's bytes goes by in one step.
            let step = match self.state {
                State::Body(n) => usize::try_from(n).unwrap_or(usize::MAX).min(left.len()),
                State::ChunkData(n) => (n as usize).min(left.len()),
                State::Method => TOKEN.run(left),
                State::Target { .. } => TARGET.run(left),
                State::Version(0) if left.starts_with(VERSION) => VERSION.len(),
                State::HeaderStart => indifferent_line(left),
                State::HeaderName | State::TrailerName => TOKEN.run(left),
                State::HeaderValue(Name::Other) | State::TrailerValue => VALUE.run(left),
                _ => 0,
            };
            if step == 0 {
                self.state = self.next(byte).map_err(|fault| (at, fault))?;
                at += 1;
                continue;
            }
            at += step;
            self.state = match self.state {
                State::Body(n) if n == step as u64 => self.done(),
                State::Body(n) => State::Body(n - step as u64),
                State::ChunkData(n) if n as usize == step => State::ChunkCr,
                // `step` is less than `n`, so it fits.
                #[allow(clippy::cast_possible_truncation)]
                State::ChunkData(n) => State::ChunkData(n - step as u32),
                State::Target { .. } => State::Target { empty: false },
                State::Version(_) => State::HeaderStart,
                same @ (State::HeaderName | State::TrailerName) => {
                    self.word.push(&left[..step]);
                    same
                }
                same => same,
            };
        }
        Ok(())
    }

    fn next(&mut self, byte: u8) -> Result<State, FramingError> {
        let lf = |then: State| if byte == b'\n' { Ok(then) } else { Err(FramingError::LineEnd) };
        Ok(match self.state {
            State::Between if byte == b'\r' => State::BetweenLf,
            State::BetweenLf => lf(State::Between)?,
            State::Between | State::Method => match byte {
                b' ' if self.state == State::Method => State::Target { empty: true },
                _ if TOKEN.has(byte) => State::Method,
                b'\n' => return Err(FramingError::LineEnd),
                _ => return Err(FramingError::RequestLine),
            },
            State::Target { empty } => match byte {
                b' ' if !empty => State::Version(0),
                _ => return Err(FramingError::RequestLine),
            },
            State::Version(n) => match (b"HTTP/1.".get(n), byte) {
                (Some(expected), _) if *expected == byte => State::Version(n + 1),
                (None, b'0' | b'1') if n == 7 => {
                    self.old = byte == b'0';
                    State::Version(8)
                }
                (None, b'\r') if n == 8 => State::LineLf,
                (None, b'\n') if n == 8 => return Err(FramingError::LineEnd),
                _ => return Err(FramingError::RequestLine),
            },
            State::LineLf => lf(State::HeaderStart)?,
            State::HeaderStart if byte == b'\r' => State::HeadLf,
            State::TrailerStart if byte == b'\r' => State::EndLf,
            State::HeaderStart | State::HeaderName | State::TrailerStart | State::TrailerName => self.name(byte)?,
            State::HeaderValue(name) => match byte {
                b'\r' => State::HeaderLf(name),
                _ if VALUE.has(byte) => {
                    self.word.push(&[byte]);
                    State::HeaderValue(name)
                }
                b'\n' => return Err(FramingError::LineEnd),
                _ => return Err(FramingError::Header),
            },
            State::HeaderLf(name) => {
                lf(State::HeaderStart)?;
                self.value(name)?;
                State::HeaderStart
            }
            State::HeadLf => {
                lf(State::Between)?;
                self.head_done()?
            }
            State::ChunkSize { .. } | State::ChunkExtension { .. } => self.chunk_size(byte)?,
            State::ChunkSizeLf(0) => lf(State::TrailerStart)?,
            State::ChunkSizeLf(size) => lf(State::ChunkData(size))?,
            State::ChunkCr if byte == b'\r' => State::ChunkLf,
            State::ChunkCr => return Err(FramingError::Chunk),
            State::ChunkLf => lf(State::ChunkSize { size: 0, digits: 0 })?,
            State::TrailerValue => match byte {
                b'\r' => State::TrailerLf,
                b'\n' => return Err(FramingError::LineEnd),
                _ => return Err(FramingError::Header),
            },
            State::TrailerLf => lf(State::TrailerStart)?,
            State::EndLf => {
                lf(State::Between)?;
                self.done()
            }
            // Never of no length: these go by in steps.
            same @ (State::Body(_) | State::ChunkData(_)) => same,
        })
    }

    /// A byte of a header's or a trailer's name.
    fn name(&mut self, byte: u8) -> Result<State, FramingError> {
        let (begins, trailer) = match self.state {
            State::HeaderStart => (true, false),
            State::TrailerStart => (true, true),
            State::TrailerName => (false, true),
            _ => (false, false),
        };
        if begins {
            self.word.clear();
        }
        if TOKEN.has(byte) {
            self.word.push(&[byte]);
            return Ok(if trailer { State::TrailerName } else { State::HeaderName });
        }
        match byte {
            b':' if !begins => (),
            b'\n' => return Err(FramingError::LineEnd),
            // A space in front is a folded line, one behind hides the name from some.
            _ => return Err(FramingError::Header),
        }
        let name = match &self.word {
            word if word.is(CONTENT_LENGTH) => Name::ContentLength,
            word if word.is(TRANSFER_ENCODING) => Name::TransferEncoding,
            word if trailer && word.is(b"host") => return Err(FramingError::Trailer),
            _ => Name::Other,
        };
        self.word.clear();
        match (trailer, name) {
            (false, name) => Ok(State::HeaderValue(name)),
            (true, Name::Other) => Ok(State::TrailerValue),
            (true, _) => Err(FramingError::Trailer),
        }
    }

    /// The value of a header is whole.
    fn value(&mut self, name: Name) -> Result<(), FramingError> {
        let value = self.word.get().trim_ascii();
        match name {
            Name::Other => (),
            Name::ContentLength => {
                let digits = (1..=LENGTH_DIGITS).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
                if !digits || self.length.is_some() {
                    return Err(FramingError::ContentLength);
                }
                self.length = Some(value.iter().fold(0, |length, digit| 10 * length + u64::from(digit - b'0')));
            }
            Name::TransferEncoding => {
                if !value.eq_ignore_ascii_case(b"chunked") || self.chunked || self.old {
                    return Err(FramingError::TransferEncoding);
                }
                self.chunked = true;
            }
        }
        Ok(())
    }

    fn head_done(&mut self) -> Result<State, FramingError> {
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(FramingError::BothLengths),
            (true, None) => Ok(State::ChunkSize { size: 0, digits: 0 }),
            (false, Some(length)) if length > 0 => Ok(State::Body(length)),
            (false, _) => Ok(self.done()),
        }
    }

    fn chunk_size(&mut self, byte: u8) -> Result<State, FramingError> {
        let digit = char::from(byte).to_digit(16);
        match (self.state, byte, digit) {
            (State::ChunkSize { size, digits }, _, Some(digit)) if digits < CHUNK_DIGITS => {
                Ok(State::ChunkSize { size: size << 4 | digit, digits: digits + 1 })
            }
            (State::ChunkSize { size, digits: 1.. } | State::ChunkExtension { size, .. }, b'\r', _) => {
                Ok(State::ChunkSizeLf(size))
            }
            (State::ChunkSize { size, digits: 1.. }, b';', _) => Ok(State::ChunkExtension { size, length: 0 }),
            (State::ChunkExtension { size, length }, b'\t' | 0x20..=0x7E, _) if length < MAX_EXTENSION => {
                Ok(State::ChunkExtension { size, length: length + 1 })
            }
            (_, b'\n', _) => Err(FramingError::LineEnd),
            _ => Err(FramingError::Chunk),
        }
    }

    /// A request is over; the next one may begin.
    fn done(&mut self) -> State {
        *self = Self { requests: self.requests + 1, ..Self::default() };
        State::Between
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Whole requests, and the fault with the bytes in front of it.
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
        // What stands in front of the fault is told.
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
