//! First in, first out among equal priorities.

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
    levels: BTreeMap<i64, VecDeque<T>>,
    len: usize,
    /// The level emptied last, kept so that a queue that runs empty and fills does not allocate.
    spare: VecDeque<T>,
}

impl<T> PriorityFifo<T> {
    /// An empty queue.
    #[must_use]
    pub const fn new() -> Self {
        Self { levels: BTreeMap::new(), len: 0, spare: VecDeque::new() }
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
        self.levels.first_key_value().map(|(priority, _)| *priority)
    }

    /// Takes the first value.
    pub fn pop(&mut self) -> Option<T> {
        let mut level = self.levels.first_entry()?;
        let value = level.get_mut().pop_front().expect("empty levels are removed");
        if level.get().is_empty() {
            self.spare = level.remove();
        }
        self.len -= 1;
        Some(value)
    }

    /// Takes all values, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(self).levels.into_values().flatten()
    }

    fn level(&mut self, priority: i64) -> &mut VecDeque<T> {
        self.levels.entry(priority).or_insert_with(|| std::mem::take(&mut self.spare))
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
    fn what_comes_back_goes_before_its_equals() {
        let mut queue = PriorityFifo::new();
        queue.push(1, "b");
        queue.push_front(1, "a");
        queue.push_front(2, "c");
        assert_eq!(queue.drain().collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
