//! Runs one case in a runtime of its own.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::wait::within;
use crate::{Case, CaseError, CaseResult, Fixture, Harness, cases};

/// A case may take as long as this many of its deadlines.
const DEADLINES: u32 = 10;

/// Runs the case called `name`, such as `settle::ack_ends_the_job`, on one harness.
///
/// # Errors
/// Why it did not pass; also if there is no such case. A panic is a failure.
pub fn run_case<H: Harness>(name: &str, harness: impl FnOnce() -> H) -> CaseResult {
    match cases::all().iter().find(|case| case.name() == name) {
        Some(case) => run(case, || Arc::new(harness()), &RwLock::default()),
        None => Err(CaseError::Failed(format!("there is no case called `{name}`"))),
    }
}

/// Runs a case. Configurations may share a broker: a case that disturbs it, for want of one of its
/// own, waits for all others, and they for it.
pub(crate) fn run(
    case: &Case,
    harness: impl FnOnce() -> Arc<dyn Harness>,
    broker: &RwLock<()>,
) -> CaseResult {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let answer = guarded(|| {
        let harness = {
            let _entered = runtime.enter();
            harness()
        };
        let disturbs = case.causes_faults();
        let apart = if disturbs { harness.apart() } else { None };
        let alone = disturbs && apart.is_none();
        let _others = (!disturbs).then(|| broker.read().unwrap_or_else(PoisonError::into_inner));
        let _alone = alone.then(|| broker.write().unwrap_or_else(PoisonError::into_inner));
        run_with(case, &Fixture::new(apart.unwrap_or(harness)), &runtime)
    });
    // A driver that blocks a thread for ever must not block the suite.
    runtime.shutdown_timeout(Duration::from_secs(1));
    answer
}

fn run_with(case: &Case, fixture: &Fixture, runtime: &Runtime) -> CaseResult {
    let answer = guarded(|| {
        runtime.block_on(async {
            within(fixture.deadline() * DEADLINES, "the case", case.prove(fixture.clone())).await?
        })
    });
    let closed = guarded(|| Ok(runtime.block_on(fixture.close())?));
    answer.and(closed)
}

fn guarded(run: impl FnOnce() -> CaseResult) -> CaseResult {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|panic| Err(CaseError::Failed(message(&*panic))))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned()
}
