//! Delays without a plugin, decided without I/O.
//!
//! A queue whose messages all have the same time to live has no message behind another's back. So a
//! delay is made of hops through *levels*: level `k` is a queue that holds each message for 2^k
//! milliseconds and then passes it on. A delay is rounded up to 8 significant bits, so that it takes
//! 8 hops at most and is never early and less than 1 % late.
//!
//! Which hop comes next stands in headers of the message, which headers exchanges match: the routing
//! key stays the caller's. Each level has such an exchange behind it. The last hop goes to the *due*
//! exchange, which is bound to where the message was going.

use std::time::Duration;

use crate::codec::HOP_HEADER_PREFIX;
use crate::config::A_YEAR;

/// Level 34 holds a message for half a year.
pub(crate) const LEVELS: u8 = 35;

/// The longest delay, below the sum of all levels.
pub(crate) const MAX_DELAY: Duration = A_YEAR;

/// Precision of a delay.
const SIGNIFICANT_BITS: u32 = 8;

/// One of the queues a delayed message waits in.
pub(crate) type Level = u8;

/// How long a level holds a message, in milliseconds.
pub(crate) const fn time_to_live(level: Level) -> u64 {
    1 << level
}

/// Where a message passes from one place to the next: the entry or the exchange behind a level, to a
/// level or the due exchange. Each is a binding at the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Hop {
    /// None: the entry.
    pub(crate) from: Option<Level>,
    /// None: the due exchange.
    pub(crate) to: Option<Level>,
}

impl Hop {
    /// The header that the binding matches.
    pub(crate) fn header(self) -> (String, String) {
        let text = |level: Level| level.to_string();
        let from = self.from.map_or_else(|| "in".to_owned(), text);
        (format!("{HOP_HEADER_PREFIX}{from}"), self.to.map_or_else(|| "due".to_owned(), text))
    }
}

/// The hops that make up `delay`, longest first, from the entry to the due exchange.
///
/// A delay beyond [`MAX_DELAY`] is refused before it comes here; it would be cut.
pub(crate) fn hops(delay: Duration) -> Vec<Hop> {
    let levels = levels(delay.min(MAX_DELAY));
    let places = || std::iter::once(None).chain(levels.iter().copied().map(Some));
    let next = places().skip(1).chain(std::iter::once(None));
    places().zip(next).map(|(from, to)| Hop { from, to }).collect()
}

/// The levels whose times add up to the rounded delay, longest first.
fn levels(delay: Duration) -> Vec<Level> {
    let millis = u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX).max(1);
    let dropped = (u64::BITS - millis.leading_zeros()).saturating_sub(SIGNIFICANT_BITS);
    let rounded = millis.div_ceil(1 << dropped) << dropped;
    (0..LEVELS).rev().filter(|level| rounded & time_to_live(*level) != 0).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What headers exchanges do with a message: follows the bindings its headers match, and says how
    /// long it was held.
    fn travel(bindings: &[Hop], headers: &[(String, String)]) -> Option<Duration> {
        let mut held = 0;
        let mut place = None;
        loop {
            let mut matching =
                bindings.iter().filter(|hop| hop.from == place && headers.contains(&hop.header()));
            let hop = matching.next()?;
            assert!(matching.next().is_none(), "delivered twice");
            let Some(level) = hop.to else { return Some(Duration::from_millis(held)) };
            held += time_to_live(level);
            place = Some(level);
        }
    }

    fn all_bindings() -> Vec<Hop> {
        let levels = || (0..LEVELS).map(Some);
        let entries = levels().map(|to| Hop { from: None, to });
        let ends = levels().map(|from| Hop { from, to: None });
        let links = levels().flat_map(|from| levels().map(move |to| Hop { from, to }));
        entries.chain(ends).chain(links.filter(|hop| hop.from > hop.to)).collect()
    }

    #[test]
    fn a_delay_is_the_sum_of_its_bits() {
        let levels = |millis| levels(Duration::from_millis(millis));
        assert_eq!(levels(1), [0]);
        assert_eq!(levels(1_000), [9, 8, 7, 6, 5, 3]);
        assert_eq!(levels(257), [8, 1], "rounded up to 258");
        assert_eq!(super::levels(Duration::from_nanos(1)), [0]);
        assert_eq!(super::levels(MAX_DELAY).first(), Some(&34));
    }

    proptest! {
        #[test]
        fn never_early_and_less_than_one_percent_late(nanos in 1..MAX_DELAY.as_nanos() as u64) {
            let delay = Duration::from_nanos(nanos);
            let hops = hops(delay);
            prop_assert!(hops.len() <= 9, "8 levels and the way to the first");
            let headers: Vec<_> = hops.iter().map(|hop| hop.header()).collect();
            // With all levels declared, as after a year of use, there is still one way only.
            let held = travel(&all_bindings(), &headers).expect("arrives");
            prop_assert_eq!(Some(held), travel(&hops, &headers), "its own bindings suffice");
            prop_assert!(held >= delay, "early");
            let millisecond = Duration::from_millis(1);
            prop_assert!(held < delay.mul_f64(1.01) + millisecond, "{held:?} for {delay:?}");
        }

        #[test]
        fn round_delays_of_common_sizes_are_as_precise(seconds in 1..86_400_u64) {
            let held: u64 = levels(Duration::from_secs(seconds)).into_iter().map(time_to_live).sum();
            prop_assert!(held >= seconds * 1_000 && held * 100 < seconds * 101_000);
        }
    }
}
