//! The order of message groups: one job of a group at a time, the later ones wait.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use jobs_core::Token;

/// What is here of each group of a FIFO queue.
#[derive(Debug)]
pub(crate) struct Groups<T> {
    groups: HashMap<Arc<str>, Group<T>>,
}

#[derive(Debug)]
struct Group<T> {
    /// The one that may run.
    first: Token,
    /// Those that came after it.
    later: VecDeque<(Token, T)>,
}

impl<T> Default for Groups<T> {
    fn default() -> Self {
        Self { groups: HashMap::new() }
    }
}

impl<T> Groups<T> {
    /// Takes note of a delivery. None: it waits for an earlier one of its group.
    pub(crate) fn admit(&mut self, group: &Arc<str>, token: Token, job: T) -> Option<T> {
        match self.groups.get_mut(group) {
            Some(group) => {
                group.later.push_back((token, job));
                None
            }
            None => {
                let new = Group { first: token, later: VecDeque::new() };
                self.groups.insert(Arc::clone(group), new);
                Some(job)
            }
        }
    }

    /// The job is over: the next one of its group may run.
    pub(crate) fn ended(&mut self, group: &Arc<str>, token: Token) -> Option<(Token, T)> {
        let entry = self.groups.get_mut(group).filter(|entry| entry.first == token)?;
        match entry.later.pop_front() {
            Some((next, job)) => {
                entry.first = next;
                Some((next, job))
            }
            None => {
                self.groups.remove(group);
                None
            }
        }
    }

    /// The job is back, to be delivered before the later ones: which those are.
    pub(crate) fn went_back(&mut self, group: &Arc<str>, token: Token) -> Vec<(Token, T)> {
        match self.groups.get(group) {
            Some(entry) if entry.first == token => {
                let gone = self.groups.remove(group).map(|entry| entry.later);
                gone.into_iter().flatten().collect()
            }
            _ => Vec::new(),
        }
    }

    /// Takes out one that waits, with those of its group after it, because its lease ended.
    pub(crate) fn lapsed(&mut self, group: &Arc<str>, token: Token) -> Vec<(Token, T)> {
        let Some(entry) = self.groups.get_mut(group) else { return Vec::new() };
        match entry.later.iter().position(|(later, _)| *later == token) {
            Some(place) => entry.later.drain(place..).collect(),
            None => Vec::new(),
        }
    }

    /// Takes out all that wait.
    pub(crate) fn take_waiting(&mut self) -> Vec<(Token, T)> {
        self.groups.values_mut().flat_map(|group| group.later.drain(..)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str) -> Arc<str> {
        name.into()
    }

    fn tokens<T>(jobs: Vec<(Token, T)>) -> Vec<Token> {
        jobs.into_iter().map(|(token, _)| token).collect()
    }

    #[test]
    fn one_of_a_group_runs_at_a_time_and_in_order() {
        let (a, b) = (group("a"), group("b"));
        let mut groups = Groups::default();
        assert_eq!(groups.admit(&a, 1, "1"), Some("1"));
        assert_eq!(groups.admit(&a, 2, "2"), None);
        assert_eq!(groups.admit(&b, 3, "3"), Some("3"), "another group");
        assert_eq!(groups.admit(&a, 4, "4"), None);
        assert_eq!(groups.ended(&a, 2), None, "it does not run");
        assert_eq!(groups.ended(&a, 1), Some((2, "2")));
        assert_eq!(groups.ended(&a, 2), Some((4, "4")));
        assert_eq!(groups.ended(&a, 4), None);
        assert_eq!(groups.admit(&a, 5, "5"), Some("5"), "the group is free");
    }

    #[test]
    fn what_goes_back_takes_the_later_ones_with_it() {
        let a = group("a");
        let mut groups = Groups::default();
        for token in 1..=4 {
            groups.admit(&a, token, ());
        }
        assert_eq!(tokens(groups.lapsed(&a, 3)), [3, 4]);
        assert!(groups.went_back(&a, 2).is_empty(), "it waits");
        assert_eq!(tokens(groups.went_back(&a, 1)), [2]);
        assert_eq!(groups.admit(&a, 5, ()), Some(()));
        assert_eq!(groups.admit(&a, 6, ()), None);
        assert_eq!(tokens(groups.take_waiting()), [6]);
        assert!(groups.ended(&a, 5).is_none());
    }
}
