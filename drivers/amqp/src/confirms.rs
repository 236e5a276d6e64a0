//! Whose confirm is whose, decided without I/O.
//!
//! The broker sends an unroutable message back, and then confirms it, often together with others in
//! one frame. The client hangs returned messages on the confirms it resolves next, whichever these
//! are: so a confirm may carry the message of another push, and a push that was returned may get a
//! confirm that carries none. What holds is the order: when a confirm is resolved, every message
//! returned before it has been hung on it or on one resolved earlier, or, if it carries one itself,
//! waits for a confirm that is still to come. So confirms are judged in batches of everything that
//! is resolved, by the ids of the messages they carry.

use std::collections::HashMap;

/// Confirms that are resolved and not judged.
#[derive(Debug)]
pub(crate) struct Confirms<T> {
    resolved: Vec<Resolved<T>>,
    /// Ids of returned messages whose own confirm was not seen yet.
    returned: HashMap<String, usize>,
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

impl<T: AsRef<str>> Confirms<T> {
    /// The confirm of a push, which shows its id, carrying the returned message with that id.
    pub(crate) fn resolve(&mut self, carried: Option<String>, push: T) {
        let carries = carried.is_some();
        carried.into_iter().for_each(|id| self.note_returned(id));
        self.resolved.push(Resolved { carries, push });
    }

    /// A message was returned.
    pub(crate) fn note_returned(&mut self, id: String) {
        *self.returned.entry(id).or_default() += 1;
    }

    /// Judges what can be judged. To be called when no other confirm is resolved.
    pub(crate) fn judge(&mut self) -> Vec<(T, Verdict)> {
        if self.resolved.is_empty() {
            return Vec::new();
        }
        let mut judged = Vec::with_capacity(self.resolved.len());
        let mut kept = Vec::new();
        for resolved in self.resolved.drain(..) {
            if take(&mut self.returned, resolved.push.as_ref()) {
                judged.push((resolved.push, Verdict::Returned));
            } else {
                kept.push(resolved);
            }
        }
        // Its own message, if it was returned, waits behind the one it carries until all those
        // before it have met their confirms.
        let waits = |resolved: &Resolved<T>| resolved.carries && !self.returned.is_empty();
        for resolved in kept {
            if waits(&resolved) {
                self.resolved.push(resolved);
            } else {
                judged.push((resolved.push, Verdict::Stored));
            }
        }
        judged
    }

    /// Gives up on what could not be judged: the channel is gone.
    pub(crate) fn into_undecided(self) -> impl Iterator<Item = T> {
        self.resolved.into_iter().map(|resolved| resolved.push)
    }
}

fn take(counts: &mut HashMap<String, usize>, id: &str) -> bool {
    match counts.get_mut(id) {
        None => false,
        Some(1) => counts.remove(id).is_some(),
        Some(count) => {
            *count -= 1;
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, VecDeque};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_hung_on_another_confirm_finds_its_own() {
        let mut confirms = Confirms::default();
        confirms.resolve(Some("b".into()), "a");
        assert_eq!(confirms.judge(), [], "`a` may have been returned as well");
        confirms.resolve(None, "b");
        assert_eq!(confirms.judge(), [("b", Verdict::Returned), ("a", Verdict::Stored)]);
    }

    /// The broker and the client between push and confirm.
    #[derive(Default)]
    struct Wire {
        next: u64,
        unconfirmed: BTreeSet<u64>,
        /// Messages the client has received back and not hung on a confirm.
        waiting: VecDeque<String>,
        truth: BTreeMap<u64, Verdict>,
    }

    impl Wire {
        fn push(&mut self, routable: bool) {
            self.next += 1;
            self.unconfirmed.insert(self.next);
            let verdict = if routable { Verdict::Stored } else { Verdict::Returned };
            if verdict == Verdict::Returned {
                self.waiting.push_back(self.next.to_string());
            }
            self.truth.insert(self.next, verdict);
        }

        /// Confirms some in one frame, in any order, and lets the driver look.
        fn confirm(&mut self, tags: Vec<u64>, confirms: &mut Confirms<String>) {
            for tag in tags {
                self.unconfirmed.remove(&tag);
                confirms.resolve(self.waiting.pop_front(), tag.to_string());
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(bool),
        Confirm(Vec<prop::sample::Index>),
    }

    proptest! {
        #[test]
        fn every_push_gets_its_own_verdict(steps in prop::collection::vec(prop_oneof![
            3 => any::<bool>().prop_map(Step::Push),
            1 => prop::collection::vec(any::<prop::sample::Index>(), 1..5).prop_map(Step::Confirm),
        ], 1..200)) {
            let (mut wire, mut confirms, mut seen) = (Wire::default(), Confirms::default(), 0);
            let confirm_all = Step::Confirm(Vec::new());
            for step in steps.into_iter().chain([confirm_all]) {
                match step {
                    Step::Push(routable) => wire.push(routable),
                    Step::Confirm(choices) => {
                        let mut left: Vec<_> = wire.unconfirmed.iter().copied().collect();
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
                        for (push, verdict) in confirms.judge() {
                            prop_assert_eq!(verdict, wire.truth[&push.parse::<u64>().expect("a tag")], "of push {}", push);
                            seen += 1;
                        }
                    }
                }
            }
            prop_assert_eq!(seen, wire.next, "everything is judged when all is confirmed");
        }
    }
}
