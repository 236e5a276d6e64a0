//! The queue itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jobs_core::{Acknowledger, Delivery, Inlet, Message, Outcome, PriorityFifo, State, Token};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::Defect;
use super::link::Link;

/// How long a broken requeue takes to store its copy.
const COPYING: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(crate) struct Storage {
    defect: Option<Defect>,
    link: Arc<Link>,
    contents: Mutex<Contents>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Contents {
    ready: PriorityFifo<Entry>,
    delayed: Vec<(Instant, Entry)>,
    /// The defect: copies that are not stored yet, while their originals are gone.
    copies: Vec<(Instant, Entry)>,
    leases: BTreeMap<Token, Lease>,
    paused: BTreeSet<u64>,
    dead: u64,
    numbers: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    message: Message,
    attempt: u32,
    priority: i64,
    number: u64,
}

#[derive(Debug)]
struct Lease {
    entry: Entry,
    consumer: u64,
    end: Option<Instant>,
}

impl Storage {
    pub(crate) fn new(defect: Option<Defect>, link: Arc<Link>) -> Self {
        Self { defect, link, contents: Mutex::default(), changed: Notify::new() }
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// Ends all leases, as their connections are gone. After [`Link::begin`], so that no more are
    /// given.
    pub(crate) fn disconnect(&self, killed: bool) {
        let mut contents = self.contents();
        contents.copies.clear();
        if killed && self.has(Defect::LosesUnsettledAtKill) {
            contents.leases.clear();
        }
        if killed && self.has(Defect::LosesDelayedAtKill) {
            contents.delayed.clear();
        }
        if killed && self.has(Defect::LosesNewestAtKill) {
            let newest = contents.numbers.saturating_sub(20);
            contents.ready.extract(|entry| entry.number > newest);
        }
        contents.start_over_where(|_| true);
    }

    pub(crate) fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().expect("nothing panics under this lock")
    }

    pub(crate) fn wake(&self) {
        self.changed.notify_waiters();
    }

    pub(crate) fn next_consumer(&self) -> u64 {
        self.contents().number()
    }

    /// False, and nothing stored, if the connection is gone.
    pub(crate) fn push(&self, message: Message, pipeline: i64, epoch: u64) -> bool {
        let own = message.priority().filter(|_| !self.has(Defect::IgnoresPriority));
        let priority = own.unwrap_or(pipeline);
        let delay = message.delay();
        let mut contents = self.contents();
        if !self.link.is(epoch) && !self.has(Defect::DeniesWhatItStored) {
            return false;
        }
        let number = contents.number();
        let entry = Entry { message, attempt: 1, priority, number };
        self.place(&mut contents, entry, delay);
        drop(contents);
        self.wake();
        true
    }

    fn place(&self, contents: &mut Contents, entry: Entry, delay: Duration) {
        if delay.is_zero() || self.has(Defect::IgnoresDelay) {
            contents.ready.push(entry.priority, entry);
        } else {
            contents.delayed.push((Instant::now() + delay, entry));
        }
    }

    /// Hands jobs to one consumer until its task is aborted.
    pub(crate) async fn consume(
        &self,
        consumer: u64,
        inlet: &Inlet,
        receipts: Arc<dyn Acknowledger>,
        max_lease: Option<Duration>,
    ) {
        for session in 0.. {
            let epoch = self.link.up().await;
            if session > 0 && self.has(Defect::ForgetsPauseAtCut) {
                inlet.open();
                self.pause(consumer, false);
            }
            tokio::select! {
                () = self.serve(epoch, consumer, inlet, &receipts, max_lease) => {}
                () = self.link.lost(epoch) => {}
            }
            // Their connection is gone, and they are back in the queue.
            inlet.withdraw(|_| true);
            if self.has(Defect::ForgetsToSubscribeAgain) {
                return;
            }
        }
    }

    /// Hands jobs out as long as the connection lasts.
    async fn serve(
        &self,
        epoch: u64,
        consumer: u64,
        inlet: &Inlet,
        receipts: &Arc<dyn Acknowledger>,
        max_lease: Option<Duration>,
    ) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Armed before looking, so that no change in between is missed.
            changed.as_mut().enable();
            match self.hand_out(epoch, consumer, inlet, receipts, max_lease) {
                None => changed.await,
                Some(next) => tokio::select! {
                    () = changed => {}
                    () = sleep_until(next) => {}
                },
            }
        }
    }

    /// Delivers what it can, and returns when to look again.
    fn hand_out(
        &self,
        epoch: u64,
        consumer: u64,
        inlet: &Inlet,
        receipts: &Arc<dyn Acknowledger>,
        max_lease: Option<Duration>,
    ) -> Option<Instant> {
        let mut contents = self.contents();
        if !self.link.is(epoch) {
            return None;
        }
        contents.move_due();
        while !contents.paused.contains(&consumer) && !contents.ready.is_empty() {
            let Some(credit) = inlet.try_credit() else { break };
            let entry = contents.ready.pop().expect("not empty");
            if self.has(Defect::HandsJobOverTwice) && entry.attempt == 1 {
                let copy = Entry { attempt: 2, ..entry.clone() };
                contents.ready.push(copy.priority, copy);
            }
            let token = contents.number();
            let (message, attempt) = (entry.message.clone(), entry.attempt);
            let end = max_lease.map(|lease| Instant::now() + lease);
            contents.leases.insert(token, Lease { entry, consumer, end });
            let acknowledger = Arc::clone(receipts);
            inlet
                .deliver(credit, Delivery::new(message, token, acknowledger).with_attempt(attempt));
        }
        let due = contents.delayed.iter().chain(&contents.copies).map(|(due, _)| *due);
        due.chain(contents.leases.values().filter_map(|lease| lease.end)).min()
    }

    /// False if the lease ended before.
    pub(crate) fn settle(&self, token: Token, outcome: Outcome) -> bool {
        let mut contents = self.contents();
        let Some(Lease { mut entry, consumer, .. }) = contents.leases.remove(&token) else {
            if self.has(Defect::StaleReceiptSettlesTheNext) {
                contents.leases.pop_last();
            }
            return false;
        };
        match outcome {
            Outcome::Ack if self.has(Defect::AcksNeighbours) => {
                contents.leases.retain(|other, lease| *other > token || lease.consumer != consumer);
            }
            Outcome::Reject => contents.dead += 1,
            Outcome::Release => {
                entry.attempt += u32::from(self.has(Defect::CountsReleases));
                contents.ready.push_front(entry.priority, entry);
            }
            Outcome::Requeue { .. } if self.has(Defect::SettlesBeforeItStores) => {
                entry.attempt += 1;
                contents.copies.push((Instant::now() + COPYING, entry));
            }
            Outcome::Requeue { delay, headers } if !self.has(Defect::LosesJobOnRequeue) => {
                entry.attempt += u32::from(!self.has(Defect::ForgetsAttempt));
                if let Some(headers) = headers.filter(|_| !self.has(Defect::DropsChangedHeaders)) {
                    entry.message = entry.message.with_headers(headers);
                }
                self.place(&mut contents, entry, delay);
            }
            _ => {}
        }
        true
    }

    pub(crate) fn give_back(&self, token: Token) {
        let mut contents = self.contents();
        if let Some(lease) = contents.leases.remove(&token) {
            contents.start_over(lease.entry);
        }
    }

    pub(crate) fn pause(&self, consumer: u64, paused: bool) {
        let mut contents = self.contents();
        match paused {
            true => contents.paused.insert(consumer),
            false => contents.paused.remove(&consumer),
        };
        drop(contents);
        self.wake();
    }

    pub(crate) fn is_paused(&self, consumer: u64) -> bool {
        self.contents().paused.contains(&consumer)
    }

    /// Gives back what a consumer has unsettled. It stays paused for good.
    pub(crate) fn detach(&self, consumer: u64) {
        let mut contents = self.contents();
        if !self.has(Defect::KeepsJobsAfterStop) {
            contents.start_over_where(|lease| lease.consumer == consumer);
        }
        drop(contents);
        self.wake();
    }

    pub(crate) fn fill_in(&self, state: &mut State) {
        let contents = self.contents();
        state.delayed = Some(contents.delayed.len() as u64);
        state.reserved = Some(contents.ready.len() as u64);
        state.in_flight = Some(contents.leases.len() as u64);
        state.dead = Some(contents.dead);
        if self.has(Defect::LiesInState) {
            state.reserved = Some(0);
        }
    }
}

impl Contents {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn move_due(&mut self) {
        let now = Instant::now();
        self.start_over_where(|lease| lease.end.is_some_and(|end| end <= now));
        let mut due: Vec<_> = self.delayed.extract_if(.., |(due, _)| *due <= now).collect();
        due.extend(self.copies.extract_if(.., |(due, _)| *due <= now));
        due.into_iter().for_each(|(_, entry)| self.ready.push(entry.priority, entry));
    }

    fn start_over_where(&mut self, ended: impl Fn(&Lease) -> bool) {
        let tokens = self.leases.iter().filter(|(_, lease)| ended(lease)).map(|(token, _)| *token);
        for token in tokens.collect::<Vec<_>>().into_iter().rev() {
            let lease = self.leases.remove(&token).expect("listed above");
            self.start_over(lease.entry);
        }
    }

    fn start_over(&mut self, mut entry: Entry) {
        entry.attempt += 1;
        self.ready.push_front(entry.priority, entry);
    }
}
