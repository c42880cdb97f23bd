//! What the frames of a session have shown. No I/O.

use std::time::Instant;

use super::{admission::Ticket, end::Side};
use crate::{
    telemetry::{Direction, Telemetry},
    wire::{
        frame::{FrameError, Head, MAX_BEFORE_LOGIN, Scanner},
        message::kind,
    },
};

/// The longest frame of a Community server: the largest value of a length field. Larger values would be keep-alives.
const ANY_LENGTH: u32 = 0x7FFF_FFFF;

/// What the frames of a session have shown.
#[derive(Debug)]
pub(super) struct SessionFacts {
    /// The longest frame of a client that is logged in, in bytes.
    max_frame: u32,
    /// The LoginAck was relayed.
    is_logged_in: bool,
    farewells: Farewells,
}

/// Who has sent a farewell message: a DestroyCnl on the master channel.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Farewells {
    first: Option<Side>,
    /// The other side has sent one, too.
    both: bool,
}

impl Farewells {
    /// The side that sent one first.
    pub(super) fn first(self) -> Option<Side> {
        self.first
    }

    /// Whether `side` has sent one.
    pub(super) fn include(self, side: Side) -> bool {
        self.both || self.first == Some(side)
    }

    /// These sides have sent one, in this order.
    #[cfg(test)]
    pub(super) fn of(sides: &[Side]) -> Self {
        let mut farewells = Self::default();
        sides.iter().for_each(|side| farewells.add(*side));
        farewells
    }

    /// `side` has sent one.
    fn add(&mut self, side: Side) {
        self.both |= self.first == Some(side.other());
        self.first.get_or_insert(side);
    }
}

/// Where frame events are reported.
#[derive(Clone, Copy)]
pub(super) struct FrameObserver<'a> {
    pub(super) ticket: &'a Ticket,
    pub(super) telemetry: &'a Telemetry,
    /// When the connection was accepted.
    pub(super) accepted: Instant,
}

impl SessionFacts {
    /// The facts of a session without frames.
    pub(super) fn new(max_frame: u32) -> Self {
        Self { max_frame, is_logged_in: false, farewells: Farewells::default() }
    }

    /// The longest frame that the client may send now, in bytes.
    pub(super) fn limit(&self) -> u32 {
        if self.is_logged_in { self.max_frame } else { self.max_frame.min(MAX_BEFORE_LOGIN) }
    }

    /// Whether the Community has logged the client in.
    pub(super) fn is_logged_in(&self) -> bool {
        self.is_logged_in
    }

    /// Who has sent a farewell message.
    pub(super) fn farewells(&self) -> Farewells {
        self.farewells
    }

    /// Follows the frames of `bytes`, which are relayed in `direction`, and counts them.
    ///
    /// # Errors
    /// An invalid frame, and how many bytes are before it. Only those are counted, and may be relayed.
    #[inline]
    pub(super) fn follow(
        &mut self,
        direction: Direction,
        scanner: &mut Scanner,
        bytes: &[u8],
        observer: FrameObserver<'_>,
    ) -> Result<(), (usize, FrameError)> {
        let (mut frames, was_logged_in) = (0, self.is_logged_in);
        let scanned = match direction {
            Direction::ToCommunity => scanner.scan(bytes, self.limit(), |head| {
                frames += 1;
                self.client_frame(head);
            }),
            Direction::ToClient => scanner.scan(bytes, ANY_LENGTH, |head| {
                frames += 1;
                self.community_frame(head, observer.accepted, observer.telemetry);
            }),
        };
        let valid = scanned.map_or_else(|(at, _)| at, |()| bytes.len());
        observer.ticket.heard();
        observer.telemetry.traffic.bytes(direction, valid as u64);
        if frames > 0 {
            observer.telemetry.traffic.frames(direction, frames);
        }
        if self.is_logged_in && !was_logged_in {
            observer.ticket.logged_in();
        }
        scanned
    }

    fn client_frame(&mut self, head: Head) {
        if head.kind == kind::DESTROY_CNL && head.channel == 0 {
            self.farewells.add(Side::Client);
        }
    }

    fn community_frame(&mut self, head: Head, accepted: Instant, telemetry: &Telemetry) {
        if head.channel != 0 {
            return;
        }
        match head.kind {
            kind::LOGIN_ACK if !self.is_logged_in => {
                self.is_logged_in = true;
                telemetry.sessions.login(accepted.elapsed().as_secs_f64(), true);
            }
            kind::DESTROY_CNL => {
                self.farewells.add(Side::Community);
                if !self.is_logged_in {
                    telemetry.sessions.login(accepted.elapsed().as_secs_f64(), false);
                }
            }
            _ => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        mux::tests::ticket,
        wire::{frame, message},
    };

    fn head(kind: u16, channel: u32) -> Head {
        Head { length: 8, kind, options: 0, channel }
    }

    #[test]
    fn a_client_may_send_long_frames_after_its_log_in() {
        let (mut facts, telemetry) = (SessionFacts::new(1 << 20), Telemetry::new("0"));
        assert_eq!(facts.limit(), MAX_BEFORE_LOGIN);
        facts.community_frame(head(kind::LOGIN_ACK, 1), Instant::now(), &telemetry);
        assert_eq!(facts.limit(), MAX_BEFORE_LOGIN, "only on the master channel");
        facts.community_frame(head(kind::LOGIN_ACK, 0), Instant::now(), &telemetry);
        assert_eq!(facts.limit(), 1 << 20);
    }

    #[test]
    fn frames_bytes_and_log_ins_are_counted() {
        let telemetry = Telemetry::new("0");
        let ticket = ticket(&telemetry);
        let observer = FrameObserver { ticket: &ticket, telemetry: &telemetry, accepted: Instant::now() };
        let (mut facts, mut up, mut down) = (SessionFacts::new(1 << 20), Scanner::new(), Scanner::new());
        let said = frame::build(kind::SEND_ON_CNL, 1, &[7; 8]);
        let login_ack = frame::build(kind::LOGIN_ACK, 0, &[]);
        let mut follow = |direction, bytes: &[u8]| {
            let scanner = if direction == Direction::ToClient { &mut down } else { &mut up };
            facts.follow(direction, scanner, bytes, observer).map(|()| facts.is_logged_in())
        };
        let count = |line: &str| {
            let metrics = telemetry.encode();
            let value = metrics.lines().find_map(|l| l.strip_prefix(line).and_then(|rest| rest.strip_prefix(' ')));
            value.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        let traffic = |direction: &str| {
            let [frames, bytes] = ["frames", "bytes"]
                .map(|what| count(&format!("sametime_mux_{what}_total{{direction=\"{direction}\"}}")));
            (frames, bytes)
        };
        // Three frames, of which the last is cut in two.
        let three = [&*said, &said, &said].concat();
        assert_eq!(follow(Direction::ToCommunity, &three[..50]), Ok(false));
        assert_eq!(traffic("to_community"), (2, 50));
        assert_eq!(follow(Direction::ToCommunity, &three[50..]), Ok(false));
        assert_eq!(traffic("to_community"), (3, 60));
        assert!(ticket.is_logging_in());
        assert_eq!(follow(Direction::ToClient, &[0x80]), Ok(false));
        assert_eq!(traffic("to_client"), (0, 1), "a keep-alive is no frame");
        // It is logged in once, although the Community says so twice.
        assert_eq!(follow(Direction::ToClient, &[&*login_ack, &login_ack].concat()), Ok(true));
        assert_eq!((traffic("to_client"), ticket.is_logging_in()), ((2, 25), false));
        assert_eq!(follow(Direction::ToClient, &message::destroy(0, 0)), Ok(true));
        let log_ins = ["sametime_mux_login_seconds_count", "sametime_mux_logins_refused_total"].map(count);
        assert_eq!(log_ins, [1, 0], "a farewell message after a log-in is no failed one");
    }

    #[test]
    fn a_farewell_message_is_a_destroy_of_the_master_channel() {
        let (mut facts, telemetry) = (SessionFacts::new(1 << 20), Telemetry::new("0"));
        let community = |facts: &mut SessionFacts, channel| {
            facts.community_frame(head(kind::DESTROY_CNL, channel), Instant::now(), &telemetry);
        };
        community(&mut facts, 5);
        facts.client_frame(head(kind::DESTROY_CNL, 5));
        facts.client_frame(head(kind::HANDSHAKE, 0));
        assert_eq!(facts.farewells(), Farewells::default(), "that was a channel of the client");
        community(&mut facts, 0);
        let farewells = facts.farewells();
        assert_eq!(farewells.first(), Some(Side::Community));
        assert!(farewells.include(Side::Community) && !farewells.include(Side::Client));
        community(&mut facts, 0);
        assert_eq!(facts.farewells(), farewells, "twice by the same side");
        facts.client_frame(head(kind::DESTROY_CNL, 0));
        let farewells = facts.farewells();
        assert_eq!(farewells.first(), Some(Side::Community));
        assert!(farewells.include(Side::Community) && farewells.include(Side::Client));
    }
}
