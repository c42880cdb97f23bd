//! How a session closes. No I/O, and time is an argument.
//!
//! ```text
//!               one side closes,                 nothing is relayed any more,
//!               a write to one side fails        an order, STALLED, LONGEST
//!   relaying ────────────────────────► delivering ────────────────────────► finishing ──► over
//!      │                                                                       ▲
//!      └── a read fails, an invalid frame, an order ───────────────────────────┘
//! ```
//!
//! | state | what the two sides still get |
//! |---|---|
//! | relaying | everything |
//! | delivering | one direction has ended; the other one goes on until its sender has ended, too |
//! | finishing | the reason is decided: kept bytes, the client's farewell message, and the end of their streams |
//!
//! A session has one reason: its first cause. What fails later is a consequence.
//!
//! - A farewell message that was relayed before the first cause is the cause, and so is one that was on its way from
//!   the side that closed or failed.
//! - An order, an invalid frame, or the end of the time in the state *delivering* is the reason if nothing but a close
//!   came before it.
//!
//! A stream that is dropped with unread bytes resets its connection, and a reset destroys what the peer has not read
//! yet. So each stream is first shut down and then read, and its bytes are discarded, until the peer closes or the time
//! is up.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    end::{End, Side},
    facts::Farewells,
};

/// How long a session that closes waits while nothing moves: no receiver accepts a byte, and no side that has received
/// everything sends one. Who still sends has perhaps not read everything, since the system has buffers, too.
pub(super) const STALLED: Duration = Duration::from_secs(30);
/// How long a session may take to close, although something moves.
pub(super) const LONGEST: Duration = Duration::from_secs(5 * 60);
/// How long a client may send nothing and not close when a farewell message was sent to it, or by it. If it does send,
/// it has [`STALLED`]. A polling client asks for the message within a second and acknowledges it within another one.
pub(super) const AFTER_FAREWELL: Duration = Duration::from_secs(3);
/// How long an ordered end may take, with last bytes, farewell message and the client's close. A drain waits longer.
pub(super) const ORDERED: Duration = Duration::from_millis(3500);

/// The states after *relaying*, see the diagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Delivering,
    Finishing,
}

/// What a closing session still waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    /// A receiver has not accepted everything, or the Community has not closed.
    Anything,
    /// Everything was accepted, and only the client has not closed.
    ClientsClose,
}

/// A session that closes.
#[derive(Debug)]
pub(super) struct Closing {
    phase: Phase,
    /// The first cause; in the state *finishing* the reason of the session.
    cause: End,
    /// Who had sent a farewell message before the cause, first.
    farewell: Option<Side>,
    /// A farewell message was relayed, or is sent by this program.
    has_farewell: bool,
    began: Instant,
    /// A number that changes when a receiver accepts bytes, and when it last did.
    accepted: (u64, Instant),
    /// When bytes were last discarded of a side that has received everything.
    discarded: Instant,
    /// When it had to be quick.
    hurried: Option<Instant>,
}

impl Closing {
    /// A session begins to close because of `cause`.
    pub(super) fn new(cause: End, farewells: Farewells, now: Instant) -> Self {
        Self {
            phase: Phase::Delivering,
            cause,
            farewell: farewells.first(),
            has_farewell: false,
            began: now,
            accepted: (0, now),
            discarded: now,
            hurried: None,
        }
    }

    /// Whether the reason is decided.
    pub(super) fn is_finishing(&self) -> bool {
        self.phase == Phase::Finishing
    }

    /// A read failed, which is `end`. The first cause stands, with one exception: if a failed write only showed that the
    /// peer had closed, the failed read shows how.
    pub(super) fn read_fails(&mut self, end: End) {
        if !self.is_finishing() && matches!(self.cause, End::Orderly(_)) && self.cause.side() == end.side() {
            self.cause = end;
        }
    }

    /// The delivery is cut short by `end`, which is the reason if nothing but a close came before it.
    pub(super) fn cut_short(&mut self, end: End) {
        if !self.is_finishing() && self.farewell.is_none() && matches!(self.cause, End::Orderly(_)) {
            self.cause = end;
        }
    }

    /// Decides the reason: from now on the session is finishing. Returns the reason.
    pub(super) fn finish(&mut self, farewells: Farewells, now: Instant) -> &End {
        let of_cause = self.cause.side().filter(|side| farewells.include(*side));
        if let Some(side) = self.farewell.or(of_cause) {
            self.cause = End::farewell_of(side);
        }
        self.phase = Phase::Finishing;
        self.has_farewell = farewells.first().is_some() || self.cause.farewell().is_some();
        (self.accepted.1, self.discarded) = (now, now);
        &self.cause
    }

    /// Notes where the receivers are: `position` is another number whenever they accept bytes. Returns whether they
    /// have.
    pub(super) fn accepts(&mut self, position: u64, now: Instant) -> bool {
        let has_moved = self.accepted.0 != position;
        if has_moved {
            self.accepted = (position, now);
        }
        has_moved
    }

    /// Notes that bytes were discarded of a side that has received everything.
    pub(super) fn discards(&mut self, now: Instant) {
        self.discarded = now;
    }

    /// From now on the session has little time.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.hurried.get_or_insert(now);
    }

    /// When the time is up for what is awaited.
    pub(super) fn deadline(&self, awaited: Awaited) -> Instant {
        let moved = self.accepted.1.max(self.discarded);
        let patience = match awaited {
            Awaited::ClientsClose if self.has_farewell => (moved + AFTER_FAREWELL).min(self.accepted.1 + STALLED),
            Awaited::ClientsClose | Awaited::Anything => moved + STALLED,
        };
        let deadline = patience.min(self.began + LONGEST);
        self.hurried.map_or(deadline, |since| deadline.min(since + ORDERED))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustix::io::Errno;

    use super::*;
    use crate::{
        mux::{admission::SessionOrder, end::ClientFault},
        telemetry::outcome::SessionEnd,
        wire::frame::FrameError,
    };

    fn none() -> Farewells {
        Farewells::default()
    }

    fn by(side: Side) -> Farewells {
        Farewells::of(&[side])
    }

    fn reset() -> io::Error {
        Errno::CONNRESET.into()
    }

    /// The reason of a session that has nothing more to relay.
    fn reason(closing: &mut Closing, farewells: Farewells) -> SessionEnd {
        closing.finish(farewells, Instant::now()).outcome()
    }

    fn closing(cause: End) -> Closing {
        Closing::new(cause, none(), Instant::now())
    }

    #[tokio::test]
    async fn the_first_cause_is_the_reason() {
        for (side, closed, broken) in [
            (Side::Client, SessionEnd::ClientClosed, SessionEnd::ClientBroken),
            (Side::Community, SessionEnd::CommunityClosed, SessionEnd::CommunityBroken),
        ] {
            let mut first = closing(End::closed_by(side));
            first.read_fails(End::broken(side.other(), reset()));
            assert_eq!(reason(&mut first, none()), closed, "the other side fails as a consequence");
            first.read_fails(End::broken(side, reset()));
            assert_eq!(reason(&mut first, none()), closed, "the reason is decided");
            let mut first = closing(End::broken(side, reset()));
            first.cut_short(End::Ordered(SessionOrder::Drain));
            first.read_fails(End::broken(side, Errno::TIMEDOUT.into()));
            assert_eq!(reason(&mut first, none()), broken);
        }
    }

    #[tokio::test]
    async fn a_failed_read_shows_how_a_peer_closed_whose_write_had_failed() {
        let mut closing = closing(End::closed_by(Side::Community));
        closing.read_fails(End::broken(Side::Community, reset()));
        assert_eq!(reason(&mut closing, none()), SessionEnd::CommunityBroken);
    }

    #[tokio::test]
    async fn what_cuts_a_delivery_short_is_the_reason_unless_something_failed_before() {
        let half_closed = || End::Orderly(crate::mux::end::OrderlyEnd::HalfClosed);
        let mut of_close = closing(End::closed_by(Side::Client));
        of_close.cut_short(half_closed());
        assert_eq!(reason(&mut of_close, none()), SessionEnd::HalfClosed);
        let mut of_close = closing(End::closed_by(Side::Community));
        of_close.cut_short(End::invalid_frame(Side::Client, FrameError::TooShort { length: 1 }));
        assert_eq!(reason(&mut of_close, none()), SessionEnd::FrameTooShort);
        let mut of_close = closing(End::closed_by(Side::Client));
        assert_eq!(reason(&mut of_close, none()), SessionEnd::ClientClosed);
        of_close.cut_short(half_closed());
        assert_eq!(reason(&mut of_close, none()), SessionEnd::ClientClosed, "the reason is decided");
        let mut of_fault = closing(End::Client(ClientFault::SessionTimeout));
        of_fault.cut_short(half_closed());
        assert_eq!(reason(&mut of_fault, none()), SessionEnd::SessionTimeout);
    }

    #[tokio::test]
    async fn a_farewell_message_before_the_cause_is_the_cause() {
        for (side, end) in [(Side::Client, SessionEnd::LogOut), (Side::Community, SessionEnd::CommunityClosed)] {
            for cause in [
                End::closed_by(Side::Client),
                End::closed_by(Side::Community),
                End::broken(Side::Client, reset()),
                End::broken(Side::Community, reset()),
                End::Ordered(SessionOrder::Idle),
            ] {
                let mut closing = Closing::new(cause, by(side), Instant::now());
                closing.cut_short(End::Ordered(SessionOrder::Drain));
                assert_eq!(reason(&mut closing, by(side)), end);
            }
        }
    }

    #[tokio::test]
    async fn a_farewell_message_after_the_cause_counts_only_from_the_side_that_caused_it() {
        let both = || Farewells::of(&[Side::Community, Side::Client]);
        for (cause, farewells, end) in [
            (End::closed_by(Side::Client), by(Side::Client), SessionEnd::LogOut),
            (End::Client(ClientFault::SessionTimeout), by(Side::Client), SessionEnd::LogOut),
            (End::closed_by(Side::Client), both(), SessionEnd::LogOut),
            (End::closed_by(Side::Client), by(Side::Community), SessionEnd::ClientClosed),
            (End::broken(Side::Community, reset()), by(Side::Community), SessionEnd::CommunityClosed),
            (End::broken(Side::Community, reset()), by(Side::Client), SessionEnd::CommunityBroken),
            (End::closed_by(Side::Community), by(Side::Client), SessionEnd::CommunityClosed),
            (End::Ordered(SessionOrder::Idle), by(Side::Client), SessionEnd::Idle),
        ] {
            assert_eq!(reason(&mut closing(cause), farewells), end);
        }
    }

    /// Seconds from `from` to the deadline.
    fn left(closing: &Closing, awaited: Awaited, from: Instant) -> f64 {
        (closing.deadline(awaited) - from).as_secs_f64()
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_waits_while_bytes_are_accepted_but_not_for_ever() {
        let began = Instant::now();
        let mut closing = Closing::new(End::closed_by(Side::Community), none(), began);
        assert!(left(&closing, Awaited::Anything, began) == 30.0);
        let mut now = began;
        for n in 1..12 {
            now = began + Duration::from_secs(25) * n;
            assert!(closing.accepts(u64::from(n), now), "something moves");
            assert!(closing.deadline(Awaited::Anything) > now);
        }
        assert!(!closing.accepts(11, now + STALLED), "nothing has moved");
        assert!(left(&closing, Awaited::Anything, now) == 25.0, "five minutes in all: {now:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_has_perhaps_not_read_everything() {
        let began = Instant::now();
        let mut closing = Closing::new(End::closed_by(Side::Community), none(), began);
        closing.finish(none(), began);
        closing.discards(began + Duration::from_secs(20));
        assert!(left(&closing, Awaited::ClientsClose, began) == 50.0);
        closing.discards(began + Duration::from_secs(299));
        assert!(left(&closing, Awaited::Anything, began) == 300.0, "five minutes in all");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_knows_the_reason_has_little_time_to_close() {
        let began = Instant::now();
        let second = Duration::from_secs(1);
        let mut knows = Closing::new(End::broken(Side::Community, reset()), none(), began);
        assert!(left(&knows, Awaited::ClientsClose, began) == 30.0, "it was not sent yet");
        knows.finish(none(), began);
        assert!(left(&knows, Awaited::Anything, began) == 30.0, "it has not taken everything");
        assert!(left(&knows, Awaited::ClientsClose, began) == 3.0);
        // As long as it sends, it has perhaps not read everything.
        knows.discards(began + second);
        assert!(left(&knows, Awaited::ClientsClose, began) == 4.0);
        knows.discards(began + second * 29);
        assert!(left(&knows, Awaited::ClientsClose, began) == 30.0);
        let mut logged_out = Closing::new(End::closed_by(Side::Client), by(Side::Client), began);
        logged_out.finish(by(Side::Client), began + second);
        assert!(left(&logged_out, Awaited::ClientsClose, began) == 4.0);
        let mut unaware = Closing::new(End::closed_by(Side::Community), none(), began);
        unaware.finish(none(), began + second);
        assert!(left(&unaware, Awaited::ClientsClose, began) == 31.0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_leaves_little_time_and_a_second_one_no_more() {
        let began = Instant::now();
        let mut closing = Closing::new(End::Ordered(SessionOrder::Drain), none(), began);
        closing.hurry(began);
        closing.finish(none(), began);
        closing.hurry(began + Duration::from_secs(1));
        assert!(left(&closing, Awaited::Anything, began) == 3.5);
        assert!(left(&closing, Awaited::ClientsClose, began) == 3.0);
        assert!(ORDERED < crate::mux::FAREWELL_TIMEOUT, "a drain waits for it");
    }
}
