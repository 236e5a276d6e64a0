//! Waiting longer after each failure.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Delays that double from `initial` to `max`, each shortened at random by up to half, so that
/// many clients that failed together do not come back together.
///
/// ```
/// use std::time::Duration;
/// use jobs_core::Backoff;
///
/// let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(600));
/// let third = backoff.delay(3);
/// assert!(third >= Duration::from_secs(2) && third <= Duration::from_secs(4));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
}

impl Backoff {
    /// What drivers use between attempts to reach a broker: 100 ms to 30 s, for ever.
    pub const RECONNECT: Self =
        Self { initial: Duration::from_millis(100), max: Duration::from_secs(30) };

    /// Delays from `initial` up to `max`.
    #[must_use]
    pub const fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max }
    }

    /// The wait after failure number `failures`, counted from 1.
    #[must_use]
    pub fn delay(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let full = self.initial.saturating_mul(1 << doublings).min(self.max);
        full - full.mul_f64(0.5 * random_fraction())
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::RECONNECT
    }
}

/// Uniform in 0..1. The keys of std's hasher are random per instance, which is enough for jitter
/// and saves a dependency.
fn random_fraction() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 32;
    f64::from(u32::try_from(bits).expect("32 bits remain")) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_maximum_and_jitters_by_at_most_half() {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        for (failures, full) in [(0, 100), (1, 100), (2, 200), (5, 1_600), (10, 30_000)] {
            let full = Duration::from_millis(full);
            for _ in 0..50 {
                let delay = backoff.delay(failures);
                assert!(delay >= full / 2 && delay <= full, "{failures}: {delay:?}");
            }
        }
        assert!(backoff.delay(u32::MAX) >= Duration::from_secs(15));
        let some: std::collections::HashSet<_> = (0..10).map(|_| backoff.delay(9)).collect();
        assert!(some.len() > 1, "jitter is random");
    }
}
