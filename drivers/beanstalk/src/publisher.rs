//! Pushing: orders wait at a desk until one of the threads takes them.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use jobs_core::{Backoff, Error, ErrorKind, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{sleep_until, timeout_at};

use crate::connection::{Answer, Client, Put, Stats};
use crate::error::{Failure, closed, not_sent, panicked, timed_out, too_late};
use crate::pool::{Company, Crew, Duty, NEWS, Post, lock};

/// Orders that may wait.
const ROOM: usize = 256;
/// So many messages of a batch go to one connection at once: others get their turn in between.
const BATCH: usize = 64;
/// A connection that did nothing for so long is asked whether it lives before anything is put.
const DOUBTFUL: Duration = Duration::from_secs(1);
/// Between attempts at a server that takes no more jobs for now.
const FULL: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));

/// Less time than that is not worth another attempt.
const ANSWER: Duration = Duration::from_secs(1);

/// Puts messages, and asks questions, on connections of its own.
#[derive(Debug)]
pub(crate) struct Publisher {
    desk: Arc<Desk>,
    crew: Arc<Crew>,
    connections: usize,
    company: Arc<Company>,
}

/// Where orders wait.
struct Desk {
    queue: Mutex<Queue>,
    arrived: Condvar,
    /// Counts lost connections. The others of that server are doubtful then.
    doubts: AtomicU64,
    room: Arc<Semaphore>,
    news: Mutex<News>,
    patience: Duration,
    /// Told when a connection cannot be had, as long as somebody connects.
    refused: Mutex<Option<oneshot::Sender<Error>>>,
}

#[derive(Default)]
struct Queue {
    orders: VecDeque<Order>,
    /// Threads that wait for one.
    idle: usize,
    closed: bool,
}

/// What callers are told as soon as a thread has nothing else to do.
#[derive(Default)]
struct News {
    since: Option<Instant>,
    stored: Vec<(oneshot::Sender<Vec<Stored>>, Vec<Stored>)>,
}

/// What to do, unless whoever asked for it has given it up.
struct Order {
    claim: Claim,
    work: Work,
    _room: OwnedSemaphorePermit,
}

enum Work {
    Put { puts: Vec<Put>, deadline: Instant, reply: oneshot::Sender<Vec<Stored>> },
    Ask(Question),
}

/// Who asks is told by it; that the connection is lost is its answer.
type Question = Box<dyn FnOnce(&mut Client) -> Answer<()> + Send>;

/// What became of a put. One that certainly was not stored comes back.
type Stored = Result<(), (Error, Option<Put>)>;

/// An order is carried out, or given up by its caller: whoever takes this first decides.
#[derive(Clone, Debug, Default)]
struct Claim(Arc<AtomicBool>);

impl Claim {
    /// True if nobody took it before.
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// Gives an order up when its caller goes away.
struct Withdraw<'a>(&'a Claim);

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.0.take();
    }
}

impl Publisher {
    pub(crate) fn new(company: &Arc<Company>, connections: usize) -> Self {
        let desk = Arc::new(Desk {
            queue: Mutex::default(),
            arrived: Condvar::new(),
            doubts: AtomicU64::new(0),
            room: Arc::new(Semaphore::new(ROOM)),
            news: Mutex::default(),
            patience: company.patience,
            refused: Mutex::default(),
        });
        let duty = Arc::clone(&desk) as Arc<dyn Duty>;
        let crew = Crew::new(duty, company);
        Self { desk, crew, connections, company: Arc::clone(company) }
    }

    pub(crate) fn crew(&self) -> &Arc<Crew> {
        &self.crew
    }

    /// Connects, and asks the server what it is; fails with the first attempt.
    pub(crate) async fn connect(&self, deadline: Instant) -> Result<Stats> {
        let (refused, refusal) = oneshot::channel();
        *lock(&self.desk.refused) = Some(refused);
        let answer = tokio::select! {
            answer = self.ask("connect", deadline, Client::stats) => answer,
            Ok(error) = refusal => Err(error),
        };
        lock(&self.desk.refused).take();
        answer
    }

    /// Stores messages in their order. Waits while the server is away or takes no more, until the
    /// deadline.
    pub(crate) async fn push(&self, puts: Vec<Put>, deadline: Instant) -> Vec<Result<()>> {
        let mut answers = Vec::with_capacity(puts.len());
        let mut puts = puts.into_iter();
        loop {
            let chunk: Vec<_> = puts.by_ref().take(BATCH).collect();
            if chunk.is_empty() {
                return answers;
            }
            answers.extend(self.push_chunk(chunk, deadline).await);
        }
    }

    async fn push_chunk(&self, puts: Vec<Put>, deadline: Instant) -> Vec<Result<()>> {
        let mut answers: Vec<Result<()>> = Vec::new();
        answers.resize_with(puts.len(), || Ok(()));
        let mut places: Vec<_> = (0..puts.len()).collect();
        let mut puts = puts;
        for attempt in 1.. {
            let stored = match self.order(mem::take(&mut puts), deadline).await {
                Ok(stored) => stored,
                Err(refusal) => {
                    for place in places {
                        replace(&mut answers[place], Err(refusal.error()));
                    }
                    return answers;
                }
            };
            let mut again = Vec::new();
            for (place, stored) in places.into_iter().zip(stored) {
                let stored = stored.map_err(|(error, put)| {
                    if let Some(put) = put {
                        again.push(place);
                        puts.push(put);
                    }
                    error
                });
                replace(&mut answers[place], stored);
            }
            places = again;
            let next = Instant::now() + FULL.delay(attempt);
            if places.is_empty() {
                break;
            }
            if next + ANSWER.min(self.company.patience / 4) > deadline {
                sleep_until(deadline.into()).await;
                break;
            }
            sleep_until(next.into()).await;
        }
        answers
    }

    /// Lets one connection put them.
    async fn order(&self, puts: Vec<Put>, deadline: Instant) -> Result<Vec<Stored>, Refusal> {
        let late = |maybe_stored| Refusal::Late {
            limit: self.company.patience,
            trouble: self.company.health.last_error(),
            maybe_stored,
        };
        let room = timeout_at(deadline.into(), Arc::clone(&self.desk.room).acquire_owned()).await;
        let room = room.map_err(|_| late(false))?.map_err(|_| Refusal::Closed)?;
        let (reply, mut answer) = oneshot::channel();
        let claim = Claim::default();
        let _given_up = Withdraw(&claim);
        let work = Work::Put { puts, deadline, reply };
        self.place(Order { claim: claim.clone(), work, _room: room })
            .map_err(|_| Refusal::Closed)?;
        match timeout_at(deadline.into(), &mut answer).await {
            Ok(Ok(stored)) => Ok(stored),
            // Nobody took it, or the client panicked on the answer.
            Ok(Err(_)) if claim.take() => Err(Refusal::Closed),
            Ok(Err(_)) => Err(Refusal::Panicked),
            Err(_) => Err(late(!claim.take())),
        }
    }

    /// Asks the server something on one of the connections, until the deadline.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        operation: &'static str,
        deadline: Instant,
        question: impl FnOnce(&mut Client) -> Answer<T> + Send + 'static,
    ) -> Result<T> {
        let late = || {
            let error = timed_out(operation);
            match self.company.health.last_error() {
                Some(trouble) => error.with_context(trouble),
                None => error,
            }
        };
        let room = timeout_at(deadline.into(), Arc::clone(&self.desk.room).acquire_owned()).await;
        let room = room.map_err(|_| late())?.map_err(|_| closed(operation))?;
        let (reply, answer) = oneshot::channel();
        let ask = move |client: &mut Client| {
            let answer = question(client);
            let lost = answer.as_ref().err().filter(|failure| failure.is_lost()).cloned();
            // Whoever asked may be gone.
            let _ = reply.send(answer);
            lost.map_or(Ok(()), Err)
        };
        let claim = Claim::default();
        let _given_up = Withdraw(&claim);
        let work = Work::Ask(Box::new(ask));
        self.place(Order { claim: claim.clone(), work, _room: room })
            .map_err(|_| closed(operation))?;
        match timeout_at(deadline.into(), answer).await {
            Ok(Ok(answer)) => answer.map_err(|failure| failure.error(operation)),
            Ok(Err(_)) if self.is_closed() => Err(closed(operation)),
            Ok(Err(_)) => Err(panicked(operation)),
            Err(_) => Err(late()),
        }
    }

    fn place(&self, order: Order) -> Result<(), Order> {
        let mut queue = lock(&self.desk.queue);
        if queue.closed {
            return Err(order);
        }
        queue.orders.push_back(order);
        let short = queue.orders.len() > queue.idle;
        let idle = queue.idle > 0;
        drop(queue);
        if idle {
            self.desk.arrived.notify_one();
        }
        if short
            && self.crew.len() < self.connections
            && let Err(error) = self.crew.hire(self.connections)
        {
            self.company.health.note(format!("no thread to push with: {error}"));
        }
        Ok(())
    }

    fn is_closed(&self) -> bool {
        lock(&self.desk.queue).closed
    }

    /// Takes no more, and lets the threads end when all orders are carried out.
    pub(crate) fn close(&self) {
        lock(&self.desk.queue).closed = true;
        self.desk.arrived.notify_all();
        self.desk.room.close();
        self.crew.dismiss();
    }

    /// Waits for that until the deadline; what is left then is told that it is too late.
    pub(crate) async fn stop(&self, deadline: tokio::time::Instant) {
        self.close();
        self.crew.ended(deadline).await;
        let left = mem::take(&mut lock(&self.desk.queue).orders);
        drop(left);
    }
}

/// What the server said before says more than that there was no time for another attempt.
fn replace(before: &mut Result<()>, now: Result<()>) {
    let is_late = |error: &Error| error.kind() == ErrorKind::Timeout && !error.may_be_stored();
    if before.is_ok() || !now.as_ref().is_err_and(is_late) {
        *before = now;
    }
}

/// Why there is no answer.
enum Refusal {
    Closed,
    Panicked,
    Late { limit: Duration, trouble: Option<String>, maybe_stored: bool },
}

impl Refusal {
    fn error(&self) -> Error {
        match self {
            Self::Closed => closed("push"),
            Self::Panicked => panicked("push").maybe_stored(),
            Self::Late { limit, trouble, maybe_stored } => {
                let error = too_late(*limit, trouble.clone());
                if *maybe_stored { error.maybe_stored() } else { error }
            }
        }
    }
}

impl Desk {
    /// The next order; none if there will be no more.
    fn next(&self) -> Option<Order> {
        let mut queue = lock(&self.queue);
        if queue.orders.is_empty() {
            drop(queue);
            self.tell();
            queue = lock(&self.queue);
        }
        loop {
            if let Some(order) = queue.orders.pop_front() {
                return Some(order);
            }
            if queue.closed {
                return None;
            }
            queue.idle += 1;
            queue = self.arrived.wait(queue).unwrap_or_else(std::sync::PoisonError::into_inner);
            queue.idle -= 1;
        }
    }

    fn put_back(&self, order: Order) {
        lock(&self.queue).orders.push_front(order);
        self.arrived.notify_one();
    }

    fn work(&self, post: &Post, client: &mut Client, work: Work) -> Result<()> {
        match work {
            Work::Ask(question) => {
                let answer = post.during(self.patience, || question(client));
                answer.map_err(|failure| failure.error("ask"))
            }
            Work::Put { puts, deadline, reply } => {
                let (stored, lost) = self.put(post, client, puts, deadline);
                self.put_done(reply, stored);
                lost.map_or(Ok(()), |failure| Err(failure.error("push")))
            }
        }
    }

    fn put_done(&self, reply: oneshot::Sender<Vec<Stored>>, stored: Vec<Stored>) {
        let mut news = lock(&self.news);
        news.stored.push((reply, stored));
        let since = *news.since.get_or_insert_with(Instant::now);
        let due = news.stored.len() >= NEWS.0 || since.elapsed() >= NEWS.1;
        drop(news);
        if due {
            self.tell();
        }
    }

    fn tell(&self) {
        let news = mem::take(&mut *lock(&self.news));
        for (reply, stored) in news.stored {
            // Whoever pushed may be gone.
            let _ = reply.send(stored);
        }
    }

    /// Puts one after the other. When the connection is lost the rest comes back.
    fn put(
        &self,
        post: &Post,
        client: &mut Client,
        puts: Vec<Put>,
        deadline: Instant,
    ) -> (Vec<Stored>, Option<Failure>) {
        let mut lost: Option<Failure> = None;
        let store = |put: Put| {
            if lost.is_some() {
                return Err((not_sent(), Some(put)));
            }
            if Instant::now() >= deadline {
                return Err((too_late(self.patience, None), None));
            }
            let failure = match post.during(self.patience, || client.put(&put)) {
                Ok(()) => {
                    post.done();
                    return Ok(());
                }
                Err(failure) => failure,
            };
            let error = failure.of_put();
            if failure.is_lost() {
                lost = Some(failure);
            }
            let again = error.is_retryable() && !error.may_be_stored();
            Err((error, again.then_some(put)))
        };
        let stored = puts.into_iter().map(store).collect();
        (stored, lost)
    }
}

/// Also if the client panics.
struct TellLast<'a>(&'a Desk);

impl Drop for TellLast<'_> {
    fn drop(&mut self) {
        self.0.tell();
    }
}

impl Duty for Desk {
    fn name(&self) -> &'static str {
        "beanstalk-push"
    }

    fn serve(&self, post: &Post, client: &mut Client) -> Result<()> {
        let _last = TellLast(self);
        let mut alive = Instant::now();
        let mut doubts = self.doubts.load(Ordering::Acquire);
        while let Some(order) = self.next() {
            let now = self.doubts.load(Ordering::Acquire);
            if mem::replace(&mut doubts, now) != now || alive.elapsed() > DOUBTFUL {
                // A put on a dead connection cannot be told from one that was stored.
                if let Err(failure) = post.during(self.patience, || client.check()) {
                    self.put_back(order);
                    return Err(failure.error("connect"));
                }
            }
            if order.claim.take() {
                self.work(post, client, order.work)?;
            }
            if post.is_relieved() {
                return Ok(());
            }
            alive = Instant::now();
        }
        Ok(())
    }

    fn stuck(&self, _: &Post) {
        self.tell();
    }

    fn failed(&self, error: Error) {
        if error.kind() == ErrorKind::Connection {
            self.doubts.fetch_add(1, Ordering::AcqRel);
        }
        let refused = lock(&self.refused).take();
        if let Some(refused) = refused {
            let _ = refused.send(error);
        }
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}
