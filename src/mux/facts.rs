//! What the frames of a session have shown. No I/O.

use std::time::Instant;

use super::{
    admission::Ticket,
    end::{ClientFault, CommunityFault, End, OrderlyEnd},
};
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
    /// The client sent a farewell message: a DestroyCnl on the master channel.
    client_sent_farewell: bool,
    /// The Community server sent one.
    community_sent_farewell: bool,
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
        Self { max_frame, is_logged_in: false, client_sent_farewell: false, community_sent_farewell: false }
    }

    /// The longest frame that the client may send now, in bytes.
    pub(super) fn limit(&self) -> u32 {
        if self.is_logged_in { self.max_frame } else { self.max_frame.min(MAX_BEFORE_LOGIN) }
    }

    /// Whether the Community has logged the client in.
    pub(super) fn is_logged_in(&self) -> bool {
        self.is_logged_in
    }

    /// Whether one of the two sides has sent a farewell message. Then nothing more has to be sent to either.
    pub(super) fn has_farewell(&self) -> bool {
        self.client_sent_farewell || self.community_sent_farewell
    }

    /// The end of a session whose streams ended with `end`. If the client sent a farewell message, it has logged out.
    pub(super) fn end(&self, end: End) -> End {
        if self.client_sent_farewell { End::Orderly(OrderlyEnd::LogOut) } else { end }
    }

    /// The end of a session whose client's stream failed.
    pub(super) fn client_failed(&self, error: std::io::Error) -> End {
        self.end(End::Client(ClientFault::of_stream(error)))
    }

    /// The end of a session whose link failed. If the Community server sent a farewell message, it has closed.
    pub(super) fn community_failed(&self, error: std::io::Error) -> End {
        self.end(if self.community_sent_farewell {
            End::Orderly(OrderlyEnd::CommunityClosed)
        } else {
            End::Community(CommunityFault::Broken(error))
        })
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
            self.client_sent_farewell = true;
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
                self.community_sent_farewell = true;
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
    use std::io;

    use super::*;
    use crate::telemetry::outcome::SessionEnd;

    fn head(kind: u16, channel: u32) -> Head {
        Head { length: 8, kind, options: 0, channel }
    }

    fn broken() -> io::Error {
        io::ErrorKind::ConnectionReset.into()
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
    fn a_farewell_message_decides_how_a_broken_stream_is_counted() {
        let telemetry = Telemetry::new("0");
        let mut facts = SessionFacts::new(1 << 20);
        assert_eq!(facts.client_failed(broken()).outcome(), SessionEnd::ClientBroken);
        assert_eq!(facts.community_failed(broken()).outcome(), SessionEnd::CommunityBroken);
        facts.community_frame(head(kind::DESTROY_CNL, 5), Instant::now(), &telemetry);
        assert!(!facts.has_farewell(), "that was a channel of the client");
        facts.community_frame(head(kind::DESTROY_CNL, 0), Instant::now(), &telemetry);
        assert!(facts.has_farewell());
        assert_eq!(facts.community_failed(broken()).outcome(), SessionEnd::CommunityClosed);
        facts.client_frame(head(kind::DESTROY_CNL, 0));
        assert_eq!(facts.community_failed(broken()).outcome(), SessionEnd::LogOut);
        assert_eq!(facts.client_failed(broken()).outcome(), SessionEnd::LogOut);
    }
}
