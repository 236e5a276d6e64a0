//! First in, first out among equal priorities.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};

/// A queue ordered by priority (smaller is sooner), then by arrival.
///
/// ```
/// use jobs_core::PriorityFifo;
///
/// let mut queue = PriorityFifo::new();
/// queue.push(10, "a");
/// queue.push(1, "urgent");
/// queue.push(10, "b");
/// assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some("urgent"), Some("a"), Some("b")]);
/// ```
#[derive(Clone, Debug)]
pub struct PriorityFifo<T> {
    /// The level of the lowest priority, apart from the others: mostly there is only one, and
    /// running empty must not cost an allocation. Empty only if all are.
    first: VecDeque<T>,
    priority: i64,
    others: BTreeMap<i64, VecDeque<T>>,
    len: usize,
}

impl<T> PriorityFifo<T> {
    /// An empty queue.
    #[must_use]
    pub const fn new() -> Self {
        Self { first: VecDeque::new(), priority: 0, others: BTreeMap::new(), len: 0 }
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a value behind its equals.
    pub fn push(&mut self, priority: i64, value: T) {
        self.level(priority).push_back(value);
        self.len += 1;
    }

    /// Adds a value before its equals: for one that comes back.
    pub fn push_front(&mut self, priority: i64, value: T) {
        self.level(priority).push_front(value);
        self.len += 1;
    }

    /// The priority of the value [`pop`](Self::pop) would return.
    #[must_use]
    pub fn first_priority(&self) -> Option<i64> {
        (self.len > 0).then_some(self.priority)
    }

    /// Takes the first value.
    pub fn pop(&mut self) -> Option<T> {
        let value = self.first.pop_front()?;
        self.len -= 1;
        if self.first.is_empty()
            && let Some((priority, level)) = self.others.pop_first()
        {
            (self.priority, self.first) = (priority, level);
        }
        Some(value)
    }

    /// Takes the values that `chosen` is true of, in order; the others stay where they are.
    pub fn extract(&mut self, mut chosen: impl FnMut(&T) -> bool) -> Vec<T> {
        let Self { first, priority, others, .. } = std::mem::take(self);
        let mut extracted = Vec::new();
        for (priority, level) in std::iter::once((priority, first)).chain(others) {
            for value in level {
                if chosen(&value) {
                    extracted.push(value);
                } else {
                    self.push(priority, value);
                }
            }
        }
        extracted
    }

    /// Takes all values, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + use<T> {
        let Self { first, others, .. } = std::mem::take(self);
        first.into_iter().chain(others.into_values().flatten())
    }

    fn level(&mut self, priority: i64) -> &mut VecDeque<T> {
        if self.first.is_empty() {
            self.priority = priority;
        }
        match priority.cmp(&self.priority) {
            Ordering::Equal => return &mut self.first,
            Ordering::Greater => return self.others.entry(priority).or_default(),
            Ordering::Less => {}
        }
        let level = std::mem::take(&mut self.first);
        self.others.insert(std::mem::replace(&mut self.priority, priority), level);
        &mut self.first
    }
}

impl<T> Default for PriorityFifo<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pops_in_the_order_of_a_stable_sort(priorities in prop::collection::vec(-3_i64..3, 0..99)) {
            let mut queue = PriorityFifo::new();
            let mut expected: Vec<_> = priorities.into_iter().enumerate().collect();
            expected.iter().for_each(|(arrival, priority)| queue.push(*priority, *arrival));
            expected.sort_by_key(|(_, priority)| *priority);
            prop_assert_eq!(queue.len(), expected.len());
            for (arrival, priority) in expected {
                prop_assert_eq!(queue.first_priority(), Some(priority));
                prop_assert_eq!(queue.pop(), Some(arrival));
            }
            prop_assert!(queue.is_empty() && queue.pop().is_none());
        }
    }

    #[test]
    fn extracts_what_is_chosen_and_keeps_the_order_of_the_rest() {
        let mut queue = PriorityFifo::new();
        for (priority, value) in [(2, 1), (1, 2), (2, 3), (2, 4), (1, 5)] {
            queue.push(priority, value);
        }
        assert_eq!(queue.extract(|value| value % 2 == 1), [5, 1, 3]);
        assert_eq!((queue.len(), queue.first_priority()), (2, Some(1)));
        assert_eq!(queue.drain().collect::<Vec<_>>(), [2, 4]);
    }

    #[test]
    fn what_comes_back_goes_before_its_equals() {
        let mut queue = PriorityFifo::new();
        queue.push(1, "b");
        queue.push_front(1, "a");
        queue.push_front(2, "c");
        assert_eq!(queue.drain().collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
