//! Requests that end deliveries or change when they end: what comes meanwhile shares the next.

use std::collections::VecDeque;
use std::sync::Weak;
use std::time::Duration;

use aws_sdk_sqs::types::{
    BatchResultErrorEntry, ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry,
};
use jobs_core::{Backoff, Error, ErrorKind, Extender, Refusal, Result, Settler, Token, Unsettled};
use tokio::time::{Instant, sleep};

use crate::NAME;
use crate::coalescer::{Carrier, cut_ten};
use crate::consumer::Desk;
use crate::error::{Failure, entry_failed, lease_lost};

/// Between attempts to settle.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));

/// Failures in a row after which a consumer that is being stopped gives up.
const LAST_FAILURE: u32 = 3;

/// Whom to tell, and the job to give back if it could not be settled. Dropped without an answer it
/// tells that the lease is lost, and the job with it.
pub(crate) struct Reply(Option<(Settler, Unsettled)>);

impl Reply {
    pub(crate) fn new(settler: Settler, job: Unsettled) -> Self {
        Self(Some((settler, job)))
    }

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
            // Nobody listens: there is nothing to give up.
            let _ = settler.refuse(Refusal::lease_lost(NAME));
        }
    }
}

/// A message to be deleted.
pub(crate) struct Removal {
    pub(crate) token: Token,
    pub(crate) handle: String,
    /// None if nobody can be told.
    pub(crate) reply: Option<Reply>,
    pub(crate) since: Instant,
    /// A request for it was not answered.
    pub(crate) uncertain: bool,
}

/// A message whose visibility is to be changed.
pub(crate) struct Change {
    pub(crate) token: Token,
    pub(crate) handle: String,
    pub(crate) seconds: i32,
    pub(crate) purpose: Purpose,
}

/// Why it is.
pub(crate) enum Purpose {
    /// It goes on being ours. None: nobody asked for that.
    Extend(Option<Extender>),
    /// It goes back. None: nobody can be told.
    Return { reply: Option<Reply>, since: Instant },
}

/// Sends deletions.
pub(crate) struct Removals(pub(crate) Weak<Desk>);

/// Sends changes of visibility.
pub(crate) struct Changes(pub(crate) Weak<Desk>);

impl Carrier for Removals {
    type Item = Removal;
    const FEW: usize = 2;

    fn cut(&self, waiting: &mut VecDeque<Removal>) -> Vec<Removal> {
        cut_ten(waiting)
    }

    async fn carry(&self, mut batch: Vec<Removal>) {
        // Without it, dropping them tells that the leases are lost.
        let Some(desk) = self.0.upgrade() else { return };
        let mut failures = 0;
        loop {
            batch = expect_leases(&desk, batch, failures);
            if batch.is_empty() {
                return;
            }
            let answers = remove(&desk, &batch).await;
            let mut again = Vec::new();
            for (removal, answer) in batch.into_iter().zip(answers) {
                again.extend(removed(&desk, removal, answer));
            }
            if again.is_empty() {
                return;
            }
            failures += 1;
            batch = again;
            sleep(PAUSES.delay(failures)).await;
        }
    }
}

/// Those whose lease has not ended, and whose caller's patience has not either.
fn expect_leases(desk: &Desk, batch: Vec<Removal>, failures: u32) -> Vec<Removal> {
    let mut left = Vec::with_capacity(batch.len());
    for removal in batch {
        if !desk.holds(removal.token) || (failures >= LAST_FAILURE && desk.is_closing()) {
            desk.lost(removal.token);
        } else if failures > 0 && removal.since.elapsed() > desk.config.push_timeout {
            if removal.uncertain {
                // A request without an answer may yet be carried out: whoever got the job back now could
                // neither run it again nor count on it.
                desk.lost(removal.token);
                continue;
            }
            let error = Error::new(ErrorKind::Timeout, "settle").with_driver(NAME).transient();
            let trouble = desk.health.last_error().unwrap_or_default();
            let error = error.with_context(format!("not deleted within `push_timeout`: {trouble}"));
            desk.refuse(removal.token, removal.reply, error);
        } else {
            left.push(removal);
        }
    }
    left
}

/// Asks the service to delete these. One answer for each.
async fn remove(desk: &Desk, batch: &[Removal]) -> Vec<Result<()>> {
    let entry = |(index, removal): (usize, &Removal)| {
        DeleteMessageBatchRequestEntry::builder()
            .id(index.to_string())
            .receipt_handle(&removal.handle)
            .build()
            .expect("it has an id and a handle")
    };
    let entries: Vec<_> = batch.iter().enumerate().map(entry).collect();
    let Ok(client) = desk.link.client() else { return over(batch.len()) };
    let request = client.delete_message_batch().queue_url(&desk.url);
    match Box::pin(request.set_entries(Some(entries)).send()).await {
        Ok(answer) => {
            let done = answer.successful.iter().map(|entry| entry.id.as_str());
            answers(batch.len(), done, &answer.failed)
        }
        Err(error) => all(desk, &Failure::of(error), batch.len()),
    }
}

/// Takes note of an answer. Returns what is to be tried again.
fn removed(desk: &Desk, mut removal: Removal, answer: Result<()>) -> Option<Removal> {
    // An answer that comes after the end of the lease says nothing: the service is content with a handle
    // that is not valid any more.
    let ours = desk.holds(removal.token);
    match answer {
        Ok(()) if ours || removal.reply.is_none() => {
            desk.done(removal.token);
            removal.reply.into_iter().for_each(Reply::done);
        }
        Ok(()) => desk.lost(removal.token),
        // The message is gone, nobody else can have had it: so it was the request before that was not
        // answered.
        Err(error) if error.kind() == ErrorKind::LeaseLost && ours && removal.uncertain => {
            desk.done(removal.token);
            removal.reply.into_iter().for_each(Reply::done);
        }
        Err(error) if error.kind() == ErrorKind::LeaseLost => {
            desk.health.met(&error);
            desk.lost(removal.token);
        }
        Err(error) if error.is_retryable() => {
            removal.uncertain |= error.may_be_stored();
            return Some(removal);
        }
        Err(error) => {
            desk.health.met(&error);
            desk.refuse(removal.token, removal.reply, error);
        }
    }
    None
}

impl Carrier for Changes {
    type Item = Change;
    const FEW: usize = 2;

    fn cut(&self, waiting: &mut VecDeque<Change>) -> Vec<Change> {
        cut_ten(waiting)
    }

    async fn carry(&self, mut batch: Vec<Change>) {
        let Some(desk) = self.0.upgrade() else { return };
        let mut failures = 0;
        loop {
            batch = expect_changes(&desk, batch, failures);
            if batch.is_empty() {
                return;
            }
            let asked = Instant::now();
            let pairs = batch.iter().map(|change| (change.handle.as_str(), change.seconds));
            let answers = change(&desk, pairs).await;
            let mut again = Vec::new();
            for (change, answer) in batch.into_iter().zip(answers) {
                again.extend(changed(&desk, change, answer, asked));
            }
            if again.is_empty() {
                return;
            }
            failures += 1;
            batch = again;
            sleep(PAUSES.delay(failures)).await;
        }
    }
}

fn expect_changes(desk: &Desk, batch: Vec<Change>, failures: u32) -> Vec<Change> {
    let mut left = Vec::with_capacity(batch.len());
    for change in batch {
        let gives_up = failures >= LAST_FAILURE && desk.is_closing();
        match change.purpose {
            _ if desk.holds(change.token) && !gives_up => match change.purpose {
                Purpose::Return { reply, since }
                    if failures > 0 && since.elapsed() > desk.config.push_timeout =>
                {
                    let error = Error::new(ErrorKind::Timeout, "settle").with_driver(NAME);
                    let trouble = desk.health.last_error().unwrap_or_default();
                    let context = format!("not given back within `push_timeout`: {trouble}");
                    desk.changed(change.token);
                    desk.refuse(change.token, reply, error.with_context(context).transient());
                }
                _ => left.push(change),
            },
            Purpose::Extend(extender) => {
                desk.changed(change.token);
                extender
                    .into_iter()
                    .for_each(|extender| extender.answer(Err(lease_lost("extend"))));
            }
            // Dropping the reply tells.
            Purpose::Return { .. } => desk.lost(change.token),
        }
    }
    left
}

/// Asks the service for these visibilities. One answer for each.
pub(crate) async fn change(
    desk: &Desk,
    changes: impl Iterator<Item = (&str, i32)>,
) -> Vec<Result<()>> {
    let entry = |(index, (handle, seconds)): (usize, (&str, i32))| {
        ChangeMessageVisibilityBatchRequestEntry::builder()
            .id(index.to_string())
            .receipt_handle(handle)
            .visibility_timeout(seconds)
            .build()
            .expect("it has an id and a handle")
    };
    let entries: Vec<_> = changes.enumerate().map(entry).collect();
    let count = entries.len();
    let Ok(client) = desk.link.client() else { return over(count) };
    let request = client.change_message_visibility_batch().queue_url(&desk.url);
    match Box::pin(request.set_entries(Some(entries)).send()).await {
        Ok(answer) => {
            let done = answer.successful.iter().map(|entry| entry.id.as_str());
            answers(count, done, &answer.failed)
        }
        Err(error) => all(desk, &Failure::of(error), count),
    }
}

/// Takes note of an answer. Returns what is to be tried again.
fn changed(desk: &Desk, change: Change, answer: Result<()>, asked: Instant) -> Option<Change> {
    let Change { token, handle, seconds, purpose } = change;
    match (purpose, answer) {
        (Purpose::Extend(extender), Ok(())) => {
            desk.extended(token, seconds, asked);
            extender.into_iter().for_each(|extender| extender.answer(Ok(())));
        }
        (Purpose::Extend(extender), Err(error)) => {
            if error.kind() == ErrorKind::LeaseLost {
                desk.taken(token, &error);
            } else {
                desk.not_extended(token, &error);
            }
            if let Some(extender) = extender {
                extender.answer(Err(error));
            }
        }
        (Purpose::Return { reply, .. }, Ok(())) => {
            desk.lost(token);
            reply.into_iter().for_each(Reply::done);
        }
        (Purpose::Return { reply, since }, Err(error)) => {
            desk.health.met(&error);
            if error.is_retryable() && !error.may_be_stored() {
                return Some(Change {
                    token,
                    handle,
                    seconds,
                    purpose: Purpose::Return { reply, since },
                });
            }
            if error.is_retryable() || error.kind() == ErrorKind::LeaseLost {
                // It may be back, and with another already: a second request could take it from there. If
                // it is not, it comes back when its lease ends.
                desk.lost(token);
            } else {
                desk.changed(token);
                desk.refuse(token, reply, error);
            }
        }
    }
    None
}

/// What a batch was answered, in order.
fn answers<'a>(
    count: usize,
    done: impl Iterator<Item = &'a str>,
    refused: &[BatchResultErrorEntry],
) -> Vec<Result<()>> {
    let unanswered = || {
        let error = Error::new(ErrorKind::Broker, "settle").with_driver(NAME);
        error.with_context("the service said nothing of this message").transient().maybe_stored()
    };
    let mut answers: Vec<_> = (0..count).map(|_| Err(unanswered())).collect();
    let mut set = |id: &str, answer| {
        if let Some(place) = id.parse().ok().and_then(|index: usize| answers.get_mut(index)) {
            *place = answer;
        }
    };
    done.for_each(|id| set(id, Ok(())));
    refused.iter().for_each(|entry| set(&entry.id, Err(entry_failed("settle", entry))));
    answers
}

/// The request failed for all.
fn all(desk: &Desk, failure: &Failure, count: usize) -> Vec<Result<()>> {
    desk.health.met(&failure.error("settle"));
    (0..count).map(|_| Err(failure.error("settle"))).collect()
}

/// Nothing can be asked any more.
fn over(count: usize) -> Vec<Result<()>> {
    (0..count).map(|_| Err(lease_lost("settle"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_entry_gets_its_own_answer() {
        let refused = BatchResultErrorEntry::builder()
            .id("1")
            .sender_fault(true)
            .code("ReceiptHandleIsInvalid")
            .build()
            .unwrap();
        let all = answers(3, ["0", "7", "x"].into_iter(), &[refused]);
        assert!(all[0].is_ok());
        assert_eq!(all[1].as_ref().unwrap_err().kind(), ErrorKind::LeaseLost);
        let forgotten = all[2].as_ref().unwrap_err();
        assert!(forgotten.is_retryable() && forgotten.may_be_stored());
    }
}
