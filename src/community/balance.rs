//! The choice of a Community server for a client. No I/O and no clock.
//!
//! A server's *share* says how many clients it is to get beside the others: its weight, and while it starts slowly, a
//! part of it that grows with time.
//!
//! ```text
//!  share                    ┌──────────  weight * 1000
//!                    ·  ‾
//!              · ‾
//!   1 % ──┬ ‾
//!         └ up again        └ after `community.slow_start`
//! ```

use std::{cmp::Ordering, time::Duration};

use parking_lot::Mutex;

use super::{Balance, health::HealthView};

/// The share of a server with the weight 1.
const SHARE_OF_ONE: u64 = 1000;
/// The parts of its share with which a server starts: 1 of this many.
const FIRST_PART: u64 = 100;

/// A configured server at the moment of a choice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    /// Its position in the configuration.
    pub(super) index: usize,
    /// Its health.
    pub(super) health: HealthView,
    /// The sessions on it.
    pub(super) sessions: u64,
    /// Its share: see [`share`]. More than 0.
    pub(super) share: u64,
    /// Whether the share grows at present.
    pub(super) starts_slowly: bool,
}

/// The whole share of a server with this weight.
pub(super) fn full_share(weight: u32) -> u64 {
    u64::from(weight) * SHARE_OF_ONE
}

/// The share of a server with this weight that has been `back` for so long; `None`: it does not start slowly. The share
/// grows evenly over `slow_start`.
pub(super) fn share(weight: u32, back: Option<Duration>, slow_start: Duration) -> u64 {
    let full = full_share(weight);
    match back {
        Some(back) if back < slow_start => {
            let grown = u128::from(full) * back.as_nanos() / slow_start.as_nanos();
            u64::try_from(grown).unwrap_or(full).max(full / FIRST_PART)
        }
        _ => full,
    }
}

/// Chooses among the servers of one configuration.
pub(super) struct Balancer {
    balance: Balance,
    recalculate_after: u32,
    /// Round robin: the part of a turn that each server has coming, by its position, in shares.
    turns: Mutex<Vec<i64>>,
    /// Least sessions: the last choice.
    least: Mutex<LeastLoaded>,
}

/// The server that was found to have the fewest sessions.
#[derive(Default)]
struct LeastLoaded {
    /// Its position; `None`: no server was hopeful.
    index: Option<usize>,
    /// For how many more log-ins it is used.
    log_ins_left: u32,
}

impl Candidate {
    /// Its place among the kinds of servers that clients are sent to one after the other.
    fn rank(&self) -> (bool, bool) {
        (!self.health.is_hopeful, self.health.is_suspect)
    }

    /// Which of two servers has less to do for its share when one more client comes to it.
    fn compare_load(&self, other: &Self) -> Ordering {
        let load = |one: &Self, share: u64| u128::from(one.sessions + 1) * u128::from(share);
        load(self, other.share).cmp(&load(other, self.share))
    }
}

impl Balancer {
    /// A balancer for a new configuration. It continues the round robin of the one `before`.
    pub(super) fn new(balance: Balance, recalculate_after: u32, before: Option<&Self>) -> Self {
        let turns = before.map_or_else(Vec::new, |before| before.turns.lock().clone());
        Self { balance, recalculate_after, turns: Mutex::new(turns), least: Mutex::default() }
    }

    /// The order in which a client tries the servers. `candidates` are all servers in the order of the configuration;
    /// the result has those that may be tried:
    ///
    /// 1. hopeful ones that are not suspect, beginning with the chosen one, then in the order of the configuration;
    /// 2. hopeful ones that are suspect;
    /// 3. servers that are down and whose next try is due.
    pub(super) fn order(&self, mut candidates: Vec<Candidate>) -> Vec<Candidate> {
        let first = match self.balance {
            Balance::Failover => 0,
            Balance::RoundRobin => self.next_in_turn(&candidates),
            Balance::LeastSessions => self.least(&candidates),
        };
        // `first` is a position, or 0 if there is no candidate.
        candidates.rotate_left(first);
        candidates.sort_by_key(Candidate::rank);
        candidates.retain(|candidate| candidate.health.may_be_tried);
        candidates
    }

    /// The position of the server whose turn it is, among the best ones that may be tried. This is the smooth weighted
    /// round robin of nginx: at each choice, every server gets its share of a turn, and the one that has most gives a
    /// whole turn back. So the turns of a server with a high weight are spread, and not one after the other.
    fn next_in_turn(&self, candidates: &[Candidate]) -> usize {
        let usable = candidates.iter().filter(|candidate| candidate.health.may_be_tried);
        let Some(best) = usable.clone().map(Candidate::rank).min() else { return 0 };
        let mut turns = self.turns.lock();
        // After a reload, there may be others.
        turns.resize(candidates.len(), 0);
        let (mut whole, mut chosen) = (0, None);
        for Candidate { index, share, .. } in usable.filter(|candidate| candidate.rank() == best) {
            // The highest share is 256,000.
            let share = i64::try_from(*share).unwrap_or(i64::MAX);
            turns[*index] += share;
            whole += share;
            if chosen.is_none_or(|chosen: usize| turns[*index] > turns[chosen]) {
                chosen = Some(*index);
            }
        }
        let chosen = chosen.unwrap_or(0);
        turns[chosen] -= whole;
        chosen
    }

    /// The position of the server with the fewest sessions for its share. It is used for `recalculate_after` log-ins, as
    /// long as it is up: when many clients log in at the same time, the counts are behind, and a new choice for each is
    /// useless. While a server starts slowly, it is used for one: many would be more than its share.
    fn least(&self, candidates: &[Candidate]) -> usize {
        let mut least = self.least.lock();
        let is_usable = |index| candidates.get(index).is_some_and(|candidate: &Candidate| candidate.health.is_up);
        let starts_slowly = candidates.iter().any(|candidate| candidate.starts_slowly);
        if least.log_ins_left == 0 || starts_slowly || !least.index.is_some_and(is_usable) {
            let hopeful = candidates.iter().filter(|candidate| candidate.health.is_hopeful);
            let by_load = |a: &&Candidate, b: &&Candidate| {
                a.health.is_suspect.cmp(&b.health.is_suspect).then_with(|| a.compare_load(b))
            };
            least.index = hopeful.min_by(by_load).map(|candidate| candidate.index);
            least.log_ins_left = if starts_slowly { 1 } else { self.recalculate_after };
        }
        least.log_ins_left = least.log_ins_left.saturating_sub(1);
        least.index.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const UP: HealthView = HealthView { is_up: true, is_hopeful: true, is_suspect: false, may_be_tried: true };
    const SUSPECT: HealthView = HealthView { is_suspect: true, ..UP };
    const DOWN: HealthView = HealthView { is_up: false, is_hopeful: false, is_suspect: false, may_be_tried: false };
    const DUE: HealthView = HealthView { may_be_tried: true, ..DOWN };

    fn candidates(servers: &[(HealthView, u64)]) -> Vec<Candidate> {
        let servers = servers.iter().enumerate();
        let candidate = |(index, &(health, sessions))| Candidate {
            index,
            health,
            sessions,
            share: full_share(1),
            starts_slowly: false,
        };
        servers.map(candidate).collect()
    }

    fn order(balancer: &Balancer, servers: &[(HealthView, u64)]) -> Vec<usize> {
        balancer.order(candidates(servers)).iter().map(|candidate| candidate.index).collect()
    }

    #[test]
    fn failover_and_round_robin_follow_the_configuration() {
        let servers = [(UP, 9), (UP, 0), (UP, 0)];
        let failover = Balancer::new(Balance::Failover, 1, None);
        assert_eq!([order(&failover, &servers), order(&failover, &servers)], [[0, 1, 2], [0, 1, 2]]);
        let robin = Balancer::new(Balance::RoundRobin, 1, None);
        assert_eq!([order(&robin, &servers), order(&robin, &servers)], [[0, 1, 2], [1, 2, 0]]);
        // A reload does not begin again.
        let robin = Balancer::new(Balance::RoundRobin, 1, Some(&robin));
        assert_eq!(order(&robin, &servers), [2, 0, 1]);
    }

    #[test]
    fn the_least_loaded_server_is_used_until_it_is_recalculated_or_not_up() {
        let balancer = Balancer::new(Balance::LeastSessions, 2, None);
        assert_eq!(order(&balancer, &[(UP, 5), (UP, 4)]), [1, 0]);
        assert_eq!(order(&balancer, &[(UP, 5), (UP, 6)]), [1, 0], "for two log-ins");
        assert_eq!(order(&balancer, &[(UP, 5), (UP, 6)]), [0, 1]);
        assert_eq!(order(&balancer, &[(DOWN, 5), (UP, 6)]), [1], "it is down: the next one is chosen");
        assert_eq!(order(&balancer, &[(SUSPECT, 0), (UP, 6)]), [1, 0]);
        assert_eq!(order(&balancer, &[(SUSPECT, 0), (UP, 6)]), [1, 0], "a suspect one is chosen last");
    }

    #[test]
    fn servers_that_do_not_answer_come_late_and_those_that_are_not_due_never() {
        for balance in [Balance::Failover, Balance::LeastSessions] {
            let balancer = Balancer::new(balance, 1, None);
            assert_eq!(order(&balancer, &[(DUE, 0), (SUSPECT, 0), (DOWN, 0), (UP, 7)]), [3, 1, 0], "{balance:?}");
            assert!(order(&balancer, &[(DOWN, 0)]).is_empty());
            assert!(order(&balancer, &[]).is_empty());
        }
    }

    /// How many of `clients` each server gets, if every client stays. `weights` are those of the servers, `is_up` says
    /// which of them are up.
    fn spread(balance: Balance, weights: &[u32], is_up: &[bool], clients: u64) -> Vec<u64> {
        let balancer = Balancer::new(balance, 1, None);
        let mut sessions = vec![0; weights.len()];
        for _ in 0..clients {
            let candidates = (0..weights.len()).map(|index| Candidate {
                index,
                health: if is_up[index] { UP } else { DOWN },
                sessions: sessions[index],
                share: full_share(weights[index]),
                starts_slowly: false,
            });
            if let Some(first) = balancer.order(candidates.collect()).first() {
                sessions[first.index] += 1;
            }
        }
        sessions
    }

    #[test]
    fn a_heavy_servers_turns_are_spread() {
        let balancer = Balancer::new(Balance::RoundRobin, 1, None);
        let next = || {
            let mut candidates = candidates(&[(UP, 0), (UP, 0)]);
            candidates[0].share = full_share(3);
            balancer.order(candidates)[0].index
        };
        assert_eq!([(); 8].map(|()| next()), [0, 0, 1, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn a_server_that_starts_slowly_with_least_sessions_gets_no_rush() {
        let balancer = Balancer::new(Balance::LeastSessions, 100, None);
        let mut sessions = [0, 1000];
        let mut log_in = |back: Option<Duration>| {
            let share = share(1, back, Duration::from_secs(100));
            let mut candidates = candidates(&[(UP, sessions[0]), (UP, sessions[1])]);
            (candidates[0].share, candidates[0].starts_slowly) = (share, share < full_share(1));
            let first = balancer.order(candidates)[0].index;
            sessions[first] += 1;
            sessions
        };
        for (seconds, sessions) in [(0, [10, 1010]), (10, [105, 1055]), (50, [540, 1080])] {
            let mut now = log_in(Some(Duration::from_secs(seconds)));
            while now[0] + now[1] < sessions[0] + sessions[1] {
                now = log_in(Some(Duration::from_secs(seconds)));
            }
            assert!(now[0].abs_diff(sessions[0]) <= 2, "after {seconds} s: {now:?}, expected {sessions:?}");
        }
    }

    fn servers() -> impl Strategy<Value = Vec<(u32, bool)>> {
        proptest::collection::vec((1..=20u32, any::<bool>()), 1..6)
    }

    proptest! {
        #[test]
        fn clients_are_spread_by_weight_and_a_server_that_is_down_gets_none(
            servers in servers(),
            clients in 0..600u64,
            balance in proptest::sample::select(vec![Balance::RoundRobin, Balance::LeastSessions]),
        ) {
            let (weights, is_up): (Vec<u32>, Vec<bool>) = servers.into_iter().unzip();
            let sessions = spread(balance, &weights, &is_up, clients);
            let whole: u32 = (0..weights.len()).filter(|&n| is_up[n]).map(|n| weights[n]).sum();
            for n in 0..weights.len() {
                if is_up[n] {
                    let due = clients as f64 * f64::from(weights[n]) / f64::from(whole);
                    let most = weights.len() as f64;
                    prop_assert!((sessions[n] as f64 - due).abs() <= most, "{weights:?} {is_up:?}: {sessions:?}");
                } else {
                    prop_assert_eq!(sessions[n], 0);
                }
            }
        }

        #[test]
        fn a_share_grows_from_little_to_all_of_it(weight in 1..=256u32, times in (0..9000u64, 0..9000u64), lasts in 0..9000u64) {
            let share = |ms| share(weight, Some(Duration::from_millis(ms)), Duration::from_millis(lasts));
            let (earlier, later) = (times.0.min(times.1), times.0.max(times.1));
            prop_assert!(share(earlier) <= share(later));
            prop_assert!(share(earlier) >= full_share(weight) / FIRST_PART && share(later) <= full_share(weight));
            prop_assert_eq!(share(lasts), full_share(weight));
            // Evenly: half of it at half of the time.
            let half = u128::from(share(lasts / 2)) * 2;
            prop_assert!(lasts < 1000 || half.abs_diff(u128::from(full_share(weight))) <= u128::from(full_share(weight)) / 50);
        }
    }
}
