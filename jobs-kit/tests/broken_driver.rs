//! Cases do fail: each defect of a driver is caught by the case named for it.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use jobs_kit::{Case, CaseError, Fault, Feature, Suite, run_case};
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
fn loses_the_newest_jobs_at_a_kill() {
    caught(Defect::LosesNewestAtKill, "crash::pushes_outlive_a_kill");
}

#[test]
fn loses_unsettled_jobs_at_a_kill() {
    caught(Defect::LosesUnsettledAtKill, "crash::consumption_outlives_a_kill");
}

#[test]
fn loses_delayed_jobs_at_a_kill() {
    caught(Defect::LosesDelayedAtKill, "crash::delays_outlive_a_kill");
}

#[test]
fn forgets_to_subscribe_again() {
    for case in [
        "reconnect::consuming_resumes_after_kill",
        "reconnect::consuming_resumes_after_cut",
        "reconnect::consuming_resumes_after_reset",
        "reconnect::consuming_resumes_after_stall",
    ] {
        caught(Defect::ForgetsToSubscribeAgain, case);
    }
}

#[test]
fn forgets_a_pause_at_a_cut() {
    caught(Defect::ForgetsPauseAtCut, "reconnect::a_pause_outlives_a_cut");
    caught(Defect::ForgetsPauseAtCut, "outage::pause_takes_effect");
}

#[test]
fn settles_a_requeue_before_it_stores_the_copy() {
    caught(Defect::SettlesBeforeItStores, "reconnect::requeues_outlive_a_cut");
    caught(Defect::SettlesBeforeItStores, "reconnect::delayed_requeues_outlive_a_cut");
}

#[test]
fn accepts_a_receipt_of_a_dead_connection() {
    caught(Defect::AcceptsStaleReceipt, "reconnect::unsettled_jobs_come_back");
    caught(Defect::AcceptsStaleReceipt, "outage::settling_is_refused");
}

#[test]
fn leaves_a_consumer_behind() {
    caught(Defect::LeavesConsumerBehind, "reconnect::a_stopped_consumer_stays_away");
}

#[test]
fn fails_pushes_at_once() {
    caught(Defect::FailsPushesAtOnce, "outage::a_push_waits_for_the_broker");
    caught(Defect::FailsPushesAtOnce, "outage::a_push_fails_in_time");
}

#[test]
fn denies_what_it_stored() {
    caught(Defect::DeniesWhatItStored, "outage::a_push_fails_in_time");
}

#[test]
fn lies_in_state_while_away() {
    caught(Defect::LiesInStateWhileAway, "outage::state_is_unknown_when_cut_off");
}

#[test]
fn waits_in_stop_for_ever() {
    caught(Defect::WaitsInStopForEver, "outage::stop_is_bounded_when_killed");
    caught(Defect::WaitsInStopForEver, "outage::stop_is_bounded_when_cut_off");
    caught(Defect::WaitsInStopForEver, "outage::stop_is_bounded_when_silent");
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

/// A case that fails in its second run only, and counts its runs.
fn fails_once(runs: &Arc<AtomicU32>) -> Case {
    let runs = Arc::clone(runs);
    let case = Case::new("own::second", &[], "a thing", move |_| {
        let run = runs.fetch_add(1, Ordering::Relaxed) + 1;
        async move {
            match run {
                2 => Err(CaseError::Failed("the second".into())),
                _ => Ok(()),
            }
        }
    });
    case.needs(&[Feature::Fault(Fault::Cut)])
}

#[test]
fn fault_cases_run_as_often_as_told() {
    let runs = Arc::default();
    let suite = Suite::new()
        .configuration("small", || Small::new(None))
        .only("small", &["push::"])
        .cases("small", [fails_once(&runs)]);
    let mut seen = Vec::new();
    suite.repeat_faults(5, |repeated| {
        seen.push((repeated.name.clone(), repeated.passed, repeated.failures.clone()));
    });
    assert_eq!(seen, [("small::own::second".to_owned(), 4, vec!["the second".to_owned()])]);
    assert_eq!(runs.load(Ordering::Relaxed), 5);
}

#[test]
fn a_fault_that_a_case_leaves_behind_ends_with_it() {
    let case = Case::new("own::careless", &[], "a thing", async |fx: jobs_kit::Fixture| {
        let pipeline = fx.pipeline().await?;
        fx.begin(Fault::Cut).await?;
        drop(pipeline);
        Err(CaseError::Failed("half way".into()))
    });
    let small = Small::new(None);
    let same = small.clone();
    let suite = Suite::new()
        .configuration("small", move || same.clone())
        .only("small", &[])
        .cases("small", [case.needs(&[Feature::Fault(Fault::Cut)])]);
    suite.repeat_faults(1, |repeated| assert_eq!(repeated.failures, ["half way"]));
    assert!(small.can_be_reached(), "the kit ends what a case leaves behind");
}
