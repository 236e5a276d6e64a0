//! Which offsets of one partition are settled, and what of that is committed.
//!
//! Kafka keeps one number per partition and group: everything below it is done. Jobs end in any
//! order, so only the contiguous prefix is committed, and what ended above it travels in the
//! commit's metadata: after a crash it is not run again.

use std::collections::BTreeMap;
use std::fmt::Write;

/// Characters of metadata in a commit: the broker refuses 4,096, and a much larger one breaks the
/// connection.
const MAX_METADATA: usize = 4_000;
/// Characters of these for the attempts of jobs that are retried in place.
const MAX_ATTEMPTS: usize = 1_000;
/// What metadata of ours begins with.
const VERSION: &str = "jobs1:";

/// What a commit says about the offsets above it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Above {
    /// Ranges that ended, from and to, in order.
    finished: Vec<(i64, i64)>,
    /// Attempts of jobs that were tried in place.
    attempts: BTreeMap<i64, u32>,
}

impl Above {
    /// Reads metadata; nothing if it is not ours.
    pub(crate) fn read(base: i64, metadata: &str) -> Self {
        Self::parse(base, metadata).unwrap_or_default()
    }

    fn parse(base: i64, metadata: &str) -> Option<Self> {
        let (finished, attempts) = metadata.strip_prefix(VERSION)?.split_once(';')?;
        let mut above = Self::default();
        let mut at = base;
        for range in finished.split(',').filter(|range| !range.is_empty()) {
            let (skipped, length) = range.split_once('+')?;
            let from = at.checked_add(number(skipped)?)?;
            at = from.checked_add(number(length)?)?;
            above.finished.push((from, at));
        }
        for attempt in attempts.split(',').filter(|attempt| !attempt.is_empty()) {
            let (offset, attempt) = attempt.split_once('=')?;
            let offset = base.checked_add(number(offset)?)?;
            above.attempts.insert(offset, attempt.parse().ok()?);
        }
        Some(above)
    }

    /// How many offsets ended.
    pub(crate) fn count(&self) -> i64 {
        self.finished.iter().map(|(from, to)| to - from).sum()
    }

    fn has_finished(&self, offset: i64) -> bool {
        let after = self.finished.partition_point(|(from, _)| *from <= offset);
        after.checked_sub(1).is_some_and(|index| offset < self.finished[index].1)
    }
}

fn number(digits: &str) -> Option<i64> {
    i64::from_str_radix(digits, 16).ok().filter(|number| *number >= 0)
}

/// What an offset is that was just fetched.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// To be run. It was tried in place so often before, if it was.
    New(Option<u32>),
    /// It ended under an earlier owner of the partition.
    Finished,
    /// Below one that was fetched before: the partition begins anew, because it was made again or
    /// what was to be fetched is gone. Everything is to be fetched again from this offset on: what is
    /// before it is settled.
    Backwards(i64),
}

/// The offsets of a partition since it was assigned. `T` is what is known of one that is unsettled.
#[derive(Debug)]
pub(crate) struct Offsets<T> {
    unsettled: BTreeMap<i64, T>,
    /// One more than the last one that was fetched.
    next: Option<i64>,
    /// What the commit said that was found.
    earlier: Above,
}

impl<T> Offsets<T> {
    pub(crate) fn new(earlier: Above) -> Self {
        Self { unsettled: BTreeMap::new(), next: None, earlier }
    }

    /// An offset was fetched. One that is new has to be [added](Self::add).
    pub(crate) fn arrive(&mut self, offset: i64) -> Arrival {
        if self.next.is_some_and(|next| offset < next) {
            return Arrival::Backwards(self.base().map_or(offset, |base| base.min(offset)));
        }
        self.next = Some(offset + 1);
        match self.earlier.has_finished(offset) {
            true => Arrival::Finished,
            false => Arrival::New(self.earlier.attempts.get(&offset).copied()),
        }
    }

    pub(crate) fn add(&mut self, offset: i64, value: T) {
        self.unsettled.insert(offset, value);
    }

    pub(crate) fn get_mut(&mut self, offset: i64) -> Option<&mut T> {
        self.unsettled.get_mut(&offset)
    }

    /// An offset is settled for good.
    pub(crate) fn finish(&mut self, offset: i64) -> Option<T> {
        self.unsettled.remove(&offset)
    }

    pub(crate) fn unsettled(&self) -> impl Iterator<Item = (i64, &T)> {
        self.unsettled.iter().map(|(offset, value)| (*offset, value))
    }

    pub(crate) fn len(&self) -> usize {
        self.unsettled.len()
    }

    /// One more than the last one that was fetched, if any was.
    pub(crate) fn next(&self) -> Option<i64> {
        self.next
    }

    /// Everything below is settled. `None` before the first fetch.
    pub(crate) fn base(&self) -> Option<i64> {
        self.unsettled.keys().next().copied().or(self.next)
    }

    /// From the first unsettled offset to the last that was fetched.
    pub(crate) fn span(&self) -> i64 {
        self.next.zip(self.base()).map_or(0, |(next, base)| next - base)
    }

    /// What to commit: the offset, and what is known above it, as far as it fits.
    pub(crate) fn commit(&self, attempt: impl Fn(&T) -> u32) -> Option<(i64, String)> {
        let (base, next) = (self.base()?, self.next?);
        let mut tried = String::new();
        let ours = self.unsettled.iter().map(|(offset, value)| (*offset, attempt(value)));
        let unseen = self.earlier.attempts.range(next..).map(|(offset, tries)| (*offset, *tries));
        for (offset, attempt) in ours.filter(|(_, attempt)| *attempt > 1).chain(unseen) {
            let length = tried.len();
            let comma = if tried.is_empty() { "" } else { "," };
            let _ = write!(tried, "{comma}{:x}={attempt}", offset - base);
            if tried.len() > MAX_ATTEMPTS {
                tried.truncate(length);
                break;
            }
        }
        let mut metadata = VERSION.to_owned();
        let room = MAX_METADATA - tried.len() - 1;
        let mut at = base;
        let unseen = self.earlier.finished.iter().filter(|(_, to)| *to > next);
        let unseen = unseen.map(|(from, to)| ((*from).max(next), *to));
        for (from, to) in self.finished(base, next).chain(unseen) {
            let length = metadata.len();
            let comma = if at == base { "" } else { "," };
            let _ = write!(metadata, "{comma}{:x}+{:x}", from - at, to - from);
            if metadata.len() > room {
                metadata.truncate(length);
                break;
            }
            at = to;
        }
        if at == base && tried.is_empty() {
            return Some((base, String::new()));
        }
        metadata.push(';');
        metadata.push_str(&tried);
        Some((base, metadata))
    }

    /// The ranges between those that are unsettled.
    fn finished(&self, base: i64, next: i64) -> impl Iterator<Item = (i64, i64)> {
        let ends = self.unsettled.keys().copied().chain([next]);
        let starts = [base].into_iter().chain(self.unsettled.keys().map(|offset| offset + 1));
        starts.zip(ends).filter(|(from, to)| from < to)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What happens to a partition: an offset is fetched so far beyond the last, or one of the
    /// unsettled ones ends.
    #[derive(Clone, Debug)]
    enum Step {
        Fetch(i64),
        Finish(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let fetch = prop_oneof![8 => Just(1_i64), 1 => 2_i64..9].prop_map(Step::Fetch);
        let finish = any::<prop::sample::Index>().prop_map(Step::Finish);
        prop::collection::vec(prop_oneof![fetch, finish], 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn commits_the_contiguous_prefix_and_remembers_the_rest(start in 0_i64..1_000, steps in steps()) {
            let mut offsets = Offsets::new(Above::default());
            let (mut unsettled, mut fetched) = (BTreeSet::new(), BTreeSet::new());
            let mut at = start - 1;
            for step in steps {
                match step {
                    Step::Fetch(further) => {
                        at += further;
                        prop_assert_eq!(offsets.arrive(at), Arrival::New(None));
                        offsets.add(at, 1_u32);
                        unsettled.insert(at);
                        fetched.insert(at);
                    }
                    Step::Finish(_) if unsettled.is_empty() => {}
                    Step::Finish(index) => {
                        let offset = *index.get(&unsettled.iter().copied().collect::<Vec<_>>());
                        unsettled.remove(&offset);
                        prop_assert!(offsets.finish(offset).is_some());
                        prop_assert!(offsets.finish(offset).is_none(), "only once");
                    }
                }
                let Some((base, metadata)) = offsets.commit(|attempt| *attempt) else {
                    prop_assert!(fetched.is_empty());
                    continue;
                };
                prop_assert!(unsettled.iter().all(|offset| *offset >= base), "committed early");
                prop_assert_eq!(base, unsettled.first().copied().unwrap_or(at + 1));
                prop_assert!(metadata.is_ascii() && metadata.len() <= MAX_METADATA);
                let above = Above::read(base, &metadata);
                for offset in fetched.range(base..) {
                    prop_assert_eq!(above.has_finished(*offset), !unsettled.contains(offset));
                }
            }
        }

        #[test]
        fn the_next_owner_runs_what_is_left_and_nothing_twice(
            settled in prop::collection::vec(any::<bool>(), 1..300),
            seen in any::<prop::sample::Index>(),
        ) {
            let mut first = Offsets::new(Above::default());
            for offset in 0..settled.len() as i64 {
                first.arrive(offset);
                first.add(offset, 1 + (offset % 3) as u32);
            }
            for (offset, _) in settled.iter().enumerate().filter(|(_, settled)| **settled) {
                first.finish(offset as i64);
            }
            let (base, metadata) = first.commit(|attempt| *attempt).expect("something was fetched");
            // One that fetches a part, settles nothing and dies must not forget the rest.
            let mut second = Offsets::new(Above::read(base, &metadata));
            for offset in base..base + seen.index(settled.len()) as i64 {
                if let Arrival::New(attempt) = second.arrive(offset) {
                    second.add(offset, attempt.unwrap_or(1));
                }
            }
            let commit = second.commit(|attempt| *attempt).unwrap_or((base, metadata));
            let mut third = Offsets::<u32>::new(Above::read(commit.0, &commit.1));
            for offset in commit.0..settled.len() as i64 {
                let expected = match settled[offset as usize] {
                    true => Arrival::Finished,
                    false => Arrival::New(Some(1 + (offset % 3) as u32).filter(|tries| *tries > 1)),
                };
                prop_assert_eq!(third.arrive(offset), expected, "offset {}", offset);
            }
        }

        #[test]
        fn any_metadata_is_read(base in any::<i64>(), metadata in ".{0,60}", tail in "[0-9a-f+,;=]{0,60}") {
            Above::read(base, &metadata);
            Above::read(base, &format!("{VERSION}{tail}"));
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let mut offsets = Offsets::new(Above::default());
        for offset in 0..20_000 {
            offsets.arrive(offset);
            offsets.add(offset, 1 + u32::from(offset % 2 == 0));
        }
        for offset in (1..20_000).step_by(2) {
            assert!(offsets.finish(offset).is_some());
        }
        let (base, metadata) = offsets.commit(|attempt| *attempt).expect("fetched");
        assert_eq!(base, 0);
        assert!(metadata.len() > MAX_METADATA - 20 && metadata.len() <= MAX_METADATA);
        let above = Above::read(base, &metadata);
        assert!(above.finished.len() > 500 && above.attempts.len() > 100);
        assert!(above.finished.iter().all(|(from, to)| from % 2 == 1 && to - from == 1));
    }

    #[test]
    fn a_partition_that_begins_anew_is_noticed() {
        let mut offsets = Offsets::new(Above::default());
        assert_eq!(offsets.base(), None);
        assert_eq!(offsets.arrive(7), Arrival::New(None));
        offsets.add(7, 1);
        assert_eq!(offsets.arrive(7), Arrival::Backwards(7));
        assert_eq!(offsets.arrive(0), Arrival::Backwards(0));
        assert_eq!((offsets.base(), offsets.next(), offsets.span()), (Some(7), Some(8), 1));
    }

    #[test]
    fn what_begins_anew_leaves_out_nothing_that_is_not_settled() {
        let mut offsets = Offsets::new(Above::default());
        for offset in 3..9 {
            offsets.arrive(offset);
            offsets.add(offset, 1);
        }
        assert!(offsets.finish(3).is_some() && offsets.finish(5).is_some());
        assert_eq!(offsets.arrive(6), Arrival::Backwards(4));
        assert_eq!(offsets.arrive(2), Arrival::Backwards(2));
    }
}
