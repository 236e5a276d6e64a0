//! Which frames settle which deliveries of one channel, decided without I/O.
//!
//! `basic.ack` with `multiple` settles *every* delivery up to its tag: with 1, 2, 4 and 5 acked and
//! 3 running, merging 1 to 5 would lose job 3. So acks are merged only below the first delivery
//! that is not settled. What the broker sent and nobody has looked at yet counts as not settled:
//! with two subscriptions on a channel, each with a buffer in the client, higher tags are seen before
//! lower ones. Frames are written in the order given here by one task, so that what an ack passes
//! over has been settled by an earlier frame.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

/// A delivery tag: 1, 2, 3, … on each channel.
pub(crate) type Tag = u64;

/// How one delivery ends at the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Ack,
    /// Without requeue: to the dead-letter exchange, else discarded.
    Reject,
    /// Back to the queue. From RabbitMQ 4.3 `basic.nack` does not count as a failed delivery.
    Release,
    /// Back to the queue; `basic.reject` counts as a failed delivery.
    Abandon,
}

/// A frame to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Settles this delivery only.
    One(Tag, Verb),
    /// Acks everything up to this tag.
    AckUpTo(Tag),
}

/// The deliveries of one channel that are not settled.
#[derive(Debug)]
pub(crate) struct Unsettled {
    /// With the time each came.
    since: BTreeMap<Tag, Instant>,
    /// The lowest tag that has not come: tags have no holes, so it is on its way.
    next: Tag,
    /// Tags that came before a lower one.
    ahead: BTreeSet<Tag>,
}

impl Default for Unsettled {
    fn default() -> Self {
        Self { since: BTreeMap::new(), next: 1, ahead: BTreeSet::new() }
    }
}

impl Unsettled {
    pub(crate) fn deliver(&mut self, tag: Tag, now: Instant) {
        self.since.insert(tag, now);
        if tag != self.next {
            self.ahead.insert(tag);
            return;
        }
        self.next += 1;
        while self.ahead.remove(&self.next) {
            self.next += 1;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.since.len()
    }

    /// True if nothing up to `tag` is unsettled.
    pub(crate) fn settled_up_to(&self, tag: Tag) -> bool {
        self.since.first_key_value().is_none_or(|(first, _)| *first > tag)
    }

    /// Every tag up to this one has come.
    pub(crate) fn come_up_to(&self) -> Tag {
        self.next - 1
    }

    /// Those that came before `then`.
    pub(crate) fn since_before(&self, then: Instant) -> impl Iterator<Item = Tag> {
        self.since.iter().filter(move |(_, at)| **at < then).map(|(tag, _)| *tag)
    }

    /// The frames that settle these deliveries, to be written in order and before later ones.
    pub(crate) fn settle(&mut self, settled: &[(Tag, Verb)]) -> Vec<Frame> {
        for (tag, _) in settled {
            self.since.remove(tag);
        }
        let running =
            self.since.first_key_value().map_or(self.next, |(tag, _)| self.next.min(*tag));
        let is_ack = |verb: Verb| verb == Verb::Ack;
        let others = settled.iter().filter(|(_, verb)| !is_ack(*verb));
        let mut frames: Vec<_> = others.map(|(tag, verb)| Frame::One(*tag, *verb)).collect();
        let acks = || settled.iter().filter(|(_, verb)| is_ack(*verb)).map(|(tag, _)| *tag);
        let below = || acks().filter(|tag| *tag < running);
        frames.extend(match (below().max(), below().nth(1)) {
            (Some(highest), Some(_)) => Some(Frame::AckUpTo(highest)),
            (only, _) => only.map(|tag| Frame::One(tag, Verb::Ack)),
        });
        frames.extend(acks().filter(|tag| *tag >= running).map(|tag| Frame::One(tag, Verb::Ack)));
        frames
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn delivered(count: Tag) -> Unsettled {
        let mut unsettled = Unsettled::default();
        (1..=count).for_each(|tag| unsettled.deliver(tag, Instant::now()));
        unsettled
    }

    #[test]
    fn acks_are_merged_only_below_what_runs() {
        let mut unsettled = delivered(5);
        let acks = [1, 2, 4, 5].map(|tag| (tag, Verb::Ack));
        let frames = unsettled.settle(&acks);
        let single = |tag| Frame::One(tag, Verb::Ack);
        assert_eq!(frames, [Frame::AckUpTo(2), single(4), single(5)]);
        assert_eq!(unsettled.settle(&[(3, Verb::Ack)]), [single(3)]);
    }

    #[test]
    fn what_an_ack_passes_over_is_written_first() {
        let frames = delivered(3).settle(&[(3, Verb::Ack), (2, Verb::Release), (1, Verb::Ack)]);
        assert_eq!(frames, [Frame::One(2, Verb::Release), Frame::AckUpTo(3)]);
    }

    #[test]
    fn acks_are_not_merged_past_what_nobody_has_looked_at() {
        let mut unsettled = Unsettled::default();
        [1, 2, 4, 6].into_iter().for_each(|tag| unsettled.deliver(tag, Instant::now()));
        let acks = [1, 2, 4, 6].map(|tag| (tag, Verb::Ack));
        let single = |tag| Frame::One(tag, Verb::Ack);
        assert_eq!(unsettled.settle(&acks), [Frame::AckUpTo(2), single(4), single(6)]);
        // Nothing is missing below 7 any more.
        [5, 3, 7].into_iter().for_each(|tag| unsettled.deliver(tag, Instant::now()));
        let acks = [7, 3, 5].map(|tag| (tag, Verb::Ack));
        assert_eq!(unsettled.settle(&acks), [Frame::AckUpTo(7)]);
    }

    #[tokio::test]
    async fn old_deliveries_are_known_by_their_age() {
        let mut unsettled = delivered(2);
        let then = Instant::now() + std::time::Duration::from_secs(1);
        unsettled.deliver(4, Instant::now());
        unsettled.deliver(3, then);
        unsettled.settle(&[(1, Verb::Ack)]);
        assert_eq!(unsettled.since_before(then).collect::<Vec<_>>(), [2, 4]);
        assert!(unsettled.settled_up_to(1) && !unsettled.settled_up_to(2));
        assert_eq!(unsettled.come_up_to(), 4);
    }

    /// What the broker holds unsettled, with what it refuses.
    #[derive(Default)]
    struct Broker(BTreeSet<Tag>);

    impl Broker {
        /// The deliveries a frame settles.
        fn write(&mut self, frame: Frame) -> Vec<(Tag, Verb)> {
            match frame {
                Frame::One(tag, verb) => {
                    assert!(self.0.remove(&tag), "unknown delivery tag {tag}: the channel closes");
                    vec![(tag, verb)]
                }
                Frame::AckUpTo(tag) => {
                    assert!(
                        self.0.contains(&tag),
                        "unknown delivery tag {tag}: the channel closes"
                    );
                    let above = self.0.split_off(&(tag + 1));
                    let settled = std::mem::replace(&mut self.0, above);
                    settled.into_iter().map(|tag| (tag, Verb::Ack)).collect()
                }
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// The broker sends one more.
        Send,
        /// Somebody looks at one of those that were sent: a position among them.
        Deliver(prop::sample::Index),
        /// Settles some of what runs: positions among it, with how.
        Settle(Vec<(prop::sample::Index, Verb)>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let verb = prop_oneof![
            8 => Just(Verb::Ack),
            1 => Just(Verb::Reject),
            1 => Just(Verb::Release),
            1 => Just(Verb::Abandon),
        ];
        prop_oneof![
            3 => Just(Step::Send),
            3 => any::<prop::sample::Index>().prop_map(Step::Deliver),
            1 => prop::collection::vec((any::<prop::sample::Index>(), verb), 1..12)
                .prop_map(Step::Settle),
        ]
    }

    proptest! {
        #[test]
        fn the_broker_settles_exactly_what_was_settled(
            in_order in any::<bool>(),
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let (mut unsettled, mut broker) = (Unsettled::default(), Broker::default());
            let (mut buffered, mut running) = (VecDeque::new(), Vec::new());
            let mut last = 0;
            for step in steps {
                match step {
                    Step::Send => {
                        last += 1;
                        broker.0.insert(last);
                        buffered.push_back(last);
                    }
                    Step::Deliver(_) if buffered.is_empty() => {}
                    Step::Deliver(index) => {
                        let index = if in_order { 0 } else { index.index(buffered.len()) };
                        let tag = buffered.remove(index).unwrap();
                        unsettled.deliver(tag, Instant::now());
                        running.push(tag);
                    }
                    Step::Settle(choices) => {
                        let mut settled = Vec::new();
                        for (index, verb) in choices {
                            if !running.is_empty() {
                                settled.push((running.swap_remove(index.index(running.len())), verb));
                            }
                        }
                        let frames = unsettled.settle(&settled);
                        let mut seen: Vec<_> =
                            frames.iter().flat_map(|frame| broker.write(*frame)).collect();
                        seen.sort_by_key(|(tag, _)| *tag);
                        settled.sort_by_key(|(tag, _)| *tag);
                        prop_assert_eq!(seen, settled);
                        // What can be merged is.
                        let open = broker.0.first().copied().unwrap_or(Tag::MAX);
                        let merged = frames.iter().filter(|frame| match frame {
                            Frame::One(tag, verb) => *verb == Verb::Ack && *tag < open,
                            Frame::AckUpTo(_) => true,
                        });
                        prop_assert!(merged.count() <= 1, "{:?} with {} open", frames, open);
                    }
                }
                let mut left: Vec<_> = running.iter().chain(&buffered).copied().collect();
                left.sort_unstable();
                prop_assert_eq!(broker.0.iter().copied().collect::<Vec<_>>(), left);
                prop_assert_eq!(unsettled.len(), running.len());
            }
        }
    }
}
