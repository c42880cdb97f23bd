//! What is known of a Community server: whether it answers, and when to try it again. No I/O; time is an argument.
//!
//! ```text
//!                 answered, or accepted (if not suspect)
//!   untried ──────────────────────────────────────────────► up
//!      │                                                    │ ▲
//!      │ failed                                      failed │ │ answered, or
//!      │                                                    ▼ │ accepted (if not suspect)
//!      └──────────────────────────────────────────────────► down ──┐
//!                                                           ▲      │ failed: the next try
//!                                                           └──────┘ is later each time
//! ```
//!
//! - *Accepted*: the server accepted a connection. A server that hangs does this, too, since its operating system does.
//! - *Answered*: the server answered a Handshake.
//! - *Unanswered*: the server accepted a connection and did not answer the Handshake on it. In any state it makes the
//!   server **suspect**, until it answers a Handshake. While it is suspect, an accepted connection proves nothing.
//! - *Inconclusive*: a check could not be made, because this machine has no descriptor left, for example. It changes no
//!   state, and the next check is made after a pause.

use std::time::{Duration, Instant};

/// The time before the first try of a server that is down. It is doubled after each failed try.
const FIRST_BACK_OFF: Duration = Duration::from_millis(250);
/// The longest time between two tries.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(5);
/// The time between two checks that clients ask for, and after a check that was inconclusive.
const PAUSE: Duration = Duration::from_secs(1);

/// The states of the diagram.
#[derive(Debug, Clone, PartialEq, Eq)]
enum HealthState {
    /// The server was not tried yet. Clients are sent to it, since it may be up.
    Untried,
    /// It answered, or accepted a connection, the last time.
    Up,
    /// It failed the last time.
    Down {
        /// The error, for log and status.
        error: String,
        /// When it may be tried again.
        next_try: Instant,
        /// The time from the try after that to the one that follows.
        back_off: Duration,
    },
}

/// The health of a server.
#[derive(Debug, Clone)]
pub(super) struct Health {
    state: HealthState,
    /// It has not answered the last Handshake.
    is_suspect: bool,
    /// When it was checked the last time.
    checked: Option<Instant>,
    /// Whether that check was inconclusive.
    was_inconclusive: bool,
    /// It starts slowly when it is up, because clients have not had it until then.
    starts_slowly: bool,
    /// Since when it is up, if it starts slowly.
    back_since: Option<Instant>,
}

/// What the choice of a server depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HealthView {
    /// It answered, or accepted a connection, the last time.
    pub(super) is_up: bool,
    /// It is up, or was not tried yet.
    pub(super) is_hopeful: bool,
    /// It has not answered the last Handshake.
    pub(super) is_suspect: bool,
    /// A client may be sent to it. This includes a server that is down when its next try is due, but not a suspect one:
    /// that one is tried without clients, who would wait for nothing.
    pub(super) may_be_tried: bool,
}

impl Health {
    /// The health of a server that was not tried yet.
    pub(super) fn untried() -> Self {
        Self {
            state: HealthState::Untried,
            is_suspect: false,
            checked: None,
            was_inconclusive: false,
            starts_slowly: false,
            back_since: None,
        }
    }

    /// What the choice of a server depends on, at `now`.
    pub(super) fn view(&self, now: Instant) -> HealthView {
        let is_hopeful = !matches!(self.state, HealthState::Down { .. });
        let is_due = matches!(self.state, HealthState::Down { next_try, .. } if now >= next_try);
        HealthView {
            is_up: self.is_up(),
            is_hopeful,
            is_suspect: self.is_suspect,
            may_be_tried: is_hopeful || (is_due && !self.is_suspect),
        }
    }

    /// Whether it answered, or accepted a connection, the last time.
    pub(super) fn is_up(&self) -> bool {
        self.state == HealthState::Up
    }

    /// Has it start slowly when it is up next.
    pub(super) fn start_slowly(&mut self) {
        self.starts_slowly = true;
    }

    /// For how long it is up, if it was down before, or was to start slowly; `None` if not.
    pub(super) fn back_for(&self, now: Instant) -> Option<Duration> {
        self.back_since.filter(|_| self.is_up()).map(|since| now.saturating_duration_since(since))
    }

    /// Whether it has not answered the last Handshake.
    pub(super) fn is_suspect(&self) -> bool {
        self.is_suspect
    }

    /// Why it is down; `None` if it is not.
    pub(super) fn last_error(&self) -> Option<&str> {
        match &self.state {
            HealthState::Down { error, .. } => Some(error),
            HealthState::Untried | HealthState::Up => None,
        }
    }

    /// The time from `now` to the next check; `None`: no check is due until something happens. `check_interval` is the
    /// time between checks of a server that is up. `is_wanted`: something has happened that a check would clear up.
    pub(super) fn next_check(
        &self,
        now: Instant,
        check_interval: Option<Duration>,
        is_wanted: bool,
    ) -> Option<Duration> {
        let pause = self.checked.map_or(Duration::ZERO, |checked| (checked + PAUSE).saturating_duration_since(now));
        let due = match self.state {
            HealthState::Untried => Some(Duration::ZERO),
            HealthState::Up if is_wanted => Some(check_interval.map_or(pause, |interval| interval.min(pause))),
            HealthState::Up => check_interval,
            HealthState::Down { next_try, .. } => Some(next_try.saturating_duration_since(now)),
        };
        due.map(|due| if self.was_inconclusive { due.max(pause) } else { due })
    }

    /// A check has ended. It was conclusive if one of the following is reported, too.
    pub(super) fn checked(&mut self, is_conclusive: bool, now: Instant) {
        self.checked = Some(now);
        self.was_inconclusive = !is_conclusive;
    }

    /// *Accepted.* Returns whether the server is up since now.
    pub(super) fn accepted(&mut self, now: Instant) -> bool {
        !self.is_suspect && self.set_up(now)
    }

    /// *Answered.* Returns whether the server is up since now.
    pub(super) fn answered(&mut self, now: Instant) -> bool {
        self.is_suspect = false;
        self.set_up(now)
    }

    fn set_up(&mut self, now: Instant) -> bool {
        let is_up_now = std::mem::replace(&mut self.state, HealthState::Up) != HealthState::Up;
        if is_up_now && std::mem::take(&mut self.starts_slowly) {
            self.back_since = Some(now);
        }
        is_up_now
    }

    /// *Unanswered.* Returns whether the server is suspect since now.
    pub(super) fn unanswered(&mut self) -> bool {
        !std::mem::replace(&mut self.is_suspect, true)
    }

    /// *Failed*, with an error. Returns the time to the next try if the server is down since now.
    pub(super) fn failed(&mut self, error: String, now: Instant) -> Option<Duration> {
        match &mut self.state {
            HealthState::Untried | HealthState::Up => {
                let (next_try, back_off) = (now + FIRST_BACK_OFF, FIRST_BACK_OFF * 2);
                self.state = HealthState::Down { error, next_try, back_off };
                self.starts_slowly = true;
                Some(FIRST_BACK_OFF)
            }
            HealthState::Down { error: last_error, next_try, back_off } => {
                *last_error = error;
                // When many clients fail at the same time, only the first one moves the next try.
                if now >= *next_try {
                    *next_try = now + *back_off;
                    *back_off = (*back_off * 2).min(LONGEST_BACK_OFF);
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn failed(health: &mut Health, now: Instant) -> Option<Duration> {
        health.failed("refused".to_owned(), now)
    }

    #[test]
    fn an_untried_server_is_hopeful_and_checked_at_once() {
        let (health, now) = (Health::untried(), Instant::now());
        let view = HealthView { is_up: false, is_hopeful: true, is_suspect: false, may_be_tried: true };
        assert_eq!(health.view(now), view);
        assert_eq!(health.next_check(now, None, false), Some(Duration::ZERO));
    }

    #[test]
    fn a_server_that_was_down_is_back_for_a_time_and_a_new_one_only_if_it_is_to_start_slowly() {
        let (mut health, now) = (Health::untried(), Instant::now());
        assert!(health.accepted(now));
        assert_eq!(health.back_for(now + 5 * MS), None, "nobody has missed it");
        failed(&mut health, now);
        assert_eq!(health.back_for(now + 5 * MS), None, "it is down");
        assert!(health.accepted(now + 10 * MS));
        health.accepted(now + 12 * MS);
        assert_eq!(health.back_for(now + 15 * MS), Some(5 * MS));
        let mut added = Health::untried();
        added.start_slowly();
        assert!(added.accepted(now));
        assert_eq!(added.back_for(now + 5 * MS), Some(5 * MS));
    }

    #[test]
    fn a_server_that_is_up_is_checked_as_configured() {
        let (mut health, now) = (Health::untried(), Instant::now());
        assert!(health.accepted(Instant::now()) && !health.accepted(Instant::now()), "up since now, then still up");
        assert!(health.is_up());
        assert_eq!(health.next_check(now, Some(5 * MS), false), Some(5 * MS));
        assert_eq!(health.next_check(now, None, false), None);
    }

    #[test]
    fn tries_of_a_server_that_is_down_become_rarer_up_to_five_seconds() {
        let (mut health, mut now) = (Health::untried(), Instant::now());
        assert_eq!(failed(&mut health, now), Some(FIRST_BACK_OFF));
        assert_eq!(health.last_error(), Some("refused"));
        for wait in [250, 500, 1000, 2000, 4000, 5000, 5000] {
            let wait = wait * MS;
            assert_eq!(health.next_check(now, None, false), Some(wait));
            // Others that fail before the next try change nothing.
            assert_eq!(failed(&mut health, now + wait / 2), None);
            assert!(!health.view(now + wait - MS).may_be_tried);
            now += wait;
            assert!(health.view(now).may_be_tried);
            assert_eq!(failed(&mut health, now), None, "down already");
        }
        // After it was up, the first wait is short again.
        assert!(health.accepted(Instant::now()));
        assert_eq!(health.last_error(), None);
        assert_eq!(failed(&mut health, now), Some(FIRST_BACK_OFF));
    }

    #[test]
    fn a_suspect_server_has_to_answer_a_handshake() {
        let (mut health, now) = (Health::untried(), Instant::now());
        health.answered(Instant::now());
        assert!(health.unanswered() && !health.unanswered(), "suspect since now, then still suspect");
        // It is up, and others are preferred.
        let view = health.view(now);
        assert!(view.is_up && view.is_suspect && view.may_be_tried);
        failed(&mut health, now);
        assert!(!health.accepted(Instant::now()) && !health.is_up(), "a connection proves nothing");
        assert!(!health.view(now + 10 * FIRST_BACK_OFF).may_be_tried, "no client waits for it");
        assert!(health.answered(Instant::now()) && health.is_up() && !health.is_suspect());
    }

    #[test]
    fn an_untried_server_can_be_suspect() {
        let (mut health, now) = (Health::untried(), Instant::now());
        assert!(health.unanswered());
        assert!(health.view(now).is_hopeful && !health.accepted(Instant::now()) && !health.is_up());
        assert_eq!(health.next_check(now, None, false), Some(Duration::ZERO));
    }

    #[test]
    fn checks_that_clients_ask_for_are_made_once_a_second() {
        let (mut health, now) = (Health::untried(), Instant::now());
        health.answered(Instant::now());
        assert_eq!(health.next_check(now, None, true), Some(Duration::ZERO), "the first one at once");
        health.checked(true, now);
        assert_eq!(health.next_check(now + 10 * MS, None, true), Some(PAUSE - 10 * MS));
        assert_eq!(health.next_check(now + PAUSE, None, true), Some(Duration::ZERO));
        assert_eq!(health.next_check(now, Some(100 * MS), true), Some(100 * MS), "never later than without");
        assert_eq!(health.next_check(now, None, false), None);
    }

    #[test]
    fn after_an_inconclusive_check_there_is_a_pause_in_every_state() {
        let now = Instant::now();
        let (untried, mut up, mut down) = (Health::untried(), Health::untried(), Health::untried());
        up.answered(Instant::now());
        failed(&mut down, now - 10 * PAUSE);
        for mut health in [untried, up, down] {
            let view = health.view(now);
            health.checked(false, now);
            assert_eq!(health.next_check(now, Some(5 * MS), true), Some(PAUSE));
            assert_eq!(health.view(now), view, "nothing was found out");
            health.checked(true, now);
            assert!(health.next_check(now, Some(5 * MS), true).is_some_and(|wait| wait < PAUSE));
        }
    }
}
