//! What a producer hands over.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use uuid::Uuid;

use crate::{Error, ErrorKind, Headers, Result, wire};

/// The identity of a job, 1 to 255 bytes: a UUIDv7 unless the producer sets one.
///
/// Length is checked when the message is pushed.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(Box<str>);

impl JobId {
    /// The longest id that every broker carries, in bytes.
    pub const MAX_LEN: usize = 255;

    /// A fresh UUIDv7: unique, and later ones sort after earlier ones.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::now_v7().hyphenated().encode_lower(&mut Uuid::encode_buffer()).to_owned().into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<T: Into<Box<str>>> From<T> for JobId {
    fn from(id: T) -> Self {
        Self(id.into())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Where a message goes to, or came from, in Kafka. All empty on other brokers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KafkaOptions {
    /// Topic to produce to; on a delivered job the topic it was read from. Empty: the pipeline's.
    pub topic: Arc<str>,
    /// Partition to produce to, where the pipeline allows choosing one; on a delivered job the
    /// partition it was read from.
    pub partition: Option<i32>,
    /// Offset of a delivered job. Ignored when pushing.
    pub offset: Option<i64>,
    /// Free text kept with the message.
    pub metadata: String,
}

/// A job as its producer describes it. Cloning is cheap: clones share their content.
///
/// ```
/// use std::time::Duration;
/// use jobs_core::Message;
///
/// let message = Message::new("email.send", r#"{"to":"ann@example.org"}"#)
///     .with_header("tenant", "acme")
///     .with_priority(5)
///     .with_delay(Duration::from_secs(30));
/// assert_eq!(message.name(), "email.send");
/// assert_eq!(message.id().as_str().len(), 36);
/// ```
///
/// The builder accepts anything; what no driver can carry (an empty id, a control character in a
/// header name) is refused by [`Capabilities::admit`](crate::Capabilities::admit), which every
/// driver calls first.
#[derive(Clone)]
pub struct Message(Arc<Parts>);

#[derive(Clone)]
struct Parts {
    id: JobId,
    name: Cow<'static, str>,
    payload: Bytes,
    headers: Headers,
    priority: Option<i64>,
    due: Option<Due>,
    auto_ack: bool,
    ordering_key: Option<Box<str>>,
    kafka: Option<Box<KafkaOptions>>,
}

#[derive(Clone, Copy)]
enum Due {
    After(Duration),
    At(SystemTime),
}

impl Message {
    /// A message for the handler called `name`, with a fresh id and nothing else set.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>, payload: impl Into<Bytes>) -> Self {
        Self::known(JobId::random(), name, payload)
    }

    /// A message that has an id: as [`new`](Self::new) and [`with_id`](Self::with_id), without
    /// making one up first. For drivers, which read it.
    #[must_use]
    pub fn known(
        id: impl Into<JobId>,
        name: impl Into<Cow<'static, str>>,
        payload: impl Into<Bytes>,
    ) -> Self {
        Self(Arc::new(Parts {
            id: id.into(),
            name: name.into(),
            payload: payload.into(),
            headers: Headers::new(),
            priority: None,
            due: None,
            auto_ack: false,
            ordering_key: None,
            kafka: None,
        }))
    }

    fn edit(mut self, change: impl FnOnce(&mut Parts)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// Sets the id. The same id twice makes two jobs, unless the broker deduplicates.
    #[must_use]
    pub fn with_id(self, id: impl Into<JobId>) -> Self {
        self.edit(|parts| parts.id = id.into())
    }

    /// Replaces the payload.
    #[must_use]
    pub fn with_payload(self, payload: impl Into<Bytes>) -> Self {
        self.edit(|parts| parts.payload = payload.into())
    }

    /// Replaces all headers.
    #[must_use]
    pub fn with_headers(self, headers: Headers) -> Self {
        self.edit(|parts| parts.headers = headers)
    }

    /// Adds a header, keeping the values its name already has.
    #[must_use]
    pub fn with_header(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.edit(|parts| parts.headers.append(name, value))
    }

    /// Sets the priority: smaller is sooner. 0 means none, the pipeline's is used.
    #[must_use]
    pub fn with_priority(self, priority: i64) -> Self {
        self.edit(|parts| parts.priority = (priority != 0).then_some(priority))
    }

    /// Delivers the job no sooner than `delay` after the broker has accepted it.
    ///
    /// Rounded up to milliseconds here and to the broker's resolution later, never down.
    #[must_use]
    pub fn with_delay(self, delay: Duration) -> Self {
        self.edit(|parts| parts.due = Some(Due::After(round_up(delay))))
    }

    /// Delivers the job no sooner than `due`, by this machine's clock at the time of the push.
    #[must_use]
    pub fn with_due(self, due: SystemTime) -> Self {
        self.edit(|parts| parts.due = Some(Due::At(due)))
    }

    /// Settles the job when it is handed to a worker: later outcomes have no effect, and a crash
    /// of the worker loses the job.
    #[must_use]
    pub fn with_auto_ack(self, auto_ack: bool) -> Self {
        self.edit(|parts| parts.auto_ack = auto_ack)
    }

    /// Jobs with equal keys are delivered in the order they were pushed. Refused by pipelines that
    /// cannot promise it.
    #[must_use]
    pub fn with_ordering_key(self, key: impl Into<Box<str>>) -> Self {
        self.edit(|parts| parts.ordering_key = Some(key.into()))
    }

    /// Sets topic and partition for Kafka.
    #[must_use]
    pub fn with_kafka(self, kafka: KafkaOptions) -> Self {
        self.edit(|parts| parts.kafka = Some(Box::new(kafka)))
    }

    /// The id.
    #[must_use]
    pub fn id(&self) -> &JobId {
        &self.0.id
    }

    /// The job type, which selects the handler.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.0.payload
    }

    /// The headers.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.0.headers
    }

    /// The message's own priority; none: the pipeline's counts.
    #[must_use]
    pub fn priority(&self) -> Option<i64> {
        self.0.priority
    }

    /// How long from now until the job may be delivered; zero: at once.
    #[must_use]
    pub fn delay(&self) -> Duration {
        match self.0.due {
            None => Duration::ZERO,
            Some(Due::After(delay)) => delay,
            Some(Due::At(due)) => {
                round_up(due.duration_since(SystemTime::now()).unwrap_or_default())
            }
        }
    }

    /// True if the job is settled when handed to a worker.
    #[must_use]
    pub fn auto_ack(&self) -> bool {
        self.0.auto_ack
    }

    /// The key whose jobs stay in order.
    #[must_use]
    pub fn ordering_key(&self) -> Option<&str> {
        self.0.ordering_key.as_deref()
    }

    /// Topic, partition and offset in Kafka.
    #[must_use]
    pub fn kafka(&self) -> Option<&KafkaOptions> {
        self.0.kafka.as_deref()
    }

    /// Checks the rules that hold on every broker.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMessage`]: an id or name that is empty or longer than 255 bytes, or a
    /// header name that is empty, longer than 255 bytes or holds a control character.
    pub(crate) fn validate(&self, operation: &'static str) -> Result<()> {
        let check = |what, text: &str| check_text(operation, what, text);
        check("id", self.id().as_str())?;
        check("name", self.name())?;
        if let Some(key) = self.ordering_key() {
            check("ordering key", key)?;
        }
        self.headers().iter().try_for_each(|(name, _)| check("header name", name))
    }
}

fn check_text(operation: &'static str, what: &str, text: &str) -> Result<()> {
    let problem = match text.len() {
        0 => "must not be empty".to_owned(),
        1..=JobId::MAX_LEN => match wire::control_character(text) {
            None => return Ok(()),
            Some(c) => format!("must hold no control character, found {c:?}"),
        },
        len => format!("must have at most {} bytes, found {len}", JobId::MAX_LEN),
    };
    Err(Error::new(ErrorKind::InvalidMessage, operation).with_context(format!("{what} {problem}")))
}

fn round_up(delay: Duration) -> Duration {
    match delay.subsec_nanos() % 1_000_000 {
        0 => delay,
        excess => delay.saturating_add(Duration::from_nanos(u64::from(1_000_000 - excess))),
    }
}

/// Never shows the payload or a header's value.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", self.id())
            .field("name", &self.name())
            .field("payload_bytes", &self.payload().len())
            .field("headers", self.headers())
            .field("priority", &self.priority())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_priority_means_none() {
        assert_eq!(Message::new("a", "").with_priority(0).priority(), None);
        assert_eq!(Message::new("a", "").with_priority(-1).priority(), Some(-1));
    }

    #[test]
    fn delays_round_up_to_milliseconds() {
        let delay = |nanos| Message::new("a", "").with_delay(Duration::from_nanos(nanos)).delay();
        assert_eq!(delay(1), Duration::from_millis(1));
        assert_eq!(delay(2_000_000), Duration::from_millis(2));
        assert_eq!(delay(2_000_001), Duration::from_millis(3));
        let max = Message::new("a", "").with_delay(Duration::MAX).delay();
        assert_eq!(max, Duration::MAX);
    }

    #[test]
    fn a_due_time_in_the_past_is_no_delay() {
        let past = Message::new("a", "").with_due(SystemTime::UNIX_EPOCH);
        assert_eq!(past.delay(), Duration::ZERO);
        let later = SystemTime::now() + Duration::from_secs(3600);
        let delay = Message::new("a", "").with_due(later).delay();
        assert!(delay > Duration::from_secs(3590) && delay <= Duration::from_secs(3600));
    }

    #[test]
    fn refuses_what_no_broker_carries() {
        let ok = Message::new("a", "");
        assert!(ok.validate("push").is_ok());
        assert!(ok.clone().with_id("x".repeat(255)).validate("push").is_ok());
        for bad in [
            ok.clone().with_id(""),
            ok.clone().with_id("x".repeat(256)),
            Message::new("", ""),
            ok.clone().with_header("", "v"),
            ok.clone().with_header("a\r\nb", "v"),
            ok.with_ordering_key(""),
        ] {
            let error = bad.validate("push").expect_err("invalid");
            assert_eq!(error.kind(), ErrorKind::InvalidMessage);
        }
    }

    #[test]
    fn clones_do_not_see_later_changes() {
        let first = Message::new("a", "1");
        let second = first.clone().with_payload("2");
        assert_eq!((&first.payload()[..], &second.payload()[..]), (&b"1"[..], &b"2"[..]));
        assert_eq!(first.id(), second.id());
    }

    #[test]
    fn debug_hides_the_payload() {
        let message = Message::new("a", "hunter2").with_header("token", "hunter3");
        assert!(!format!("{message:?}").contains("hunter"));
    }
}
