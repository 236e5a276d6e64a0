//! What an operator does at the broker, without the driver.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jobs_core::{Error, ErrorKind, Result};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DefaultProducerContext, Producer, ThreadedProducer,
};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::runtime::Handle;

use super::{PATIENCE, admin, blocking, failed};

/// How often something is asked of a new client: one that lived through a stall may never answer, see
/// <https://github.com/confluentinc/librdkafka/issues/5301>.
const CLIENTS: usize = 6;
/// What a topic may take until it can be used, and records until they are stored.
const STORED: Duration = Duration::from_secs(30);

/// An operator. Each order is given by a new client, which is gone when it has its answer.
#[derive(Clone, Debug)]
pub struct Operator {
    address: String,
}

/// What a group has committed for a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// The next offset to be read; none was committed yet.
    pub offset: Option<i64>,
    /// What came with it.
    pub metadata: String,
}

/// A group as its coordinator sees it.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// `Stable` when no rebalance is under way.
    pub state: String,
    /// The members' client ids.
    pub members: Vec<String>,
}

/// A record that no driver wrote.
#[derive(Clone, Debug, Default)]
pub struct Raw {
    /// By the key, or any.
    pub partition: Option<i32>,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value; none is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Names and values.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

type Admin = AdminClient<DefaultClientContext>;

impl Operator {
    pub(super) fn new(address: &str) -> Self {
        Self { address: address.to_owned() }
    }

    async fn ask<T: Send + 'static>(
        &self,
        work: impl Fn(&Admin) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let address = self.address.clone();
        blocking(move || {
            let mut tries = 1;
            loop {
                match work(&admin(&address)?) {
                    Err(error) if error.is_retryable() && tries < CLIENTS => tries += 1,
                    answer => return answer,
                }
            }
        })
        .await
    }

    /// Makes a topic and waits until each of its partitions can be used; one that exists is fine.
    ///
    /// # Errors
    /// The broker's, or it takes too long.
    pub async fn create_topic(&self, name: &str, partitions: i32) -> Result<()> {
        let name = name.to_owned();
        self.ask(move |admin| {
            let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
            let created = admin.create_topics([&topic], &options());
            let created = Handle::current().block_on(created).map_err(asked)?;
            expect(created, RDKafkaErrorCode::TopicAlreadyExists)?;
            await_leaders(admin, &name, partitions)
        })
        .await
    }

    /// Deletes topics; those that do not exist are fine. The brokers learn of it a moment later.
    ///
    /// # Errors
    /// The broker's, or it takes too long.
    pub async fn delete_topics(&self, names: Vec<String>) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        self.ask(move |admin| {
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let deleted = admin.delete_topics(&names, &options());
            let deleted = Handle::current().block_on(deleted).map_err(asked)?;
            expect(deleted, RDKafkaErrorCode::UnknownTopicOrPartition)
        })
        .await
    }

    /// The topics with this in their names.
    ///
    /// # Errors
    /// The broker's.
    pub async fn topics(&self, part: &str) -> Result<Vec<String>> {
        let part = part.to_owned();
        self.ask(move |admin| {
            let metadata = admin.inner().fetch_metadata(None, PATIENCE).map_err(asked)?;
            let names = metadata.topics().iter().map(|topic| topic.name().to_owned());
            Ok(names.filter(|name| name.contains(&part)).collect())
        })
        .await
    }

    /// The members of a group.
    ///
    /// # Errors
    /// The broker's.
    pub async fn group(&self, name: &str) -> Result<Group> {
        let name = name.to_owned();
        self.ask(move |admin| {
            let groups = admin.inner().fetch_group_list(Some(&name), PATIENCE).map_err(asked)?;
            let found = groups.groups().iter().find(|group| group.name() == name);
            Ok(found.map_or_else(Group::default, |group| Group {
                state: group.state().to_owned(),
                members: group.members().iter().map(|m| m.client_id().to_owned()).collect(),
            }))
        })
        .await
    }

    /// The first and the next offset of a partition.
    ///
    /// # Errors
    /// The broker's.
    pub async fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64)> {
        let topic = topic.to_owned();
        self.ask(move |admin| {
            admin.inner().fetch_watermarks(&topic, partition, PATIENCE).map_err(asked)
        })
        .await
    }

    /// What a group has committed for a partition.
    ///
    /// # Errors
    /// The broker's.
    pub async fn committed(&self, group: &str, topic: &str, partition: i32) -> Result<Committed> {
        let (config, topic) = (self.reader(group), topic.to_owned());
        blocking(move || {
            let consumer: BaseConsumer = config.create().map_err(failed)?;
            let mut wanted = TopicPartitionList::new();
            wanted.add_partition(&topic, partition);
            let found = consumer.committed_offsets(wanted, PATIENCE).map_err(asked)?;
            let element = found.find_partition(&topic, partition);
            let element = element.ok_or_else(|| failed("the broker does not tell"))?;
            element.error().map_err(asked)?;
            let offset = match element.offset() {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            };
            Ok(Committed { offset, metadata: element.metadata().to_owned() })
        })
        .await
    }

    /// Stores records one after another.
    ///
    /// # Errors
    /// The broker's.
    pub async fn produce(&self, topic: &str, records: Vec<Raw>) -> Result<()> {
        let (config, topic) = (self.writer(), topic.to_owned());
        blocking(move || {
            let producer: BaseProducer = config.create().map_err(failed)?;
            for record in &records {
                producer.send(record.record(&topic)).map_err(|(error, _)| failed(error))?;
            }
            producer.flush(STORED).map_err(failed)
        })
        .await
    }

    /// Stores records in a transaction, which is then committed or not. Either leaves a control record.
    ///
    /// # Errors
    /// The broker's.
    pub async fn transact(&self, topic: &str, records: Vec<Raw>, commit: bool) -> Result<()> {
        let (mut config, topic) = (self.writer(), topic.to_owned());
        config.set("transactional.id", format!("{topic}-operator"));
        blocking(move || {
            // Its end waits for all that is under way, which somebody has to poll for.
            let producer: ThreadedProducer<DefaultProducerContext> =
                config.create().map_err(failed)?;
            producer.init_transactions(STORED).map_err(failed)?;
            producer.begin_transaction().map_err(failed)?;
            for record in &records {
                producer.send(record.record(&topic)).map_err(|(error, _)| failed(error))?;
            }
            if commit {
                return producer.commit_transaction(STORED).map_err(failed);
            }
            // Else nothing is left of it, and no mark.
            producer.flush(STORED).map_err(failed)?;
            producer.abort_transaction(STORED).map_err(failed)
        })
        .await
    }

    /// All records of a topic, partition by partition.
    ///
    /// # Errors
    /// The broker's.
    pub async fn read(&self, topic: &str, partitions: i32) -> Result<Vec<OwnedMessage>> {
        let (config, topic) = (self.reader("operator"), topic.to_owned());
        blocking(move || {
            let consumer: BaseConsumer = config.create().map_err(failed)?;
            let mut all = TopicPartitionList::new();
            for partition in 0..partitions {
                let added = all.add_partition_offset(&topic, partition, Offset::Beginning);
                added.map_err(failed)?;
            }
            consumer.assign(&all).map_err(failed)?;
            let (mut found, mut left) = (Vec::new(), partitions);
            while left > 0 {
                match consumer.poll(PATIENCE) {
                    Some(Ok(record)) => found.push(record.detach()),
                    Some(Err(KafkaError::PartitionEOF(_))) => left -= 1,
                    Some(Err(error)) => return Err(failed(error)),
                    None => return Err(failed("a topic does not end")),
                }
            }
            Ok(found)
        })
        .await
    }

    fn writer(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.address)
            .set("enable.idempotence", "true")
            .set("message.max.bytes", "1100000");
        config
    }

    /// It joins no group, but the client wants to know one.
    fn reader(&self, group: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.address)
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_uncommitted");
        config
    }
}

impl Raw {
    fn record<'a>(&'a self, topic: &'a str) -> BaseRecord<'a, [u8], [u8]> {
        let named = |headers: OwnedHeaders, (name, value): &(String, Option<Vec<u8>>)| {
            headers.insert(Header { key: name, value: value.as_deref() })
        };
        let headers = self.headers.iter().fold(OwnedHeaders::new(), named);
        let mut record = BaseRecord::to(topic).headers(headers);
        record.partition = self.partition;
        record.key = self.key.as_deref();
        record.payload = self.value.as_deref();
        record
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(PATIENCE * 2)).operation_timeout(Some(PATIENCE * 2))
}

/// A question that may be asked again.
fn asked(error: KafkaError) -> Error {
    Error::new(ErrorKind::Broker, "operate").transient().with_source(error)
}

fn expect(answers: Vec<rdkafka::admin::TopicResult>, fine: RDKafkaErrorCode) -> Result<()> {
    for answer in answers {
        match answer {
            Err((topic, code)) if code != fine => {
                let error = Error::new(ErrorKind::Broker, "operate").transient();
                return Err(error.with_context(format!("{topic}: {code}")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A fresh topic answers that its partitions have no leader yet, and then its leaders do not know it yet.
fn await_leaders(admin: &Admin, topic: &str, partitions: i32) -> Result<()> {
    let end = Instant::now() + STORED;
    loop {
        let metadata = admin.inner().fetch_metadata(Some(topic), PATIENCE).map_err(asked)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let led = found.map_or(0, |topic| {
            topic.partitions().iter().filter(|partition| partition.leader() >= 0).count()
        });
        let leads = |partition| admin.inner().fetch_watermarks(topic, partition, PATIENCE).is_ok();
        if i32::try_from(led).is_ok_and(|led| led == partitions) && (0..partitions).all(leads) {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(failed(format!("{topic}: {led} of {partitions} partitions have a leader")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The headers of a record by name; of equal names the last counts.
#[must_use]
pub fn headers(record: &OwnedMessage) -> BTreeMap<String, Vec<u8>> {
    use rdkafka::message::{Headers, Message};
    let headers = record.headers().into_iter().flat_map(Headers::iter);
    headers.map(|header| (header.key.to_owned(), header.value.unwrap_or(&[]).to_vec())).collect()
}
