//! What becomes of a job that was not done.

use std::time::Duration;

use jobs_core::{Backoff, Capabilities, Outcome};

use super::error::{HandlerError, Wish};

/// Why a job was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failure {
    /// The handler answered an error. What it asked for comes before a policy.
    Error,
    /// The handler panicked.
    Panic,
    /// The payload is not what the handler takes.
    Undecodable,
    /// No handler has the job's name, and there is no fallback.
    Unknown,
}

/// What a worker does with a job after a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy {
    /// Run again, with a delay by the number of the attempt.
    Retry(Backoff),
    /// Run again, always with this delay.
    RetryAfter(Duration),
    /// Never run again: dead-lettered where that is configured, else discarded.
    Reject,
    /// Give back unchanged and at once, for other workers: where the broker does not count that, it
    /// can go on for ever.
    Release,
}

impl Policy {
    /// Delays from 1 s, doubling to 10 min.
    pub const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(600));

    fn outcome(self, attempt: u32) -> Outcome {
        match self {
            Self::Retry(backoff) => Outcome::requeue_after(backoff.delay(attempt)),
            Self::RetryAfter(delay) => Outcome::requeue_after(delay),
            Self::Reject => Outcome::Reject,
            Self::Release => Outcome::Release,
        }
    }
}

impl Default for Policy {
    /// Retry with [`BACKOFF`](Self::BACKOFF).
    fn default() -> Self {
        Self::Retry(Self::BACKOFF)
    }
}

/// One policy per failure.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Policies {
    error: Policy,
    panic: Policy,
    undecodable: Policy,
    unknown: Policy,
}

impl Policies {
    pub(super) fn set(&mut self, failure: Failure, policy: Policy) {
        *match failure {
            Failure::Error => &mut self.error,
            Failure::Panic => &mut self.panic,
            Failure::Undecodable => &mut self.undecodable,
            Failure::Unknown => &mut self.unknown,
        } = policy;
    }

    pub(super) fn outcome(&self, failure: Failure, attempt: u32) -> Outcome {
        let policy = match failure {
            Failure::Error => self.error,
            Failure::Panic => self.panic,
            Failure::Undecodable => self.undecodable,
            Failure::Unknown => self.unknown,
        };
        policy.outcome(attempt)
    }

    pub(super) fn outcome_of(&self, error: &HandlerError, attempt: u32) -> Outcome {
        let policy = match error.wish {
            Wish::Default => self.error,
            Wish::Retry => Policy::default(),
            Wish::RetryAfter(delay) => Policy::RetryAfter(delay),
            Wish::Reject => Policy::Reject,
            Wish::Release => Policy::Release,
        };
        policy.outcome(attempt)
    }
}

/// The outcome as far as the pipeline can do it: with a shorter delay, or at once.
pub(super) fn fitted(outcome: Outcome, capabilities: &Capabilities) -> Outcome {
    let Outcome::Requeue { delay, headers } = outcome else { return outcome };
    if delay.is_zero() {
        return Outcome::Requeue { delay, headers };
    }
    if !capabilities.delay.is_available() || !capabilities.requeue.is_available() {
        tracing::warn!("this pipeline cannot delay, the job runs again at once");
        return Outcome::Requeue { delay: Duration::ZERO, headers };
    }
    let delay = capabilities.max_delay.map_or(delay, |max| delay.min(max));
    Outcome::Requeue { delay, headers }
}

/// What to ask for instead when the driver says that it cannot do `outcome`.
pub(super) fn instead_of(outcome: &Outcome) -> Option<Outcome> {
    match outcome {
        Outcome::Requeue { delay, headers } if !delay.is_zero() || headers.is_some() => {
            Some(Outcome::requeue())
        }
        Outcome::Requeue { .. } => Some(Outcome::Release),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use jobs_core::Support;

    use super::*;

    fn delay(outcome: &Outcome) -> Duration {
        match outcome {
            Outcome::Requeue { delay, .. } => *delay,
            other => panic!("not requeued: {other:?}"),
        }
    }

    #[test]
    fn delays_grow_with_the_attempt_up_to_ten_minutes() {
        let policies = Policies::default();
        for (attempt, full) in [(1, 1), (2, 2), (5, 16), (40, 600)] {
            let delay = delay(&policies.outcome(Failure::Panic, attempt));
            let full = Duration::from_secs(full);
            assert!(delay >= full / 2 && delay <= full, "{attempt}: {delay:?}");
        }
    }

    #[test]
    fn a_wish_wins_over_the_policy() {
        let mut policies = Policies::default();
        policies.set(Failure::Error, Policy::Reject);
        let outcome = |error: HandlerError| policies.outcome_of(&error, 1);
        assert_eq!(outcome(std::fmt::Error.into()), Outcome::Reject);
        assert_eq!(outcome(HandlerError::release("x")), Outcome::Release);
        assert!(matches!(outcome(HandlerError::retry("x")), Outcome::Requeue { .. }));
        let minute = Duration::from_secs(60);
        assert_eq!(delay(&outcome(HandlerError::retry_after(minute, "x"))), minute);
    }

    #[test]
    fn delays_are_fitted_to_the_pipeline() {
        let minute = Outcome::requeue_after(Duration::from_secs(60));
        let mut capabilities = Capabilities::default();
        assert_eq!(fitted(minute.clone(), &capabilities), Outcome::requeue());
        capabilities.delay = Support::Native;
        capabilities.requeue = Support::Emulated;
        assert_eq!(fitted(minute.clone(), &capabilities), minute);
        capabilities.max_delay = Some(Duration::from_secs(9));
        assert_eq!(delay(&fitted(minute.clone(), &capabilities)), Duration::from_secs(9));
        assert_eq!(fitted(Outcome::Ack, &capabilities), Outcome::Ack);
        assert_eq!(instead_of(&minute), Some(Outcome::requeue()));
        assert_eq!(instead_of(&Outcome::requeue()), Some(Outcome::Release));
        assert_eq!(instead_of(&Outcome::Release), None);
    }
}
