//! Lanes, credits, waiting and settling, with a driver that only takes notes.

use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use jobs_core::{
    Acknowledger, Delivery, Error, ErrorKind, Extending, Inlet, Message, Outcome, Pipeline, Queue,
    Refusal, Settler, Settling, Token, Unsettled,
};
use tokio::sync::Notify;

type Refuse = fn(Unsettled) -> Refusal;

/// Notes what is settled; refuses what it is told to refuse.
#[derive(Default)]
struct Notes {
    events: Mutex<Vec<String>>,
    refusal: Mutex<Option<Refuse>>,
}

impl Notes {
    fn note(&self, event: String) {
        self.events.lock().expect("no test panics under it").push(event);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.events.lock().expect("no test panics under it"))
    }
}

impl Acknowledger for Notes {
    fn settle(&self, job: Unsettled, outcome: Outcome) -> Settling {
        if let Some(refuse) = self.refusal.lock().expect("no test panics under it").take() {
            return Settling::refused(refuse(job));
        }
        self.note(format!("{} {}", outcome.name(), job.token));
        Settling::done()
    }

    fn extend(&self, token: Token, _by: Duration) -> Extending {
        self.note(format!("extend {token}"));
        Extending::ready(Ok(()))
    }

    fn abandon(&self, job: Unsettled) {
        self.note(format!("abandon {}", job.token));
    }
}

struct Lane {
    inlet: Inlet,
    notes: Arc<Notes>,
}

impl Lane {
    fn open(queue: &Queue, pipeline: &Pipeline, prefetch: usize) -> Self {
        let inlet = queue.open_lane(pipeline);
        inlet.grant(prefetch);
        Self { inlet, notes: Arc::default() }
    }

    fn deliver(&self, token: Token) {
        self.deliver_message(token, Message::new("test", token.to_string()));
    }

    fn deliver_message(&self, token: Token, message: Message) {
        let credit = self.inlet.try_credit().expect("a credit is free");
        let acknowledger = self.notes.clone();
        let delivery = Delivery::new(message, token, acknowledger);
        self.inlet.deliver(credit, delivery);
    }
}

fn pipeline(name: &str) -> Pipeline {
    Pipeline::new(name.to_owned(), "notes")
}

fn is_pending<F: Future>(future: Pin<&mut F>) -> bool {
    future.poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

fn payloads(queue: &Queue) -> Vec<String> {
    let mut payloads = Vec::new();
    while let Some(job) = queue.try_pop() {
        payloads.push(String::from_utf8_lossy(job.payload()).into_owned());
    }
    payloads
}

#[test]
fn the_lowest_priority_goes_first_and_equal_lanes_take_turns() {
    let queue = Queue::new();
    let a = Lane::open(&queue, &pipeline("a"), 9);
    let b = Lane::open(&queue, &pipeline("b"), 9);
    let urgent = Lane::open(&queue, &pipeline("urgent").with_priority(1), 9);
    [1, 2, 3].into_iter().for_each(|token| a.deliver(token));
    [11, 12].into_iter().for_each(|token| b.deliver(token));
    urgent.deliver(21);
    b.deliver_message(13, Message::new("test", "13").with_priority(-1));
    // The lane of 13 has just had its turn when `a` and `b` are equal.
    assert_eq!(payloads(&queue), ["13", "21", "1", "11", "2", "12", "3"]);
}

#[tokio::test]
async fn a_waiting_worker_gets_the_next_delivery() {
    let queue = Queue::new();
    let lane = Lane::open(&queue, &pipeline("a"), 1);
    let worker = tokio::spawn({
        let queue = queue.clone();
        async move { queue.pop().await.map(|job| job.attempt()) }
    });
    tokio::task::yield_now().await;
    lane.deliver(1);
    assert_eq!(worker.await.unwrap(), Some(1));
}

#[tokio::test]
async fn a_worker_that_was_woken_and_leaves_wakes_another() {
    let queue = Queue::new();
    let lane = Lane::open(&queue, &pipeline("a"), 1);
    let mut first = Box::pin(queue.pop());
    assert!(is_pending(first.as_mut()));
    let second = tokio::spawn({
        let queue = queue.clone();
        async move { queue.pop().await.is_some() }
    });
    tokio::task::yield_now().await;
    lane.deliver(1);
    drop(first);
    assert!(second.await.unwrap());
}

#[tokio::test]
async fn a_selection_sees_its_pipelines_only() {
    let queue = Queue::new();
    let a = Lane::open(&queue, &pipeline("a"), 1);
    let b = Lane::open(&queue, &pipeline("b"), 1);
    let only_b: Arc<[Arc<str>]> = Arc::new(["b".into()]);
    let mut waiting = Box::pin(queue.pop_from(&only_b));
    a.deliver(1);
    assert!(is_pending(waiting.as_mut()));
    b.deliver(2);
    assert_eq!(waiting.await.unwrap().pipeline(), "b");
}

#[tokio::test]
async fn max_running_holds_a_lane_until_a_job_is_settled() {
    let queue = Queue::new();
    let limited = pipeline("a").with_max_running(NonZeroUsize::MIN);
    let lane = Lane::open(&queue, &limited, 9);
    lane.deliver(1);
    lane.deliver(2);
    let running = queue.try_pop().expect("the first");
    assert!(queue.try_pop().is_none(), "one may run");
    let mut waiting = Box::pin(queue.pop());
    assert!(is_pending(waiting.as_mut()));
    running.ack().await.unwrap();
    drop(waiting.await.expect("the second"));
    assert_eq!(lane.notes.take(), ["ack 1", "abandon 2"]);
}

#[tokio::test]
async fn a_held_lane_hands_nothing_out_and_is_released_last_first() {
    let queue = Queue::new();
    let lane = Lane::open(&queue, &pipeline("a"), 9);
    [1, 2, 3].into_iter().for_each(|token| lane.deliver(token));
    drop(queue.try_pop());
    lane.inlet.hold_and_release().await.unwrap();
    assert_eq!(lane.notes.take(), ["abandon 1", "release 3", "release 2"]);
    lane.deliver(4);
    assert!(queue.try_pop().is_none());
    assert_eq!((queue.len(), lane.inlet.active()), (1, 1));
    lane.inlet.open();
    assert_eq!(payloads(&queue), ["4"]);
}

#[tokio::test]
async fn closing_ends_waiting_and_dropping_the_inlet_abandons() {
    let queue = Queue::new();
    let lane = Lane::open(&queue, &pipeline("a"), 9);
    let mut waiting = Box::pin(queue.pop());
    assert!(is_pending(waiting.as_mut()));
    queue.close();
    assert!(waiting.await.is_none() && queue.pop().await.is_none());
    lane.deliver(1);
    let notes = Arc::clone(&lane.notes);
    drop(lane);
    assert_eq!(notes.take(), ["abandon 1"]);
    assert!(queue.is_empty());
}

#[tokio::test]
async fn credits_come_back_when_a_job_is_over() {
    let queue = Queue::new();
    let lane = Lane::open(&queue, &pipeline("a"), 1);
    lane.deliver(1);
    assert!(lane.inlet.try_credit().is_none());
    let mut waiting = Box::pin(lane.inlet.credit());
    assert!(is_pending(waiting.as_mut()));
    queue.try_pop().unwrap().ack().await.unwrap();
    drop(waiting.await);
    assert_eq!(lane.inlet.active(), 0);
}

#[tokio::test]
async fn an_outcome_is_handed_over_even_if_nobody_awaits_the_answer() {
    let queue = Queue::new();
    let lane = Lane::open(&queue, &pipeline("a"), 1);
    lane.deliver(1);
    drop(queue.try_pop().unwrap().reject());
    assert_eq!(lane.notes.take(), ["reject 1"]);
}

#[tokio::test]
async fn a_refused_settlement_gives_the_job_back_whole() {
    let queue = Queue::new();
    let lane = Lane::open(&queue, &pipeline("a"), 1);
    lane.deliver(1);
    *lane.notes.refusal.lock().unwrap() = Some(|job| {
        let error = Error::new(ErrorKind::Throttled, "settle").transient();
        Refusal { error, job: Some(job) }
    });
    let refused = queue.try_pop().unwrap().ack().await.unwrap_err();
    assert_eq!(refused.error().pipeline(), Some("a"));
    assert!(refused.error().is_retryable());
    assert_eq!(lane.inlet.active(), 1, "the credit came back with the job");
    let job = refused.into_job();
    assert_eq!(&job.payload()[..], b"1");
    job.ack().await.unwrap();
    assert_eq!(lane.notes.take(), ["ack 1"]);
}

#[tokio::test]
async fn after_a_lost_lease_the_job_comes_back_and_its_drop_does_nothing() {
    let queue = Queue::new();
    let lane = Lane::open(&queue, &pipeline("a"), 1);
    lane.deliver(1);
    *lane.notes.refusal.lock().unwrap() = Some(|_| Refusal::lease_lost("notes"));
    let (error, job) = queue.try_pop().unwrap().ack().await.unwrap_err().into_parts();
    assert_eq!(error.kind(), ErrorKind::LeaseLost);
    assert_eq!(&job.payload()[..], b"1");
    let again = job.ack().await.unwrap_err();
    assert_eq!(again.error().kind(), ErrorKind::LeaseLost);
    drop(again);
    assert_eq!((lane.notes.take(), lane.inlet.active()), (Vec::<String>::new(), 0));
}

#[tokio::test]
async fn an_auto_ack_job_is_settled_when_handed_out_and_later_outcomes_do_nothing() {
    let queue = Queue::new();
    let lane = Lane::open(&queue, &pipeline("a"), 1);
    lane.deliver_message(1, Message::new("test", "").with_auto_ack(true));
    assert!(lane.notes.take().is_empty(), "not before it is handed out");
    let job = queue.try_pop().unwrap();
    assert_eq!((lane.notes.take(), lane.inlet.active()), (vec!["ack 1".to_owned()], 0));
    job.extend(Duration::from_secs(1)).await.unwrap();
    job.reject().await.unwrap();
    assert!(lane.notes.take().is_empty());
}

#[tokio::test]
async fn a_driver_that_never_answers_is_an_error_not_a_hang() {
    let (settler, settling) = Settling::later();
    drop(settler);
    assert_eq!(settling.await.unwrap_err().error.kind(), ErrorKind::Closed);
    let (extender, extending) = Extending::later();
    drop(extender);
    assert_eq!(extending.await.unwrap_err().kind(), ErrorKind::Closed);
}

/// Settles in groups.
struct Grouping(Arc<Notify>);

impl Acknowledger for Grouping {
    fn settle(&self, _: Unsettled, _: Outcome) -> Settling {
        let (settler, settling) = Settling::in_group(Arc::clone(&self.0));
        // Answered by nobody: this is about who waits.
        std::mem::forget(settler);
        settling
    }

    fn extend(&self, _: Token, _: Duration) -> Extending {
        Extending::ready(Ok(()))
    }

    fn abandon(&self, _: Unsettled) {}
}

#[tokio::test]
async fn a_driver_that_groups_learns_that_somebody_is_in_a_hurry() {
    let queue = Queue::new();
    let inlet = queue.open_lane(&pipeline("a"));
    inlet.grant(2);
    let awaited = Arc::new(Notify::new());
    let grouping = Arc::new(Grouping(Arc::clone(&awaited)));
    for token in [1, 2] {
        let delivery = Delivery::new(Message::new("test", ""), token, grouping.clone());
        inlet.deliver(inlet.try_credit().unwrap(), delivery);
    }
    let mut unhurried = pin!(queue.try_pop().unwrap().ack().unhurried());
    let mut hurried = pin!(queue.try_pop().unwrap().ack());
    assert!(is_pending(unhurried.as_mut()));
    assert!(is_pending(pin!(awaited.notified())), "nobody waits");
    assert!(is_pending(hurried.as_mut()));
    assert!(!is_pending(pin!(awaited.notified())));
    assert!(is_pending(hurried.as_mut()));
    assert!(is_pending(pin!(awaited.notified())), "it was told");
}

#[tokio::test]
async fn a_refusal_that_nobody_awaits_abandons_the_job() {
    let queue = Queue::new();
    let lane = Lane::open(&queue, &pipeline("a"), 1);
    lane.deliver(1);
    *lane.notes.refusal.lock().unwrap() = Some(unsupported);
    drop(queue.try_pop().unwrap().requeue(Duration::MAX));
    assert_eq!((lane.notes.take(), lane.inlet.active()), (vec!["abandon 1".to_owned()], 0));
}

fn unsupported(job: Unsettled) -> Refusal {
    Refusal { error: Error::new(ErrorKind::Unsupported, "settle"), job: Some(job) }
}

/// Answers later: the test has the settlers.
#[derive(Default)]
struct Later {
    waiting: Mutex<Vec<(Settler, Unsettled)>>,
    abandoned: Mutex<Vec<Token>>,
}

impl Acknowledger for Later {
    fn settle(&self, job: Unsettled, _: Outcome) -> Settling {
        let (settler, settling) = Settling::later();
        self.waiting.lock().expect("no test panics under it").push((settler, job));
        settling
    }

    fn extend(&self, _: Token, _: Duration) -> Extending {
        Extending::ready(Ok(()))
    }

    fn abandon(&self, job: Unsettled) {
        self.abandoned.lock().expect("no test panics under it").push(job.token);
    }
}

#[tokio::test]
async fn a_late_refusal_reaches_the_caller_or_the_driver_but_is_never_lost() {
    let queue = Queue::new();
    let inlet = queue.open_lane(&pipeline("a"));
    inlet.grant(2);
    let later = Arc::new(Later::default());
    for token in [1, 2] {
        let delivery = Delivery::new(Message::new("test", ""), token, later.clone());
        inlet.deliver(inlet.try_credit().unwrap(), delivery);
    }
    let first = queue.try_pop().unwrap().ack();
    let second = queue.try_pop().unwrap().ack();
    let mut waiting = std::mem::take(&mut *later.waiting.lock().unwrap());

    let (settler, job) = waiting.pop().unwrap();
    settler.refuse(unsupported(job)).unwrap();
    drop(second);
    assert_eq!(*later.abandoned.lock().unwrap(), [2], "answered, and not awaited");

    drop(first);
    let (settler, job) = waiting.pop().unwrap();
    let refusal = settler.refuse(unsupported(job)).expect_err("nobody awaits it");
    assert_eq!(refusal.job.map(|job| job.token), Some(1));
    assert_eq!(*later.abandoned.lock().unwrap(), [2], "the driver abandons it");
}

#[tokio::test]
async fn an_auto_ack_that_is_refused_stays_with_the_worker() {
    let queue = Queue::new();
    let lane = Lane::open(&queue, &pipeline("a"), 1);
    lane.deliver_message(1, Message::new("test", "").with_auto_ack(true));
    *lane.notes.refusal.lock().unwrap() = Some(unsupported);
    let job = queue.try_pop().unwrap();
    assert_eq!(lane.inlet.active(), 1);
    job.ack().await.unwrap();
    assert_eq!(lane.notes.take(), ["ack 1"]);
}

#[tokio::test]
async fn a_worker_that_was_woken_for_one_lane_and_takes_from_another_wakes_who_waits_for_the_first()
{
    let queue = Queue::new();
    let x = Lane::open(&queue, &pipeline("x"), 1);
    let y = Lane::open(&queue, &pipeline("y").with_priority(1), 1);
    let only_x: Arc<[Arc<str>]> = Arc::new(["x".into()]);
    let mut all = Box::pin(queue.pop());
    assert!(is_pending(all.as_mut()));
    let waits_for_x = tokio::spawn({
        let (queue, only_x) = (queue.clone(), Arc::clone(&only_x));
        async move { queue.pop_from(&only_x).await.is_some() }
    });
    tokio::task::yield_now().await;
    x.deliver(1);
    y.deliver(2);
    assert_eq!(all.await.unwrap().pipeline(), "y");
    assert!(waits_for_x.await.unwrap());
}

#[tokio::test]
async fn a_worker_that_was_woken_and_leaves_wakes_one_for_every_lane_it_could_serve() {
    let queue = Queue::new();
    let x = Lane::open(&queue, &pipeline("x"), 1);
    let y = Lane::open(&queue, &pipeline("y"), 1);
    let only = |name: &str| Arc::<[Arc<str>]>::from([Arc::from(name)]);
    let (only_x, only_y) = (only("x"), only("y"));
    let mut first_x = Box::pin(queue.pop_from(&only_x));
    assert!(is_pending(first_x.as_mut()));
    let mut all = Box::pin(queue.pop());
    assert!(is_pending(all.as_mut()));
    let mut second_x = Box::pin(queue.pop_from(&only_x));
    assert!(is_pending(second_x.as_mut()));
    let waits_for_y = tokio::spawn({
        let queue = queue.clone();
        async move { queue.pop_from(&only_y).await.is_some() }
    });
    tokio::task::yield_now().await;
    x.deliver(1);
    y.deliver(2);
    drop(all);
    assert!(waits_for_y.await.unwrap());
    drop((first_x, second_x));
}

#[tokio::test]
async fn a_caller_that_polls_once_gets_its_jobs() {
    let queue = Queue::new();
    let lane = Lane::open(&queue, &pipeline("a"), 2_000);
    (0..2_000).for_each(|token| lane.deliver(token));
    let mut missed = 0;
    while !queue.is_empty() {
        let mut pop = Box::pin(queue.pop());
        missed += usize::from(is_pending(pop.as_mut()));
    }
    assert!(missed < 20, "{missed}: it lets others run now and then, no more");
}

#[tokio::test]
async fn what_is_over_is_withdrawn_without_a_word() {
    let queue = Queue::new();
    let lane = Lane::open(&queue, &pipeline("a"), 9);
    [1, 2, 3, 4].into_iter().for_each(|token| lane.deliver(token));
    let popped = queue.try_pop();
    assert_eq!(lane.inlet.withdraw(|token| token != 3), [2, 4]);
    assert_eq!((lane.notes.take(), lane.inlet.active()), (Vec::<String>::new(), 2));
    assert_eq!(payloads(&queue), ["3"]);
    drop(popped);
}

#[tokio::test]
async fn a_lease_that_was_lost_does_not_fail_a_pause() {
    let queue = Queue::new();
    let lane = Lane::open(&queue, &pipeline("a"), 9);
    lane.deliver(1);
    *lane.notes.refusal.lock().unwrap() = Some(|_| Refusal::lease_lost("notes"));
    lane.inlet.hold_and_release().await.unwrap();
    lane.deliver(2);
    *lane.notes.refusal.lock().unwrap() = Some(unsupported);
    assert!(lane.inlet.hold_and_release().await.is_err());
}
