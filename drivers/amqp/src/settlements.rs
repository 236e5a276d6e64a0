//! Settlements on their way from receipts to the task that owns the channel.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jobs_core::{
    Acknowledger, Capabilities, Error, ErrorKind, Extending, Message, Outcome, Refusal, Settler,
    Settling, Token, Unsettled,
};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::NAME;
use crate::acks::{Tag, Verb};

/// So many settlements are sent without waiting for more: a larger group saves nothing worth having.
const LARGEST_GROUP: usize = 64;
/// How long the first of a group waits for others, unless somebody waits for it.
const GATHERING: Duration = Duration::from_millis(1);

/// Bits of a token that hold the delivery tag; the number of the channel is above them.
const TAG_BITS: u32 = 40;

/// What receipts of one channel hand their outcomes to.
pub(crate) struct Settlements {
    /// Told apart from the tokens of other channels of this pipeline.
    channel: u64,
    capabilities: Arc<Capabilities>,
    queue: Mutex<Queue>,
    /// There is something to settle.
    arrived: Notify,
    /// It should be sent now.
    hurried: Arc<Notify>,
    /// So many are a whole group.
    group: usize,
}

#[derive(Default)]
struct Queue {
    /// The channel is gone: its tags mean nothing any more.
    dead: bool,
    waiting: Vec<Settlement>,
}

/// One delivery that ends.
pub(crate) struct Settlement {
    pub(crate) tag: Tag,
    pub(crate) ending: Ending,
    /// None if nobody can be told.
    pub(crate) reply: Option<Reply>,
}

/// How it ends.
pub(crate) enum Ending {
    Frame(Verb),
    /// A copy is stored first, then the original is acked.
    Copy {
        message: Message,
        attempt: u32,
    },
}

/// Whom to tell, and the job to give back if it could not be settled. Dropped without an answer it
/// tells that the channel is gone, and the job with it.
pub(crate) struct Reply(Option<(Settler, Unsettled)>);

impl Settlements {
    pub(crate) fn new(channel: u64, capabilities: Arc<Capabilities>, prefetch: u16) -> Self {
        let (arrived, hurried) = Default::default();
        // Most of what the broker may send must be free to come meanwhile.
        let group = usize::from(prefetch / 4).clamp(1, LARGEST_GROUP);
        Self { channel, capabilities, queue: Mutex::default(), arrived, hurried, group }
    }

    /// The token of a delivery on this channel.
    pub(crate) fn token(&self, tag: Tag) -> Token {
        (self.channel << TAG_BITS) | tag
    }

    /// The delivery tag of a token of this channel.
    pub(crate) fn tag(token: Token) -> Tag {
        token & ((1 << TAG_BITS) - 1)
    }

    /// True if the token belongs to this channel.
    pub(crate) fn owns(&self, token: Token) -> bool {
        token >> TAG_BITS == self.channel
    }

    /// Waits for something to settle, and then for more of it: until there is a whole group, somebody
    /// waits for an answer, or a moment has passed.
    pub(crate) async fn gathered(&self) {
        self.arrived.notified().await;
        let _ = timeout(GATHERING, self.hurried.notified()).await;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    pub(crate) fn take(&self) -> Vec<Settlement> {
        mem::take(&mut self.lock().waiting)
    }

    /// Settles nothing any more. What is waiting is told so.
    pub(crate) fn kill(&self) {
        let mut queue = self.lock();
        queue.dead = true;
        let waiting = mem::take(&mut queue.waiting);
        // Dropping them tells those who wait.
        drop(queue);
        drop(waiting);
    }

    /// Takes a settlement over, unless the channel is dead.
    pub(crate) fn add(&self, settlement: Settlement) -> Result<(), Settlement> {
        let mut queue = self.lock();
        if queue.dead {
            return Err(settlement);
        }
        queue.waiting.push(settlement);
        let waiting = queue.waiting.len();
        drop(queue);
        // For the others the task is awake, or will be: it takes all at once.
        if waiting == 1 {
            self.arrived.notify_one();
        }
        if waiting == self.group {
            self.hurried.notify_one();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ending(&self, job: &Unsettled, outcome: Outcome) -> Result<Ending, Error> {
        Ok(match outcome {
            Outcome::Ack => Ending::Frame(Verb::Ack),
            Outcome::Reject => Ending::Frame(Verb::Reject),
            Outcome::Release => Ending::Frame(Verb::Release),
            Outcome::Requeue { delay, headers } => {
                let copy = self.capabilities.admit_requeue(&job.message, delay, headers);
                let message = copy.map_err(|error| error.with_driver(NAME))?;
                Ending::Copy { message, attempt: job.attempt.saturating_add(1) }
            }
        })
    }
}

impl Acknowledger for Settlements {
    fn settle(&self, mut job: Unsettled, outcome: Outcome) -> Settling {
        let ending = match self.ending(&job, outcome) {
            Ok(ending) => ending,
            Err(error) => return Settling::refused(Refusal { error, job: Some(job) }),
        };
        // The slot is free: the broker sends no more than `prefetch` before this is written.
        job.credit = None;
        let (settler, settling) = Settling::in_group(Arc::clone(&self.hurried));
        let tag = Self::tag(job.token);
        let reply = Some(Reply(Some((settler, job))));
        let added = self.add(Settlement { tag, ending, reply });
        match added {
            Ok(()) => settling,
            Err(_) => Settling::refused(Refusal::lease_lost(NAME)),
        }
    }

    fn extend(&self, _token: Token, _by: Duration) -> Extending {
        let error = Error::new(ErrorKind::Unsupported, "extend").with_driver(NAME);
        let context = "a delivery lasts as long as its channel, at most `consumer_timeout`";
        Extending::ready(Err(error.with_context(context)))
    }

    fn abandon(&self, job: Unsettled) {
        let tag = Self::tag(job.token);
        // On a dead channel it is back already.
        let _ = self.add(Settlement { tag, ending: Ending::Frame(Verb::Abandon), reply: None });
    }
}

impl Settlement {
    /// A delivery that goes back without a receipt's doing.
    pub(crate) fn release(tag: Tag) -> Self {
        Self { tag, ending: Ending::Frame(Verb::Release), reply: None }
    }
}

impl Reply {
    pub(crate) fn done(mut self) {
        self.0.take().into_iter().for_each(|(settler, _)| settler.done());
    }

    /// The job can be settled in another way. If nobody listens, it comes back.
    pub(crate) fn refuse(mut self, error: Error) -> Option<Unsettled> {
        let (settler, job) = self.0.take()?;
        let refusal = Refusal { error, job: Some(job) };
        settler.refuse(refusal).err().and_then(|refusal| refusal.job)
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some((settler, _)) = self.0.take() {
            // Nobody listens: the job is back at the broker, there is nothing to give up.
            let _ = settler.refuse(Refusal::lease_lost(NAME));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::time::Instant;

    use super::*;

    fn settled(settlements: &Settlements, tag: Tag) -> Settling {
        let (token, message) = (settlements.token(tag), Message::new("a", ""));
        settlements.settle(Unsettled { token, credit: None, message, attempt: 1 }, Outcome::Ack)
    }

    #[tokio::test]
    async fn whoever_gets_no_answer_has_lost_the_lease() {
        let settlements = Settlements::new(1, Arc::default(), 10);
        let (written, done) = (settled(&settlements, 1), settled(&settlements, 2));
        let mut taken = settlements.take();
        taken.pop().and_then(|settlement| settlement.reply).unwrap().done();
        let waiting = settled(&settlements, 3);
        drop(taken);
        settlements.kill();
        let late = settled(&settlements, 4);
        assert!(done.await.is_ok());
        for lost in [written, waiting, late] {
            let refusal = lost.await.unwrap_err();
            assert_eq!(refusal.error.kind(), ErrorKind::LeaseLost);
            assert!(refusal.job.is_none());
        }
    }

    /// Virtual time.
    #[tokio::test(start_paused = true)]
    async fn a_group_waits_a_moment_unless_it_is_whole_or_somebody_waits() {
        let group = |prefetch| Settlements::new(1, Arc::default(), prefetch);
        let gathering = async |settlements: &Settlements| {
            let before = Instant::now();
            settlements.gathered().await;
            (before.elapsed() >= GATHERING, settlements.take().len())
        };
        let settlements = group(10);
        let _first = settled(&settlements, 1);
        assert_eq!(gathering(&settlements).await, (true, 1), "for others");
        let _both = [2, 3].map(|tag| settled(&settlements, tag));
        assert_eq!(gathering(&settlements).await, (false, 2), "a quarter of `prefetch`");
        let mut awaited = settled(&settlements, 4);
        assert!((&mut awaited).now_or_never().is_none());
        assert_eq!(gathering(&settlements).await, (false, 1), "somebody waits");
        let settlements = group(1);
        let _only = settled(&settlements, 1);
        assert_eq!(gathering(&settlements).await, (false, 1), "nothing else can come");
    }
}
