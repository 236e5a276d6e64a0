//! Whether a job comes for the first time, as far as that can be told without asking.
//!
//! The server counts how often it handed a job out, and asking it costs a command per job. But of
//! one priority it hands out the lowest number first. So if a higher number came before this was
//! asked for, this job was not ready then: it was delayed, or comes back.

/// Priorities that are told apart: those beyond are asked about.
const MOST: usize = 64;

/// The highest number that came, by priority. A priority is known once a job of it came for the
/// first time: before that the jobs that consumers left behind when they died may come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Freshness(Vec<(u32, u64)>);

impl Freshness {
    /// True if the job surely comes for the first time, unless another consumer had it.
    pub(crate) fn is_fresh(&self, priority: u32, id: u64) -> bool {
        self.0.iter().any(|(known, highest)| *known == priority && *highest < id)
    }

    /// A job came for the first time.
    pub(crate) fn came(&mut self, priority: u32, id: u64) {
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

    /// A connection was lost: its jobs come back, and a server that forgot all counts from 1.
    pub(crate) fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rising_numbers_of_a_known_priority_are_fresh() {
        let mut freshness = Freshness::default();
        assert!(!freshness.is_fresh(10, 1), "who knows what was before");
        freshness.came(10, 5);
        assert!(freshness.is_fresh(10, 6));
        assert!(
            !freshness.is_fresh(10, 5) && !freshness.is_fresh(10, 4),
            "it was not ready before"
        );
        assert!(!freshness.is_fresh(9, 6), "another priority");
        freshness.came(10, 4);
        assert!(!freshness.is_fresh(10, 5), "the highest counts");
        freshness.forget();
        assert!(!freshness.is_fresh(10, 6));
    }

    #[test]
    fn memory_is_bounded() {
        let mut freshness = Freshness::default();
        (0..10_000).for_each(|priority| freshness.came(priority, 1));
        assert!(freshness.0.len() <= MOST);
    }
}
