//! What a pipeline can do, as data.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::{Error, ErrorKind, Headers, Message, Result};

/// How a pipeline provides a feature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Support {
    /// Not at all. Asking for it is refused before any I/O, but for three: without
    /// [`batch`](Capabilities::batch) messages are sent one by one, without
    /// [`priority`](Capabilities::priority) jobs are ordered in this process only, and without
    /// [`reject`](Capabilities::reject) a rejected job is discarded.
    #[default]
    None,
    /// By the driver, with the limits its page describes.
    Emulated,
    /// By the broker itself.
    Native,
}

impl Support {
    /// True unless the feature is refused.
    #[must_use]
    pub fn is_available(self) -> bool {
        self != Self::None
    }
}

/// What the number in [`Job::attempt`](crate::Job::attempt) counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Attempts {
    /// Deliveries that were started: requeues, abandoned jobs and ended leases.
    Exact,
    /// At least the requeues; crashes, releases or abandoned jobs may count or not.
    AtLeast,
    /// The broker only tells whether the job was delivered before.
    Flag,
}

/// What a consumer's right to a delivered job depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lease {
    /// The connection (or process): it lasts as long as that lives.
    Connection,
    /// Time, extended by the driver while the job is unsettled.
    Timed,
    /// Time that nobody can extend.
    Fixed,
}

/// What a pipeline can do with its configuration: known before connecting from
/// [`Plan::capabilities`](crate::Plan::capabilities), and possibly narrower afterwards from
/// [`Driver::capabilities`](crate::Driver::capabilities), never wider.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Delivering a message later.
    pub delay: Support,
    /// Keeping jobs ordered by priority at the broker. Inside this process they always are.
    pub priority: Support,
    /// Keeping a rejected job as a dead letter.
    pub reject: Support,
    /// Running a job again with the attempt counted, also with changed headers. A delay needs
    /// [`delay`](Self::delay) too.
    pub requeue: Support,
    /// Pushing many messages in one request.
    pub batch: Support,
    /// Keeping jobs with equal ordering keys in order.
    pub ordering_key: Support,
    /// Extending a lease on request.
    pub extend: Support,
    /// True if accepted messages survive a restart of the broker, or of this process without one.
    pub durable: bool,
    /// True if `Ok` from a settlement means that the broker has confirmed it.
    pub acks_confirmed: bool,
    /// What the attempt number counts.
    pub attempts: Attempts,
    /// True if releasing a job leaves its attempt number as it is.
    pub uncounted_release: bool,
    /// What the right to a delivered job depends on.
    pub lease: Lease,
    /// Largest payload in bytes.
    pub max_payload: Option<usize>,
    /// Longest delay.
    pub max_delay: Option<Duration>,
    /// Most messages in one request; larger batches are split by the driver.
    pub max_batch: Option<usize>,
    /// Priorities a message may have.
    pub priorities: RangeInclusive<i64>,
}

impl Default for Capabilities {
    /// A pipeline that can do nothing but push and acknowledge: the place a driver starts from.
    fn default() -> Self {
        Self {
            delay: Support::None,
            priority: Support::None,
            reject: Support::None,
            requeue: Support::None,
            batch: Support::None,
            ordering_key: Support::None,
            extend: Support::None,
            durable: false,
            acks_confirmed: false,
            attempts: Attempts::AtLeast,
            uncounted_release: false,
            lease: Lease::Connection,
            max_payload: None,
            max_delay: None,
            max_batch: None,
            priorities: i64::MIN..=i64::MAX,
        }
    }
}

impl Capabilities {
    /// Decides whether this pipeline takes `message`. Every push starts here, before any I/O.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidMessage`]: an id, name, header name or ordering key that is empty, has
    ///   more than 255 bytes or holds a control character;
    /// - [`ErrorKind::PayloadTooLarge`]: more bytes than [`max_payload`](Self::max_payload);
    /// - [`ErrorKind::Unsupported`]: a delay, priority or ordering key the pipeline cannot honour.
    pub fn admit(&self, message: &Message) -> Result<()> {
        self.check(message, "push")
    }

    /// Decides whether a job can be requeued so, and makes the message that runs again.
    ///
    /// # Errors
    /// - [`ErrorKind::Unsupported`]: no requeue, or none with this delay;
    /// - [`ErrorKind::InvalidMessage`]: headers that no driver carries.
    pub fn admit_requeue(
        &self,
        message: &Message,
        delay: Duration,
        headers: Option<Headers>,
    ) -> Result<Message> {
        if !self.requeue.is_available() {
            return Err(unsupported(
                "settle",
                "requeue: this pipeline cannot run a job again".into(),
            ));
        }
        let headers = headers.unwrap_or_else(|| message.headers().clone());
        let message = message.clone().with_delay(delay).with_headers(headers);
        self.check(&message, "settle")?;
        Ok(message)
    }

    fn check(&self, message: &Message, operation: &'static str) -> Result<()> {
        message.validate(operation)?;
        let size = message.payload().len();
        if let Some(max) = self.max_payload.filter(|max| size > *max) {
            let context = format!("at most {max} bytes, found {size}");
            return Err(Error::new(ErrorKind::PayloadTooLarge, operation).with_context(context));
        }
        if let Some(priority) = message.priority().filter(|p| !self.priorities.contains(p)) {
            let (low, high) = (self.priorities.start(), self.priorities.end());
            return Err(unsupported(
                operation,
                format!("priority from {low} to {high}, found {priority}"),
            ));
        }
        if message.ordering_key().is_some() && !self.ordering_key.is_available() {
            let context = "ordering key: this pipeline cannot keep jobs in order";
            return Err(unsupported(operation, context.into()));
        }
        let delay = message.delay();
        if !delay.is_zero() && !self.delay.is_available() {
            return Err(unsupported(
                operation,
                "delay: this pipeline delivers at once only".into(),
            ));
        }
        match self.max_delay.filter(|max| delay > *max) {
            None => Ok(()),
            Some(max) => {
                let context = format!("delay of at most {max:?}, found {delay:?}");
                Err(unsupported(operation, context))
            }
        }
    }
}

fn unsupported(operation: &'static str, context: String) -> Error {
    Error::new(ErrorKind::Unsupported, operation).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(capabilities: &Capabilities, message: &Message) -> Option<ErrorKind> {
        capabilities.admit(message).err().map(|error| error.kind())
    }

    #[test]
    fn refuses_what_is_not_available() {
        let none = Capabilities::default();
        let message = Message::new("a", "");
        assert_eq!(kind(&none, &message), None);
        let delayed = message.clone().with_delay(Duration::from_secs(1));
        assert_eq!(kind(&none, &delayed), Some(ErrorKind::Unsupported));
        let keyed = message.with_ordering_key("k");
        assert_eq!(kind(&none, &keyed), Some(ErrorKind::Unsupported));
    }

    #[test]
    fn a_requeue_is_checked_as_a_push_is_and_says_that_it_settles() {
        let message = Message::new("a", "").with_header("x", "1");
        let delay = Duration::from_secs(1);
        let mut capabilities = Capabilities::default();
        let refused = |c: &Capabilities, delay, headers| {
            let error = c.admit_requeue(&message, delay, headers).expect_err("refused");
            (error.operation(), error.kind())
        };
        let unsupported = ("settle", ErrorKind::Unsupported);
        assert_eq!(refused(&capabilities, Duration::ZERO, None), unsupported);
        capabilities.requeue = Support::Native;
        assert_eq!(refused(&capabilities, delay, None), unsupported);
        capabilities.delay = Support::Native;
        let bad: Headers = [("\n", "")].into_iter().collect();
        let invalid = ("settle", ErrorKind::InvalidMessage);
        assert_eq!(refused(&capabilities, delay, Some(bad)), invalid);
        let again = capabilities.admit_requeue(&message, delay, None).expect("admitted");
        assert_eq!((again.delay(), again.headers().get("x")), (delay, Some("1")));
        assert_eq!(again.id(), message.id());
    }

    #[test]
    fn limits_include_their_bound() {
        let limited = Capabilities {
            delay: Support::Native,
            max_payload: Some(3),
            max_delay: Some(Duration::from_secs(9)),
            priorities: 1..=5,
            ..Capabilities::default()
        };
        let message = Message::new("a", "abc");
        let at = |seconds| message.clone().with_delay(Duration::from_secs(seconds));
        assert_eq!(kind(&limited, &at(9).with_priority(5)), None);
        assert_eq!(kind(&limited, &at(10)), Some(ErrorKind::Unsupported));
        assert_eq!(kind(&limited, &at(0).with_priority(6)), Some(ErrorKind::Unsupported));
        let long = message.with_payload("abcd");
        assert_eq!(kind(&limited, &long), Some(ErrorKind::PayloadTooLarge));
    }
}
