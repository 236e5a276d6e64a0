//! Cases do fail: each defect of a driver is caught by the case named for it.

mod support;

use jobs_kit::{CaseError, run_case};
use support::{Defect, Small};

/// Demands that `case` passes without the defect, and fails with it.
fn caught(defect: Defect, case: &str) {
    let honest = run_case(case, || Small::new(None));
    assert_eq!(honest, Ok(()), "{case} must pass without {defect:?}");
    match run_case(case, || Small::new(Some(defect))) {
        Err(CaseError::Failed(message)) => println!("{case} caught {defect:?}: {message}"),
        other => panic!("{case} did not catch {defect:?}: {other:?}"),
    }
}

#[test]
fn loses_a_job_on_requeue() {
    caught(Defect::LosesJobOnRequeue, "settle::requeue_brings_the_job_back");
}

#[test]
fn delivers_while_paused() {
    caught(Defect::DeliversWhilePaused, "lifecycle::paused_hands_nothing_out");
}

#[test]
fn exceeds_prefetch() {
    caught(Defect::ExceedsPrefetch, "backpressure::prefetch_1_is_never_exceeded");
    caught(Defect::ExceedsPrefetch, "backpressure::prefetch_7_is_never_exceeded");
}

#[test]
fn acks_a_neighbour() {
    caught(Defect::AcksNeighbours, "settle::ack_covers_only_its_own_job");
}

#[test]
fn loses_the_wake_up_at_prefetch_1() {
    caught(Defect::LosesWakeUpAtPrefetchOne, "concurrency::prefetch_one_never_stalls");
}

#[test]
fn forgets_an_attempt() {
    caught(Defect::ForgetsAttempt, "attempts::requeue_counts_one_each");
}

#[test]
fn leaks_a_task() {
    caught(Defect::LeaksTask, "lifecycle::stop_leaves_no_task");
}

#[test]
fn lies_in_state() {
    caught(Defect::LiesInState, "state::counts_what_waits");
}

#[test]
fn accepts_a_stale_receipt() {
    caught(Defect::AcceptsStaleReceipt, "leases::a_stale_receipt_is_refused");
    caught(Defect::AcceptsStaleReceipt, "lifecycle::settle_after_stop_is_refused");
}

#[test]
fn settles_the_next_delivery_by_a_stale_receipt() {
    caught(Defect::StaleReceiptSettlesTheNext, "leases::a_stale_receipt_is_refused");
    caught(Defect::StaleReceiptSettlesTheNext, "leases::stale_outcomes_do_nothing");
}

#[test]
fn swallows_a_failed_settle() {
    caught(Defect::SwallowsFailedSettle, "settle::a_refused_requeue_hands_the_job_back");
}

#[test]
fn hands_the_job_over_twice() {
    caught(Defect::HandsJobOverTwice, "push::delivers_each_job_once");
}

#[test]
fn ignores_a_delay() {
    caught(Defect::IgnoresDelay, "delay::not_before_its_time");
}

#[test]
fn loses_a_dropped_job() {
    caught(Defect::LosesDroppedJob, "abandon::a_dropped_job_comes_back");
}

#[test]
fn counts_releases() {
    caught(Defect::CountsReleases, "settle::release_gives_the_job_back_unchanged");
}

#[test]
fn drops_changed_headers() {
    caught(Defect::DropsChangedHeaders, "settle::requeue_with_headers_travels");
}

#[test]
fn keeps_jobs_after_stop() {
    caught(Defect::KeepsJobsAfterStop, "abandon::unsettled_jobs_outlive_their_consumer");
}

#[test]
fn stores_bad_messages() {
    caught(Defect::StoresBadMessages, "errors::invalid_messages_are_refused");
}

#[test]
fn pushes_after_stop() {
    caught(Defect::PushesAfterStop, "lifecycle::closed_after_stop");
}

#[test]
fn ignores_priority() {
    caught(Defect::IgnoresPriority, "priority::orders_jobs_at_the_broker");
}

#[test]
fn loses_jobs_on_pause() {
    caught(Defect::LosesJobsOnPause, "lifecycle::pause_gives_back_what_nobody_popped");
}

#[test]
fn an_unknown_case_is_a_failure() {
    let answer = run_case("push::no_such_case", || Small::new(None));
    assert!(matches!(answer, Err(CaseError::Failed(_))), "{answer:?}");
}

#[test]
fn what_the_harness_cannot_do_is_ignored_with_its_reason() {
    let answer = run_case("backpressure::a_full_queue_throttles", || Small::new(None));
    let Err(CaseError::Ignored(reason)) = answer else { panic!("{answer:?}") };
    assert_eq!(reason, "this configuration has no full queue");
}
