//! What is particular to this driver: virtual time, shared queues, dead letters.

use std::sync::Arc;
use std::time::Duration;

use jobs_core::{Driver, ErrorKind, Message, Pipeline, Queue, Registry, Result};
use jobs_memory::MemoryConstructor;
use tokio::time::Instant;

const DAY: Duration = Duration::from_secs(24 * 3600);

struct Running {
    driver: Arc<dyn Driver>,
    queue: Queue,
}

fn registry(constructor: &MemoryConstructor) -> Registry {
    let mut registry = Registry::new();
    registry.register(constructor.clone()).expect("the only driver");
    registry
}

async fn start(constructor: &MemoryConstructor, pipeline: Pipeline) -> Result<Running> {
    let queue = Queue::new();
    let inlet = queue.open_lane(&pipeline);
    let driver = registry(constructor).connect(pipeline).await?;
    driver.run(inlet).await?;
    Ok(Running { driver, queue })
}

fn pipeline(name: &str) -> Pipeline {
    Pipeline::new(name.to_owned(), jobs_memory::NAME)
}

#[tokio::test(start_paused = true)]
async fn a_delay_of_30_days_takes_no_time() {
    let Running { driver, queue } =
        start(&jobs_memory::constructor(), pipeline("later")).await.unwrap();
    let before = Instant::now();
    driver.push(Message::new("late", "").with_delay(30 * DAY)).await.unwrap();
    driver.push(Message::new("soon", "").with_delay(Duration::from_millis(7))).await.unwrap();

    let soon = queue.pop().await.unwrap();
    assert_eq!((soon.name(), before.elapsed()), ("soon", Duration::from_millis(7)));
    soon.requeue(10 * DAY).await.unwrap();
    let again = queue.pop().await.unwrap();
    assert_eq!((again.name(), again.attempt()), ("soon", 2));
    assert_eq!(before.elapsed(), 10 * DAY + Duration::from_millis(7));
    let late = queue.pop().await.unwrap();
    assert_eq!((late.name(), before.elapsed()), ("late", 30 * DAY));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_extended_ends_later() {
    let pipeline = pipeline("leases").with_option("max_lease", "1m");
    let Running { driver, queue } = start(&jobs_memory::constructor(), pipeline).await.unwrap();
    let before = Instant::now();
    for name in ["extended", "plain"] {
        driver.push(Message::new(name, "")).await.unwrap();
    }
    let extended = queue.pop().await.unwrap();
    let plain = queue.pop().await.unwrap();
    extended.extend(2 * DAY).await.unwrap();

    let again = queue.pop().await.unwrap();
    assert_eq!((again.name(), again.attempt()), ("plain", 2));
    assert_eq!(before.elapsed(), Duration::from_secs(60));
    let refused = plain.ack().await.unwrap_err();
    assert_eq!(refused.error().kind(), ErrorKind::LeaseLost);
    assert!(driver.state().await.unwrap().last_error.unwrap().contains("max_lease"));
    again.ack().await.unwrap();

    let again = queue.pop().await.unwrap();
    assert_eq!((again.name(), before.elapsed()), ("extended", 2 * DAY));
}

#[tokio::test]
async fn dead_letters_can_be_inspected_and_the_oldest_goes_first() {
    let constructor = jobs_memory::constructor();
    let pipeline = pipeline("mail").with_option("dead_letters", 2);
    let Running { driver, queue } = start(&constructor, pipeline).await.unwrap();
    for name in ["a", "b", "c"] {
        driver.push(Message::new(name, "")).await.unwrap();
        queue.pop().await.unwrap().reject().await.unwrap();
    }
    let dead = constructor.dead_letters("mail");
    assert_eq!(dead.iter().map(|d| d.message.name()).collect::<Vec<_>>(), ["b", "c"]);
    assert_eq!(dead[0].attempt, 1);
    assert_eq!(driver.state().await.unwrap().dead, Some(2));
    assert!(constructor.dead_letters("other").is_empty());
}

#[tokio::test]
async fn a_queue_is_shared_within_a_constructor_only_and_on_equal_terms() {
    let constructor = jobs_memory::constructor();
    let on = |name: &str| pipeline(name).with_option("queue", "shared");
    let producer = registry(&constructor).connect(on("producer")).await.unwrap();
    producer.push(Message::new("a", "")).await.unwrap();
    let stranger = start(&jobs_memory::constructor(), on("stranger")).await.unwrap();
    let consumer = start(&constructor, on("consumer").with_option("prefetch", 3)).await.unwrap();
    assert_eq!(consumer.queue.pop().await.unwrap().name(), "a");
    assert!(stranger.queue.try_pop().is_none());

    let other = on("other").with_option("capacity", 7);
    let refused = registry(&constructor).connect(other).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidState);
    assert!(refused.to_string().contains("`shared`"), "{refused}");
}

#[tokio::test]
async fn a_driver_dropped_without_a_stop_gives_its_jobs_back() {
    let constructor = jobs_memory::constructor();
    let dying = start(&constructor, pipeline("p").with_option("queue", "q")).await.unwrap();
    dying.driver.push(Message::new("a", "")).await.unwrap();
    let job = dying.queue.pop().await.unwrap();
    let other = start(&constructor, pipeline("p").with_option("queue", "q")).await.unwrap();
    drop(dying.driver);
    let again = other.queue.pop().await.unwrap();
    assert_eq!((again.name(), again.attempt()), ("a", 2));
    assert_eq!(job.ack().await.unwrap_err().error().kind(), ErrorKind::LeaseLost);
    again.ack().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_timer_that_ends_leaves_its_alarm_to_the_others() {
    let constructor = jobs_memory::constructor();
    let on = || pipeline("p").with_option("queue", "q");
    let first = start(&constructor, on()).await.unwrap();
    let second = start(&constructor, on()).await.unwrap();
    first.driver.push(Message::new("a", "").with_delay(DAY)).await.unwrap();
    // Both timers have seen the alarm; the one that stops must not take it with it.
    tokio::task::yield_now().await;
    first.driver.stop().await.unwrap();
    assert_eq!(second.queue.pop().await.unwrap().name(), "a");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_throttles_after_push_timeout() {
    let options = pipeline("p").with_option("capacity", 1).with_option("push_timeout", "5s");
    let Running { driver, queue } = start(&jobs_memory::constructor(), options).await.unwrap();
    driver.push(Message::new("a", "")).await.unwrap();
    let before = Instant::now();
    let refused = driver.push(Message::new("b", "")).await.unwrap_err();
    assert_eq!((refused.kind(), refused.is_retryable()), (ErrorKind::Throttled, true));
    assert!(!refused.may_be_stored());
    assert_eq!(before.elapsed(), Duration::from_secs(5));
    queue.pop().await.unwrap().ack().await.unwrap();
    driver.push(Message::new("b", "")).await.unwrap();
    assert_eq!(queue.pop().await.unwrap().name(), "b");
}

#[tokio::test]
async fn a_worker_that_always_finds_a_job_lets_others_run() {
    let Running { driver, queue } =
        start(&jobs_memory::constructor(), pipeline("busy")).await.unwrap();
    let messages = (0..50_000).map(|_| Message::new("a", "")).collect();
    driver.push_batch(messages).await.into_iter().for_each(|pushed| pushed.unwrap());
    // One thread: the worker gets through only if it never blocks, this task only if it yields.
    let worker = tokio::spawn(async move {
        for _ in 0..50_000 {
            queue.pop().await.unwrap().ack().await.unwrap();
        }
    });
    tokio::task::yield_now().await;
    assert!(!worker.is_finished(), "50,000 jobs in one turn");
    worker.await.unwrap();
}

#[tokio::test]
async fn auto_ack_jobs_follow_each_other_through_one_credit() {
    let options = pipeline("p").with_option("prefetch", 1);
    let Running { driver, queue } = start(&jobs_memory::constructor(), options).await.unwrap();
    let messages = (0..3).map(|_| Message::new("a", "").with_auto_ack(true)).collect();
    driver.push_batch(messages).await.into_iter().for_each(|pushed| pushed.unwrap());
    for _ in 0..3 {
        queue.try_pop().expect("settling one lets the next in").ack().await.unwrap();
    }
    assert!(queue.try_pop().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_job_that_nobody_popped_in_time_is_replaced_and_its_attempt_does_not_count() {
    let options = pipeline("p").with_option("max_lease", "1s");
    let Running { driver, queue } = start(&jobs_memory::constructor(), options).await.unwrap();
    for name in ["a", "b"] {
        driver.push(Message::new(name, "")).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(4_500)).await;
    assert_eq!(queue.len(), 2);
    for name in ["a", "b"] {
        let job = queue.pop().await.unwrap();
        assert_eq!((job.name(), job.attempt()), (name, 1));
        job.ack().await.unwrap();
    }
    assert!(queue.is_empty());
}

#[tokio::test]
async fn a_refused_requeue_that_nobody_awaits_gives_the_job_back() {
    let Running { driver, queue } =
        start(&jobs_memory::constructor(), pipeline("p")).await.unwrap();
    driver.push(Message::new("a", "")).await.unwrap();
    drop(queue.pop().await.unwrap().requeue(Duration::MAX));
    let again = queue.pop().await.unwrap();
    assert_eq!(again.attempt(), 2);
    again.ack().await.unwrap();
    assert_eq!(driver.state().await.unwrap().in_flight, Some(0));
}
