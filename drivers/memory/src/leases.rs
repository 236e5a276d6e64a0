//! Jobs that were handed out and are not settled yet.

use jobs_core::{Message, Token};
use slotmap::{DefaultKey, Key, KeyData, SlotMap};
use tokio::time::Instant;

/// A job at rest.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) message: Message,
    pub(crate) attempt: u32,
    pub(crate) priority: i64,
}

#[derive(Debug)]
struct Lease {
    entry: Entry,
    consumer: u64,
    /// Counts leases: slots are used in no order.
    serial: u64,
    /// None: the lease does not end.
    deadline: Option<Instant>,
    previous: Option<DefaultKey>,
    next: Option<DefaultKey>,
}

/// Leases by token, linked in the order in which they end.
///
/// A token bears the slot's version, so that it never matches a later lease in the same slot. New
/// leases end last, because all last equally long, and removing takes constant time. Finding the
/// place of a lease takes as long as there are leases that were extended beyond it.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    slots: SlotMap<DefaultKey, Lease>,
    serial: u64,
    first: Option<DefaultKey>,
    last: Option<DefaultKey>,
}

impl Leases {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn insert(
        &mut self,
        entry: Entry,
        consumer: u64,
        deadline: Option<Instant>,
    ) -> Token {
        self.serial += 1;
        let serial = self.serial;
        let lease = Lease { entry, consumer, serial, deadline, previous: None, next: None };
        let key = self.slots.insert(lease);
        self.link(key);
        key.data().as_ffi()
    }

    /// Ends a lease, and tells its consumer: `None` if it ended before.
    pub(crate) fn remove(&mut self, token: Token) -> Option<(u64, Entry)> {
        self.remove_key(key(token))
    }

    /// Lets a lease end no sooner than `deadline`; false if it ended already.
    pub(crate) fn extend(&mut self, token: Token, deadline: Instant) -> bool {
        let key = key(token);
        let Some(lease) = self.slots.get_mut(key) else { return false };
        if lease.deadline.is_some_and(|current| current < deadline) {
            let Lease { previous, next, .. } = self.slots[key];
            self.point(previous, next, next, previous);
            self.slots[key].deadline = Some(deadline);
            self.link(key);
        }
        true
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.slots[self.first?].deadline
    }

    /// Takes out the lease that ended longest ago.
    pub(crate) fn take_ended(&mut self, now: Instant) -> Option<(Token, Entry)> {
        let first = self.first.filter(|_| self.next_deadline().is_some_and(|end| end <= now))?;
        self.remove_key(first).map(|(_, entry)| (first.data().as_ffi(), entry))
    }

    /// Takes out all leases of a consumer, in the order they began.
    pub(crate) fn take_consumer(&mut self, consumer: u64) -> Vec<Entry> {
        let of_consumer = self.slots.iter().filter(|(_, lease)| lease.consumer == consumer);
        let mut keys: Vec<_> = of_consumer.map(|(key, lease)| (lease.serial, key)).collect();
        keys.sort_unstable();
        let keys = keys.into_iter().map(|(_, key)| key);
        keys.filter_map(|key| self.remove_key(key)).map(|(_, entry)| entry).collect()
    }

    fn remove_key(&mut self, key: DefaultKey) -> Option<(u64, Entry)> {
        let lease = self.slots.remove(key)?;
        if lease.deadline.is_some() {
            self.point(lease.previous, lease.next, lease.next, lease.previous);
        }
        Some((lease.consumer, lease.entry))
    }

    /// Links a lease in front of those that end later: from the back, where its place nearly
    /// always is.
    fn link(&mut self, key: DefaultKey) {
        let Some(deadline) = self.slots[key].deadline else { return };
        let mut previous = self.last;
        while let Some(earlier) = previous.filter(|k| self.slots[*k].deadline > Some(deadline)) {
            previous = self.slots[earlier].previous;
        }
        let next = previous.map_or(self.first, |previous| self.slots[previous].next);
        self.slots[key].previous = previous;
        self.slots[key].next = next;
        self.point(previous, next, Some(key), Some(key));
    }

    /// Makes the neighbours on both sides point to `forward` and `back`.
    fn point(
        &mut self,
        previous: Option<DefaultKey>,
        next: Option<DefaultKey>,
        forward: Option<DefaultKey>,
        back: Option<DefaultKey>,
    ) {
        match previous {
            Some(previous) => self.slots[previous].next = forward,
            None => self.first = forward,
        }
        match next {
            Some(next) => self.slots[next].previous = back,
            None => self.last = back,
        }
    }
}

fn key(token: Token) -> DefaultKey {
    KeyData::from_ffi(token).into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn entry(id: &str) -> Entry {
        Entry { message: Message::new("a", "").with_id(id), attempt: 1, priority: 10 }
    }

    #[test]
    fn a_token_never_matches_a_later_lease() {
        let mut leases = Leases::default();
        let first = leases.insert(entry("a"), 1, None);
        assert!(leases.remove(first).is_some());
        let second = leases.insert(entry("b"), 1, None);
        assert_ne!(first, second);
        assert!(leases.remove(first).is_none());
        assert!(!leases.extend(first, Instant::now()));
        assert_eq!(leases.len(), 1);
        assert!(leases.remove(u64::MAX).is_none(), "a token that never was");
    }

    #[test]
    fn a_consumer_takes_only_its_own_with_it() {
        let mut leases = Leases::default();
        leases.insert(entry("a"), 1, None);
        leases.insert(entry("b"), 2, Some(Instant::now()));
        leases.insert(entry("c"), 1, Some(Instant::now()));
        let ids: Vec<_> =
            leases.take_consumer(1).iter().map(|e| e.message.id().to_string()).collect();
        assert_eq!(ids, ["a", "c"]);
        assert_eq!(leases.len(), 1);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64),
        Remove(usize),
        Extend(usize, u64),
        Expire(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..50_u64).prop_map(Step::Insert),
            (0..20_usize).prop_map(Step::Remove),
            (0..20_usize, 0..80_u64).prop_map(|(i, at)| Step::Extend(i, at)),
            (0..60_u64).prop_map(Step::Expire),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn behaves_as_a_map_of_deadlines(steps in steps()) {
            let start = Instant::now();
            let at = |seconds| start + Duration::from_secs(seconds);
            let mut leases = Leases::default();
            let mut model: BTreeMap<Token, u64> = BTreeMap::new();
            let nth = |model: &BTreeMap<Token, u64>, n| model.keys().nth(n).copied();
            for step in steps {
                match step {
                    Step::Insert(end) => {
                        let token = leases.insert(entry("x"), 1, Some(at(end)));
                        prop_assert_eq!(model.insert(token, end), None);
                    }
                    Step::Remove(n) => if let Some(token) = nth(&model, n) {
                        model.remove(&token);
                        prop_assert!(leases.remove(token).is_some());
                    },
                    Step::Extend(n, end) => if let Some(token) = nth(&model, n) {
                        let current = model.entry(token).or_default();
                        *current = end.max(*current);
                        prop_assert!(leases.extend(token, at(end)));
                    },
                    Step::Expire(now) => {
                        let ended = std::iter::from_fn(|| leases.take_ended(at(now))).count();
                        let before = model.len();
                        model.retain(|_, end| *end > now);
                        prop_assert_eq!(ended, before - model.len());
                    }
                }
                prop_assert_eq!(leases.len(), model.len());
                let next = model.values().min().map(|end| at(*end));
                prop_assert_eq!(leases.next_deadline(), next);
            }
        }
    }
}
