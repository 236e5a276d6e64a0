//! What pipelines and receipts hand to the writer thread of their file.

use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jobs_core::{Extender, Message, Settler, Token, Unsettled};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::codec::NewJob;
use crate::consumers::Consumer;
use crate::dead::{DeadCall, DeadLetter};
use crate::error::Fault;
use crate::owners::Owner;
use crate::writer::Figures;

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Fault>>;

/// What waiting pushes may hold, in KiB.
const ROOM: usize = 64 << 10;

/// Something that is written in the next transaction.
#[derive(Debug)]
pub(crate) enum Write {
    Push(Push),
    Settle {
        job: Unsettled,
        step: Step,
        settler: Settler,
    },
    Extend {
        token: Token,
        by: Duration,
        extender: Extender,
    },
    Abandon {
        token: Token,
    },
    /// Ends a consumer: what it has unsettled goes back.
    Detach {
        consumer: u64,
        reply: Option<Reply<()>>,
    },
    /// Finds or makes a queue.
    Queue {
        name: String,
        reply: Reply<i64>,
    },
    Dead {
        queue: i64,
        call: DeadCall,
        reply: Reply<u64>,
    },
}

/// Messages of one caller.
#[derive(Debug)]
pub(crate) struct Push {
    pub(crate) claim: Claim,
    pub(crate) queue: i64,
    pub(crate) jobs: Vec<NewJob>,
    pub(crate) reply: Reply<()>,
    pub(crate) _room: OwnedSemaphorePermit,
}

/// A push is written down, or given up by its caller: whoever takes this first decides.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claim(Arc<AtomicBool>);

impl Claim {
    /// True if nobody took it before.
    pub(crate) fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// How a delivery ends: an outcome that was found possible.
#[derive(Debug)]
pub(crate) enum Step {
    Ack,
    Reject,
    Release,
    /// With the headers if they change.
    Requeue {
        message: Message,
        changed: bool,
    },
}

/// Something that needs no transaction.
#[derive(Debug)]
pub(crate) enum Call {
    Attach { consumer: Consumer, reply: oneshot::Sender<()> },
    Pause { consumer: u64, reply: oneshot::Sender<()> },
    Resume { consumer: u64, reply: oneshot::Sender<()> },
    State { queue: i64, consumer: Option<u64>, reply: Reply<Figures> },
    Dead { queue: i64, after: i64, most: i64, reply: Reply<Vec<DeadLetter>> },
}

/// The writer's inbox. Nothing here blocks for longer than it takes to add to a list.
#[derive(Debug)]
pub(crate) struct Inbox {
    contents: Mutex<Contents>,
    room: Arc<Semaphore>,
    numbers: AtomicU64,
}

#[derive(Debug)]
struct Contents {
    writes: Vec<Write>,
    calls: Vec<Call>,
    /// The writer has to be woken.
    sleeping: bool,
    /// To wake it. None once no more is taken: whoever keeps an inbox keeps no file open.
    owner: Option<Arc<Owner>>,
}

impl Inbox {
    pub(crate) fn new(owner: Arc<Owner>) -> Self {
        let room = Arc::new(Semaphore::new(ROOM));
        let (writes, calls) = (Vec::new(), Vec::new());
        let contents = Contents { writes, calls, sleeping: false, owner: Some(owner) };
        Self { contents: Mutex::new(contents), room, numbers: AtomicU64::new(1) }
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no other consumer has.
    pub(crate) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Waits until there is room for messages of that many bytes.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn room(&self, bytes: usize) -> OwnedSemaphorePermit {
        let permits = u32::try_from((bytes / 1024 + 1).min(ROOM)).expect("far less");
        let room = Arc::clone(&self.room);
        room.acquire_many_owned(permits).await.expect("never closed")
    }

    /// Hands something over; it comes back if the writer has ended.
    pub(crate) fn write(&self, write: Write) -> Result<(), Write> {
        let mut contents = self.lock();
        if contents.owner.is_none() {
            return Err(write);
        }
        contents.writes.push(write);
        Self::wake(contents);
        Ok(())
    }

    /// Asks something; nobody answers if the writer has ended.
    pub(crate) fn call(&self, call: Call) {
        let mut contents = self.lock();
        if contents.owner.is_none() {
            drop(contents);
            // Outside the lock: a consumer that is dropped calls back.
            return drop(call);
        }
        contents.calls.push(call);
        Self::wake(contents);
    }

    /// Takes nothing more. The writer ends when it has done what is here.
    pub(crate) fn close(&self) {
        let owner = self.lock().owner.take();
        owner.inspect(|owner| owner.ring());
    }

    fn wake(mut contents: MutexGuard<'_, Contents>) {
        // Otherwise it is awake, and takes all there is.
        if mem::take(&mut contents.sleeping)
            && let Some(owner) = &contents.owner
        {
            owner.ring();
        }
    }

    pub(crate) fn take_writes(&self) -> Vec<Write> {
        mem::take(&mut self.lock().writes)
    }

    /// What cannot be given up by its caller.
    pub(crate) fn take_all_but_pushes(&self) -> Vec<Write> {
        let others = |write: &mut Write| !matches!(write, Write::Push(_));
        self.lock().writes.extract_if(.., others).collect()
    }

    /// Frees the room of pushes that nobody waits for any more.
    pub(crate) fn forget_withdrawn(&self) {
        let withdrawn =
            |write: &mut Write| matches!(write, Write::Push(push) if push.reply.is_closed());
        let withdrawn: Vec<_> = self.lock().writes.extract_if(.., withdrawn).collect();
        // Outside the lock: it wakes those who wait for room.
        drop(withdrawn);
    }

    pub(crate) fn take_calls(&self) -> Vec<Call> {
        mem::take(&mut self.lock().calls)
    }

    pub(crate) fn has_writes(&self) -> bool {
        !self.lock().writes.is_empty()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().owner.is_none()
    }

    /// Sleeps until there is something here, another process rings, or for that long. Returns
    /// whether it was another process.
    pub(crate) fn sleep(&self, owner: &Owner, limit: Option<Duration>) -> bool {
        let mut contents = self.lock();
        if contents.owner.is_none() || !contents.writes.is_empty() || !contents.calls.is_empty() {
            return false;
        }
        contents.sleeping = true;
        drop(contents);
        let others = owner.sleep(limit);
        self.lock().sleeping = false;
        others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox() -> (Arc<Owner>, Inbox) {
        let directory = tempfile::tempdir().unwrap();
        let owner = Arc::new(Owner::new(directory.path(), 1).unwrap());
        (Arc::clone(&owner), Inbox::new(owner))
    }

    fn push(inbox: &Inbox) -> (Write, Claim, oneshot::Receiver<Result<(), Fault>>) {
        let room = Arc::clone(&inbox.room).try_acquire_owned().unwrap();
        let (reply, answer) = oneshot::channel();
        let claim = Claim::default();
        let push = Push { claim: claim.clone(), queue: 1, jobs: Vec::new(), reply, _room: room };
        (Write::Push(push), claim, answer)
    }

    #[test]
    fn a_push_is_written_or_withdrawn() {
        let claim = Claim::default();
        assert!(claim.take() && !claim.clone().take());
    }

    #[test]
    fn what_was_withdrawn_gives_its_room_back() {
        let (_owner, inbox) = inbox();
        let (first, _, answer) = push(&inbox);
        let (second, _, _answer) = push(&inbox);
        inbox.write(first).unwrap();
        inbox.write(second).unwrap();
        inbox.write(Write::Abandon { token: 1 }).unwrap();
        drop(answer);
        inbox.forget_withdrawn();
        assert_eq!(inbox.room.available_permits(), ROOM - 1);
        assert!(matches!(inbox.take_all_but_pushes()[..], [Write::Abandon { .. }]));
        assert!(matches!(inbox.take_writes()[..], [Write::Push(_)]));
    }

    #[test]
    fn a_sleeper_wakes_for_what_comes_and_what_came() {
        let (owner, inbox) = inbox();
        inbox.write(push(&inbox).0).unwrap();
        inbox.sleep(&owner, None);
        assert!(inbox.has_writes());
        inbox.take_writes();
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| inbox.sleep(&owner, None));
            inbox.write(push(&inbox).0).unwrap();
            assert!(!sleeper.join().unwrap());
        });
        inbox.take_writes();
        inbox.close();
        inbox.sleep(&owner, None);
        assert!(inbox.write(push(&inbox).0).is_err());
        assert_eq!(Arc::strong_count(&owner), 1, "what is closed keeps nothing open");
    }

    #[tokio::test]
    async fn pushes_wait_for_room() {
        let (_owner, inbox) = inbox();
        let most = inbox.room(usize::MAX).await;
        let waiting = inbox.room(0);
        tokio::pin!(waiting);
        tokio::select! {
            biased;
            _ = &mut waiting => panic!("there is no room"),
            () = std::future::ready(()) => {}
        }
        drop(most);
        drop(waiting.await);
    }
}
