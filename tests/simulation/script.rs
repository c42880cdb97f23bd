//! A case of the simulation: settings, and a list of steps. It prints as the Rust expression that makes it.

use std::fmt;

/// How the client comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Raw,
    Polling,
    Hybrid,
    Streaming,
}

impl Way {
    /// Whether the client acknowledges what it receives by requests, which are sent again when they are lost.
    pub fn acknowledges(self) -> bool {
        matches!(self, Self::Polling | Self::Hybrid)
    }
}

/// What the network does to a request of a tunnel's client. Times are in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It arrives after `up`; its response arrives `down` after it was made.
    Slow { up: u64, down: u64 },
    /// It does not arrive: its connection breaks.
    RequestLost { after: u64 },
    /// It arrives; its response does not: the connection breaks instead.
    ResponseLost,
    /// It arrives, and its connection breaks `after` that: the server forgets the request, or its response is lost.
    Cut { after: u64 },
    /// It arrives, and a copy of it arrives `after` that.
    Doubled { after: u64 },
    /// Its connection breaks at once for the client; it arrives nevertheless, `after` that.
    Late { after: u64 },
}

/// What happens next. Sizes are in bytes, a frame's head included; times are in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Time passes.
    Wait(u64),
    /// The client sends a frame.
    ClientSays(usize),
    /// The client sends the same frame as each time that it repeats itself.
    ClientRepeats,
    /// A raw client reads no more; a tunnel's client sends no more requests.
    ClientStops,
    /// It goes on.
    ClientGoes,
    /// A raw client reads at most so many bytes, every so many milliseconds.
    ClientReads(usize, u64),
    /// The client closes once it has sent everything.
    ClientCloses,
    /// A raw client sends no more and still reads.
    ClientHalfCloses,
    /// The client ends the session by the protocol's own message, then closes.
    ClientLogsOut,
    /// The client is gone, whatever is on the way.
    ClientVanishes,
    /// The server sends a frame.
    ServerSays(usize),
    /// The server reads no more.
    ServerStops,
    /// It goes on.
    ServerGoes,
    /// The server reads at most so many bytes, every so many milliseconds.
    ServerReads(usize, u64),
    /// The server closes once it has sent everything.
    ServerCloses,
    /// The server sends no more and still reads.
    ServerHalfCloses,
    /// The server ends the session by the protocol's own message, then closes.
    ServerSaysGoodBye,
    /// The link breaks.
    ServerVanishes,
    /// What happens to the next request for which nothing was decided yet.
    Network(Fate),
}

impl Step {
    /// Its name in a trace.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wait(_) => "wait",
            Self::ClientSays(_) => "client says",
            Self::ClientRepeats => "client repeats",
            Self::ClientStops => "client stops",
            Self::ClientGoes => "client goes",
            Self::ClientReads(..) => "client's pace",
            Self::ClientCloses => "client closes",
            Self::ClientHalfCloses => "client half-closes",
            Self::ClientLogsOut => "client logs out",
            Self::ClientVanishes => "client vanishes",
            Self::ServerSays(_) => "server says",
            Self::ServerStops => "server stops",
            Self::ServerGoes => "server goes",
            Self::ServerReads(..) => "server's pace",
            Self::ServerCloses => "server closes",
            Self::ServerHalfCloses => "server half-closes",
            Self::ServerSaysGoodBye => "server says good-bye",
            Self::ServerVanishes => "server vanishes",
            Self::Network(_) => "network",
        }
    }
}

/// A case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    pub way: Way,
    /// The tunnel's version: 1 encrypts.
    pub version: u32,
    /// `tunnel.window`, in bytes.
    pub window: usize,
    /// `tunnel.reply_wait`, in milliseconds.
    pub reply_wait: u64,
    /// `tunnel.hold`, in milliseconds.
    pub hold: u64,
    /// `limits.held_bytes_per_address`; 0: no limit.
    pub held_bytes: usize,
    /// Buffer of the link in each direction, in bytes, and of a raw client's connection.
    pub buffer: usize,
    /// How long the server takes to answer the Handshake, in milliseconds.
    pub answers_after: u64,
    /// The server sends back each frame, and reads no further before it has.
    pub echoes: bool,
    /// The server that stops reading does not go on at the end, either.
    pub stays_stopped: bool,
    pub steps: Vec<Step>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            way: Way::Raw,
            version: 0,
            window: 131_072,
            reply_wait: 100,
            hold: 25_000,
            held_bytes: 0,
            buffer: 16_384,
            answers_after: 0,
            echoes: false,
            stays_stopped: false,
            steps: Vec::new(),
        }
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = Self::default();
        writeln!(f, "Script {{\n    way: {:?},", self.way)?;
        macro_rules! fields {
            ($($field:ident)+) => {$(
                if self.$field != plain.$field {
                    writeln!(f, "    {}: {:?},", stringify!($field), self.$field)?;
                }
            )+};
        }
        fields!(version window reply_wait hold held_bytes buffer answers_after echoes stays_stopped);
        writeln!(f, "    steps: vec!{:?},\n    ..Script::default()\n}}", self.steps)
    }
}
