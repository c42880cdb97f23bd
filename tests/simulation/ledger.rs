//! What was sent, what has arrived, and when: the invariants that hold at every moment are checked here.

use std::{fmt, time::Duration};

use tokio::time::Instant;

use super::adapter;

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// From the client to the Community server.
    Server,
    /// From the Community server to the client.
    Client,
}

/// What a case can do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Something else arrived than what was sent: bytes lost, repeated, or out of order.
    Disorder,
    /// Bytes wait, the receiver is ready, and nothing moves.
    Standstill,
    /// Every request was answered with 200, and what they brought never arrives.
    Lost,
    /// The session ended, although nobody ended it.
    Ended,
    /// What was sent before an orderly close did not arrive.
    LostAtClose,
    /// The farewell message is missing, or not the one of the session's end.
    Farewell,
    /// More was held than may be.
    Memory,
    /// Something is left after the end.
    Leftover,
    /// The session ended for another reason than it should have.
    Outcome,
    /// The program panicked, or answered what it never should.
    Broken,
}

/// A fault that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub kind: Kind,
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.what)
    }
}

/// An event, for the trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub at: Duration,
    pub what: &'static str,
    pub numbers: [usize; 2],
}

/// One direction of the conversation.
#[derive(Debug)]
struct Half {
    sent: Vec<u8>,
    /// Where frames begin.
    frames: Vec<usize>,
    received: usize,
    progress: Instant,
}

/// See the module's page.
#[derive(Debug)]
pub struct Ledger {
    started: Instant,
    halves: [Half; 2],
    /// The multiplexer's own last words to the client.
    pub farewell: Vec<u8>,
    pub fault: Option<Fault>,
    /// Requests that arrived, and frames of raw clients and servers.
    pub exchanges: usize,
    /// When the network last harmed a request, or the script held somebody back.
    pub trouble: Instant,
    pub trace: Vec<Event>,
    frames: u32,
}

/// What frames are filled with: no two positions of a conversation look alike.
fn filling(seed: u32, n: usize) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(n + 8);
    while bytes.len() < n {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(n);
    bytes
}

/// The longest frame before the log-in, in bytes.
const LONGEST_FIRST: usize = 60_000;
/// Length and header of a frame.
const HEAD: usize = 12;
/// How the program's own farewell message begins.
const FAREWELL_HEAD: [u8; 12] = [0, 0, 0, 16, 0, 3, 0, 0, 0, 0, 0, 0];
const FAREWELL: usize = 20;

impl Ledger {
    pub fn new() -> Self {
        let now = Instant::now();
        let half = |sent: Vec<u8>, frames| Half { sent, frames, received: 0, progress: now };
        let welcome = adapter::welcome();
        Self {
            started: now,
            halves: [half(adapter::handshake(), vec![0]), half(welcome, vec![0, 20])],
            farewell: Vec::new(),
            fault: None,
            exchanges: 0,
            trouble: now,
            trace: Vec::new(),
            frames: 0,
        }
    }

    /// Notes an event.
    pub fn note(&mut self, what: &'static str, numbers: [usize; 2]) {
        self.trace.push(Event { at: self.started.elapsed(), what, numbers });
    }

    /// A fault was found. The first one counts.
    pub fn fails(&mut self, kind: Kind, what: impl Into<String>) {
        self.fault.get_or_insert_with(|| Fault { kind, what: what.into() });
    }

    /// A new frame of `size` bytes for `to`; `None` as a size repeats the one frame that is always the same.
    pub fn say(&mut self, to: To, size: Option<usize>) -> Vec<u8> {
        // A client may send no long frame before it is logged in.
        let longest = if self.received(To::Client) < adapter::welcome().len() { LONGEST_FIRST } else { usize::MAX };
        let frame = match size.map(|size| size.min(longest)) {
            Some(size) => {
                self.frames += 1;
                let body = filling(self.frames, size.saturating_sub(HEAD));
                adapter::data_frame(self.frames, &body)
            }
            None => adapter::data_frame(u32::MAX >> 1, b"the same words"),
        };
        self.sends(to, &frame);
        frame
    }

    /// A whole frame is sent to `to`.
    pub fn sends(&mut self, to: To, frame: &[u8]) {
        let half = &mut self.halves[to as usize];
        half.frames.push(half.sent.len());
        half.sent.extend_from_slice(frame);
    }

    /// `bytes` have arrived.
    pub fn receives(&mut self, to: To, bytes: &[u8]) {
        self.note(if to == To::Server { "server receives" } else { "client receives" }, [bytes.len(), 0]);
        let half = &mut self.halves[to as usize];
        half.progress = Instant::now();
        if !self.farewell.is_empty() && to == To::Client {
            self.farewell.extend_from_slice(bytes);
        } else {
            let rest = &half.sent[half.received..];
            if rest.starts_with(bytes) {
                half.received += bytes.len();
                return;
            }
            let same = bytes.iter().zip(rest).take_while(|(a, b)| a == b).count();
            half.received += same;
            // The farewell message begins as other frames do.
            let frame = *half.frames.iter().rev().find(|at| **at <= half.received).expect("the first");
            let begun = if half.received == half.sent.len() { half.received } else { frame };
            let other = [&half.sent[begun..half.received], &bytes[same..]].concat();
            let head = other.len().min(FAREWELL_HEAD.len());
            if to == To::Server || other[..head] != FAREWELL_HEAD[..head] {
                let (at, frames) = (half.received, half.frames.len());
                let number = half.frames.iter().position(|start| *start == frame).unwrap_or(frames);
                let after = if at == half.sent.len() { "beyond the last byte" } else { "in a frame" };
                let what = format!("to the {to:?}, other bytes at {at}, {after} ({number} of {frames})");
                return self.fails(Kind::Disorder, what);
            }
            half.received = begun;
            self.farewell = other;
        }
        if self.farewell.len() > FAREWELL {
            self.fails(Kind::Disorder, "bytes behind the farewell message");
        }
    }

    /// Bytes that were sent.
    pub fn sent(&self, to: To) -> usize {
        self.halves[to as usize].sent.len()
    }

    /// Bytes that have arrived.
    pub fn received(&self, to: To) -> usize {
        self.halves[to as usize].received
    }

    /// How many bytes have not arrived.
    pub fn missing(&self, to: To) -> usize {
        self.sent(to) - self.received(to)
    }

    /// Whether what has arrived ends where a frame ends.
    pub fn at_boundary(&self, to: To) -> bool {
        let half = &self.halves[to as usize];
        half.received == half.sent.len() || half.frames.binary_search(&half.received).is_ok()
    }

    /// When a byte last arrived.
    pub fn progress(&self, to: To) -> Instant {
        self.halves[to as usize].progress
    }

    /// A number for all that happened.
    pub fn digest(&self) -> u64 {
        use std::hash::{Hash, Hasher};
        #[expect(deprecated, reason = "its keys are fixed")]
        let mut hasher = std::hash::SipHasher::new();
        for Event { at, what, numbers } in &self.trace {
            (at.as_millis(), what, numbers).hash(&mut hasher);
        }
        hasher.finish()
    }
}
