//! The cases, by group. Each group begins with its table.

mod abandon;
mod attempts;
mod auto_ack;
mod backpressure;
mod batch;
mod books;
mod cancellation;
mod concurrency;
mod crash;
mod delay;
mod errors;
mod leases;
mod lifecycle;
mod ordering;
mod outage;
mod priority;
mod push;
mod reconnect;
mod settle;
mod state;
mod workers;

use jobs_core::{Attempts, Job, JobId};

use crate::Case;

/// All cases, in the order they are reported.
#[must_use]
pub fn all() -> Vec<Case> {
    let groups = [
        push::cases(),
        settle::cases(),
        abandon::cases(),
        attempts::cases(),
        delay::cases(),
        priority::cases(),
        ordering::cases(),
        auto_ack::cases(),
        batch::cases(),
        lifecycle::cases(),
        state::cases(),
        leases::cases(),
        errors::cases(),
        backpressure::cases(),
        cancellation::cases(),
        concurrency::cases(),
        reconnect::cases(),
        outage::cases(),
        crash::cases(),
    ];
    groups.into_iter().flatten().collect()
}

/// The payload as text, for jobs that were pushed with text.
fn text(job: &Job) -> String {
    String::from_utf8_lossy(job.payload()).into_owned()
}

fn ids(jobs: &[Job]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id().clone()).collect()
}

fn sorted(mut ids: Vec<JobId>) -> Vec<JobId> {
    ids.sort();
    ids
}

/// Demands the attempt number of a job that was started, and not finished, `started` times before.
fn assert_attempt(attempts: Attempts, job: &Job, started: u32) {
    let (found, exact) = (job.attempt(), started + 1);
    match attempts {
        Attempts::Exact => assert_eq!(found, exact, "attempt of {job:?}"),
        Attempts::AtLeast => assert!(found >= exact, "attempt {found} of {job:?}, not {exact}"),
        Attempts::Flag => assert_eq!(found > 1, exact > 1, "attempt {found} of {job:?}"),
        other => panic!("the kit does not know attempts that count {other:?}"),
    }
}

/// The numbers below `count` in an order that only `seed` decides.
fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<_> = (0..count).collect();
    let mut random = seed.wrapping_mul(2).wrapping_add(1);
    for last in (1..count).rev() {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        let other = usize::try_from(random >> 33).expect("31 bits") % (last + 1);
        order.swap(last, other);
    }
    order
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_name_their_group() {
        let cases = all();
        let names: BTreeSet<_> = cases.iter().map(Case::name).collect();
        assert_eq!(names.len(), cases.len());
        assert!(cases.len() >= 60, "{}", cases.len());
        assert!(names.iter().all(|name| name.split("::").count() == 2));
    }

    #[test]
    fn every_invariant_has_a_case() {
        let proven: BTreeSet<_> =
            all().iter().flat_map(|case| case.invariants().to_vec()).collect();
        assert_eq!(proven, (1..=10).collect());
    }

    #[test]
    fn shuffling_keeps_every_number() {
        let mut order = shuffled(50, 7);
        assert_ne!(order, (0..50).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..50).collect::<Vec<_>>());
    }
}
