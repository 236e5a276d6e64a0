//! Several workers on one queue, as an application has them.

use std::sync::{Arc, Mutex};

use jobs_core::{Job, JobId, Queue};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::{CaseError, Fixture, Unexpected};

/// Acknowledges jobs with `workers` tasks per queue until `count` were settled, and returns their
/// ids sorted.
pub(super) async fn ack_all(
    fx: &Fixture,
    queues: &[&Queue],
    workers: usize,
    count: usize,
) -> Result<Vec<JobId>, CaseError> {
    let seen = Arc::new(Mutex::new(Vec::with_capacity(count)));
    let (done, watching) = watch::channel(false);
    let done = Arc::new(done);
    let mut tasks = JoinSet::new();
    for queue in queues {
        for _ in 0..workers {
            let worker = Worker {
                queue: (*queue).clone(),
                seen: Arc::clone(&seen),
                count,
                done: Arc::clone(&done),
            };
            tasks.spawn(worker.work(watching.clone()));
        }
    }
    let finished = fx
        .within("workers", async {
            while let Some(worker) = tasks.join_next().await {
                worker??;
            }
            Ok::<_, CaseError>(())
        })
        .await;
    let mut seen = std::mem::take(&mut *seen.lock().expect("no worker panicked"));
    match finished {
        Ok(answer) => answer?,
        Err(error) => {
            let message = format!("{error}, {} of {count} jobs settled", seen.len());
            return Err(Unexpected::new(message).into());
        }
    }
    seen.sort();
    Ok(seen)
}

struct Worker {
    queue: Queue,
    seen: Arc<Mutex<Vec<JobId>>>,
    count: usize,
    done: Arc<watch::Sender<bool>>,
}

impl Worker {
    async fn work(self, mut done: watch::Receiver<bool>) -> Result<(), jobs_core::Error> {
        while let Some(job) = self.next(&mut done).await {
            let id = job.id().clone();
            job.ack().await?;
            let mut seen = self.seen.lock().expect("no worker panicked");
            seen.push(id);
            if seen.len() >= self.count {
                self.done.send_replace(true);
            }
        }
        Ok(())
    }

    async fn next(&self, done: &mut watch::Receiver<bool>) -> Option<Job> {
        tokio::select! {
            biased;
            _ = done.wait_for(|done| *done) => None,
            job = self.queue.pop() => job,
        }
    }
}
