//! Which frames settle which deliveries of one channel, decided without I/O.
//!
//! `basic.ack` with `multiple` settles *every* delivery up to its tag: with 1, 2, 4 and 5 acked and
//! 3 running, merging 1 to 5 would lose job 3. So acks are merged only below the first delivery
//! that is not settled. Frames are written in the order given here by one task, so that what an ack
//! passes over has been settled by an earlier frame.

use std::collections::BTreeMap;

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

/// The deliveries of one channel that are not settled, with the time each came.
#[derive(Debug, Default)]
pub(crate) struct Unsettled(BTreeMap<Tag, Instant>);

impl Unsettled {
    pub(crate) fn deliver(&mut self, tag: Tag, now: Instant) {
        self.0.insert(tag, now);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// True if nothing up to `tag` is unsettled.
    pub(crate) fn settled_up_to(&self, tag: Tag) -> bool {
        self.0.first_key_value().is_none_or(|(first, _)| *first > tag)
    }

    /// Those that came before `then`, oldest first.
    pub(crate) fn since_before(&self, then: Instant) -> impl Iterator<Item = Tag> {
        self.0.iter().take_while(move |(_, at)| **at < then).map(|(tag, _)| *tag)
    }

    /// The frames that settle these deliveries, to be written in order and before later ones.
    pub(crate) fn settle(&mut self, settled: &[(Tag, Verb)]) -> Vec<Frame> {
        for (tag, _) in settled {
            self.0.remove(tag);
        }
        let running = self.0.first_key_value().map_or(Tag::MAX, |(tag, _)| *tag);
        let is_ack = |verb: Verb| verb == Verb::Ack;
        let others = settled.iter().filter(|(_, verb)| !is_ack(*verb));
        let mut frames: Vec<_> = others.map(|(tag, verb)| Frame::One(*tag, *verb)).collect();
        let acks = || settled.iter().filter(|(_, verb)| is_ack(*verb)).map(|(tag, _)| *tag);
        let below = || acks().filter(|tag| *tag < running);
        frames.extend(match (below().max(), below().nth(1)) {
            (Some(highest), Some(_)) => Some(Frame::AckUpTo(highest)),
            (only, _) => only.map(|tag| Frame::One(tag, Verb::Ack)),
        });
        frames.extend(acks().filter(|tag| *tag > running).map(|tag| Frame::One(tag, Verb::Ack)));
        frames
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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

    #[tokio::test]
    async fn old_deliveries_are_known_by_their_age() {
        let mut unsettled = delivered(2);
        let then = Instant::now() + std::time::Duration::from_secs(1);
        unsettled.deliver(3, then);
        unsettled.settle(&[(1, Verb::Ack)]);
        assert_eq!(unsettled.since_before(then).collect::<Vec<_>>(), [2]);
        assert!(unsettled.settled_up_to(1) && !unsettled.settled_up_to(2));
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
        Deliver,
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
            3 => Just(Step::Deliver),
            1 => prop::collection::vec((any::<prop::sample::Index>(), verb), 1..12)
                .prop_map(Step::Settle),
        ]
    }

    proptest! {
        #[test]
        fn the_broker_settles_exactly_what_was_settled(steps in prop::collection::vec(step(), 1..200)) {
            let (mut unsettled, mut broker) = (Unsettled::default(), Broker::default());
            let mut running = Vec::new();
            let mut last = 0;
            for step in steps {
                match step {
                    Step::Deliver => {
                        last += 1;
                        unsettled.deliver(last, Instant::now());
                        broker.0.insert(last);
                        running.push(last);
                    }
                    Step::Settle(choices) => {
                        let mut settled = Vec::new();
                        for (index, verb) in choices {
                            if !running.is_empty() {
                                settled.push((running.swap_remove(index.index(running.len())), verb));
                            }
                        }
                        let frames = unsettled.settle(&settled);
                        prop_assert!(frames.len() <= settled.len());
                        let mut seen: Vec<_> =
                            frames.into_iter().flat_map(|frame| broker.write(frame)).collect();
                        seen.sort_by_key(|(tag, _)| *tag);
                        settled.sort_by_key(|(tag, _)| *tag);
                        prop_assert_eq!(seen, settled);
                    }
                }
                let mut left = running.clone();
                left.sort_unstable();
                prop_assert_eq!(broker.0.iter().copied().collect::<Vec<_>>(), left);
                prop_assert_eq!(unsettled.len(), running.len());
            }
        }
    }
}
