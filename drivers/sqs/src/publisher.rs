//! Sending: entries share requests, and each gets its own answer.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName;
use jobs_core::{Backoff, Error, ErrorKind, Health, Result};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use crate::NAME;
use crate::coalescer::{Carrier, Coalescer, FULL};
use crate::codec::Encoded;
use crate::config::MAX_MESSAGE;
use crate::connection::{Link, lock};
use crate::error::{Failure, closed, entry_failed, failed, timed_out};

/// Bytes that servers and queues take which do not take as many as the service does now.
const SMALLER_BATCH: usize = 256 * 1024;

/// So long an answer to what is under way may come late: better than not to know.
const GRACE: Duration = Duration::from_millis(250);

/// For so long a FIFO queue knows a message again. Source: Amazon SQS, exactly-once processing: five
/// minutes, of which an attempt takes some.
const KNOWN_AGAIN: Duration = Duration::from_secs(240);

/// Between attempts to send what was certainly not stored.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));

/// Sends to one queue.
#[derive(Clone)]
pub(crate) struct Sender {
    coalescer: Arc<Coalescer<Requests>>,
}

/// Sends batches.
pub(crate) struct Requests {
    link: Arc<Link>,
    health: Arc<Health>,
    url: String,
    fifo: bool,
    /// Bytes of a batch.
    limit: AtomicUsize,
    /// Groups of a FIFO queue that have a batch under way: the next waits for it.
    busy: Mutex<HashSet<String>>,
    trouble: Mutex<Option<Trouble>>,
    /// One asks whether the service is there again, for all.
    probing: tokio::sync::Mutex<()>,
    closing: AtomicBool,
}

/// Why nothing is being stored now.
struct Trouble {
    kind: ErrorKind,
    text: String,
    /// Whether it can be reached is not known.
    cut_off: bool,
}

/// One message on its way.
pub(crate) struct Entry {
    encoded: Encoded,
    size: usize,
    operation: &'static str,
    progress: Arc<Progress>,
    /// When it was sent first.
    sent: Option<Instant>,
    /// None once it was answered.
    answer: Option<oneshot::Sender<Result<()>>>,
}

/// Where its sender waits for the answer.
struct Sent {
    answered: oneshot::Receiver<Result<()>>,
    progress: Arc<Progress>,
}

/// What is known of one message.
#[derive(Default)]
struct Progress {
    /// It is under way, or was and nobody knows what became of it.
    maybe_stored: AtomicBool,
    /// That it was sent once, and nobody knows what became of it.
    uncertain: AtomicBool,
    /// Groups that failed in the same call: their later messages stay behind.
    stopped: Option<Arc<Mutex<HashSet<String>>>>,
}

impl Sender {
    pub(crate) fn new(
        link: &Arc<Link>,
        health: &Arc<Health>,
        url: String,
        fifo: bool,
        handle: Handle,
    ) -> Self {
        let requests = Requests {
            link: Arc::clone(link),
            health: Arc::clone(health),
            url,
            fifo,
            limit: AtomicUsize::new(MAX_MESSAGE),
            busy: Mutex::default(),
            trouble: Mutex::default(),
            probing: tokio::sync::Mutex::default(),
            closing: AtomicBool::new(false),
        };
        Self { coalescer: Coalescer::new(requests, handle) }
    }

    /// Sends messages, and answers for each what became of it, at the deadline at the latest.
    pub(crate) async fn send(
        &self,
        operation: &'static str,
        messages: Vec<Encoded>,
        deadline: Instant,
    ) -> Vec<Result<()>> {
        let in_order = self.coalescer.carrier().fifo && messages.len() > 1;
        let stopped = in_order.then(Arc::default);
        let entry = |encoded| Entry::new(operation, encoded, stopped.clone());
        let (entries, sent): (Vec<_>, Vec<_>) = messages.into_iter().map(entry).unzip();
        self.coalescer.add(entries);
        let mut answers = Vec::with_capacity(sent.len());
        for sent in sent {
            answers.push(self.answered(operation, sent, deadline).await);
        }
        answers
    }

    /// Sends one.
    pub(crate) async fn send_one(
        &self,
        operation: &'static str,
        message: Encoded,
        deadline: Instant,
    ) -> Result<()> {
        let (entry, sent) = Entry::new(operation, message, None);
        self.coalescer.add([entry]);
        self.answered(operation, sent, deadline).await
    }

    async fn answered(
        &self,
        operation: &'static str,
        Sent { mut answered, progress }: Sent,
        deadline: Instant,
    ) -> Result<()> {
        let maybe = |error: Error| match progress.maybe_stored.load(Ordering::SeqCst) {
            true => error.maybe_stored(),
            false => error,
        };
        let mut answer = timeout_at(deadline, &mut answered).await;
        if answer.is_err() && progress.maybe_stored.load(Ordering::SeqCst) {
            answer = timeout_at(deadline + GRACE, &mut answered).await;
        }
        match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(maybe(closed(operation))),
            Err(_) => {
                // Whoever is about to send it sees this, or is seen.
                answered.close();
                match answered.try_recv() {
                    Ok(answer) => answer,
                    Err(_) => Err(maybe(self.coalescer.carrier().too_late(operation))),
                }
            }
        }
    }

    /// Answers what waits in vain, waits for what is under way until the deadline, and sends nothing
    /// any more.
    pub(crate) async fn close(&self, deadline: Instant) {
        self.coalescer.carrier().closing.store(true, Ordering::Release);
        self.coalescer.close(deadline).await;
    }

    pub(crate) fn abort(&self) {
        self.coalescer.abort();
    }
}

impl Carrier for Requests {
    type Item = Entry;
    const FEW: usize = 2;

    fn cut(&self, waiting: &mut VecDeque<Entry>) -> Vec<Entry> {
        let limit = self.limit.load(Ordering::Relaxed);
        if !self.fifo {
            let sizes = waiting.iter().map(|entry| entry.size);
            let count = fitting(sizes, limit);
            return waiting.drain(..count).collect();
        }
        let mut busy = lock(&self.busy);
        let groups =
            waiting.iter().map(|entry| (entry.encoded.group().unwrap_or_default(), entry.size));
        let chosen = in_order(groups, &busy, limit);
        // From the last, so that the places of the others stay what they are.
        let mut batch: Vec<_> =
            chosen.into_iter().rev().filter_map(|place| waiting.remove(place)).collect();
        batch.reverse();
        busy.extend(batch.iter().filter_map(|entry| entry.group_key(true)));
        batch
    }

    async fn carry(&self, batch: Vec<Entry>) {
        let groups: HashSet<String> = match self.fifo {
            true => batch.iter().filter_map(|e| e.encoded.group().map(str::to_owned)).collect(),
            false => HashSet::new(),
        };
        self.deliver(batch.into()).await;
        if self.fifo {
            lock(&self.busy).retain(|group| !groups.contains(group));
        }
    }
}

/// Which go in one request to a FIFO queue: none of a group that has one under way, and none before an
/// earlier one of its group.
fn in_order<'a>(
    entries: impl Iterator<Item = (&'a str, usize)>,
    busy: &HashSet<String>,
    limit: usize,
) -> Vec<usize> {
    let (mut chosen, mut bytes, mut passed) = (Vec::new(), 0, HashSet::new());
    for (place, (group, size)) in entries.enumerate() {
        let fits = chosen.is_empty() || bytes + size <= limit;
        if fits && !busy.contains(group) && !passed.contains(group) {
            bytes += size;
            chosen.push(place);
            if chosen.len() == FULL {
                break;
            }
        } else {
            passed.insert(group);
        }
    }
    chosen
}

/// How many of these go in one request: ten, as far as the bytes allow, and one at least.
fn fitting(sizes: impl Iterator<Item = usize>, limit: usize) -> usize {
    let mut bytes = 0;
    let within = sizes.take(FULL).enumerate().take_while(|(index, size)| {
        bytes += size;
        *index == 0 || bytes <= limit
    });
    within.count()
}

impl Requests {
    /// Sends until each was answered or given up by its caller.
    async fn deliver(&self, mut left: VecDeque<Entry>) {
        let (mut failures, mut singly) = (0, false);
        loop {
            left.retain_mut(Entry::is_wanted);
            if left.is_empty() {
                return;
            }
            if failures > 0 {
                if self.closing.load(Ordering::Acquire) {
                    // Dropping them answers.
                    return;
                }
                sleep(PAUSES.delay(failures)).await;
            }
            if self.is_cut_off() && !self.reach().await {
                failures += 1;
                continue;
            }
            let limit = self.limit.load(Ordering::Relaxed);
            let most = if singly { 1 } else { FULL };
            let count = fitting(left.iter().map(|entry| entry.size), limit).min(most);
            let mut chunk: Vec<_> = left.drain(..count).collect();
            chunk.retain_mut(Entry::begin);
            if chunk.is_empty() {
                continue;
            }
            // Dropping them answers.
            let Ok(client) = self.link.client() else { return };
            match self.request(&client, &chunk).await {
                Ok(answers) => {
                    let again = self.answer(chunk, answers);
                    failures = if again.is_empty() { 0 } else { failures + 1 };
                    put_back(&mut left, again);
                }
                Err(failure) if is_too_large(&failure) && chunk.len() > 1 => {
                    // All together are. Some servers and queues take less than the service does.
                    let bytes: usize = chunk.iter().map(|entry| entry.size).sum();
                    if bytes > SMALLER_BATCH {
                        self.limit.fetch_min(SMALLER_BATCH, Ordering::Relaxed);
                    } else {
                        singly = true;
                    }
                    chunk.iter().for_each(Entry::not_stored);
                    put_back(&mut left, chunk);
                }
                Err(failure) => {
                    self.met(&failure.error("push"));
                    let again = self.fail(chunk, &failure);
                    failures += 1;
                    put_back(&mut left, again);
                }
            }
        }
    }

    /// Asks the service to store these. One answer for each.
    async fn request(&self, client: &Client, chunk: &[Entry]) -> Result<Vec<Result<()>>, Failure> {
        let now = SystemTime::now();
        let entries: Vec<_> = chunk
            .iter()
            .enumerate()
            .map(|(index, entry)| entry.encoded.entry(index.to_string(), now))
            .collect();
        let request = client.send_message_batch().queue_url(&self.url).set_entries(Some(entries));
        let answer = Box::pin(request.send()).await.map_err(Failure::of)?;
        *lock(&self.trouble) = None;
        let mut answers: Vec<_> = chunk.iter().map(|_| None).collect();
        let place = |id: &str| id.parse().ok().filter(|index: &usize| *index < chunk.len());
        for index in answer.successful().iter().filter_map(|stored| place(stored.id())) {
            answers[index] = Some(Ok(()));
        }
        for refused in answer.failed() {
            if let Some(index) = place(refused.id()) {
                answers[index] = Some(Err(entry_failed(chunk[index].operation, refused)));
            }
        }
        let unanswered = |entry: &Entry| {
            let error = Error::new(ErrorKind::Broker, entry.operation).with_driver(NAME);
            Err(error.with_context("the service said nothing of this message").maybe_stored())
        };
        let answers = answers.into_iter().zip(chunk);
        Ok(answers.map(|(answer, entry)| answer.unwrap_or_else(|| unanswered(entry))).collect())
    }

    /// Tells each what became of it. Returns those to be sent again.
    fn answer(&self, chunk: Vec<Entry>, answers: Vec<Result<()>>) -> Vec<Entry> {
        // A message that comes after a later one of its group would break the order.
        let mut overtaken: HashSet<String> = HashSet::new();
        let mut again = VecDeque::new();
        for (entry, answer) in chunk.into_iter().zip(answers).rev() {
            let group = entry.group_key(self.fifo);
            match answer {
                Ok(()) => {
                    overtaken.extend(group);
                    entry.answer(Ok(()));
                }
                Err(error) => {
                    let late = group.is_some_and(|group| overtaken.contains(&group));
                    self.met(&error);
                    if self.may_repeat(&error, &entry) && !late {
                        entry.failed(&error);
                        again.push_front(entry);
                    } else {
                        entry.fail(error);
                    }
                }
            }
        }
        again.into()
    }

    /// The request failed for all. Returns those to be sent again.
    fn fail(&self, chunk: Vec<Entry>, failure: &Failure) -> Vec<Entry> {
        let mut again = Vec::new();
        for entry in chunk {
            let error = failure.error(entry.operation);
            // Not before one of its group that failed: `is_wanted` sees to that.
            if self.may_repeat(&error, &entry) {
                entry.failed(&error);
                again.push(entry);
            } else {
                entry.fail(error);
            }
        }
        again
    }

    /// What was certainly not stored may be sent again, and what the queue would know again.
    fn may_repeat(&self, error: &Error, entry: &Entry) -> bool {
        let uncertain = error.may_be_stored() || entry.progress.uncertain.load(Ordering::SeqCst);
        let known = self.fifo && entry.sent.is_none_or(|sent| sent.elapsed() < KNOWN_AGAIN);
        error.is_retryable() && (!uncertain || known)
    }

    fn met(&self, error: &Error) {
        self.health.met(error);
        let cut_off = matches!(error.kind(), ErrorKind::Connection | ErrorKind::Timeout);
        if error.is_retryable() {
            let (kind, text) = (error.kind(), error.with_sources());
            *lock(&self.trouble) = Some(Trouble { kind, text, cut_off });
        }
    }

    fn is_cut_off(&self) -> bool {
        lock(&self.trouble).as_ref().is_some_and(|trouble| trouble.cut_off)
    }

    /// Asks for something that does no harm. After a request was cut off, the next might be as well, and
    /// then nobody would know whether its messages were stored.
    async fn reach(&self) -> bool {
        let _probing = self.probing.lock().await;
        if !self.is_cut_off() {
            return true;
        }
        let Ok(client) = self.link.client() else { return true };
        let request = client.get_queue_attributes().queue_url(&self.url);
        let request = request.attribute_names(QueueAttributeName::QueueArn);
        let reached = match Box::pin(request.send()).await {
            Ok(_) => true,
            Err(error) => {
                // Also one that is denied: somebody answered.
                let answered = error.as_service_error().is_some();
                let error = failed("push", error);
                if !answered {
                    self.met(&error);
                }
                answered
            }
        };
        if reached {
            *lock(&self.trouble) = None;
        }
        reached
    }

    /// The error of a push whose time is over.
    fn too_late(&self, operation: &'static str) -> Error {
        match &*lock(&self.trouble) {
            None => timed_out(operation).with_context("no answer within `push_timeout`"),
            Some(trouble) => Error::new(trouble.kind, operation)
                .with_driver(NAME)
                .with_context(format!("{}, until `push_timeout`", trouble.text))
                .transient(),
        }
    }
}

fn is_too_large(failure: &Failure) -> bool {
    failure.error("push").kind() == ErrorKind::PayloadTooLarge
}

fn put_back(left: &mut VecDeque<Entry>, entries: Vec<Entry>) {
    entries.into_iter().rev().for_each(|entry| left.push_front(entry));
}

impl Entry {
    fn new(
        operation: &'static str,
        encoded: Encoded,
        stopped: Option<Arc<Mutex<HashSet<String>>>>,
    ) -> (Self, Sent) {
        let (answer, answered) = oneshot::channel();
        let progress = Arc::new(Progress { stopped, ..Progress::default() });
        let sent = Sent { answered, progress: Arc::clone(&progress) };
        let size = encoded.size();
        (Self { encoded, size, operation, progress, sent: None, answer: Some(answer) }, sent)
    }

    /// The group, where it matters.
    fn group_key(&self, fifo: bool) -> Option<String> {
        self.encoded.group().filter(|_| fifo).map(str::to_owned)
    }

    fn is_stopped(&self) -> bool {
        let stopped = self.progress.stopped.as_ref();
        stopped.zip(self.encoded.group()).is_some_and(|(all, group)| lock(all).contains(group))
    }

    /// False if its caller has gone, or an earlier message of its call and group has failed.
    fn is_wanted(&mut self) -> bool {
        if self.is_stopped() && !self.progress.maybe_stored.load(Ordering::SeqCst) {
            let error = Error::new(ErrorKind::Broker, self.operation).with_driver(NAME);
            let context = "an earlier message of its group was not stored";
            if let Some(answer) = self.answer.take() {
                let _ = answer.send(Err(error.with_context(context).transient()));
            }
        }
        self.answer.as_ref().is_some_and(|answer| !answer.is_closed())
    }

    /// From now on it may be stored, unless its caller has gone.
    fn begin(&mut self) -> bool {
        let before = self.progress.maybe_stored.swap(true, Ordering::SeqCst);
        self.sent.get_or_insert_with(Instant::now);
        let wanted = self.is_wanted_now();
        if !wanted {
            self.progress.maybe_stored.store(before, Ordering::SeqCst);
        }
        wanted
    }

    /// False if its caller has gone.
    fn is_wanted_now(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| !answer.is_closed())
    }

    /// It is to be sent again.
    fn failed(&self, error: &Error) {
        if error.may_be_stored() {
            self.progress.uncertain.store(true, Ordering::SeqCst);
        }
        self.not_stored();
    }

    /// This time it was not.
    fn not_stored(&self) {
        let uncertain = self.progress.uncertain.load(Ordering::SeqCst);
        self.progress.maybe_stored.store(uncertain, Ordering::SeqCst);
    }

    fn answer(mut self, answer: Result<()>) {
        if let Some(sender) = self.answer.take() {
            // Whoever pushed it may be gone.
            let _ = sender.send(answer);
        }
    }

    fn fail(self, error: Error) {
        if let (Some(stopped), Some(group)) = (&self.progress.stopped, self.encoded.group()) {
            lock(stopped).insert(group.to_owned());
        }
        self.answer(Err(error));
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("requests", &self.coalescer).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_takes_ten_and_no_more_bytes_than_are_allowed() {
        let fit = |sizes: &[usize]| fitting(sizes.iter().copied(), 100);
        assert_eq!(fit(&[1; 25]), 10);
        assert_eq!(fit(&[30, 30, 40, 1]), 3, "to the byte");
        assert_eq!(fit(&[30, 30, 41]), 2);
        assert_eq!(fit(&[500, 1]), 1, "one at least: the service says why not");
        assert_eq!(fit(&[]), 0);
    }

    #[test]
    fn a_group_has_one_batch_under_way_and_keeps_its_order() {
        let busy = HashSet::from(["busy".to_owned()]);
        let choose =
            |entries: &[(&'static str, usize)]| in_order(entries.iter().copied(), &busy, 100);
        assert_eq!(choose(&[("a", 1), ("busy", 1), ("b", 1), ("a", 1)]), [0, 2, 3]);
        assert_eq!(choose(&[("a", 90), ("b", 20), ("b", 1), ("c", 1)]), [0, 3], "b waits whole");
        assert_eq!(choose(&[("a", 1); 25]).len(), 10);
        assert_eq!(choose(&[("a", 200), ("b", 1)]), [0]);
    }
}
