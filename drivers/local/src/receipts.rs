//! What receipts hand their outcomes to.

use std::sync::Arc;
use std::time::Duration;

use jobs_core::{
    Acknowledger, Capabilities, Error, ErrorKind, Extending, Outcome, Refusal, Settling, Token,
    Unsettled,
};

use crate::NAME;
use crate::config::TEN_YEARS;
use crate::inbox::{Inbox, Step, Write};

/// The acknowledger of one pipeline. Tokens are never used twice, so there are no epochs.
#[derive(Debug)]
pub(crate) struct Receipts {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) capabilities: Capabilities,
}

impl Receipts {
    fn step(&self, job: &Unsettled, outcome: Outcome) -> Result<Step, Error> {
        Ok(match outcome {
            Outcome::Ack => Step::Ack,
            Outcome::Reject => Step::Reject,
            Outcome::Release => Step::Release,
            Outcome::Requeue { delay, headers } => {
                let changed = headers.is_some();
                let again = self.capabilities.admit_requeue(&job.message, delay, headers);
                let message = again.map_err(|error| error.with_driver(NAME))?;
                Step::Requeue { message, changed }
            }
        })
    }
}

impl Acknowledger for Receipts {
    fn settle(&self, mut job: Unsettled, outcome: Outcome) -> Settling {
        let step = match self.step(&job, outcome) {
            Ok(step) => step,
            Err(error) => return Settling::refused(Refusal { error, job: Some(job) }),
        };
        // Free for a job that is fetched in the transaction that settles this one.
        job.credit = None;
        let (settler, settling) = Settling::later();
        match self.inbox.write(Write::Settle { job, step, settler }) {
            Ok(()) => settling,
            Err(_) => Settling::refused(Refusal::lease_lost(NAME)),
        }
    }

    fn extend(&self, token: Token, by: Duration) -> Extending {
        let (extender, extending) = Extending::later();
        // Beyond that the clock may not be able to express it.
        let by = by.min(TEN_YEARS);
        match self.inbox.write(Write::Extend { token, by, extender }) {
            Ok(()) => extending,
            Err(_) => Extending::ready(Err(lost("extend"))),
        }
    }

    fn abandon(&self, job: Unsettled) {
        let token = job.token;
        drop(job);
        // If the writer has ended the job is back already.
        let _ = self.inbox.write(Write::Abandon { token });
    }
}

/// The delivery is over.
pub(crate) fn lost(operation: &'static str) -> Error {
    Error::new(ErrorKind::LeaseLost, operation).with_driver(NAME)
}
