//! The choice of a Community server for a client. No I/O and no clock.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use super::{Balance, health::HealthView};

/// A configured server at the moment of a choice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    /// Its position in the configuration.
    pub(super) index: usize,
    /// Its health.
    pub(super) health: HealthView,
    /// The sessions on it.
    pub(super) sessions: u64,
}

/// Chooses among the servers of one configuration.
pub(super) struct Balancer {
    balance: Balance,
    recalculate_after: u32,
    /// Round robin: how many choices there were.
    choices: AtomicUsize,
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

impl Balancer {
    /// A balancer for a new configuration. It continues the round robin of the one `before`.
    pub(super) fn new(balance: Balance, recalculate_after: u32, before: Option<&Self>) -> Self {
        let choices = before.map_or(0, |before| before.choices.load(Relaxed));
        Self { balance, recalculate_after, choices: AtomicUsize::new(choices), least: Mutex::default() }
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
            Balance::RoundRobin => self.choices.fetch_add(1, Relaxed) % candidates.len().max(1),
            Balance::LeastSessions => self.least(&candidates),
        };
        // `first` is a position, or 0 if there is no candidate.
        candidates.rotate_left(first);
        candidates.sort_by_key(|candidate| (!candidate.health.is_hopeful, candidate.health.is_suspect));
        candidates.retain(|candidate| candidate.health.may_be_tried);
        candidates
    }

    /// The position of the server with the fewest sessions. It is used for `recalculate_after` log-ins, as long as it
    /// is up: when many clients log in at the same time, the counts are behind, and a new choice for each is useless.
    fn least(&self, candidates: &[Candidate]) -> usize {
        let mut least = self.least.lock();
        let is_usable = |index| candidates.get(index).is_some_and(|candidate: &Candidate| candidate.health.is_up);
        if least.log_ins_left == 0 || !least.index.is_some_and(is_usable) {
            let hopeful = candidates.iter().filter(|candidate| candidate.health.is_hopeful);
            let chosen = hopeful.min_by_key(|candidate| (candidate.health.is_suspect, candidate.sessions));
            least.index = chosen.map(|candidate| candidate.index);
            least.log_ins_left = self.recalculate_after;
        }
        least.log_ins_left = least.log_ins_left.saturating_sub(1);
        least.index.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: HealthView = HealthView { is_up: true, is_hopeful: true, is_suspect: false, may_be_tried: true };
    const SUSPECT: HealthView = HealthView { is_suspect: true, ..UP };
    const DOWN: HealthView = HealthView { is_up: false, is_hopeful: false, is_suspect: false, may_be_tried: false };
    const DUE: HealthView = HealthView { may_be_tried: true, ..DOWN };

    fn candidates(servers: &[(HealthView, u64)]) -> Vec<Candidate> {
        let servers = servers.iter().enumerate();
        servers.map(|(index, &(health, sessions))| Candidate { index, health, sessions }).collect()
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
}
