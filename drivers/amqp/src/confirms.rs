//! Whose confirm is whose, decided without I/O.
//!
//! The broker sends an unroutable message back, and then confirms it, often together with others in
//! one frame. The client hangs returned messages on the confirms it resolves next, whichever these
//! are: so a confirm may carry the message of another push, and a push that was returned may get a
//! confirm that carries none. What holds is the order: when a confirm is resolved, every message
//! returned before it has been hung on it or on one resolved earlier, or, if it carries one itself,
//! waits for a confirm that is still to come. So confirms are judged in batches of everything that
//! is resolved, by the ids of the messages they carry and where these were published: one message may
//! be on its way to several places.

use std::collections::HashMap;

/// Confirms that are resolved and not judged.
#[derive(Debug)]
pub(crate) struct Confirms<T> {
    resolved: Vec<Resolved<T>>,
    /// Returned messages whose own confirm was not seen yet.
    returned: HashMap<Key, usize>,
}

/// What tells messages apart that are on their way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
}

/// What waits for its confirm.
pub(crate) trait Published {
    fn key(&self) -> Key;
}

#[derive(Debug)]
struct Resolved<T> {
    /// Whether it carries a returned message, of whatever push.
    carries: bool,
    push: T,
}

/// What the broker did with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Stored,
    /// No queue is bound where it went.
    Returned,
}

impl<T> Default for Confirms<T> {
    fn default() -> Self {
        Self { resolved: Vec::new(), returned: HashMap::new() }
    }
}

impl<T: Published> Confirms<T> {
    /// The confirm of a push, carrying this returned message.
    pub(crate) fn resolve(&mut self, carried: Option<Key>, push: T) {
        let carries = carried.is_some();
        carried.into_iter().for_each(|key| self.note_returned(key));
        self.resolved.push(Resolved { carries, push });
    }

    /// A message was returned.
    pub(crate) fn note_returned(&mut self, key: Key) {
        *self.returned.entry(key).or_default() += 1;
    }

    /// Judges what can be judged, and tells. To be called when no other confirm is resolved.
    ///
    /// Without returned messages it allocates nothing: a list of a whole batch would be large.
    pub(crate) fn judge(&mut self, mut tell: impl FnMut(T, Verdict)) {
        let mut kept = Vec::new();
        for resolved in self.resolved.drain(..) {
            if self.returned.is_empty() {
                tell(resolved.push, Verdict::Stored);
            } else if take(&mut self.returned, &resolved.push.key()) {
                tell(resolved.push, Verdict::Returned);
            } else {
                kept.push(resolved);
            }
        }
        for resolved in kept {
            // Its own message, if it was returned, waits behind the one it carries until all those
            // before it have met their confirms.
            if resolved.carries && !self.returned.is_empty() {
                self.resolved.push(resolved);
            } else {
                tell(resolved.push, Verdict::Stored);
            }
        }
    }

    /// Gives up on what could not be judged: the channel is gone.
    pub(crate) fn into_undecided(self) -> impl Iterator<Item = T> {
        self.resolved.into_iter().map(|resolved| resolved.push)
    }
}

fn take(counts: &mut HashMap<Key, usize>, key: &Key) -> bool {
    match counts.get_mut(key) {
        None => false,
        Some(1) => counts.remove(key).is_some(),
        Some(count) => {
            *count -= 1;
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Push {
        tag: u64,
        key: Key,
    }

    impl Published for Push {
        fn key(&self) -> Key {
            self.key.clone()
        }
    }

    fn key(id: &str, exchange: &str, routing_key: &str) -> Key {
        let [id, exchange, routing_key] = [id, exchange, routing_key].map(str::to_owned);
        Key { id, exchange, routing_key }
    }

    fn judged(confirms: &mut Confirms<Push>) -> Vec<(Push, Verdict)> {
        let mut judged = Vec::new();
        confirms.judge(|push, verdict| judged.push((push, verdict)));
        judged
    }

    #[test]
    fn a_message_hung_on_another_confirm_finds_its_own() {
        let (a, b) = (key("a", "", "q"), key("b", "", "q"));
        let push = |tag, key: &Key| Push { tag, key: key.clone() };
        let mut confirms = Confirms::default();
        confirms.resolve(Some(b.clone()), push(1, &a));
        assert_eq!(judged(&mut confirms), [], "`a` may have been returned as well");
        confirms.resolve(None, push(2, &b));
        let verdicts = [(push(2, &b), Verdict::Returned), (push(1, &a), Verdict::Stored)];
        assert_eq!(judged(&mut confirms), verdicts);
    }

    /// The broker and the client between push and confirm.
    #[derive(Default)]
    struct Wire {
        unconfirmed: BTreeMap<u64, Key>,
        /// Messages the client has received back and not hung on a confirm.
        waiting: VecDeque<Key>,
        truth: Vec<Verdict>,
    }

    impl Wire {
        fn push(&mut self, key: Key, routable: bool) {
            let verdict = if routable { Verdict::Stored } else { Verdict::Returned };
            if verdict == Verdict::Returned {
                self.waiting.push_back(key.clone());
            }
            self.unconfirmed.insert(self.truth.len() as u64, key);
            self.truth.push(verdict);
        }

        /// Confirms some in one frame, in any order, and lets the driver look.
        fn confirm(&mut self, tags: Vec<u64>, confirms: &mut Confirms<Push>) {
            for tag in tags {
                let key = self.unconfirmed.remove(&tag).expect("it was chosen from these");
                confirms.resolve(self.waiting.pop_front(), Push { tag, key });
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(Key, bool),
        Confirm(Vec<prop::sample::Index>),
    }

    /// A push of one of few messages to one of few places, some of which lead nowhere.
    fn a_push() -> impl Strategy<Value = Step> {
        (0..3_u8, 0..2_u8, 0..2_u8).prop_map(|(id, exchange, routing_key)| {
            let key = key(&id.to_string(), &exchange.to_string(), &routing_key.to_string());
            Step::Push(key, exchange == routing_key)
        })
    }

    proptest! {
        #[test]
        fn every_push_gets_its_own_verdict(steps in prop::collection::vec(prop_oneof![
            3 => a_push(),
            1 => prop::collection::vec(any::<prop::sample::Index>(), 1..5).prop_map(Step::Confirm),
        ], 1..200)) {
            let (mut wire, mut confirms, mut seen) = (Wire::default(), Confirms::default(), 0);
            let confirm_all = Step::Confirm(Vec::new());
            for step in steps.into_iter().chain([confirm_all]) {
                match step {
                    Step::Push(key, routable) => wire.push(key, routable),
                    Step::Confirm(choices) => {
                        let mut left: Vec<_> = wire.unconfirmed.keys().copied().collect();
                        let chosen = match choices.is_empty() {
                            true => std::mem::take(&mut left),
                            false => {
                                let mut chosen = Vec::new();
                                for index in choices {
                                    if !left.is_empty() {
                                        chosen.push(left.swap_remove(index.index(left.len())));
                                    }
                                }
                                chosen
                            }
                        };
                        wire.confirm(chosen, &mut confirms);
                        for (push, verdict) in judged(&mut confirms) {
                            let truth = wire.truth[usize::try_from(push.tag).expect("few")];
                            prop_assert_eq!(verdict, truth, "of {:?}", push);
                            seen += 1;
                        }
                    }
                }
            }
            prop_assert_eq!(seen, wire.truth.len(), "everything is judged when all is confirmed");
        }
    }
}
