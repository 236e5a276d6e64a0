//! Leases: for how long received messages are ours, and when to ask for more time.
//!
//! The service counts from when it hands a message out, which is after the request was sent: counted
//! from there, a lease ends here no later than there.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jobs_core::Token;
use tokio::time::Instant;

use crate::config::LONGEST_LEASE;

/// An extension that failed is tried again after a part of the time that is left, and not sooner.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// A message that is ours for a while.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) handle: String,
    /// The group in a FIFO queue.
    pub(crate) group: Option<Arc<str>>,
    /// Before it was asked for.
    received: Instant,
    /// Ours for certain until then.
    ends: Instant,
    /// Extended until then.
    most: Instant,
    /// When to look after it.
    next: Instant,
    /// Its outcome was handed over.
    pub(crate) settling: bool,
    /// A request that changes its visibility is under way: others wait, lest they pass it.
    pub(crate) changing: bool,
}

/// What an extension asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extension {
    pub(crate) token: Token,
    pub(crate) handle: String,
    pub(crate) seconds: i32,
}

/// What is to be done about leases now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) extend: Vec<Extension>,
    pub(crate) ended: Vec<Token>,
}

/// The leases of a consumer.
#[derive(Debug)]
pub(crate) struct Leases {
    /// What is asked for at a time.
    visibility: Duration,
    max_lease: Duration,
    leases: HashMap<Token, Lease>,
    agenda: BTreeSet<(Instant, Token)>,
}

impl Lease {
    /// The last moment of its message's twelve hours.
    fn limit(&self) -> Instant {
        self.received + LONGEST_LEASE
    }

    /// Seconds that last until the latest moment that is wanted; none if there are none to be had.
    fn seconds(&self, wanted: Duration, now: Instant) -> Option<i32> {
        let allowed = self.limit().saturating_duration_since(now).as_secs();
        let seconds = whole_seconds(wanted).min(allowed);
        i32::try_from(seconds).ok().filter(|seconds| *seconds > 0)
    }

    /// Half of what is left, or all if it cannot be more.
    fn look_after(&self, now: Instant) -> Instant {
        if self.most > self.ends {
            now + self.ends.saturating_duration_since(now) / 2
        } else {
            self.ends
        }
    }

    /// When to look after it if it could not be extended.
    fn again(&self, now: Instant) -> Instant {
        let left = self.ends.saturating_duration_since(now);
        (now + (left / 4).max(SHORTEST_PAUSE)).min(self.ends)
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.ends <= now
    }
}

impl Leases {
    pub(crate) fn new(visibility: Duration, max_lease: Option<Duration>) -> Self {
        let max_lease = max_lease.unwrap_or(LONGEST_LEASE).min(LONGEST_LEASE);
        Self { visibility, max_lease, leases: HashMap::new(), agenda: BTreeSet::new() }
    }

    /// The visibility to receive with, in seconds.
    pub(crate) fn first(&self) -> i32 {
        let seconds = whole_seconds(self.visibility.min(self.max_lease)).max(1);
        i32::try_from(seconds).unwrap_or(i32::MAX)
    }

    /// A message that was asked for at `received`, and whose visibility was set at `asked`.
    pub(crate) fn hold(
        &mut self,
        token: Token,
        handle: String,
        group: Option<Arc<str>>,
        received: Instant,
        asked: Instant,
    ) {
        let most = (asked + self.max_lease).min(received + LONGEST_LEASE);
        let ends = (asked + seconds_of(self.first())).min(most);
        let mut lease = Lease {
            handle,
            group,
            received,
            ends,
            most,
            next: ends,
            settling: false,
            changing: false,
        };
        lease.next = lease.look_after(asked);
        self.agenda.insert((lease.next, token));
        self.leases.insert(token, lease);
    }

    /// A lease that has not ended.
    pub(crate) fn get(&mut self, token: Token, now: Instant) -> Option<&mut Lease> {
        self.leases.get_mut(&token).filter(|lease| !lease.is_over(now))
    }

    /// A lease, ended or not.
    pub(crate) fn any(&mut self, token: Token) -> Option<&mut Lease> {
        self.leases.get_mut(&token)
    }

    pub(crate) fn remove(&mut self, token: Token) -> Option<Lease> {
        let lease = self.leases.remove(&token)?;
        self.agenda.remove(&(lease.next, token));
        Some(lease)
    }

    /// Those whose outcome was not handed over.
    pub(crate) fn unsettled(&self) -> Vec<Token> {
        let mut tokens: Vec<_> = self
            .leases
            .iter()
            .filter_map(|(token, lease)| (!lease.settling).then_some(*token))
            .collect();
        tokens.sort_unstable();
        tokens
    }

    /// When to ask what is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.agenda.first().map(|(next, _)| *next)
    }

    fn reschedule(&mut self, token: Token, next: Instant) {
        if let Some(lease) = self.leases.get_mut(&token) {
            self.agenda.remove(&(lease.next, token));
            lease.next = next;
            self.agenda.insert((next, token));
        }
    }

    /// What is to be done now. Leases whose time has come soon after are extended along, in one
    /// request. One that has ended is told of once: whoever asks removes it, unless it is being settled.
    pub(crate) fn due(&mut self, now: Instant) -> Due {
        let mut due = Due::default();
        let soon = now + self.visibility / 8;
        let later = self.agenda.split_off(&(soon, Token::MAX));
        for (_, token) in std::mem::replace(&mut self.agenda, later) {
            let Some(lease) = self.leases.get_mut(&token) else { continue };
            if lease.is_over(now) {
                due.ended.push(token);
                continue;
            }
            let left = lease.most.saturating_duration_since(now);
            let seconds = lease.seconds(self.visibility.min(left), now);
            let gains = |seconds: &i32| (now + seconds_of(*seconds)).min(lease.most) > lease.ends;
            lease.next = match seconds.filter(gains) {
                // It may be a longer one.
                Some(_) if lease.changing => lease.again(now),
                Some(seconds) => {
                    lease.changing = true;
                    due.extend.push(Extension { token, handle: lease.handle.clone(), seconds });
                    lease.ends
                }
                None => lease.ends,
            };
            self.agenda.insert((lease.next, token));
        }
        due
    }

    /// The visibility was set to `seconds` by a request sent at `asked`.
    pub(crate) fn extended(&mut self, token: Token, seconds: i32, asked: Instant) {
        let Some(lease) = self.leases.get_mut(&token) else { return };
        lease.ends = (asked + seconds_of(seconds)).min(lease.most);
        let next = lease.look_after(asked);
        self.reschedule(token, next);
    }

    /// It was not: the lease lasts as long as it did.
    pub(crate) fn not_extended(&mut self, token: Token, now: Instant) {
        let Some(lease) = self.leases.get_mut(&token) else { return };
        let next = lease.again(now);
        self.reschedule(token, next);
    }

    /// What makes the lease last `by` from now, whatever its most was. `Ok(None)`: nothing, it does.
    /// `Err`: more than the service allows.
    pub(crate) fn extend(
        &mut self,
        token: Token,
        by: Duration,
        now: Instant,
    ) -> Option<Result<Option<Extension>, Duration>> {
        let visibility = self.visibility;
        let lease = self.get(token, now)?;
        let allowed = lease.limit().saturating_duration_since(now);
        if by > allowed {
            return Some(Err(allowed));
        }
        let until = now + by;
        lease.most = lease.most.max(until);
        if until <= lease.ends {
            let next = lease.look_after(now);
            self.reschedule(token, next);
            return Some(Ok(None));
        }
        let seconds = lease.seconds(by.max(visibility.min(lease.most - now)), now)?;
        Some(Ok(Some(Extension { token, handle: lease.handle.clone(), seconds })))
    }

    /// True if a visibility of `delay` from about now stays within the message's twelve hours.
    pub(crate) fn can_hide(
        lease: &Lease,
        delay: Duration,
        now: Instant,
        patience: Duration,
    ) -> bool {
        let latest = now.checked_add(delay).and_then(|end| end.checked_add(patience));
        latest.is_some_and(|latest| latest <= lease.limit())
    }
}

/// Whole seconds, rounded up: the service knows no others.
pub(crate) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

fn seconds_of(seconds: i32) -> Duration {
    Duration::from_secs(seconds.unsigned_abs().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn leases(visibility: u64, max_lease: Option<u64>) -> Leases {
        Leases::new(SECOND * visibility as u32, max_lease.map(Duration::from_secs))
    }

    fn hold(leases: &mut Leases, token: Token, received: Instant) {
        leases.hold(token, format!("handle {token}"), None, received, received);
    }

    fn extended(leases: &mut Leases, now: Instant) -> Vec<(Token, i32)> {
        let due = leases.due(now);
        assert!(due.ended.is_empty(), "{due:?}");
        let all: Vec<_> = due.extend.iter().map(|one| (one.token, one.seconds)).collect();
        for (token, seconds) in &all {
            leases.any(*token).unwrap().changing = false;
            leases.extended(*token, *seconds, now);
        }
        all
    }

    #[test]
    fn a_lease_is_extended_at_half_its_time_until_twelve_hours_are_over() {
        let (mut leases, start) = (leases(30, None), Instant::now());
        hold(&mut leases, 1, start);
        hold(&mut leases, 2, start + SECOND);
        assert_eq!(leases.next(), Some(start + SECOND * 15));
        assert_eq!(leases.due(start + SECOND), Due::default());
        let mut now = start + SECOND * 15;
        assert_eq!(extended(&mut leases, now), [(1, 30), (2, 30)], "in one request");
        let mut turns = 0;
        while let Some(next) = leases.next() {
            now = next;
            if !leases.due(now).ended.is_empty() {
                break;
            }
            for token in [1, 2] {
                if let Some(lease) = leases.any(token).filter(|lease| lease.changing) {
                    lease.changing = false;
                    let seconds = (lease.limit() - now).as_secs().min(30);
                    leases.extended(token, i32::try_from(seconds).unwrap(), now);
                }
            }
            turns += 1;
            assert!(turns < 20_000);
        }
        let over = now - start;
        assert!(over <= LONGEST_LEASE && over > LONGEST_LEASE - SECOND * 2, "{over:?}");
    }

    #[test]
    fn max_lease_ends_it_here_before_it_ends_there() {
        let mut leases = Leases::new(SECOND * 30, Some(Duration::from_millis(2500)));
        let start = Instant::now();
        assert_eq!(leases.first(), 3, "whole seconds");
        hold(&mut leases, 1, start);
        let end = start + Duration::from_millis(2500);
        assert_eq!(leases.next(), Some(end));
        assert!(leases.get(1, end - Duration::from_millis(1)).is_some());
        assert!(leases.get(1, end).is_none());
        assert_eq!(leases.due(end).ended, [1]);
        assert!(leases.next().is_none(), "told once");
        assert!(leases.remove(1).is_some());
    }

    #[test]
    fn a_worker_may_ask_for_more_than_max_lease_but_not_than_twelve_hours() {
        let (mut leases, start) = (leases(4, Some(4)), Instant::now());
        hold(&mut leases, 1, start);
        let now = start + SECOND;
        assert_eq!(leases.extend(1, SECOND * 2, now), Some(Ok(None)), "it lasts as long");
        let asked = leases.extend(1, SECOND * 60, now).unwrap().unwrap().unwrap();
        assert_eq!(asked.seconds, 60);
        leases.extended(1, 60, now);
        assert!(leases.get(1, start + SECOND * 60).is_some());
        let allowed = leases.extend(1, LONGEST_LEASE, now).unwrap().unwrap_err();
        assert_eq!(allowed, LONGEST_LEASE - SECOND);
        assert!(leases.extend(1, Duration::ZERO, start + SECOND * 61).is_none(), "over");
    }

    #[test]
    fn an_extension_that_failed_is_tried_again_before_the_end() {
        let (mut leases, start) = (leases(8, None), Instant::now());
        hold(&mut leases, 1, start);
        let now = start + SECOND * 4;
        assert_eq!(leases.due(now).extend.len(), 1);
        assert!(leases.due(now).extend.is_empty(), "under way");
        leases.any(1).unwrap().changing = false;
        leases.not_extended(1, now);
        assert_eq!(leases.next(), Some(now + SECOND));
        assert_eq!(extended(&mut leases, now + SECOND), [(1, 8)]);
    }

    #[test]
    fn hiding_a_message_must_end_within_its_twelve_hours() {
        let (mut leases, start) = (leases(30, None), Instant::now());
        hold(&mut leases, 1, start);
        let lease = leases.get(1, start).unwrap();
        let can = |delay| Leases::can_hide(lease, delay, start, SECOND);
        assert!(can(LONGEST_LEASE - SECOND));
        assert!(!can(LONGEST_LEASE) && !can(Duration::MAX));
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(SECOND * 2), 2);
    }
}
