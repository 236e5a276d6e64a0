//! Jobs that were handed out in this process and are not settled.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Instant;

use jobs_core::Token;

use crate::store::Standing;

/// The right of one consumer to one job.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) token: Token,
    pub(crate) consumer: u64,
    pub(crate) job: Standing,
    /// When `max_lease` ends it; none: it does not.
    pub(crate) end: Option<Instant>,
}

/// Leases by token. A token is used once, so that it never matches a later lease.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    by_token: HashMap<Token, Lease>,
    ends: BTreeSet<(Instant, Token)>,
    jobs: HashSet<i64>,
    last_token: Token,
}

impl Leases {
    pub(crate) fn next_token(&mut self) -> Token {
        self.last_token += 1;
        self.last_token
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_token.is_empty()
    }

    /// Leases of the jobs of one queue.
    pub(crate) fn of_queue(&self, queue: i64) -> usize {
        self.by_token.values().filter(|lease| lease.job.queue == queue).count()
    }

    pub(crate) fn has_job(&self, seq: i64) -> bool {
        self.jobs.contains(&seq)
    }

    pub(crate) fn get(&self, token: Token) -> Option<&Lease> {
        self.by_token.get(&token)
    }

    pub(crate) fn insert(&mut self, lease: Lease) {
        self.ends.extend(lease.end.map(|end| (end, lease.token)));
        self.jobs.insert(lease.job.seq);
        self.by_token.insert(lease.token, lease);
    }

    /// Ends a lease: none if it ended before.
    pub(crate) fn remove(&mut self, token: Token) -> Option<Lease> {
        let lease = self.by_token.remove(&token)?;
        if let Some(end) = lease.end {
            self.ends.remove(&(end, token));
        }
        self.jobs.remove(&lease.job.seq);
        Some(lease)
    }

    /// Lets a lease end no sooner than `end`.
    pub(crate) fn extend(&mut self, token: Token, end: Instant) {
        let Some(lease) = self.by_token.get_mut(&token) else { return };
        if let Some(before) = lease.end.filter(|before| *before < end) {
            lease.end = Some(end);
            self.ends.remove(&(before, token));
            self.ends.insert((end, token));
        }
    }

    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|(end, _)| *end)
    }

    /// Takes out the leases that ended.
    pub(crate) fn take_ended(&mut self, now: Instant) -> Vec<Lease> {
        let mut ended = Vec::new();
        while let Some((_, token)) = self.ends.first().filter(|(end, _)| *end <= now).copied() {
            ended.extend(self.remove(token));
        }
        ended
    }

    /// Takes out all leases of a consumer.
    pub(crate) fn take_consumer(&mut self, consumer: u64) -> Vec<Lease> {
        let of_consumer = self.by_token.values().filter(|lease| lease.consumer == consumer);
        let tokens: Vec<_> = of_consumer.map(|lease| lease.token).collect();
        tokens.into_iter().filter_map(|token| self.remove(token)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn lease(leases: &mut Leases, consumer: u64, end: Option<Instant>) -> Token {
        let token = leases.next_token();
        let seq = i64::try_from(token).unwrap();
        let job = Standing { seq, queue: 1, priority: 10, place: seq, attempt: 1 };
        leases.insert(Lease { token, consumer, job, end });
        token
    }

    fn tokens(leases: &[Lease]) -> Vec<Token> {
        leases.iter().map(|lease| lease.token).collect()
    }

    #[test]
    fn a_token_never_matches_a_later_lease() {
        let mut leases = Leases::default();
        let first = lease(&mut leases, 1, None);
        assert!(leases.has_job(1) && leases.remove(first).is_some());
        let second = lease(&mut leases, 1, None);
        assert!(leases.remove(first).is_none() && leases.get(first).is_none());
        assert!(!leases.has_job(1) && leases.get(second).is_some());
        assert_eq!(leases.of_queue(1), 1);
    }

    #[test]
    fn leases_end_in_order_and_later_if_extended() {
        let mut leases = Leases::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let first = lease(&mut leases, 1, Some(at(1)));
        let second = lease(&mut leases, 1, Some(at(2)));
        let never = lease(&mut leases, 1, None);
        leases.extend(first, at(3));
        leases.extend(second, at(1));
        leases.extend(never, at(1));
        assert_eq!(leases.next_end(), Some(at(2)), "never sooner than before");
        assert_eq!(tokens(&leases.take_ended(at(2))), [second]);
        assert_eq!(tokens(&leases.take_ended(at(9))), [first]);
        assert_eq!((leases.next_end(), leases.is_empty()), (None, false));
    }

    #[test]
    fn a_consumer_takes_only_its_own_with_it() {
        let mut leases = Leases::default();
        let first = lease(&mut leases, 1, Some(Instant::now()));
        let second = lease(&mut leases, 2, None);
        assert_eq!(tokens(&leases.take_consumer(1)), [first]);
        assert_eq!((leases.next_end(), leases.get(second).is_some()), (None, true));
    }
}
