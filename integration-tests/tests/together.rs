//! Six pipelines in one process, one on each driver, and one worker for all: what becomes of five of them
//! while the broker of the sixth is killed and comes back.

#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use integration_tests::brokers::Brokers;
use jobs::{Bytes, Context, HandlerError, JobId, Jobs, Message, Worker};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

const PIPELINES: [&str; 6] = ["memory", "local", "amqp", "kafka", "sqs", "beanstalk"];
/// Between two jobs that a pipeline is offered: fifty a second.
const PACE: Duration = Duration::from_millis(20);
/// How long a broker is gone, besides the time it takes to start.
const GONE: Duration = Duration::from_secs(5);
/// A job that has ended so long after it was offered is in time.
const IN_TIME: Duration = Duration::from_secs(2);
/// So long all have to be in time before a broker is killed: servers that have just started are slow.
const WARM: Duration = Duration::from_secs(10);
/// How many of the others' jobs have to be.
const SHARE: f64 = 0.95;
const PATIENCE: Duration = Duration::from_secs(90);
const SHUTDOWN: Duration = Duration::from_secs(30);

/// What became of the jobs of one pipeline.
#[derive(Default)]
struct Book {
    entries: Mutex<HashMap<JobId, Entry>>,
}

struct Entry {
    offered: Instant,
    accepted: bool,
    done: Option<Instant>,
}

impl Book {
    fn offered(&self, id: &JobId) {
        let entry = Entry { offered: Instant::now(), accepted: false, done: None };
        self.entries.lock().unwrap().insert(id.clone(), entry);
    }

    fn note(&self, id: &JobId, change: impl FnOnce(&mut Entry)) {
        change(self.entries.lock().unwrap().get_mut(id).expect("it was offered before"));
    }

    /// Jobs that were accepted and have not ended.
    fn open(&self) -> usize {
        let entries = self.entries.lock().unwrap();
        entries.values().filter(|entry| entry.accepted && entry.done.is_none()).count()
    }

    /// Of the jobs that were offered in that time, the share that ended in time.
    fn in_time(&self, from: Instant, to: Instant) -> f64 {
        let entries = self.entries.lock().unwrap();
        let offered = entries.values().filter(|entry| (from..to).contains(&entry.offered));
        let (mut all, mut in_time) = (0.0, 0.0);
        for entry in offered {
            all += 1.0;
            let ended = entry.done.is_some_and(|done| done <= entry.offered + IN_TIME);
            in_time += f64::from(u8::from(ended));
        }
        if all < 50.0 { 0.0 } else { in_time / all }
    }
}

fn configuration(sections: &str, file: &str) -> String {
    format!(
        "{sections}
            version: '3'
            jobs:
              consume: [memory, local, amqp, kafka, sqs, beanstalk]
              pipelines:
                memory: {{ driver: memory, config: {{}} }}
                local: {{ driver: local, config: {{ path: '{file}' }} }}
                amqp: {{ driver: amqp, config: {{ queue: together }} }}
                kafka:
                  driver: kafka
                  config: {{ topics: [together], auto_create_topics_enable: true }}
                sqs: {{ driver: sqs, config: {{ queue: together }} }}
                beanstalk: {{ driver: beanstalk, config: {{ tube: together }} }}
        "
    )
}

/// Offers a pipeline a job every twenty milliseconds, whatever became of the last one.
async fn offer(jobs: Jobs, name: &'static str, book: Arc<Book>, mut until: oneshot::Receiver<()>) {
    let pipeline = jobs.pipeline(name).unwrap();
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut pushes = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut until => break,
            _ = ticks.tick() => {}
        }
        let (pipeline, book) = (pipeline.clone(), Arc::clone(&book));
        pushes.spawn(async move {
            let message = Message::new("work", name);
            let id = message.id().clone();
            book.offered(&id);
            match pipeline.push(message).await {
                Ok(()) => book.note(&id, |entry| entry.accepted = true),
                Err(error) => assert!(error.is_retryable(), "{name}: an outage passes: {error:?}"),
            }
        });
        while pushes.try_join_next().map(|ended| ended.unwrap()).is_some() {}
    }
    while let Some(ended) = pushes.join_next().await {
        ended.unwrap();
    }
}

async fn until_done(jobs: &Jobs, books: &HashMap<&str, Arc<Book>>) {
    let all_done = async {
        while books.values().any(|book| book.open() > 0) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let open = || books.iter().map(|(name, book)| (*name, book.open())).collect::<Vec<_>>();
    if timeout(PATIENCE, all_done).await.is_err() {
        panic!("lost: {:?}, while the brokers have {:#?}", open(), jobs.stat().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_go_on_while_one_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let brokers = Brokers::start().await.unwrap();
    let file = folder.path().join("together.db");
    let configuration = configuration(&brokers.sections(), file.to_str().unwrap());
    let jobs = Jobs::from_yaml(&configuration).await.unwrap();
    let books: HashMap<_, _> = PIPELINES.map(|name| (name, Arc::<Book>::default())).into();

    let noted = books.clone();
    let work = move |_: Bytes, context: Context| {
        let book = Arc::clone(&noted[context.pipeline()]);
        async move {
            book.note(context.id(), |entry| entry.done = Some(Instant::now()));
            Ok::<_, HandlerError>(())
        }
    };
    let (stop_working, told) = oneshot::channel::<()>();
    let worker = Worker::new(&jobs).handle("work", work).shutdown_deadline(SHUTDOWN);
    let worker = tokio::spawn(worker.run_until(async { drop(told.await) }));
    let mut offers = JoinSet::new();
    let mut stops = Vec::new();
    for name in PIPELINES {
        let (stop, until) = oneshot::channel();
        stops.push(stop);
        offers.spawn(offer(jobs.clone(), name, Arc::clone(&books[name]), until));
    }
    let all_work = async || {
        let late = |from, to| books.values().any(|book| book.in_time(from, to) < SHARE);
        while late(Instant::now() - IN_TIME - WARM, Instant::now() - IN_TIME) {
            sleep(Duration::from_millis(100)).await;
        }
    };

    for away in ["amqp", "kafka", "sqs", "beanstalk"] {
        timeout(PATIENCE, all_work()).await.expect("all pipelines work in time");
        let from = Instant::now();
        brokers.kill(away).await.unwrap();
        sleep(GONE).await;
        brokers.bring_back(away).await.unwrap();
        let to = Instant::now();
        sleep(IN_TIME).await;
        for name in PIPELINES.into_iter().filter(|name| *name != away) {
            let share = books[name].in_time(from, to);
            assert!(share >= SHARE, "{share:.3} of {name} in time while {away} was away");
        }
    }
    timeout(PATIENCE, all_work()).await.expect("the last one comes back");

    drop(stops);
    while let Some(ended) = offers.join_next().await {
        ended.unwrap();
    }
    until_done(&jobs, &books).await;
    stop_working.send(()).unwrap();
    let begun = Instant::now();
    let report = worker.await.unwrap().unwrap();
    assert!(begun.elapsed() < SHUTDOWN, "{:?}", begun.elapsed());
    assert!(report.shutdown_error.is_none(), "{report:?}");
}
