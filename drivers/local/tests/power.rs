//! What a kill cannot show, for it leaves the caches of the system alone: a disk that loses its power
//! or is full.

#[path = "support/disk.rs"]
mod disk;
#[path = "support/scratch.rs"]
mod scratch;
mod support;
#[path = "support/victim.rs"]
mod victim;

use std::collections::BTreeSet;
use std::fs;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use disk::Disk;
use jobs_core::{Driver, Error, ErrorKind, Job, Message};
use jobs_kit::{Case, CaseError, CaseResult, Ledger, Suite, Totals, Victim, work_off};
use jobs_local::constructor;
use scratch::{Running, on, start};
use support::Local;
use tokio::task::JoinSet;
use victim::{FULL, NORMAL, Options, victim};

const ROUNDS: usize = 10;
/// How long a process works at most until the power goes.
const LIFE: u64 = 300;
/// Callers that wait for the same commit.
const CALLERS: usize = 64;

fn main() -> ExitCode {
    if let Some(played) = victim::played() {
        return played;
    }
    if let Some(ended) = disk::apart() {
        return ended;
    }
    let cases = [
        Case::new(
            "power::full_outlives_its_loss",
            &[1, 2, 3],
            "with durability full, what returned Ok outlives a loss of power",
            async |_| outlives().await,
        ),
        Case::new(
            "power::normal_does_not",
            &[],
            "with durability normal a loss of power loses something: the case above can fail",
            async |_| does_not().await,
        ),
        Case::new(
            "disk::full_is_told_to_all",
            &[],
            "a full disk is told to all who wait, and nothing half-applied is there",
            async |_| is_full().await,
        ),
        Case::new(
            "disk::a_failing_sync_is_told_to_all",
            &[],
            "a failing sync is told to all who wait, and each is told the truth",
            async |_| fails_to_sync().await,
        ),
    ];
    Suite::new()
        .configuration("ext4", || Local::new(FULL))
        .only("ext4", &[])
        .cases("ext4", cases)
        .run()
}

async fn outlives() -> CaseResult {
    let totals = lose_power_again_and_again(FULL).await?;
    assert!(totals.is_sound(), "{totals}");
    assert!(totals.done as usize > ROUNDS, "it has worked: {totals}");
    Ok(())
}

async fn does_not() -> CaseResult {
    let totals = lose_power_again_and_again(NORMAL).await?;
    assert!(totals.lost > 0, "power is not lost here: {totals}");
    Ok(())
}

async fn lose_power_again_and_again(options: Options) -> Result<Totals, CaseError> {
    let mut disk = Disk::new()?;
    let ledger = Arc::new(Ledger::new());
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..ROUNDS {
        let mut victim = Victim::start(victim(&disk.path(), options, random.u64(..)), &ledger)?;
        // Otherwise while it opens the file, perhaps.
        if random.u8(..4) > 0 {
            victim.at_work().await?;
        }
        tokio::time::sleep(Duration::from_millis(random.u64(..LIFE))).await;
        // A sync that is under way may succeed although the disk has just thrown it away: jbd2 takes a
        // transaction that is not there any more for one that was committed.
        victim.doubt();
        disk.lose_power()?;
        victim.kill().await?;
        disk.restart()?;
    }
    let harness = Arc::new(Local::at(&disk.path(), options));
    let totals = work_off(harness, ledger).await?;
    println!("{options:?} seed={seed} rounds={ROUNDS} {totals}");
    Ok(totals)
}

async fn on_disk(disk: &Disk) -> Running {
    start(&constructor(), on(&disk.path().to_string_lossy())).await
}

async fn take(running: &Running, count: usize) -> Vec<Job> {
    let mut jobs = Vec::new();
    while jobs.len() < count {
        jobs.push(running.next().await);
    }
    jobs
}

/// Settles all that is there, and returns the ids.
async fn drain(running: &Running) -> Result<BTreeSet<String>, CaseError> {
    let mut found = BTreeSet::new();
    loop {
        let state = running.driver.state().await?;
        if state.reserved == Some(0) && state.in_flight == Some(0) {
            return Ok(found);
        }
        let job = running.next().await;
        assert!(found.insert(job.id().as_str().to_owned()), "{} came twice", job.id());
        job.ack().await?;
    }
}

async fn is_full() -> CaseResult {
    let disk = Disk::new()?;
    let running = on_disk(&disk).await;
    for _ in 0..20 {
        running.driver.push(Message::new("before", vec![0; 1_000])).await?;
    }
    let held = take(&running, 20).await;
    let filler = disk.fill(1 << 20)?;
    let mut pushes = JoinSet::new();
    for _ in 0..CALLERS {
        let driver = Arc::clone(&running.driver);
        let message = Message::new("large", vec![1; 64 << 10]);
        pushes.spawn(async move { (message.id().clone(), driver.push(message).await) });
    }
    let mut stored = BTreeSet::new();
    let mut refused = 0;
    while let Some(pushed) = pushes.join_next().await {
        match pushed? {
            (id, Ok(())) => assert!(stored.insert(id.as_str().to_owned())),
            (_, Err(error)) => {
                assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Full, true));
                assert!(!error.may_be_stored(), "{error:?}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "it is full");
    let state = running.driver.state().await?;
    let there = [state.reserved, state.in_flight].into_iter().flatten().sum::<u64>();
    assert_eq!(there as usize, 20 + stored.len(), "nothing else is there: {state:?}");

    // What cannot be settled now can be later.
    let mut kept = Vec::new();
    for job in held {
        if let Err(refusal) = job.ack().await {
            assert_eq!(refusal.error().kind(), ErrorKind::Full, "{:?}", refusal.error());
            kept.push(refusal.into_job());
        }
    }
    fs::remove_file(filler)?;
    for job in kept {
        job.ack().await?;
    }
    let late = Message::new("late", vec![2; 64 << 10]);
    stored.insert(late.id().as_str().to_owned());
    running.driver.push(late).await?;
    assert_eq!(drain(&running).await?, stored);
    running.driver.stop().await?;
    Ok(())
}

async fn fails_to_sync() -> CaseResult {
    let mut disk = Disk::new()?;
    let running = on_disk(&disk).await;
    for _ in 0..20 {
        running.driver.push(Message::new("before", "")).await?;
    }
    let mut held = take(&running, 20).await.into_iter();
    let doubted = Arc::new(AtomicBool::new(false));
    let mut pushes = JoinSet::new();
    for _ in 0..CALLERS {
        pushes.spawn(push_until_refused(Arc::clone(&running.driver), Arc::clone(&doubted)));
    }
    let mut gone = BTreeSet::new();
    for job in held.by_ref().take(10) {
        let id = job.id().as_str().to_owned();
        job.ack().await?;
        gone.insert(id);
    }
    doubted.store(true, Ordering::SeqCst);
    disk.lose_power()?;
    let (mut there, mut refused) = (BTreeSet::new(), 0);
    let all = async {
        while let Some(pushed) = pushes.join_next().await {
            let (stored, last, error) = pushed?;
            // SQLite takes a disk that cannot be read for a damaged file.
            let expected = [ErrorKind::Broker, ErrorKind::Codec];
            assert!(expected.contains(&error.kind()), "{error:?}");
            there.extend(stored);
            if !error.may_be_stored() {
                gone.insert(last);
            }
            refused += 1;
        }
        CaseResult::Ok(())
    };
    tokio::time::timeout(scratch::DEADLINE, all).await??;
    assert_eq!(refused, CALLERS);
    for job in held {
        let id = job.id().as_str().to_owned();
        let refusal = tokio::time::timeout(scratch::DEADLINE, job.ack()).await?;
        let refusal = refusal.expect_err("there is no disk");
        assert_eq!(refusal.into_job().id().as_str(), id, "it is kept");
    }
    let _ = tokio::time::timeout(scratch::DEADLINE, running.driver.state()).await?;
    let _ = tokio::time::timeout(scratch::DEADLINE, running.driver.stop()).await?;
    drop(running);

    disk.restart()?;
    let running = on_disk(&disk).await;
    let found = drain(&running).await?;
    assert!(there.is_subset(&found), "lost: {:?}", there.difference(&found));
    assert!(gone.is_disjoint(&found), "came back: {:?}", gone.intersection(&found));
    running.driver.stop().await?;
    Ok(())
}

/// Returns what was stored, beyond doubt, what was not, and why.
async fn push_until_refused(
    driver: Arc<dyn Driver>,
    doubted: Arc<AtomicBool>,
) -> (Vec<String>, String, Error) {
    let mut stored = Vec::new();
    loop {
        let message = Message::new("a", vec![3; 100]);
        let id = message.id().as_str().to_owned();
        match driver.push(message).await {
            Ok(()) if doubted.load(Ordering::SeqCst) => {}
            Ok(()) => stored.push(id),
            Err(error) => return (stored, id, error),
        }
    }
}
