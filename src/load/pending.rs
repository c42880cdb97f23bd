//! The messages of one session that wait for their echo, and the check of each echo. Without I/O.
//!
//! `echo` sends every message back unchanged and in order. So the expected echo is always that of the oldest
//! message that has none. Messages are kept as digests: a client's memory does not grow with their sizes.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
};

use tokio::time::Instant;

use super::messages::text_number;

/// A message that has no echo yet.
struct PendingMessage {
    number: u64,
    digest: u64,
    planned: Instant,
}

/// What an echo is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Echo {
    /// The expected one, unchanged.
    InOrder {
        /// When the message was to be sent.
        planned: Instant,
    },
    /// The echo of another message of this session: it overtook others, or arrived twice.
    OutOfOrder,
    /// The echo of no message that was sent: it counts as the expected one, changed on its way.
    Corrupt,
}

/// The messages of one session that have no echo yet, the oldest first.
#[derive(Default)]
pub(super) struct PendingMessages(VecDeque<PendingMessage>);

fn digest(body: &[u8]) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(body)
}

impl PendingMessages {
    /// Adds a message that is about to be sent. `body` is that of its SendOnCnl, `number` the one in its text.
    pub(super) fn add(&mut self, number: u64, body: &[u8], planned: Instant) {
        self.0.push_back(PendingMessage { number, digest: digest(body), planned });
    }

    /// The number of messages without an echo.
    pub(super) fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// Whether every message has its echo.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes an echo, the body of a SendOnCnl, and removes the message that it belongs to.
    pub(super) fn take_echo(&mut self, body: &[u8]) -> Echo {
        let digest = digest(body);
        let Some(expected) = self.0.front() else { return Echo::OutOfOrder };
        if expected.digest == digest {
            let planned = expected.planned;
            self.0.pop_front();
            return Echo::InOrder { planned };
        }
        let is_second_copy = text_number(body).is_some_and(|number| number < expected.number);
        if let Some(at) = self.0.iter().position(|message| message.digest == digest) {
            self.0.remove(at);
            Echo::OutOfOrder
        } else if is_second_copy {
            Echo::OutOfOrder
        } else {
            self.0.pop_front();
            Echo::Corrupt
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::messages::{numbered_text, text_body};

    fn body(number: u64) -> Vec<u8> {
        text_body(&numbered_text(number, 40))
    }

    /// Three messages, planned at the same time.
    fn three_messages() -> (PendingMessages, Instant) {
        let (mut pending, planned) = (PendingMessages::default(), Instant::now());
        (0..3).for_each(|number| pending.add(number, &body(number), planned));
        (pending, planned)
    }

    #[test]
    fn echoes_in_order_are_expected() {
        let (mut pending, planned) = three_messages();
        for number in 0..3 {
            assert_eq!(pending.take_echo(&body(number)), Echo::InOrder { planned });
        }
        assert!(pending.is_empty());
    }

    #[test]
    fn an_echo_that_overtakes_is_out_of_order_and_not_lost() {
        let (mut pending, planned) = three_messages();
        assert_eq!(pending.take_echo(&body(1)), Echo::OutOfOrder);
        assert_eq!(pending.take_echo(&body(0)), Echo::InOrder { planned });
        assert_eq!(pending.take_echo(&body(2)), Echo::InOrder { planned });
    }

    #[test]
    fn a_second_copy_is_out_of_order_and_removes_no_message() {
        let (mut pending, planned) = three_messages();
        assert_eq!(pending.take_echo(&body(0)), Echo::InOrder { planned });
        assert_eq!(pending.take_echo(&body(0)), Echo::OutOfOrder);
        assert_eq!(pending.count(), 2);
        assert_eq!(PendingMessages::default().take_echo(&body(0)), Echo::OutOfOrder);
    }

    #[test]
    fn a_changed_echo_is_corrupt_and_stands_for_the_expected_one() {
        let (mut pending, planned) = three_messages();
        let mut changed = body(0);
        *changed.last_mut().expect("a body") ^= 1;
        assert_eq!(pending.take_echo(&changed), Echo::Corrupt);
        assert_eq!(pending.take_echo(&body(1)), Echo::InOrder { planned });
    }
}
