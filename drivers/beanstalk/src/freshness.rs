//! Whether a job comes for the first time, as far as that can be told without asking.
//!
//! The server counts how often it handed a job out, and asking it costs a command per job. But of
//! one priority it hands out the lowest number first. So if a higher number came before this was
//! asked for, this job was not ready then: it was delayed, or comes back.

use std::collections::BTreeSet;

/// Priorities that are told apart: those beyond are asked about.
const MOST: usize = 64;
/// Numbers that are remembered.
const RECENT: usize = 1024;

/// The highest number that came, by priority. A priority is known once a job of it came for the
/// first time: before that the jobs that consumers left behind when they died may come.
#[derive(Clone, Debug, Default)]
struct Highest(Vec<(u32, u64)>);

impl Highest {
    fn is_below(&self, priority: u32, id: u64) -> bool {
        self.0.iter().any(|(known, highest)| *known == priority && *highest < id)
    }

    fn came(&mut self, priority: u32, id: u64) {
        match self.0.iter_mut().find(|(known, _)| *known == priority) {
            Some((_, highest)) => *highest = id.max(*highest),
            None => {
                if self.0.len() == MOST {
                    self.0.clear();
                }
                self.0.push((priority, id));
            }
        }
    }
}

/// What has come on all connections of a pipeline.
#[derive(Debug, Default)]
pub(crate) struct Freshness {
    highest: Highest,
    /// Numbers that came, the highest of them.
    recent: BTreeSet<u64>,
    /// None above this one is forgotten.
    forgotten: u64,
    /// Counts lost connections.
    losses: u64,
}

/// What had come at some moment.
#[derive(Debug, Default)]
pub(crate) struct Before {
    highest: Highest,
    losses: u64,
}

impl Freshness {
    pub(crate) fn note(&self, before: &mut Before) {
        before.highest.0.clone_from(&self.highest.0);
        before.losses = self.losses;
    }

    /// True if the job surely comes for the first time, unless another consumer had it. Judged by what
    /// had come before it was asked for, as those that are asked for at once arrive in any order; and
    /// by what has come since, for a request that waited for long.
    pub(crate) fn is_first(&mut self, before: &Before, priority: u32, id: u64) -> bool {
        let in_turn = before.losses == self.losses
            && id > self.forgotten
            && before.highest.is_below(priority, id);
        // One that came already is back from a connection that is not yet known to be lost.
        let first = (in_turn || self.highest.is_below(priority, id)) && !self.recent.contains(&id);
        if first {
            self.came(priority, id);
        }
        first
    }

    /// A job came for the first time.
    pub(crate) fn came(&mut self, priority: u32, id: u64) {
        self.highest.came(priority, id);
        self.recent.insert(id);
        if self.recent.len() > RECENT {
            self.forgotten = self.recent.pop_first().unwrap_or_default().max(self.forgotten);
        }
    }

    /// A connection was lost: its jobs come back, and a server that forgot all counts from 1.
    pub(crate) fn forget(&mut self) {
        *self = Self { losses: self.losses + 1, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn before(freshness: &Freshness) -> Before {
        let mut before = Before::default();
        freshness.note(&mut before);
        before
    }

    #[test]
    fn rising_numbers_of_a_known_priority_are_first_times() {
        let mut freshness = Freshness::default();
        let mut is_first = |priority, id| {
            let before = before(&freshness);
            freshness.is_first(&before, priority, id)
        };
        assert!(!is_first(10, 1), "who knows what was before");
        freshness.came(10, 5);
        let mut is_first = |priority, id| {
            let before = before(&freshness);
            freshness.is_first(&before, priority, id)
        };
        assert!(is_first(10, 6));
        assert!(!is_first(10, 5) && !is_first(10, 4), "it was not ready before");
        assert!(!is_first(9, 7), "another priority");
        assert!(is_first(10, 8) && !is_first(10, 7), "the highest counts");
        freshness.forget();
        let nothing = before(&freshness);
        assert!(!freshness.is_first(&nothing, 10, 9));
    }

    #[test]
    fn those_that_were_asked_for_at_once_come_in_any_order() {
        let mut freshness = Freshness::default();
        freshness.came(10, 4);
        let asked = before(&freshness);
        assert!(freshness.is_first(&asked, 10, 6) && freshness.is_first(&asked, 10, 5));
    }

    #[test]
    fn one_that_another_connection_had_is_no_first_time() {
        let mut freshness = Freshness::default();
        freshness.came(10, 4);
        let waited = before(&freshness);
        assert!(freshness.is_first(&waited, 10, 5));
        assert!(!freshness.is_first(&waited, 10, 5), "its loss is not known yet");
        freshness.forget();
        assert!(!freshness.is_first(&waited, 10, 5), "it is");
        let mut freshness = Freshness::default();
        freshness.came(10, 4);
        (5..5 + 2 * RECENT as u64).for_each(|id| freshness.came(10, id));
        assert!(!freshness.is_first(&waited, 10, 5), "it is forgotten");
    }

    #[test]
    fn memory_is_bounded() {
        let mut freshness = Freshness::default();
        (0..10_000).for_each(|number| freshness.came(number, number.into()));
        assert!(freshness.highest.0.len() <= MOST && freshness.recent.len() <= RECENT);
    }
}
