//! From what is written to what holds: defaults, and the checks of options against each other.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::time::Duration;

use jobs_core::{ExposeSecret, Options, Problem, Secret};

use super::written::{
    Acks, Consumer, Group, Mechanism, Offset, OffsetType, Partitioning, Producer, Sasl, Tls,
    Written,
};
use super::{
    Create, FetchConfig, KafkaConfig, Ordering, ProducerConfig, SaslConfig, Start, TlsConfig,
};

/// What a broker takes unless configured otherwise, less the frame around it; as in RoadRunner.
const MAX_MESSAGE_BYTES: usize = 1_000_012;
/// What the client can be told to send or fetch at most.
const MOST_BYTES: usize = 1_000_000_000;
const LEAST_MESSAGE_BYTES: usize = 1_000;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const A_DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) fn resolve(options: &Options, pipeline: &str) -> Result<KafkaConfig, Vec<Problem>> {
    let written = options.parse::<Written>()?;
    let mut check = Check { options, problems: Vec::new() };
    let config = check.config(written, pipeline);
    if check.problems.is_empty() { Ok(config) } else { Err(check.problems) }
}

struct Check<'a> {
    options: &'a Options,
    problems: Vec<Problem>,
}

impl Check<'_> {
    /// Where an option stands, given its name with those of the maps around it.
    fn path(&self, option: &str) -> String {
        match option.split_once('.') {
            Some((map, rest)) => format!("{}.{rest}", self.options.path_of(map)),
            None => self.options.path_of(option),
        }
    }

    fn problem(&mut self, option: &str, message: impl Into<String>) {
        self.problems.push(Problem::new(self.path(option), message));
    }

    fn require(&mut self, holds: bool, option: &str, expected: &str) {
        if !holds {
            self.problem(option, expected);
        }
    }

    /// Says what an option does not do.
    fn ignored(&self, ignored: bool, option: &str, reason: &str) {
        if ignored {
            tracing::warn!(path = self.path(option), "option has no effect: {reason}");
        }
    }

    /// A time that the client counts in milliseconds.
    fn time(
        &mut self,
        option: &str,
        found: Option<Duration>,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let Some(found) = found else { return default };
        if !range.contains(&found) {
            let (least, most) = range.into_inner();
            let expected =
                format!("expected {least:?} to {most:?} (a bare number counts nanoseconds)");
            self.problem(option, format!("{expected}, found {found:?}"));
        }
        found
    }

    fn size(
        &mut self,
        option: &str,
        found: Option<usize>,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> usize {
        let found = found.unwrap_or(default);
        if !range.contains(&found) {
            let (least, most) = range.into_inner();
            self.problem(option, format!("expected {least} to {most} bytes, found {found}"));
        }
        found
    }

    fn config(&mut self, mut written: Written, pipeline: &str) -> KafkaConfig {
        self.brokers(&written.brokers);
        let tls_timeout = written.tls.as_ref().and_then(|tls| tls.timeout);
        let ping = self.time("ping.timeout", written.ping.timeout, SECOND * 10, MILLISECOND..=HOUR);
        let connect_timeout =
            self.time("connect_timeout", written.connect_timeout, ping, MILLISECOND..=HOUR);
        // The client takes no less than a second.
        let setup_timeout = self.time("tls.timeout", tls_timeout, SECOND * 10, SECOND..=HOUR);
        let tls = written.tls.take().and_then(|tls| self.tls(tls));
        let sasl = self.sasl(written.sasl.take(), written.sasl_options.take(), tls.is_some());

        let (topics, partitions) = self.consumed(&mut written);
        let start = self.start(written.consumer_options.consumer_offset, &partitions);
        let topic = self.topic(&written.topic, &topics, &partitions);
        let dead_letter_topic = self.dead_letter(&written, &topics, &partitions);
        let create = self.create(&written);
        let (push_timeout, max_message_bytes, producer) =
            self.producer(written.push_timeout, &written.producer_options, written.ordering);
        let fetch = self.fetch(&written.consumer_options);
        let consumes = !topics.is_empty() || !partitions.is_empty();
        let Group { group_id, instance_id, .. } = &written.group_options;
        self.group(&written.group_options, consumes, !partitions.is_empty());
        let (session_timeout, heartbeat_interval, max_poll_interval) =
            self.session(&written.group_options);
        let half_a_second = Duration::from_millis(500);
        let commit_interval = self.time(
            "commit_interval",
            written.commit_interval,
            half_a_second,
            Duration::from_millis(10)..=HOUR,
        );
        KafkaConfig {
            brokers: written.brokers,
            client_id: pipeline.to_owned(),
            tls,
            sasl,
            setup_timeout,
            topics,
            partitions,
            topic,
            group: if group_id.is_empty() { pipeline } else { group_id }.to_owned(),
            instance: (!instance_id.is_empty()).then(|| instance_id.clone()),
            start,
            prefetch: written.prefetch.unwrap_or(NonZeroUsize::new(100).expect("not zero")),
            commit_interval,
            dead_letter_topic,
            ordering: written.ordering,
            push_timeout,
            connect_timeout,
            create,
            session_timeout,
            heartbeat_interval,
            max_poll_interval,
            max_message_bytes,
            producer,
            fetch,
        }
    }

    fn brokers(&mut self, brokers: &[String]) {
        let expected = "expected at least one `host:port`";
        self.require(!brokers.is_empty(), "brokers", expected);
        let is_address = |broker: &String| {
            let port = broker.rsplit_once(':').filter(|_| !broker.ends_with(']'));
            let (host, port) = port.unwrap_or((broker, "9092"));
            let odd = |c: char| c.is_whitespace() || c.is_control() || "/@,".contains(c);
            !host.is_empty() && !broker.contains(odd) && port.parse::<u16>().is_ok()
        };
        if let Some(odd) = brokers.iter().find(|broker| !is_address(broker)) {
            self.problem("brokers", format!("expected each as `host:port`, found `{odd}`"));
        }
    }

    fn tls(&mut self, tls: Tls) -> Option<TlsConfig> {
        let text = |text: String| (!text.is_empty()).then_some(text);
        let (root_ca, cert, key) = (text(tls.root_ca), text(tls.cert), text(tls.key));
        let files = root_ca.is_some() || cert.is_some() || key.is_some();
        let expected = "expected `true`, or no files: they would not be used";
        self.require(!(files && tls.enable == Some(false)), "tls.enable", expected);
        if !tls.enable.unwrap_or(files) {
            return None;
        }
        let identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => {
                self.problem("tls", "expected both `cert` and `key`, or neither");
                None
            }
        };
        Some(TlsConfig { root_ca, identity })
    }

    fn sasl(
        &mut self,
        sasl: Option<Sasl>,
        declared: Option<Sasl>,
        encrypted: bool,
    ) -> Option<SaslConfig> {
        if sasl.is_some() && declared.is_some() {
            self.problem("sasl_options", "expected none: it is another name of `sasl`");
        }
        let (block, sasl) = match sasl {
            Some(sasl) => ("sasl", sasl),
            None => ("sasl_options", declared?),
        };
        let option = |name: &str| format!("{block}.{name}");
        let mechanism = match sasl.mechanism {
            Mechanism::Plain => "PLAIN",
            Mechanism::Sha256 => "SCRAM-SHA-256",
            Mechanism::Sha512 => "SCRAM-SHA-512",
            refused => {
                self.problem(&option("mechanism"), refusal(refused));
                return None;
            }
        };
        let text = |secret: &Option<Secret>| {
            secret.as_ref().is_some_and(|secret| !secret.expose_secret().is_empty())
        };
        let required = "is required for this mechanism";
        self.require(!sasl.username.is_empty(), &option("username"), required);
        self.require(text(&sasl.password), &option("password"), required);
        let client = "expected none: the client cannot act for another user";
        self.require(sasl.zid.is_empty(), &option("zid"), client);
        let client = "expected none: the client makes its own, anew each time";
        self.require(sasl.nonce == 0, &option("nonce"), client);
        let client = "expected `false`: the client cannot authenticate by delegation tokens";
        self.require(!sasl.is_token, &option("is_token"), client);
        let iam = "expected none: it belongs to `aws_msk_iam`";
        self.require(!text(&sasl.access_key), &option("access_key"), iam);
        self.require(!text(&sasl.secret_key), &option("secret_key"), iam);
        self.require(!text(&sasl.session_token), &option("session_token"), iam);
        self.require(sasl.user_agent.is_empty(), &option("user_agent"), iam);
        if mechanism == "PLAIN" && !encrypted {
            let path = self.path(&option("mechanism"));
            tracing::warn!(path, "the password is sent in the clear: there is no `tls`");
        }
        let password = sasl.password.unwrap_or_else(|| String::new().into());
        Some(SaslConfig { mechanism, username: sasl.username, password })
    }

    /// Topics to share in a group, or partitions of our own.
    fn consumed(
        &mut self,
        written: &mut Written,
    ) -> (Vec<String>, BTreeMap<String, BTreeMap<i32, Start>>) {
        let Consumer { topics, consume_regexp, consume_partitions, .. } =
            &mut written.consumer_options;
        let mut topics = std::mem::take(topics);
        let short = std::mem::take(&mut written.topics);
        let regexp = *consume_regexp;
        let partitions = std::mem::take(consume_partitions);
        if !topics.is_empty() && !short.is_empty() {
            self.problem("topics", "expected none: it is short for `consumer_options.topics`");
        }
        let option = if topics.is_empty() { "topics" } else { "consumer_options.topics" };
        topics.extend(short);
        for topic in &mut topics {
            if topic.is_empty() {
                self.problem(option, "expected names of topics, found empty text");
            } else if regexp && !topic.starts_with('^') {
                // RoadRunner's patterns match anywhere in a name; the client's from its start.
                *topic = format!("^.*({topic})");
            }
            if !topic.starts_with('^') {
                self.topic_name(option, topic);
            }
        }
        let expected = "expected `topics` too, which hold the patterns";
        self.require(!regexp || !topics.is_empty(), "consumer_options.consume_regexp", expected);
        let partitions = self.partitions(partitions);
        let expected = "expected none, or no `topics`: partitions are shared or fixed";
        let both = !topics.is_empty() && !partitions.is_empty();
        self.require(!both, "consumer_options.consume_partitions", expected);
        (topics, partitions)
    }

    fn partitions(
        &mut self,
        written: BTreeMap<String, BTreeMap<String, Offset>>,
    ) -> BTreeMap<String, BTreeMap<i32, Start>> {
        let mut fixed = BTreeMap::new();
        for (topic, partitions) in written {
            let option = format!("consumer_options.consume_partitions.{topic}");
            self.topic_name(&option, &topic);
            self.require(!partitions.is_empty(), &option, "expected at least one partition");
            let topic = fixed.entry(topic).or_insert_with(BTreeMap::new);
            for (partition, offset) in partitions {
                let option = format!("{option}.{partition}");
                let Some(partition) = partition.parse().ok().filter(|number: &i32| *number >= 0)
                else {
                    self.problem(&option, "expected the number of a partition, from 0");
                    continue;
                };
                let start = match offset.kind {
                    OffsetType::AtStart => Start::Earliest,
                    OffsetType::AtEnd => Start::AtEnd,
                    OffsetType::At if offset.value >= 0 => Start::Offset(offset.value),
                    OffsetType::At => {
                        self.problem(&format!("{option}.value"), "expected at least 0");
                        Start::Earliest
                    }
                    _ => {
                        let expected = "expected `AtStart`, `AtEnd` or `At`: an offset that is \
                                        relative to another is not supported";
                        self.problem(&format!("{option}.type"), expected);
                        Start::Earliest
                    }
                };
                topic.insert(partition, start);
            }
        }
        fixed
    }

    fn start<T>(&mut self, offset: Option<Offset>, fixed: &BTreeMap<String, T>) -> Start {
        let Some(offset) = offset else { return Start::default() };
        let expected = "expected none: each of `consume_partitions` has its own";
        self.require(fixed.is_empty(), "consumer_options.consumer_offset", expected);
        match offset.kind {
            OffsetType::AtStart => Start::Earliest,
            OffsetType::AtEnd => Start::AtEnd,
            _ => {
                let expected = "expected `AtStart` or `AtEnd`: one offset cannot suit every \
                                partition, see `consume_partitions`";
                self.problem("consumer_options.consumer_offset.type", expected);
                Start::Earliest
            }
        }
    }

    fn topic<T>(
        &mut self,
        written: &str,
        topics: &[String],
        fixed: &BTreeMap<String, T>,
    ) -> Option<String> {
        if !written.is_empty() {
            self.topic_name("topic", written);
            return Some(written.to_owned());
        }
        let mut all = topics.iter().chain(fixed.keys());
        let only = all.next().filter(|topic| !topic.starts_with('^'));
        only.filter(|_| all.next().is_none()).cloned()
    }

    fn topic_name(&mut self, option: &str, name: &str) {
        let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let valid = (1..=249).contains(&name.len()) && name.chars().all(legal);
        if !valid || name == "." || name == ".." {
            let expected = "expected a topic's name, of up to 249 letters, digits, `.`, `_` and \
                            `-`";
            self.problem(option, format!("{expected}, found `{name}`"));
        }
    }

    fn dead_letter<T>(
        &mut self,
        written: &Written,
        topics: &[String],
        fixed: &BTreeMap<String, T>,
    ) -> Option<String> {
        let name = &written.dead_letter_topic;
        if name.is_empty() {
            return None;
        }
        self.topic_name("dead_letter_topic", name);
        let expected = "expected a topic that is not consumed: rejected jobs would come back";
        let consumed = topics.contains(name) || fixed.contains_key(name) || *name == written.topic;
        self.require(!consumed, "dead_letter_topic", expected);
        Some(name.clone())
    }

    fn create(&mut self, written: &Written) -> Option<Create> {
        /// What stands for the broker's own default.
        const DEFAULT: i32 = -1;
        let Written { topic_partitions, topic_replication_factor, .. } = written;
        let create = written.auto_create_topics_enable;
        let expected = "expected none, or `auto_create_topics_enable: true`";
        self.require(create || topic_partitions.is_none(), "topic_partitions", expected);
        let set = topic_replication_factor.is_some();
        self.require(create || !set, "topic_replication_factor", expected);
        let partitions = match topic_partitions {
            None => DEFAULT,
            Some(partitions) => i32::try_from(partitions.get()).unwrap_or(i32::MAX),
        };
        let replication_factor = topic_replication_factor.map_or(DEFAULT, |n| n.get().into());
        create.then_some(Create { partitions, replication_factor })
    }

    /// Also says how long a push may take, and how large a record may be.
    fn producer(
        &mut self,
        push_timeout: Option<Duration>,
        written: &Producer,
        ordering: Ordering,
    ) -> (Duration, usize, ProducerConfig) {
        let option = |name: &str| format!("producer_options.{name}");
        let acks = matches!(written.required_acks, None | Some(Acks::AllInSync));
        let expected = "expected `AllISRAck`: a push that returned would be lost with one broker";
        self.require(acks, &option("required_acks"), expected);
        let expected = "expected `false`: what the client sends again would be stored twice";
        self.require(!written.disable_idempotent, &option("disable_idempotent"), expected);
        let transactions = written.transaction_timeout.is_some();
        let reason = "there are no transactions";
        self.ignored(transactions, &option("transaction_timeout"), reason);
        let max_message_bytes = self.size(
            &option("max_message_bytes"),
            written.max_message_bytes,
            MAX_MESSAGE_BYTES,
            LEAST_MESSAGE_BYTES..=MOST_BYTES,
        );
        let delivery = written.delivery_timeout;
        let half_a_minute = Duration::from_secs(30);
        let given = push_timeout.or(delivery);
        let push_timeout = self.time("push_timeout", given, half_a_minute, MILLISECOND..=A_DAY);
        let most = push_timeout.max(MILLISECOND);
        let delivery_timeout =
            self.time(&option("delivery_timeout"), delivery, push_timeout, MILLISECOND..=most);
        let linger = self.time(
            &option("linger"),
            written.linger,
            Duration::ZERO,
            Duration::ZERO..=Duration::from_secs(900),
        );
        let expected = "expected less than a push may take";
        self.require(linger < delivery_timeout, &option("linger"), expected);
        let request_timeout = self.time(
            &option("request_timeout"),
            written.request_timeout,
            Duration::from_secs(10),
            MILLISECOND..=Duration::from_secs(290),
        );
        let spread = matches!(
            written.partitioning_strategy,
            Partitioning::RoundRobin | Partitioning::LeastBackup
        );
        let expected =
            "expected `Uniform`, or `ordering: unordered`: equal keys need one partition";
        let ordered = ordering != Ordering::Unordered;
        self.require(!(spread && ordered), &option("partitioning_strategy"), expected);
        let producer = ProducerConfig {
            compression: written.compression_codec.name(),
            // As the Java client, and RoadRunner's: a job of either lands where ours do.
            partitioner: if spread { "random" } else { "murmur2_random" },
            linger,
            request_timeout,
            delivery_timeout,
        };
        (push_timeout, max_message_bytes, producer)
    }

    fn fetch(&mut self, written: &Consumer) -> FetchConfig {
        let option = |name: &str| format!("consumer_options.{name}");
        let max_bytes = self.size(
            &option("max_fetch_message_size"),
            written.max_fetch_message_size,
            16 << 20,
            LEAST_MESSAGE_BYTES..=MOST_BYTES,
        );
        let min_bytes = self.size(
            &option("min_fetch_message_size"),
            written.min_fetch_message_size,
            1,
            1..=100_000_000,
        );
        let expected = "expected no more than `max_fetch_message_size`";
        self.require(min_bytes <= max_bytes, &option("min_fetch_message_size"), expected);
        FetchConfig { min_bytes, max_bytes }
    }

    fn group(&mut self, group: &Group, consumes: bool, fixed: bool) {
        for (option, name) in [
            ("group_options.group_id", &group.group_id),
            ("group_options.instance_id", &group.instance_id),
        ] {
            if name.len() > 255 || name.chars().any(char::is_control) {
                self.problem(option, "expected at most 255 bytes without control characters");
            }
        }
        let expected = "expected none: with `consume_partitions` there are no members";
        self.require(!fixed || group.instance_id.is_empty(), "group_options.instance_id", expected);
        let lonely = !consumes && !group.instance_id.is_empty();
        self.ignored(lonely, "group_options.instance_id", "nothing is consumed");
    }

    /// How the group finds out about a dead member: silence, heartbeat, and time between polls.
    fn session(&mut self, group: &Group) -> (Duration, Duration, Duration) {
        let poll = self.time(
            "group_options.max_poll_interval",
            group.max_poll_interval,
            group.session_timeout.unwrap_or_default().max(SECOND * 300),
            SECOND..=A_DAY,
        );
        let session = self.time(
            "group_options.session_timeout",
            group.session_timeout,
            (SECOND * 45).min(poll),
            SECOND..=HOUR,
        );
        let expected = "expected at least the `session_timeout`";
        self.require(poll >= session, "group_options.max_poll_interval", expected);
        let heartbeat = self.time(
            "group_options.heartbeat_interval",
            group.heartbeat_interval,
            (SECOND * 3).min(session / 3),
            MILLISECOND..=HOUR,
        );
        let expected = "expected less than the `session_timeout`";
        self.require(heartbeat < session, "group_options.heartbeat_interval", expected);
        (session, heartbeat, poll)
    }
}

/// Why a way to authenticate is not there.
fn refusal(mechanism: Mechanism) -> &'static str {
    match mechanism {
        Mechanism::AwsMskIam => {
            "expected `plain`, `SCRAM-SHA-256` or `SCRAM-SHA-512`: the client cannot sign requests \
             for AWS"
        }
        Mechanism::Gssapi => {
            "expected `plain`, `SCRAM-SHA-256` or `SCRAM-SHA-512`: the client is built without \
             Kerberos"
        }
        _ => {
            "expected `plain`, `SCRAM-SHA-256` or `SCRAM-SHA-512`: this driver has no source of \
             tokens"
        }
    }
}
