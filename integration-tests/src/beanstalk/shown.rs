//! What the server sees of the driver: commands, priorities, reservations, buried jobs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jobs_core::{Queue, Registry};
use jobs_kit::{Case, CaseResult, Fault, Feature, Fixture};

use super::case;
use crate::beanstalkd::{Operator, Servers};

pub(super) fn cases(servers: &Arc<Servers>) -> Vec<Case> {
    /// On a server that nobody else uses meanwhile.
    const ALONE: &[Feature] = &[Feature::Fault(Fault::Cut)];
    vec![
        case(
            servers,
            "shown::an_idle_tube_is_not_polled",
            &[],
            "an idle pipeline asks once per connection and reserve_timeout, also while some connections hold jobs",
            an_idle_tube_is_not_polled,
        )
        .needs(ALONE),
        case(
            servers,
            "shown::held_by_every_connection",
            &[],
            "where every connection holds a job, new ones are found within a moment, without spinning",
            held_by_every_connection,
        )
        .needs(ALONE),
        case(
            servers,
            "shown::a_job_takes_three_commands",
            &[],
            "put, reserve and delete: nothing is asked about a job that comes for the first time",
            a_job_takes_three_commands,
        )
        .needs(ALONE),
        case(
            servers,
            "shown::a_short_time_to_run_is_renewed",
            &[2],
            "a job is renewed at half of its own time to run, also one of others with three seconds only",
            a_short_time_to_run_is_renewed,
        )
        .needs(ALONE),
        case(
            servers,
            "shown::priorities_are_kept",
            &[],
            "what goes back has the priority it was put with",
            priorities_are_kept,
        ),
        case(
            servers,
            "shown::attempts_outlive_a_crash",
            &[3],
            "a delivery that ended without a word is counted",
            attempts_outlive_a_crash,
        ),
        case(
            servers,
            "shown::buried_jobs",
            &[],
            "rejected jobs can be looked at, run again and deleted",
            buried_jobs,
        ),
    ]
}

async fn commands(operator: &mut Operator, names: &[&str]) -> jobs_core::Result<Vec<u64>> {
    let stats = operator.stats("stats").await?;
    let figure = |name: &&str| stats.get(&format!("cmd-{name}"))?.parse().ok();
    Ok(names.iter().map(|name| figure(name).unwrap_or(0)).collect())
}

/// How many questions for a job there are in a second, counted for a while.
async fn questions(operator: &mut Operator, time: Duration) -> jobs_core::Result<f64> {
    let (start, before) = (Instant::now(), operator.figure("cmd-reserve-with-timeout").await?);
    tokio::time::sleep(time).await;
    let asked = operator.figure("cmd-reserve-with-timeout").await? - before;
    Ok(asked as f64 / start.elapsed().as_secs_f64())
}

async fn an_idle_tube_is_not_polled(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    // Once a second, by each of 4 connections, and what was under way at the start.
    const MOST: f64 = 5.4;
    let pipeline = fx.pipeline_of(10).await?;
    let mut operator = servers.own().await?.operator().await?;
    let asked = questions(&mut operator, Duration::from_secs(3)).await?;
    assert!(asked <= MOST, "{asked} questions of 4 connections per second");
    let mut held = Vec::new();
    for count in 1..=3 {
        pipeline.push_numbered(1).await?;
        held.push(pipeline.next().await?);
        let asked = questions(&mut operator, Duration::from_secs(3)).await?;
        assert!(asked <= MOST, "{asked} questions per second, with {count} jobs held");
    }
    for job in held {
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn held_by_every_connection(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let config = fx.configure_prefetch(10).await?.with_option("connections", 2);
    let pipeline = fx.start(config).await?;
    let mut operator = servers.own().await?.operator().await?;
    let mut held = Vec::new();
    for number in 0..5 {
        pipeline.push(fx.message(number.to_string())).await?;
        held.push(pipeline.next().await?);
    }
    let asked = questions(&mut operator, Duration::from_secs(2)).await?;
    // Ten by each of them, after a beginning that is faster.
    assert!(asked <= 30.0, "{asked} questions per second");
    pipeline.push(fx.message("one more")).await?;
    held.push(fx.within("the sixth", pipeline.next()).await??);
    for job in held {
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_job_takes_three_commands(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    const JOBS: u64 = 100;
    const NAMES: &[&str] = &[
        "put",
        "delete",
        "stats-job",
        "touch",
        "release",
        "reserve-with-timeout",
        "list-tube-used",
    ];
    let pipeline = fx.pipeline_of(10).await?;
    // From here on it knows what a first time is.
    pipeline.push_numbered(1).await?;
    pipeline.ack_next(1).await?;
    let mut operator = servers.own().await?.operator().await?;
    let (start, before) = (Instant::now(), commands(&mut operator, NAMES).await?);
    for _ in 0..JOBS {
        pipeline.push_numbered(1).await?;
        pipeline.ack_next(1).await?;
    }
    let after = commands(&mut operator, NAMES).await?;
    // What 8 connections do once a second, also without jobs: ask for one, and whether they live.
    let idle = 8 * (start.elapsed().as_secs() + 2);
    let more: Vec<_> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    assert_eq!(more[..5], [JOBS, JOBS, 0, 0, 0], "of {NAMES:?}");
    assert!(
        more[5] <= JOBS + idle && more[6] <= idle,
        "{more:?} of {NAMES:?}, {idle} of them idle"
    );
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_short_time_to_run_is_renewed(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let config = fx.configure_prefetch(2).await?.with_option("connections", 1);
    let pipeline = fx.start(config).await?;
    let mut operator = servers.own().await?.operator().await?;
    let tube = pipeline.config().name().to_owned();
    operator.call(&format!("use {tube}"), None).await?;
    operator.call("put 0 0 3 5", Some(b"short")).await?;
    let held = pipeline.next().await?;
    let names = ["reserve-with-timeout", "touch"];
    let (start, before) = (Instant::now(), commands(&mut operator, &names).await?);
    tokio::time::sleep(Duration::from_secs(8)).await;
    let after = commands(&mut operator, &names).await?;
    let (asked, touched) = (after[0] - before[0], after[1] - before[1]);
    let seconds = start.elapsed().as_secs();
    // One in 1.5 s, or later if it was busy, but one in 3 s at least.
    assert!((2..=seconds).contains(&touched), "{touched} touches in {seconds} s");
    assert!(asked <= 25 * seconds, "{asked} questions in {seconds} s");
    held.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn priorities_are_kept(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let pipeline = fx.pipeline_of(1).await?;
    let mut operator = servers.shared().await?.operator().await?;
    pipeline.push(fx.message("urgent").with_priority(3)).await?;
    for turn in 0..3 {
        let job = pipeline.next().await?;
        let id = job.position().expect("its number");
        let stats = operator.stats(&format!("stats-job {id}")).await?;
        let figure = |name: &str| stats.get(name).cloned().unwrap_or_default();
        assert_eq!((figure("pri"), figure("ttr")), ("3".into(), "30".into()), "{stats:?}");
        match turn {
            0 => job.requeue(Duration::ZERO).await?,
            1 => job.release().await?,
            _ => {
                job.reject().await?;
                let stats = operator.stats(&format!("stats-job {id}")).await?;
                assert_eq!(stats.get("pri").map(String::as_str), Some("3"), "{stats:?}");
                assert_eq!(stats.get("state").map(String::as_str), Some("buried"), "{stats:?}");
            }
        }
    }
    let whole = fx.configure().await?.with_option("tube_priority", 7);
    let pipeline = fx.start(whole).await?;
    pipeline.push(fx.message("as all").with_priority(3)).await?;
    let job = pipeline.next().await?;
    assert_eq!(job.message().priority(), Some(3), "in this process it counts");
    let id = job.position().expect("its number");
    let stats = operator.stats(&format!("stats-job {id}")).await?;
    assert_eq!(stats.get("pri").map(String::as_str), Some("7"));
    job.ack().await?;
    Ok(())
}

async fn attempts_outlive_a_crash(fx: Fixture, _servers: Arc<Servers>) -> CaseResult {
    let pipeline = fx.connect(fx.configure_prefetch(3).await?).await?;
    let pushed = pipeline.push_numbered(5).await?;
    for crashes in 0..3 {
        let consumer = fx.start(pipeline.config().clone()).await?;
        let jobs = consumer.take(3).await?;
        // The first time those that come first, then others in turn.
        assert!(crashes > 0 || jobs.iter().all(|job| job.attempt() == 1));
        // Its connections are closed under its jobs, as when the process dies.
        consumer.stop().await?;
    }
    let consumer = fx.start(pipeline.config().clone()).await?;
    let (mut found, mut attempts) = (Vec::new(), 0);
    for _ in 0..5 {
        let job = consumer.next().await?;
        attempts += job.attempt();
        found.push(job.id().clone());
        job.ack().await?;
    }
    found.sort();
    let mut pushed = pushed;
    pushed.sort();
    assert_eq!(found, pushed);
    assert_eq!(attempts, 5 + 9, "nine deliveries ended without a word");
    consumer.expect_empty().await?;
    Ok(())
}

async fn buried_jobs(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let constructor = jobs_beanstalk::constructor();
    let mut registry = Registry::new();
    registry.register(constructor.clone())?;
    let config = fx.configure().await?;
    let driver = registry.connect(config.clone()).await?;
    let buried = constructor.buried(config.name())?;
    assert!(buried.first().await?.is_none() && buried.kick(10).await? == 0);
    let queue = Queue::new();
    driver.run(queue.open_lane(&config)).await?;
    for number in 0..3 {
        driver.push(fx.message(number.to_string())).await?;
        let job = fx.within("a job", queue.pop()).await?.expect("open");
        job.reject().await?;
    }
    let first = buried.first().await?.expect("three");
    assert_eq!((&first.message.payload()[..], first.attempt), (&b"0"[..], Some(1)));
    assert!(buried.delete(first.id).await? && !buried.delete(first.id).await?);
    let second = buried.first().await?.expect("two");
    assert!(buried.kick_job(second.id).await? && !buried.kick_job(second.id).await?);
    assert_eq!(buried.kick(10).await?, 1);
    for _ in 0..2 {
        let job = fx.within("a job", queue.pop()).await?.expect("open");
        assert_eq!(job.attempt(), 2, "it runs again: {job:?}");
        job.ack().await?;
    }
    // A job that is not buried is none of its business.
    driver.pause().await?;
    let mut operator = servers.shared().await?.operator().await?;
    let id = operator.put(config.name(), b"ready").await?;
    assert!(!buried.delete(id).await? && !buried.kick_job(id).await?);
    assert!(buried.first().await?.is_none());
    driver.stop().await?;
    assert!(buried.first().await.is_err());
    assert!(constructor.buried("nobody").is_err());
    Ok(())
}
