//! What the client is told.

use std::time::Duration;

use jobs_core::ExposeSecret;
use rdkafka::ClientConfig;

use super::{KafkaConfig, MAX_QUEUED, MAX_QUEUED_KIB};

/// How much more than its broker a client waits for an answer.
const MARGIN: Duration = Duration::from_secs(5);

/// What a consumer keeps of records it has not been asked for yet, beyond `prefetch`.
const LEAST_FETCHED: usize = 10_000;
const MOST_FETCHED: usize = 10_000_000;
const FETCHED_KIB: usize = 16 << 10;

/// The client's own default for one partition.
const PARTITION_BYTES: usize = 1 << 20;

/// Settings of a client.
struct Settings(ClientConfig);

impl Settings {
    fn set(&mut self, name: &str, value: impl Into<String>) {
        self.0.set(name, value);
    }

    fn number(&mut self, name: &str, number: usize) {
        self.set(name, number.to_string());
    }

    /// In whole milliseconds, rounded up.
    fn time(&mut self, name: &str, time: Duration) {
        let rounded = time.saturating_add(Duration::from_nanos(999_999));
        self.set(name, rounded.as_millis().to_string());
    }
}

impl KafkaConfig {
    /// A client that has not answered a commit for so long is taken for one that never will: without a
    /// broker it fails a commit after the session timeout, and an unanswered request after its own.
    pub(crate) fn commit_patience(&self) -> Duration {
        self.session_timeout + self.producer.request_timeout + MARGIN
    }

    /// What every client needs to reach the brokers.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut client = Settings(ClientConfig::new());
        client.set("bootstrap.servers", self.brokers.join(","));
        client.set("client.id", &*self.client_id);
        client.time("socket.timeout.ms", self.producer.request_timeout + MARGIN);
        client.set("socket.keepalive.enable", "true");
        client.time("socket.connection.setup.timeout.ms", self.setup_timeout);
        client.set("reconnect.backoff.ms", "100");
        client.set("reconnect.backoff.max.ms", "1000");
        client.set("topic.metadata.refresh.interval.ms", "30000");
        // A missing topic is told before a push runs out of time, and made by nobody but us.
        let propagation = Duration::from_secs(5).min(self.push_timeout / 2);
        client.time("topic.metadata.propagation.max.ms", propagation);
        client.set("allow.auto.create.topics", "false");
        client.set(
            "security.protocol",
            match (&self.tls, &self.sasl) {
                (None, None) => "PLAINTEXT",
                (Some(_), None) => "SSL",
                (None, Some(_)) => "SASL_PLAINTEXT",
                (Some(_), Some(_)) => "SASL_SSL",
            },
        );
        if let Some(tls) = &self.tls {
            if let Some(root_ca) = &tls.root_ca {
                client.set("ssl.ca.location", &**root_ca);
            }
            if let Some((cert, key)) = &tls.identity {
                client.set("ssl.certificate.location", &**cert);
                client.set("ssl.key.location", &**key);
            }
        }
        if let Some(sasl) = &self.sasl {
            client.set("sasl.mechanism", sasl.mechanism);
            client.set("sasl.username", &*sasl.username);
            client.set("sasl.password", sasl.password.expose_secret());
        }
        client.0
    }

    /// What a producer needs: idempotent, confirmed by all replicas in sync.
    pub(crate) fn producer(&self) -> ClientConfig {
        let mut client = Settings(self.client());
        client.set("acks", "all");
        client.set("enable.idempotence", "true");
        client.time("linger.ms", self.producer.linger);
        client.set("compression.codec", self.producer.compression);
        client.set("partitioner", self.producer.partitioner);
        client.time("request.timeout.ms", self.producer.request_timeout);
        client.time("message.timeout.ms", self.producer.delivery_timeout);
        client.number("message.max.bytes", self.max_message_bytes);
        client.number("queue.buffering.max.messages", MAX_QUEUED);
        // A record that is larger than that would never be taken.
        let largest = self.max_message_bytes.div_ceil(1 << 10);
        client.number("queue.buffering.max.kbytes", MAX_QUEUED_KIB.max(2 * largest));
        client.0
    }

    /// What a consumer needs: it commits and stores nothing by itself, and keeps little.
    pub(crate) fn consumer(&self) -> ClientConfig {
        let mut client = Settings(self.client());
        client.set("group.id", &*self.group);
        if let Some(instance) = &self.instance {
            client.set("group.instance.id", &**instance);
        }
        client.set("enable.auto.commit", "false");
        client.set("enable.auto.offset.store", "false");
        client.set("auto.offset.reset", "earliest");
        client.set("enable.partition.eof", "false");
        client.set("isolation.level", "read_committed");
        client.set("partition.assignment.strategy", "cooperative-sticky");
        client.time("session.timeout.ms", self.session_timeout);
        client.time("heartbeat.interval.ms", self.heartbeat_interval);
        client.time("max.poll.interval.ms", self.max_poll_interval);
        let window = self.prefetch.get().clamp(LEAST_FETCHED, MOST_FETCHED);
        client.number("queued.min.messages", window);
        client.number("queued.max.messages.kbytes", FETCHED_KIB);
        // A second by default, for which a consumer that drained its small buffer would wait.
        client.set("fetch.queue.backoff.ms", "5");
        // A broker has one fetch at a time: partitions that were full when it began wait for one that is idle.
        client.set("fetch.wait.max.ms", "100");
        let max = self.fetch.max_bytes;
        client.number("fetch.min.bytes", self.fetch.min_bytes);
        client.number("fetch.max.bytes", max);
        client.number("max.partition.fetch.bytes", max.min(PARTITION_BYTES));
        // The client wants no more than `fetch.max.bytes` here; larger records are fetched anyway.
        client.number("message.max.bytes", max.min(1_000_000));
        if self.has_patterns() {
            // No pattern may match what the driver keeps beside the topics.
            let dead = self.dead_letter_topic.iter().map(String::as_str);
            let hidden: Vec<_> = ["^jobs-delay[.]"].into_iter().chain(dead).collect();
            client.set("topic.blacklist", hidden.join(","));
        }
        client.0
    }
}
