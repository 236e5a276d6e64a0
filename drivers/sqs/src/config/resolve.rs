//! From what is written to what holds: defaults, and the checks of options against each other.

use std::num::NonZeroUsize;
use std::time::Duration;

use jobs_core::{Options, Problem, Secret, options};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{A_YEAR, DeadLetter, LONGEST_LEASE, SqsConfig, Static, attributes};

/// The longest the service lets a request for messages wait.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// With 0 an idle queue would be asked without a pause.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

const SUFFIX_OF_FIFO: &str = ".fifo";

/// The options as they are written. Empty text means that an option is not set.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    key: String,
    #[serde(default)]
    secret: String,
    #[serde(default)]
    session_token: String,
    #[serde(default)]
    region: String,
    #[serde(default)]
    endpoint: String,
    #[serde(default)]
    profile: String,
    #[serde(default)]
    queue: String,
    #[serde(default)]
    queue_url: String,
    #[serde(default)]
    skip_queue_declaration: bool,
    #[serde(default)]
    attributes: Map<String, Value>,
    #[serde(default)]
    tags: Map<String, Value>,
    #[serde(default)]
    message_group_id: String,
    #[serde(default)]
    dead_letter: String,
    prefetch: Option<NonZeroUsize>,
    max_messages_in_flight: Option<usize>,
    receivers: Option<NonZeroUsize>,
    #[serde(default, deserialize_with = "options::seconds")]
    visibility_timeout: Option<Duration>,
    #[serde(default, alias = "wait_time", deserialize_with = "options::seconds")]
    wait_time_seconds: Option<Duration>,
    #[serde(default, deserialize_with = "options::seconds")]
    error_visibility_timeout: Option<Duration>,
    #[serde(default)]
    retain_failed_jobs: bool,
    #[serde(default, deserialize_with = "options::duration")]
    max_lease: Option<Duration>,
    #[serde(default, deserialize_with = "options::duration")]
    operation_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "options::duration")]
    connect_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "options::duration")]
    push_timeout: Option<Duration>,
}

pub(super) fn resolve(options: &Options) -> Result<SqsConfig, Vec<Problem>> {
    let written: Written = options.parse()?;
    let mut check = Check { options, problems: Vec::new() };
    let config = check.config(written);
    if check.problems.is_empty() { Ok(config) } else { Err(check.problems) }
}

struct Check<'a> {
    options: &'a Options,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn problem(&mut self, option: &str, message: impl Into<String>) {
        self.problems.push(Problem::new(self.options.path_of(option), message));
    }

    /// Says what an option does not do.
    fn ignored(&self, ignored: bool, option: &str, reason: &str) {
        if ignored {
            let path = self.options.path_of(option);
            tracing::warn!(path, "option has no effect: {reason}");
        }
    }

    fn config(&mut self, written: Written) -> SqsConfig {
        self.without_effect(&written);
        let (queue, queue_url) = self.queue(&written);
        let fifo = is_fifo(&queue);
        let declare = queue_url.is_none() && !written.skip_queue_declaration;
        for (option, map) in [("attributes", &written.attributes), ("tags", &written.tags)] {
            self.ignored(!declare && !map.is_empty(), option, "the queue is not created here");
        }
        self.ignored(
            !fifo && !written.message_group_id.is_empty(),
            "message_group_id",
            "only a FIFO queue keeps groups in order",
        );
        let second = Duration::from_secs(1);
        let millisecond = Duration::from_millis(1);
        let visibility = written.visibility_timeout.filter(|timeout| !timeout.is_zero());
        SqsConfig {
            fifo,
            declare,
            region: self.region(&written),
            endpoint: self.endpoint(&written),
            credentials: self.credentials(&written),
            dead_letter: self.dead_letter(&written, &queue, queue_url.as_deref()),
            message_group_id: self.group(written.message_group_id),
            prefetch: self.prefetch(written.prefetch, written.max_messages_in_flight),
            receivers: self.receivers(written.receivers),
            visibility_timeout: self.seconds(
                "visibility_timeout",
                visibility.unwrap_or(Duration::from_secs(30)),
                LONGEST_LEASE,
            ),
            wait_time: self
                .seconds(
                    "wait_time_seconds",
                    written.wait_time_seconds.unwrap_or(Duration::from_secs(5)),
                    LONGEST_WAIT,
                )
                .max(SHORTEST_WAIT),
            max_lease: written
                .max_lease
                .map(|found| self.time("max_lease", found, second, LONGEST_LEASE)),
            operation_timeout: self.time(
                "operation_timeout",
                written.operation_timeout.unwrap_or(Duration::from_secs(10)),
                millisecond,
                A_YEAR,
            ),
            connect_timeout: self.time(
                "connect_timeout",
                written.connect_timeout.unwrap_or(Duration::from_secs(10)),
                millisecond,
                A_YEAR,
            ),
            push_timeout: self.time(
                "push_timeout",
                written.push_timeout.unwrap_or(Duration::from_secs(30)),
                millisecond,
                A_YEAR,
            ),
            attributes: attributes::read(
                &self.options.path_of("attributes"),
                &written.attributes,
                fifo,
                &mut self.problems,
            ),
            tags: attributes::tags(&self.options.path_of("tags"), written.tags, &mut self.problems),
            profile: filled(written.profile),
            queue,
            queue_url,
        }
    }

    /// RoadRunner's ways to go on after a failure.
    fn without_effect(&self, written: &Written) {
        let reason =
            "a failed job runs again, or is rejected, as its handler or the worker decides";
        self.ignored(written.retain_failed_jobs, "retain_failed_jobs", reason);
        let waits = written.error_visibility_timeout.is_some_and(|timeout| !timeout.is_zero());
        self.ignored(waits, "error_visibility_timeout", reason);
    }

    fn queue(&mut self, written: &Written) -> (String, Option<String>) {
        let expected = "expected 1 to 80 letters, digits, `-` or `_`; the name of a FIFO queue \
                        ends in `.fifo`";
        let Written { queue, queue_url, .. } = written;
        if queue_url.is_empty() {
            let queue = if queue.is_empty() { "default" } else { queue };
            if queue.contains("://") {
                self.problem("queue", "expected a name: where the queue is, is `queue_url`");
            } else if !is_queue(queue) {
                self.problem("queue", format!("{expected}, found `{queue}`"));
            }
            return (queue.to_owned(), None);
        }
        let Some(name) = queue_of(queue_url) else {
            let expected = "expected `https://host/account/queue`, found another address";
            self.problem("queue_url", expected);
            return (queue.clone(), None);
        };
        if !queue.is_empty() && queue != name {
            let expected = format!("expected `{name}`, which `queue_url` names, or none");
            self.problem("queue", format!("{expected}, found `{queue}`"));
        }
        (name.to_owned(), Some(queue_url.clone()))
    }

    fn region(&mut self, written: &Written) -> Option<String> {
        let region = filled(written.region.clone())?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if region.len() > 63 || !region.chars().all(allowed) {
            let expected = "expected the name of a region, such as `eu-central-1`";
            self.problem("region", format!("{expected}, found `{region}`"));
        }
        Some(region)
    }

    fn endpoint(&mut self, written: &Written) -> Option<String> {
        let endpoint = filled(written.endpoint.clone())?;
        if host_of(&endpoint).is_none() {
            // What was found is not shown: such a value may hold a password.
            let expected = "expected `https://host` or `http://host:port`, found another address";
            self.problem("endpoint", expected);
        }
        Some(endpoint)
    }

    fn credentials(&mut self, written: &Written) -> Option<Static> {
        let Written { key, secret, session_token, profile, .. } = written;
        if key.is_empty() || secret.is_empty() {
            if key.is_empty() != secret.is_empty() {
                let missing = if key.is_empty() { "key" } else { "secret" };
                self.problem(missing, "expected both `key` and `secret`, or neither");
            } else if !session_token.is_empty() {
                self.problem("session_token", "expected `key` and `secret` too");
            }
            return None;
        }
        if !profile.is_empty() {
            self.problem("profile", "expected none: `key` and `secret` are the credentials");
        }
        Some(Static {
            key: key.clone(),
            secret: Secret::from(secret.as_str()),
            session_token: filled(session_token.clone()).map(Secret::from),
        })
    }

    fn dead_letter(
        &mut self,
        written: &Written,
        queue: &str,
        url: Option<&str>,
    ) -> Option<DeadLetter> {
        let place = filled(written.dead_letter.clone())?;
        let is_url = place.contains("://");
        let name = if is_url { queue_of(&place) } else { Some(&*place).filter(|n| is_queue(n)) };
        let Some(name) = name else {
            let expected = "expected the name of a queue, or where it is as \
                            `https://host/account/queue`";
            self.problem("dead_letter", expected);
            return None;
        };
        let is_own = match (is_url, url) {
            (true, Some(url)) => place == url,
            // An address and a name: another account or region may have a queue of that name.
            (true, None) => false,
            (false, _) => name == queue,
        };
        if is_own {
            let expected = "expected another queue: rejected jobs would come back for ever";
            self.problem("dead_letter", expected);
        }
        Some(if is_url { DeadLetter::Url(place) } else { DeadLetter::Name(place) })
    }

    fn group(&mut self, group: String) -> Option<String> {
        let group = filled(group)?;
        if !crate::codec::is_token(&group) {
            let expected = "expected 1 to 128 letters, digits or punctuation marks of ASCII";
            self.problem("message_group_id", expected);
        }
        Some(group)
    }

    /// RoadRunner's `prefetch` is what one request brings, and its cap has a name of its own, which
    /// is by default the same.
    fn prefetch(&mut self, prefetch: Option<NonZeroUsize>, cap: Option<usize>) -> NonZeroUsize {
        let (option, found) = match cap.and_then(NonZeroUsize::new) {
            Some(cap) => ("max_messages_in_flight", Some(cap)),
            None => ("prefetch", prefetch),
        };
        let found = found.unwrap_or(NonZeroUsize::new(10).expect("not zero"));
        let most = tokio::sync::Semaphore::MAX_PERMITS;
        if found.get() > most {
            self.problem(option, format!("expected at most {most}, found {found}"));
        }
        found
    }

    fn receivers(&mut self, found: Option<NonZeroUsize>) -> NonZeroUsize {
        /// Each is a request that waits at the service and is paid for.
        const MOST: usize = 64;
        let found = found.unwrap_or(NonZeroUsize::new(2).expect("not zero"));
        if found.get() > MOST {
            self.problem("receivers", format!("expected at most {MOST}, found {found}"));
        }
        found
    }

    /// Whole seconds, rounded up.
    fn seconds(&mut self, option: &str, found: Duration, most: Duration) -> Duration {
        if found > most {
            let expected = format!("expected at most {} seconds", most.as_secs());
            self.problem(option, format!("{expected}, found {found:?}"));
        }
        let more = u64::from(found.subsec_nanos() > 0);
        Duration::from_secs(found.as_secs().saturating_add(more))
    }

    fn time(&mut self, option: &str, found: Duration, least: Duration, most: Duration) -> Duration {
        if !(least..=most).contains(&found) {
            let expected =
                format!("expected {least:?} to {most:?} (a bare number counts nanoseconds)");
            self.problem(option, format!("{expected}, found {found:?}"));
        }
        found
    }
}

fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn is_fifo(queue: &str) -> bool {
    queue.ends_with(SUFFIX_OF_FIFO)
}

fn is_queue(name: &str) -> bool {
    let stem = name.strip_suffix(SUFFIX_OF_FIFO).unwrap_or(name);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    !stem.is_empty() && name.len() <= 80 && stem.bytes().all(allowed)
}

/// The host of an address without a user, a query or white space.
fn host_of(address: &str) -> Option<&str> {
    let rest = address.strip_prefix("https://").or_else(|| address.strip_prefix("http://"))?;
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '?' | '#');
    let host = rest.split('/').next().unwrap_or_default();
    (!host.is_empty() && !host.contains('@') && !rest.contains(odd)).then_some(host)
}

/// The name of the queue at an address.
fn queue_of(url: &str) -> Option<&str> {
    host_of(url)?;
    let (_, path) = url.split_once("://")?.1.split_once('/')?;
    path.rsplit('/').next().filter(|name| is_queue(name))
}
