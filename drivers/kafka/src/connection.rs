//! Clients of the broker: how they are made, what they are asked, how they end.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jobs_core::{Error, ErrorKind, Health, Result};
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;
use rdkafka::types::RDKafkaRespErr;

use crate::config::KafkaConfig;
use crate::error;
use crate::hub::lock;
use crate::publisher::{Producer, Publisher};

/// How long a fresh topic is given until its partitions have leaders, per look.
const LOOK: Duration = Duration::from_millis(50);

/// How long a broker is waited for before it is looked whether one refused us.
const PATIENCE: Duration = Duration::from_millis(500);

/// What clients report that nobody asked for.
#[derive(Debug)]
pub(crate) struct Reports {
    health: Arc<Health>,
    /// A broker took neither name nor password, or its certificate is not trusted.
    refused: Mutex<Option<(RDKafkaErrorCode, String)>>,
}

impl Reports {
    pub(crate) fn new(health: &Arc<Health>) -> Self {
        Self { health: Arc::clone(health), refused: Mutex::default() }
    }

    pub(crate) fn refused(&self) -> Option<Error> {
        let refused = lock(&self.refused);
        refused
            .as_ref()
            .map(|(code, reason)| error::answered("connect", *code).with_context(reason))
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.health.last_error()
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(job.pipeline = %self.health.pipeline(), facility, "{message}");
            }
            _ => tracing::warn!(job.pipeline = %self.health.pipeline(), facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if let Some(code) = error.rdkafka_error_code()
            && matches!(code, RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL)
        {
            *lock(&self.refused) = Some((code, reason.to_owned()));
        }
        self.health.note(format!("{error}: {reason}"));
    }
}

/// What a consumer's group tells it.
#[derive(Debug)]
pub(crate) enum Event {
    /// These are ours once they are assigned at the client.
    Assigned(TopicPartitionList),
    /// These are to be given up. True if somebody else may have them already.
    Revoked(TopicPartitionList, bool),
}

impl Event {
    /// Tells the client to go on. It waits for that, also when it closes.
    ///
    /// # Errors
    /// It does not wait for it any more.
    fn answer(&self, consumer: &BaseConsumer<Events>) -> KafkaResult<()> {
        match self {
            Self::Assigned(partitions) => consumer.incremental_assign(partitions),
            Self::Revoked(partitions, _) => consumer.incremental_unassign(partitions),
        }
    }
}

/// The context of a consumer. Rebalances are kept for the thread that polls, which answers them in its
/// own time: a partition that is revoked may be kept until its jobs have ended.
#[derive(Debug)]
pub(crate) struct Events {
    reports: Reports,
    kept: Mutex<Vec<Event>>,
    /// Closing polls until all is answered: nothing may be kept any more.
    closing: AtomicBool,
    /// Events that a poll has dealt with: it returns for each, as if there were nothing more.
    dealt_with: AtomicUsize,
}

impl Events {
    pub(crate) fn new(health: &Arc<Health>) -> Self {
        Self {
            reports: Reports::new(health),
            kept: Mutex::default(),
            closing: AtomicBool::new(false),
            dealt_with: AtomicUsize::new(0),
        }
    }

    /// How many events were dealt with so far.
    pub(crate) fn dealt_with(&self) -> usize {
        self.dealt_with.load(Ordering::Acquire)
    }

    fn deal_with(&self) {
        self.dealt_with.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut lock(&self.kept))
    }
}

impl ClientContext for Events {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.deal_with();
        self.reports.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.deal_with();
        self.reports.error(error, reason);
    }
}

impl ConsumerContext for Events {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        self.deal_with();
        let event = match what {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                Event::Assigned(partitions.clone())
            }
            _ => Event::Revoked(partitions.clone(), consumer.assignment_lost()),
        };
        match self.closing.load(Ordering::Acquire) {
            true => drop(event.answer(consumer)),
            false => lock(&self.kept).push(event),
        }
    }
}

/// Takes a consumer out of its group, as far as that is done by the deadline. What the group has said and
/// is not answered is answered now, and what it says from now on at once; dropping the consumer closes it.
///
/// librdkafka 2.12 never takes a cooperative member without partitions out of its group when it closes,
/// and crashes if the group rebalances at that moment (its issue 5347): members give up their
/// subscription first. Those with a name of their own stay, so that they find their partitions again.
pub(crate) fn leave(
    consumer: &BaseConsumer<Events>,
    unanswered: Vec<Event>,
    stays: bool,
    deadline: Instant,
) {
    consumer.context().closing.store(true, Ordering::Release);
    for event in unanswered.into_iter().chain(consumer.context().take()) {
        drop(event.answer(consumer));
    }
    if stays {
        return;
    }
    consumer.unsubscribe();
    let has_partitions = || consumer.assignment().is_ok_and(|partitions| partitions.count() > 0);
    loop {
        consumer.poll(LOOK);
        if !has_partitions() || Instant::now() >= deadline {
            return;
        }
    }
}

/// What is left until a deadline, at least the millisecond that the client can count.
pub(crate) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// How a topic is made.
pub(crate) struct Topic<'a> {
    pub(crate) name: &'a str,
    pub(crate) partitions: i32,
    pub(crate) replication: i32,
    pub(crate) options: &'a [(&'a str, &'a str)],
}

/// Makes a topic and waits until it can be used. One that exists is taken if it [is](check_topic) as it
/// would be made. Blocks.
pub(crate) fn create_topic(
    config: &KafkaConfig,
    topic: &Topic<'_>,
    deadline: Instant,
) -> Result<()> {
    let timeout = deadline.saturating_duration_since(Instant::now());
    let admin = admin(config, topic)?;
    let mut new =
        NewTopic::new(topic.name, topic.partitions, TopicReplication::Fixed(topic.replication));
    for (name, value) in topic.options {
        new = new.set(name, value);
    }
    let options =
        AdminOptions::new().request_timeout(Some(timeout)).operation_timeout(Some(timeout));
    // Answered by a thread of the client: there is nothing to be driven.
    let made = futures::executor::block_on(admin.create_topics([&new], &options));
    let made = made.map_err(|found| error::failed("create a topic", &found))?;
    for one in made {
        match one {
            Ok(_) => {}
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => check_topic(config, topic, deadline)?,
            Err((_, code)) => {
                let found = KafkaError::AdminOp(code);
                let error = error::failed("create a topic", &found);
                return Err(error.with_context(format!("topic {}", topic.name)));
            }
        }
    }
    let partitions = learn_of(admin.inner(), topic.name, deadline)?;
    leaders_serve(admin.inner(), topic.name, partitions, deadline)
}

/// Waits until the leaders of a topic that was just made lead it: metadata names them before they know of
/// it, and a producer that is faster than that may lose a record ([`error::unproved`]). Blocks.
fn leaders_serve<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    partitions: i32,
    deadline: Instant,
) -> Result<()> {
    for partition in 0..partitions {
        while let Err(found) = client.fetch_watermarks(topic, partition, left(deadline)) {
            let error = error::failed("create a topic", &found);
            let unheard_of = error.is_retryable() || error.kind() == ErrorKind::NotFound;
            if !unheard_of || Instant::now() >= deadline {
                return Err(error.with_context(format!("topic {topic}, partition {partition}")));
            }
            std::thread::sleep(LOOK);
        }
    }
    Ok(())
}

/// Waits until a client knows that a topic exists, and all its leaders. The number of its partitions. Blocks.
///
/// # Errors
/// That of the last answer before the deadline, or `Timeout` if there are no leaders yet.
pub(crate) fn learn_of<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    deadline: Instant,
) -> Result<i32> {
    loop {
        match partitions(client, topic, deadline) {
            Ok(count) if count > 0 => return Ok(count),
            Err(error) if Instant::now() >= deadline => return Err(error),
            _ if Instant::now() >= deadline => {
                let context = format!("topic {topic} has no leaders yet");
                return Err(error::timed_out("create a topic").with_context(context));
            }
            _ => std::thread::sleep(LOOK),
        }
    }
}

fn admin(config: &KafkaConfig, topic: &Topic<'_>) -> Result<AdminClient<Reports>> {
    let reports = Reports::new(&Arc::new(Health::new(topic.name)));
    AdminClient::from_config_and_context(&config.client(), reports)
        .map_err(|found| error::failed("create a topic", &found))
}

/// Looks whether a topic that exists has the options it would be made with. Who may not ask is not
/// refused for that. Blocks.
///
/// # Errors
/// `InvalidState` if it has not.
pub(crate) fn check_topic(
    config: &KafkaConfig,
    topic: &Topic<'_>,
    deadline: Instant,
) -> Result<()> {
    if topic.options.is_empty() {
        return Ok(());
    }
    let wrong = |what: &str, expected: &str, found: &str| {
        let name = topic.name;
        let context = format!("topic {name}, `{what}`: expected {expected}, found {found}");
        Err(Error::new(ErrorKind::InvalidState, "look for a topic").with_context(context))
    };
    let admin = admin(config, topic)?;
    let timeout = deadline.saturating_duration_since(Instant::now());
    let options = AdminOptions::new().request_timeout(Some(timeout));
    let which = ResourceSpecifier::Topic(topic.name);
    let answers = futures::executor::block_on(admin.describe_configs([&which], &options));
    for answer in answers.map_err(|found| error::failed("look for a topic", &found))? {
        let Ok(found) = answer else { continue };
        for (option, expected) in topic.options {
            let value = found.get(option).and_then(|entry| entry.value.as_deref());
            if let Some(value) = value.filter(|value| value != expected) {
                return wrong(option, expected, value);
            }
        }
    }
    match partitions(admin.inner(), topic.name, deadline)? {
        0 => Ok(()),
        count if count == topic.partitions => Ok(()),
        count => wrong("partitions", &topic.partitions.to_string(), &count.to_string()),
    }
}

/// The number of a topic's partitions if all of them have leaders; zero if some have none yet.
///
/// # Errors
/// `NotFound` if there is no such topic.
pub(crate) fn partitions<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    deadline: Instant,
) -> Result<i32> {
    let metadata = client.fetch_metadata(Some(topic), left(deadline));
    let metadata = metadata.map_err(|found| error::failed("look for a topic", &found))?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let failure = match found {
        Some(found) => match found.error() {
            None => {
                let led =
                    found.partitions().iter().all(|one| one.error().is_none() && one.leader() >= 0);
                let count = i32::try_from(found.partitions().len()).unwrap_or(i32::MAX);
                return Ok(if led { count } else { 0 });
            }
            Some(code) => KafkaError::MetadataFetch(code.into()),
        },
        None => KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition),
    };
    Err(error::failed("look for a topic", &failure).with_context(format!("topic {topic}")))
}

/// Asks the broker for the topics of a pipeline, and makes those that are missing if the options say so.
pub(crate) async fn prepare(config: &Arc<KafkaConfig>, publisher: &Publisher) -> Result<()> {
    let deadline = Instant::now() + config.connect_timeout;
    let plain = config.topics.iter().filter(|topic| !topic.starts_with('^'));
    let names = plain.chain(&config.topic).chain(&config.dead_letter_topic);
    let names: BTreeSet<String> = names.chain(config.partitions.keys()).cloned().collect();
    let producer = publisher.producer("connect")?;
    let config = Arc::clone(config);
    on_a_thread("connect", deadline, move || {
        reach(&producer, deadline)?;
        for name in &names {
            let missing = match partitions(producer.client(), name, deadline) {
                Err(error) if error.kind() == ErrorKind::NotFound => error,
                found => {
                    found?;
                    continue;
                }
            };
            let Some(create) = &config.create else { return Err(missing) };
            let topic = Topic {
                name,
                partitions: create.partitions,
                replication: create.replication_factor,
                options: &[],
            };
            create_topic(&config, &topic, deadline)?;
        }
        Ok(())
    })
    .await
}

/// Waits until a broker answers. One that refuses us is not asked until the deadline.
fn reach(producer: &Producer, deadline: Instant) -> Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // A topic nobody has: the answer is short, and nothing is made.
        let asked = producer.client().fetch_metadata(Some("jobs-delay"), left.min(PATIENCE));
        let Err(found) = asked else { return Ok(()) };
        if let Some(refused) = producer.context().refused() {
            return Err(refused);
        }
        if Instant::now() >= deadline {
            let error = error::failed("connect", &found);
            return Err(match producer.context().last_error() {
                Some(trouble) => error.with_context(trouble),
                None => error,
            });
        }
    }
}

/// Runs what blocks on a thread for that, at most until a little after the deadline.
pub(crate) async fn on_a_thread<T: Send + 'static>(
    operation: &'static str,
    deadline: Instant,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let limit = tokio::time::Instant::from_std(deadline + Duration::from_secs(1));
    match tokio::time::timeout_at(limit, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(failure)) => match failure.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends.
            Err(_) => Err(error::closed(operation)),
        },
        Err(_) => Err(error::timed_out(operation)),
    }
}
