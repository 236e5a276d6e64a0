//! Threads that own connections.
//!
//! The client blocks, and knows no deadline: each connection is on a thread of its own, and others
//! watch it. A thread that is stuck on a silent server cannot be ended. It is given up: its
//! connection counts as lost, and another thread takes its place, as long as few are given up. It
//! ends when its server answers or closes.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use jobs_core::{Backoff, Error, Health, Result};
use tokio::sync::Notify;
use tokio::time::timeout_at;

use crate::connection::{Client, Connector};
use crate::error::panicked;

/// A session that lasted so long was no failure to connect, as one that got something done.
const LASTING: Duration = Duration::from_secs(1);
/// A job has 65,535 bytes by default, and what holds it is on the heap.
const STACK: usize = 256 << 10;

/// Waking others costs as much as a command does: a thread that goes on does it for so many jobs at
/// once, or after that time.
pub(crate) const NEWS: (usize, Duration) = (8, Duration::from_millis(1));

/// What the threads of a crew do with their connections.
pub(crate) trait Duty: Send + Sync + 'static {
    /// A name for its threads.
    fn name(&self) -> &'static str;

    /// Works on a connection until there is nothing more to do (`Ok`), or it is lost.
    fn serve(&self, post: &Post, client: &mut Client) -> Result<()>;

    /// A connection is lost, or could not be had.
    fn failed(&self, error: Error);

    /// The thread on this post is stuck. What depends on its connection must not wait for it.
    fn stuck(&self, _post: &Post) {}
}

/// How many threads are given up at once, of all crews of a pipeline.
#[derive(Debug)]
pub(crate) struct Losses {
    most: usize,
    given_up: AtomicUsize,
}

impl Losses {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, given_up: AtomicUsize::new(0) }
    }

    fn take(&self) -> bool {
        let more = |given_up| (given_up < self.most).then_some(given_up + 1);
        self.given_up.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    fn give_back(&self) {
        self.given_up.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the crews of a pipeline have in common.
#[derive(Debug)]
pub(crate) struct Company {
    pub(crate) connector: Connector,
    /// How long the server may be silent.
    pub(crate) patience: Duration,
    pub(crate) losses: Losses,
    pub(crate) health: Health,
}

/// The place of one thread.
#[derive(Debug)]
pub(crate) struct Post {
    pub(crate) number: u64,
    /// When the command under way should be answered at the latest.
    overdue: Mutex<Option<Instant>>,
    /// Another thread has taken its place.
    relieved: AtomicBool,
    /// Its commands have been overdue, and were told so.
    told: AtomicBool,
    /// Its connection was of use.
    done: AtomicBool,
}

impl Post {
    fn new(number: u64) -> Self {
        let (relieved, told, done) = Default::default();
        Self { number, overdue: Mutex::default(), relieved, told, done }
    }

    /// Does what may block. It should be done within `allowance`.
    pub(crate) fn during<T>(&self, allowance: Duration, work: impl FnOnce() -> T) -> T {
        *lock(&self.overdue) = Some(Instant::now() + allowance);
        let done = work();
        *lock(&self.overdue) = None;
        self.told.store(false, Ordering::Relaxed);
        done
    }

    /// Its connection was of use: should it be lost, the next one is tried soon.
    pub(crate) fn done(&self) {
        self.done.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_relieved(&self) -> bool {
        self.relieved.load(Ordering::Acquire)
    }

    fn is_stuck(&self, now: Instant) -> bool {
        lock(&self.overdue).is_some_and(|overdue| overdue <= now)
    }
}

/// Threads with the same duty.
pub(crate) struct Crew {
    duty: Arc<dyn Duty>,
    company: Arc<Company>,
    posts: Mutex<Posts>,
    /// Ends waits between attempts to connect.
    rest: Condvar,
    /// A thread ended, or was given up.
    left: Notify,
}

#[derive(Default)]
struct Posts {
    next: u64,
    taken: Vec<Arc<Post>>,
    threads: HashMap<u64, JoinHandle<()>>,
    dismissed: bool,
}

impl Crew {
    pub(crate) fn new(duty: Arc<dyn Duty>, company: &Arc<Company>) -> Arc<Self> {
        let (posts, rest, left) = Default::default();
        Arc::new(Self { duty, company: Arc::clone(company), posts, rest, left })
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.posts).taken.len()
    }

    /// Puts another thread to work, unless there are `most` of them.
    pub(crate) fn hire(self: &Arc<Self>, most: usize) -> std::io::Result<()> {
        let mut posts = lock(&self.posts);
        if posts.dismissed || posts.taken.len() >= most {
            return Ok(());
        }
        posts.next += 1;
        let post = Arc::new(Post::new(posts.next));
        let (crew, its) = (Arc::clone(self), Arc::clone(&post));
        let builder = Builder::new().name(self.duty.name().to_owned()).stack_size(STACK);
        let thread = builder.spawn(move || crew.man(&its))?;
        posts.threads.insert(post.number, thread);
        posts.taken.push(post);
        Ok(())
    }

    /// Lets all threads end when they have done what there is to do.
    pub(crate) fn dismiss(&self) {
        lock(&self.posts).dismissed = true;
        self.rest.notify_all();
    }

    /// Waits until all threads have ended that are not given up. At the deadline it says how many have
    /// not: they end when their server answers or closes.
    pub(crate) async fn ended(&self, deadline: tokio::time::Instant) -> bool {
        loop {
            let left = self.left.notified();
            if self.len() == 0 {
                break;
            }
            if timeout_at(deadline, left).await.is_err() {
                let (address, stuck) = (&self.company.connector.address, self.len());
                self.warn(format!("{address} does not answer: {stuck} threads wait for it"));
                return false;
            }
        }
        let threads: Vec<_> = lock(&self.posts).threads.drain().map(|(_, thread)| thread).collect();
        // They have left their posts, which is the last thing they do.
        threads.into_iter().for_each(|thread| drop(thread.join()));
        true
    }

    /// Gives up threads that are stuck.
    pub(crate) fn inspect(self: &Arc<Self>) {
        let now = Instant::now();
        let stuck: Vec<_> =
            lock(&self.posts).taken.iter().filter(|post| post.is_stuck(now)).cloned().collect();
        for post in stuck {
            let known = post.told.swap(true, Ordering::Relaxed);
            if !known {
                self.duty.stuck(&post);
            }
            let replaced = self.company.losses.take();
            if !known {
                self.tell(replaced);
            }
            if replaced {
                self.relieve(&post);
            }
        }
    }

    fn tell(&self, replaced: bool) {
        let Company { connector, patience, .. } = &*self.company;
        let outcome = match replaced {
            true => {
                "its connection is given up, and with it a thread until the server answers or closes"
            }
            false => {
                "its connection is of no use, and no thread is left to replace the one that waits for \
                 it until the server answers or closes"
            }
        };
        let address = &connector.address;
        self.warn(format!("{address} does not answer for {patience:?}: {outcome}"));
    }

    fn warn(&self, trouble: String) {
        let health = &self.company.health;
        tracing::warn!(job.pipeline = %health.pipeline(), trouble, "a thread is stuck");
        health.note(trouble);
    }

    fn relieve(self: &Arc<Self>, post: &Arc<Post>) {
        let mut posts = lock(&self.posts);
        let Some(index) = posts.taken.iter().position(|other| other.number == post.number) else {
            // It got its answer.
            drop(posts);
            return self.company.losses.give_back();
        };
        posts.taken.swap_remove(index);
        posts.threads.remove(&post.number);
        post.relieved.store(true, Ordering::Release);
        drop(posts);
        self.left.notify_waiters();
        if let Err(error) = self.hire(usize::MAX) {
            self.company.health.note(format!("no thread to replace one that is stuck: {error}"));
        }
    }

    /// What a thread does.
    fn man(&self, post: &Arc<Post>) {
        let mut failures = 0;
        while self.is_wanted(post) {
            let served = catch_unwind(AssertUnwindSafe(|| self.serve(post)));
            let Err(error) = served.unwrap_or_else(|_| Err(panicked("serve"))) else { break };
            if post.is_relieved() {
                break;
            }
            self.company.health.met(&error);
            self.duty.failed(error);
            let good = post.done.swap(false, Ordering::Relaxed);
            failures = if good { 1 } else { failures + 1 };
            self.pause(post, Backoff::RECONNECT.delay(failures));
        }
        if post.is_relieved() {
            self.company.losses.give_back();
            return;
        }
        lock(&self.posts).taken.retain(|other| other.number != post.number);
        self.left.notify_waiters();
    }

    fn serve(&self, post: &Arc<Post>) -> Result<()> {
        let Company { connector, patience, .. } = &*self.company;
        let client = post.during(connector.timeout + *patience, || connector.open())?;
        let mut session =
            Session { post, patience: *patience, begun: Instant::now(), client: Some(client) };
        let client = session.client.as_mut().expect("taken by the drop only");
        self.duty.serve(post, client)
    }

    fn is_wanted(&self, post: &Post) -> bool {
        !post.is_relieved() && !lock(&self.posts).dismissed
    }

    fn pause(&self, post: &Post, delay: Duration) {
        let posts = lock(&self.posts);
        let waits = |posts: &mut Posts| !posts.dismissed && !post.is_relieved();
        drop(self.rest.wait_timeout_while(posts, delay, waits));
    }
}

/// Closing a connection waits for the server, too.
struct Session<'a> {
    post: &'a Post,
    patience: Duration,
    begun: Instant,
    client: Option<Client>,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if self.begun.elapsed() >= LASTING {
            self.post.done();
        }
        let client = self.client.take();
        self.post.during(self.patience, || drop(client));
    }
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew").field("threads", &self.len()).finish_non_exhaustive()
    }
}

/// Looks after crews, until it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    crews: Arc<Mutex<Vec<Weak<Crew>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Watch {
    /// `patience` is how long the server may be silent.
    pub(crate) fn start(patience: Duration) -> Self {
        let tick = (patience / 4).clamp(Duration::from_millis(20), Duration::from_secs(1));
        let crews: Arc<Mutex<Vec<Weak<Crew>>>> = Arc::default();
        let watched = Arc::clone(&crews);
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(tick).await;
                lock(&watched).retain(|crew| crew.strong_count() > 0);
                let crews: Vec<_> = lock(&watched).iter().filter_map(Weak::upgrade).collect();
                crews.iter().for_each(Crew::inspect);
            }
        });
        Self { crews, task }
    }

    pub(crate) fn over(&self, crew: &Arc<Crew>) {
        lock(&self.crews).push(Arc::downgrade(crew));
    }

    /// Ends it.
    pub(crate) async fn end(&mut self) {
        self.task.abort();
        if !self.task.is_finished() {
            // It ends by being aborted, and that is its answer.
            let _ = (&mut self.task).await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing of ours panics with a value half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
