//! What is particular to this driver: its file, its dead letters, and what happens to them.

#[path = "support/scratch.rs"]
mod scratch;

use std::time::{Duration, Instant};

use jobs_core::{Error, ErrorKind, Message};
use jobs_local::constructor;
use rusqlite::Connection;
use scratch::{Scratch, connect, eventually, on, start};
use tokio::task::JoinSet;

async fn refused(pipeline: jobs_core::Pipeline) -> Error {
    connect(&constructor(), pipeline).await.expect_err("refused")
}

#[tokio::test]
async fn jobs_outlive_a_stop_and_nothing_else_does() {
    let scratch = Scratch::new();
    let first = start(&constructor(), scratch.pipeline().with_option("prefetch", 1)).await;
    for name in ["a", "b", "c"] {
        first.push(name).await;
    }
    first.driver.push(Message::new("d", "").with_delay(Duration::from_millis(50))).await.unwrap();
    let held = first.next().await;
    first.driver.stop().await.unwrap();
    assert_eq!(scratch.owners(), ["access"], "no pipe is left");
    assert!(!scratch.path().with_extension("db-wal").exists(), "the log is in the file");
    assert_eq!(held.ack().await.unwrap_err().error().kind(), ErrorKind::LeaseLost);

    let second = start(&constructor(), scratch.pipeline()).await;
    let mut found = Vec::new();
    for _ in 0..4 {
        let job = second.next().await;
        found.push((job.name().to_owned(), job.attempt()));
        job.ack().await.unwrap();
    }
    let expected = [("a", 2), ("b", 1), ("c", 1), ("d", 1)];
    assert_eq!(found, expected.map(|(name, attempt)| (name.to_owned(), attempt)));
}

#[tokio::test]
async fn a_stop_that_was_dropped_goes_on() {
    let (scratch, constructor) = (Scratch::new(), constructor());
    let running = start(&constructor, scratch.pipeline()).await;
    let dead = constructor.dead_letters("p").unwrap();
    let stopped = async || {
        // Dropped at another point each time.
        let stop = tokio::time::timeout(Duration::ZERO, running.driver.stop()).await;
        stop.is_ok_and(|stopped| stopped.is_ok())
    };
    eventually("it stops", stopped).await;
    assert_eq!(scratch.owners(), ["access"], "it was waited for");
    if cfg!(target_os = "linux") {
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let open = open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        let of_file = open.filter(|open| open.starts_with(scratch.path().parent().unwrap()));
        assert_eq!(of_file.collect::<Vec<_>>(), Vec::<std::path::PathBuf>::new());
    }
    drop((running, dead));
}

#[tokio::test]
async fn a_driver_dropped_without_a_stop_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let dropped = start(&constructor(), scratch.pipeline()).await;
    dropped.push("a").await;
    let job = dropped.next().await;
    drop(dropped.driver);
    eventually("the thread ends", async || scratch.owners() == ["access"]).await;
    assert_eq!(job.ack().await.unwrap_err().error().kind(), ErrorKind::LeaseLost);
    let again = start(&constructor(), scratch.pipeline()).await;
    assert_eq!(again.next().await.attempt(), 2);
}

#[tokio::test]
async fn what_is_no_file_of_ours_is_refused_and_left_alone() {
    let scratch = Scratch::new();
    let garbage = b"This is a letter to my grandmother, not a database. ".repeat(100);
    std::fs::write(scratch.path(), &garbage).unwrap();
    assert_eq!(refused(scratch.pipeline()).await.kind(), ErrorKind::Codec);
    assert!(std::fs::read(scratch.path()).unwrap() == garbage, "not touched");

    std::fs::remove_file(scratch.path()).unwrap();
    let foreign = Connection::open(scratch.path()).unwrap();
    foreign.execute_batch("CREATE TABLE letters (text TEXT)").unwrap();
    drop(foreign);
    let before = std::fs::read(scratch.path()).unwrap();
    let error = refused(scratch.pipeline()).await;
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    assert!(error.to_string().contains("`path`") && error.to_string().contains("another program"));
    assert_eq!((error.pipeline(), error.driver()), (Some("p"), Some("local")));
    assert!(std::fs::read(scratch.path()).unwrap() == before, "not touched");
}

#[tokio::test]
async fn a_file_of_a_later_version_is_refused() {
    let scratch = Scratch::new();
    let driver = connect(&constructor(), scratch.pipeline()).await.unwrap();
    driver.stop().await.unwrap();
    let file = Connection::open(scratch.path()).unwrap();
    file.pragma_update(None, "user_version", 2).unwrap();
    drop(file);
    let error = refused(scratch.pipeline()).await;
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    assert!(error.to_string().contains("version 2"), "{error}");
}

#[tokio::test]
async fn a_damaged_file_fails_with_an_error() {
    let scratch = Scratch::new();
    let full = connect(&constructor(), scratch.pipeline()).await.unwrap();
    let messages = (0..2_000).map(|_| Message::new("a", vec![7; 200])).collect();
    full.push_batch(messages).await.into_iter().for_each(|answer| answer.unwrap());
    full.stop().await.unwrap();
    let mut bytes = std::fs::read(scratch.path()).unwrap();
    bytes[8192..].fill(0xFF);
    std::fs::write(scratch.path(), bytes).unwrap();
    match connect(&constructor(), scratch.pipeline()).await {
        Err(error) => assert_eq!(error.kind(), ErrorKind::Codec, "{error}"),
        Ok(driver) => {
            let error = driver.push(Message::new("a", "")).await.expect_err("damaged");
            assert_eq!(error.kind(), ErrorKind::Codec, "{error}");
        }
    }
}

#[tokio::test]
async fn places_that_hold_no_file_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let error = refused(on(&directory.path().to_string_lossy())).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("`path`"), "{error}");
    std::fs::write(directory.path().join("file"), "").unwrap();
    let error = refused(on(&directory.path().join("file/jobs.db").to_string_lossy())).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    // Where nobody may write, whoever runs this.
    if cfg!(target_os = "linux") {
        let error = refused(on("/sys/jobs.db")).await;
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    }
}

#[tokio::test]
async fn a_link_to_no_file_yet_is_the_same_for_all() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("jobs.db");
    std::os::unix::fs::symlink("data/real.db", &link).unwrap();
    let pipeline = || on(&link.to_string_lossy());
    let first = start(&constructor(), pipeline()).await;
    first.push("a").await;
    let job = first.next().await;
    let second = start(&constructor(), pipeline()).await;
    assert!(second.none_for(Duration::from_millis(100)).await, "the first has it");
    job.ack().await.unwrap();
    assert!(directory.path().join("data/real.db-owners").is_dir());
    assert!(!directory.path().join("jobs.db-owners").exists());
}

#[tokio::test]
async fn a_file_with_two_names_is_refused() {
    let scratch = Scratch::new();
    let driver = connect(&constructor(), scratch.pipeline()).await.unwrap();
    let alias = scratch.path().with_file_name("alias.db");
    std::fs::hard_link(scratch.path(), &alias).unwrap();
    let error = refused(on(&alias.to_string_lossy())).await;
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    assert!(error.to_string().contains("hard links"), "{error}");
    driver.push(Message::new("a", "")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_can_be_made_by_several_at_once() {
    for _ in 0..5 {
        let scratch = Scratch::new();
        let mut opening = JoinSet::new();
        for _ in 0..8 {
            let pipeline = scratch.pipeline();
            opening.spawn(async move { connect(&constructor(), pipeline).await });
        }
        while let Some(opened) = opening.join_next().await {
            opened.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn a_file_that_is_slow_to_open_holds_up_no_other() {
    let (one, two) = (Scratch::new(), Scratch::new());
    connect(&constructor(), two.pipeline()).await.unwrap().stop().await.unwrap();
    let constructor = constructor();
    let _one = connect(&constructor, one.pipeline()).await.unwrap();
    let file = Connection::open(two.path()).unwrap();
    file.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let opening = {
        let (constructor, pipeline) = (constructor.clone(), two.pipeline());
        tokio::spawn(async move { connect(&constructor, pipeline).await })
    };
    for _ in 0..10 {
        // The only thread of this runtime goes on.
        assert!(constructor.dead_letters("p").is_ok());
        connect(&constructor, one.pipeline()).await.unwrap();
    }
    file.execute_batch("ROLLBACK").unwrap();
    opening.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_file_that_is_gone_confirms_nothing() {
    let scratch = Scratch::new();
    let running = start(&constructor(), scratch.pipeline()).await;
    running.push("a").await;
    let job = running.next().await;
    std::fs::remove_file(scratch.path()).unwrap();
    let error = running.driver.push(Message::new("b", "")).await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::NotFound, false), "{error}");
    assert!(error.may_be_stored() && error.to_string().contains("deleted"), "{error}");
    let refused = job.ack().await.unwrap_err();
    assert_eq!(refused.error().kind(), ErrorKind::NotFound);
    drop(refused);
    assert!(running.driver.state().await.is_err());
    let stopped = Instant::now();
    let _ = running.driver.stop().await;
    assert!(stopped.elapsed() < scratch::DEADLINE);
}

#[tokio::test]
async fn one_bad_statement_fails_alone() {
    let scratch = Scratch::new();
    let running = start(&constructor(), scratch.pipeline()).await;
    let file = Connection::open(scratch.path()).unwrap();
    let trigger = "CREATE TRIGGER no BEFORE INSERT ON jobs WHEN NEW.name = 'bad' \
                   BEGIN SELECT RAISE(ABORT, 'not this one'); END";
    file.execute_batch(trigger).unwrap();
    drop(file);
    let mut pushes = JoinSet::new();
    for number in 0..50 {
        let driver = std::sync::Arc::clone(&running.driver);
        let name = if number % 10 == 0 { "bad" } else { "good" };
        pushes.spawn(async move { (name, driver.push(Message::new(name, "")).await) });
    }
    while let Some(pushed) = pushes.join_next().await {
        let (name, answer) = pushed.unwrap();
        match answer {
            Ok(()) => assert_eq!(name, "good"),
            Err(error) => {
                assert_eq!((name, error.kind()), ("bad", ErrorKind::Broker), "{error}");
                assert!(!error.may_be_stored() && error.to_string().contains("not this one"));
            }
        }
    }
    for _ in 0..45 {
        running.next().await.ack().await.unwrap();
    }
    assert!(running.none_for(Duration::from_millis(50)).await);
    let state = running.driver.state().await.unwrap();
    assert_eq!((state.reserved, state.in_flight, state.active), (Some(0), Some(0), 0));
}

#[tokio::test]
async fn a_full_file_refuses_pushes_and_settles() {
    let scratch = Scratch::new();
    let running = start(&constructor(), scratch.pipeline().with_option("max_size", "1MiB")).await;
    let large = || Message::new("a", vec![1; 100_000]);
    let mut stored = 0;
    let error = loop {
        match running.driver.push(large()).await {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((error.kind(), error.may_be_stored()), (ErrorKind::Full, false), "{error}");
    assert!((6..10).contains(&stored), "{stored}");
    for answer in running.driver.push_batch(vec![large(), large()]).await {
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Full);
    }
    running.next().await.requeue(Duration::ZERO).await.unwrap();
    running.next().await.reject().await.unwrap();
    for _ in 1..stored {
        running.next().await.ack().await.unwrap();
    }
    running.driver.push(large()).await.unwrap();
    assert!(std::fs::metadata(scratch.path()).unwrap().len() < 1_100_000);
}

#[tokio::test]
async fn what_does_not_fill_its_page_counts_as_a_page() {
    let scratch = Scratch::new();
    let pipeline = scratch.pipeline().with_option("max_size", "1MiB");
    let driver = connect(&constructor(), pipeline).await.unwrap();
    let messages = (0..300).map(|_| Message::new("a", vec![1; 2_040])).collect();
    for answer in driver.push_batch(messages).await {
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Full);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_push_waits_for_another_process_up_to_push_timeout() {
    let scratch = Scratch::new();
    let pipeline = scratch.pipeline().with_option("push_timeout", "300ms");
    let running = start(&constructor(), pipeline).await;
    running.push("before").await;
    let job = running.next().await;
    let file = Connection::open(scratch.path()).unwrap();
    file.execute_batch("BEGIN IMMEDIATE").unwrap();
    let start = Instant::now();
    let push = running.driver.push(Message::new("late", ""));
    // The only thread of this runtime goes on.
    let (error, state) = tokio::join!(push, running.driver.state());
    assert_eq!(state.unwrap().in_flight, Some(1));
    let error = error.unwrap_err();
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Timeout, true), "{error}");
    assert!(!error.may_be_stored(), "withdrawn in time");
    file.execute_batch("ROLLBACK").unwrap();
    job.ack().await.unwrap();
    running.push("after").await;
    assert_eq!(running.next().await.name(), "after");
}

#[tokio::test]
async fn a_push_has_its_own_time_whoever_opened_the_file() {
    let (scratch, constructor) = (Scratch::new(), constructor());
    let pipeline = |timeout| scratch.pipeline().with_option("push_timeout", timeout);
    let short = connect(&constructor, pipeline("100ms")).await.unwrap();
    let long = connect(&constructor, pipeline("20s")).await.unwrap();
    let file = Connection::open(scratch.path()).unwrap();
    file.execute_batch("BEGIN IMMEDIATE").unwrap();
    let waiting = tokio::spawn(async move { long.push(Message::new("a", "")).await });
    for _ in 0..2 {
        let start = Instant::now();
        let error = short.push(Message::new("b", "")).await.unwrap_err();
        assert!(start.elapsed() >= Duration::from_millis(100), "its own");
        assert!(!error.may_be_stored(), "{error}");
    }
    assert!(!waiting.is_finished());
    file.execute_batch("ROLLBACK").unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(short.state().await.unwrap().reserved, Some(1));
}

#[tokio::test]
async fn a_lock_of_another_process_delays_jobs_and_loses_none() {
    let scratch = Scratch::new();
    let running = start(&constructor(), scratch.pipeline()).await;
    running.driver.pause().await.unwrap();
    running.push("a").await;
    let file = Connection::open(scratch.path()).unwrap();
    file.execute_batch("BEGIN IMMEDIATE").unwrap();
    running.driver.resume().await.unwrap();
    assert!(running.none_for(Duration::from_millis(150)).await, "it cannot be written down");
    file.execute_batch("ROLLBACK").unwrap();
    running.next().await.ack().await.unwrap();
}

#[tokio::test]
async fn a_settlement_that_waits_too_long_gives_its_job_back() {
    let scratch = Scratch::new();
    let pipeline = scratch.pipeline().with_option("push_timeout", "200ms");
    let running = start(&constructor(), pipeline).await;
    running.push("a").await;
    let job = running.next().await;
    let file = Connection::open(scratch.path()).unwrap();
    file.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = job.ack().await.unwrap_err();
    assert_eq!(refused.error().kind(), ErrorKind::Timeout);
    assert!(refused.error().is_retryable());
    file.execute_batch("ROLLBACK").unwrap();
    refused.into_job().ack().await.unwrap();
    assert_eq!(running.driver.state().await.unwrap().in_flight, Some(0));
}

#[tokio::test]
async fn dead_letters_can_be_listed_requeued_and_purged() {
    let (scratch, constructor) = (Scratch::new(), constructor());
    let running = start(&constructor, scratch.pipeline()).await;
    for name in ["a", "b", "c"] {
        running.push(name).await;
        running.next().await.reject().await.unwrap();
    }
    let dead = constructor.dead_letters("p").unwrap();
    let first = dead.list(0, 2).await.unwrap();
    assert_eq!(first.iter().map(|d| d.message.name()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((first[0].attempt, &first[0].message.payload()[..]), (1, b"a".as_slice()));
    assert!(first[0].died.elapsed().unwrap() < scratch::DEADLINE);
    assert_eq!(dead.list(0, usize::MAX).await.unwrap().len(), 3);
    let rest = dead.list(first[1].place, 2).await.unwrap();
    assert_eq!(rest.iter().map(|d| d.message.name()).collect::<Vec<_>>(), ["c"]);

    assert_eq!(dead.requeue(&[first[1].place, 999]).await.unwrap(), 1);
    let again = running.next().await;
    assert_eq!((again.name(), again.attempt()), ("b", 2));
    again.ack().await.unwrap();
    assert_eq!(running.driver.state().await.unwrap().dead, Some(2));
    assert_eq!(dead.purge().await.unwrap(), 2);
    assert_eq!(running.driver.state().await.unwrap().dead, Some(0));
    running.driver.stop().await.unwrap();
    assert_eq!(dead.list(0, 1).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(constructor.dead_letters("q").unwrap_err().kind(), ErrorKind::NotFound);
    let file = Connection::open(scratch.path()).unwrap();
    let left: i64 = file.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn pipelines_share_a_file_on_equal_terms() {
    let (scratch, constructor) = (Scratch::new(), constructor());
    let first = start(&constructor, scratch.pipeline().with_option("queue", "one")).await;
    let second = start(&constructor, scratch.pipeline().with_option("queue", "two")).await;
    first.push("first").await;
    second.push("second").await;
    assert_eq!(second.next().await.name(), "second");
    assert_eq!(first.next().await.name(), "first");
    assert_eq!(scratch.owners().len(), 2, "one owner");
    let other = scratch.pipeline().with_option("durability", "normal");
    let error = connect(&constructor, other).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState, "{error}");
    first.driver.stop().await.unwrap();
    second.push("still here").await;
}

#[tokio::test]
async fn pushes_that_are_dropped_are_stored_once_or_not() {
    let scratch = Scratch::new();
    let driver = connect(&constructor(), scratch.pipeline()).await.unwrap();
    for number in 0..200 {
        let push = driver.push(Message::new("a", "").with_id(number.to_string()));
        let _ = tokio::time::timeout(Duration::from_micros(number * 5), push).await;
    }
    let state = driver.state().await.unwrap();
    driver.stop().await.unwrap();
    let file = Connection::open(scratch.path()).unwrap();
    let count = |sql: &str| file.query_row(sql, [], |row| row.get::<_, u64>(0)).unwrap();
    let jobs = count("SELECT count(*) FROM jobs");
    assert_eq!(jobs, count("SELECT count(DISTINCT id) FROM jobs"));
    assert_eq!(jobs, count("SELECT count(*) FROM ready JOIN jobs USING (seq)"));
    assert_eq!(jobs, count("SELECT ready FROM queues"));
    assert!(state.reserved.unwrap() <= jobs);
}

#[tokio::test]
async fn space_is_given_back() {
    let scratch = Scratch::new();
    let running = start(&constructor(), scratch.pipeline()).await;
    let messages = (0..200).map(|_| Message::new("a", vec![1; 100_000])).collect();
    running.driver.push_batch(messages).await.into_iter().for_each(|answer| answer.unwrap());
    for _ in 0..200 {
        running.next().await.ack().await.unwrap();
    }
    eventually("the file shrinks", async || {
        std::fs::metadata(scratch.path()).unwrap().len() < 6 << 20
    })
    .await;
}
