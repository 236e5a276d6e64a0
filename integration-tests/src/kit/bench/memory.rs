//! `memory` against tokio's channel of the same messages.

use std::sync::Arc;

use futures::future::join_all;
use jobs_core::{Driver, Pipeline, Queue, Registry};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Line, Side, Stopwatch, compare_allocations as compare, messages, share};

const CAPACITY: usize = 1_024;
const BATCH: usize = 64;
const JOBS: usize = 200_000;

pub(crate) fn run() {
    let line = |op, concurrency| {
        let config = "lease";
        Line { driver: jobs_memory::NAME, op, config, concurrency, jobs: JOBS }
    };
    for producers in [1, 64] {
        compare(&line("push", producers), raw_push(producers), driver_push(producers, 1, 1));
    }
    for producers in [1, 64] {
        let driver = driver_push(producers, BATCH, 1);
        compare(&line("push_batch", producers), raw_push(producers), driver);
    }
    compare(&line("cycle", 1), raw_cycle, driver_cycle);
    compare(&line("push_workers", 64), raw_push_workers(64), driver_push(64, 1, 64));
}

async fn join(mut tasks: JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no side panics");
    }
}

fn raw_push(producers: usize) -> impl Side {
    async move |jobs, _: &mut Stopwatch| {
        let (sender, mut receiver) = mpsc::channel(CAPACITY);
        let mut tasks = JoinSet::new();
        for producer in 0..producers {
            let sender = sender.clone();
            tasks.spawn(async move {
                for message in messages(share(jobs, producers, producer)) {
                    sender.send(message).await.expect("the receiver lives");
                }
            });
        }
        drop(sender);
        tasks.spawn(async move { while receiver.recv().await.is_some() {} });
        join(tasks).await;
    }
}

fn raw_push_workers(count: usize) -> impl Side {
    async move |jobs, _: &mut Stopwatch| {
        let (sender, receiver) = async_channel::bounded(CAPACITY);
        let mut tasks = JoinSet::new();
        for member in 0..count {
            let (sender, receiver) = (sender.clone(), receiver.clone());
            tasks.spawn(async move {
                for message in messages(share(jobs, count, member)) {
                    sender.send(message).await.expect("a receiver lives");
                }
            });
            tasks.spawn(async move { while receiver.recv().await.is_ok() {} });
        }
        drop((sender, receiver));
        join(tasks).await;
    }
}

async fn raw_cycle(jobs: usize, _: &mut Stopwatch) {
    let (sender, mut receiver) = mpsc::channel(CAPACITY);
    for message in messages(jobs) {
        sender.send(message).await.expect("the receiver lives");
        receiver.recv().await.expect("sent just now");
    }
}

async fn pipeline() -> (Arc<dyn Driver>, Queue) {
    let mut registry = Registry::new();
    registry.register(jobs_memory::constructor()).expect("the only driver");
    let pipeline = Pipeline::new("bench", jobs_memory::NAME)
        .with_option("prefetch", 256)
        .with_option("capacity", CAPACITY)
        .with_option("max_lease", "1m");
    let queue = Queue::new();
    let inlet = queue.open_lane(&pipeline);
    let driver = registry.connect(pipeline).await.expect("valid");
    driver.run(inlet).await.expect("runs once");
    (driver, queue)
}

fn driver_push(producers: usize, batch: usize, workers: usize) -> impl Side {
    async move |jobs, _: &mut Stopwatch| {
        let (driver, queue) = pipeline().await;
        let mut pushes = JoinSet::new();
        for producer in 0..producers {
            let jobs = share(jobs, producers, producer);
            pushes.spawn(push_all(Arc::clone(&driver), jobs, batch));
        }
        let mut pops = JoinSet::new();
        for worker in 0..workers {
            pops.spawn(ack(queue.clone(), share(jobs, workers, worker)));
        }
        join_all([join(pushes), join(pops)]).await;
        driver.stop().await.expect("stops");
    }
}

async fn push_all(driver: Arc<dyn Driver>, jobs: usize, batch: usize) {
    if batch == 1 {
        for message in messages(jobs) {
            driver.push(message).await.expect("stored");
        }
        return;
    }
    let mut messages = messages(jobs).peekable();
    while messages.peek().is_some() {
        let batch = messages.by_ref().take(batch).collect();
        for answer in driver.push_batch(batch).await {
            answer.expect("stored");
        }
    }
}

async fn ack(queue: Queue, jobs: usize) {
    for _ in 0..jobs {
        let job = queue.pop().await.expect("the queue is open");
        job.ack().await.expect("the lease holds");
    }
}

async fn driver_cycle(jobs: usize, _: &mut Stopwatch) {
    let (driver, queue) = pipeline().await;
    for message in messages(jobs) {
        driver.push(message).await.expect("stored");
        queue.pop().await.expect("the queue is open").ack().await.expect("the lease holds");
    }
    driver.stop().await.expect("stops");
}

#[cfg(test)]
mod tests {
    use super::super::allocations;
    use super::*;

    #[test]
    fn a_push_allocates_once_and_settling_never() {
        const JOBS: usize = 20_000;
        let raw = allocations(&raw_push(1), JOBS);
        let beyond = |driver: f64| (driver - raw) / JOBS as f64;
        let single = beyond(allocations(&driver_push(1, 1, 1), JOBS));
        assert!(single <= 1.01, "{single} per push, pop and ack: the boxed future is the one");
        let batched = beyond(allocations(&driver_push(1, BATCH, 1), JOBS));
        assert!(batched <= 0.3, "{batched} per job of a batch");
    }
}
