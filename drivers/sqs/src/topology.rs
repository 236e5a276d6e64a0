//! Which queues there are, and what they take.

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::QueueAttributeName;
use jobs_core::{Error, ErrorKind, Result};

use crate::NAME;
use crate::config::{DeadLetter, SqsConfig};
use crate::error::{failed, lacks_permission};

/// The longest name of a queue. Source: the quotas of Amazon SQS.
const LONGEST_NAME: usize = 80;

/// Follows a queue's name in that of the queue its long delays are spent in.
const DELAYS: &str = "-delays";

/// How long messages wait at most in queues that are created here: as long as the service allows.
const RETENTION: (&str, &str) = ("MessageRetentionPeriod", "1209600");

/// The queues of a pipeline.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) queue: Place,
    pub(crate) dead: Option<Place>,
    /// Bytes of a message, if the queue tells.
    pub(crate) max_message: Option<usize>,
}

/// A queue.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) url: String,
    pub(crate) fifo: bool,
}

impl Place {
    fn at(url: String) -> Self {
        let fifo = url.ends_with(".fifo");
        Self { url, fifo }
    }
}

impl Topology {
    /// Finds the queues, or makes them where the configuration says so.
    pub(crate) async fn resolve(client: &Client, config: &SqsConfig) -> Result<Self> {
        let made = |config: &SqsConfig| config.declare.then(|| Made::of(config));
        let url = match &config.queue_url {
            Some(url) => url.clone(),
            None => find(client, &config.queue, made(config)).await?,
        };
        let max_message = max_message(client, &url).await?;
        let dead = match &config.dead_letter {
            None => None,
            Some(DeadLetter::Url(url)) => Some(url.clone()),
            Some(DeadLetter::Name(name)) => {
                let made = config.declare.then(|| Made::plain(name));
                Some(find(client, name, made).await?)
            }
        };
        Ok(Self { queue: Place::at(url), dead: dead.map(Place::at), max_message })
    }
}

/// What a queue is made with.
pub(crate) struct Made {
    attributes: Vec<(String, String)>,
    tags: Vec<(String, String)>,
}

impl Made {
    fn of(config: &SqsConfig) -> Self {
        let all = |map: &std::collections::BTreeMap<String, String>| {
            map.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
        };
        Self { attributes: all(&config.attributes), tags: all(&config.tags) }
    }

    /// With nothing but what must be.
    pub(crate) fn plain(name: &str) -> Self {
        let mut attributes = vec![(RETENTION.0.to_owned(), RETENTION.1.to_owned())];
        if name.ends_with(".fifo") {
            attributes.push(("FifoQueue".to_owned(), "true".to_owned()));
        }
        Self { attributes, tags: Vec::new() }
    }
}

/// Where a queue is, which is made if it does not exist.
pub(crate) async fn find(client: &Client, name: &str, made: Option<Made>) -> Result<String> {
    let found = Box::pin(client.get_queue_url().queue_name(name).send()).await;
    let error = match found {
        Ok(found) => return known(found.queue_url),
        Err(error) => error,
    };
    let may_exist = lacks_permission(&error);
    let error = failed("connect", error);
    let created = match made {
        Some(made) if may_exist || error.kind() == ErrorKind::NotFound => {
            create(client, name, made).await
        }
        _ => Err(error),
    };
    let hint = "these credentials may not ask where the queue is: if it exists, set its address (`queue_url`)";
    created.map_err(|error| match may_exist && error.kind() == ErrorKind::Denied {
        true => {
            let context = format!("queue `{name}`: {hint}: {}", error.with_sources());
            Error::new(ErrorKind::Denied, "connect").with_driver(NAME).with_context(context)
        }
        false => error,
    })
}

async fn create(client: &Client, name: &str, made: Made) -> Result<String> {
    let mut request = client.create_queue().queue_name(name);
    for (name, value) in &made.attributes {
        request = request.attributes(QueueAttributeName::from(name.as_str()), value);
    }
    for (name, value) in &made.tags {
        request = request.tags(name, value);
    }
    let created = Box::pin(request.send()).await.map_err(|error| failed("connect", error))?;
    known(created.queue_url)
}

fn known(url: Option<String>) -> Result<String> {
    url.ok_or_else(|| {
        let error = Error::new(ErrorKind::Broker, "connect").with_driver(NAME);
        error.with_context("the service named no queue URL")
    })
}

/// Bytes of a message, if the queue tells. Fails if there is no such queue, or nobody there.
async fn max_message(client: &Client, url: &str) -> Result<Option<usize>> {
    let request = client.get_queue_attributes().queue_url(url);
    let request = request.attribute_names(QueueAttributeName::MaximumMessageSize);
    match Box::pin(request.send()).await {
        Ok(answer) => {
            let attributes = answer.attributes.unwrap_or_default();
            let bytes = attributes.get(&QueueAttributeName::MaximumMessageSize);
            Ok(bytes.and_then(|bytes| bytes.parse().ok()))
        }
        Err(error) if lacks_permission(&error) => Ok(None),
        Err(error) => {
            let error = failed("connect", error);
            let matters = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Denied);
            // Other servers may not know the attribute.
            if matters || error.is_retryable() { Err(error) } else { Ok(None) }
        }
    }
}

/// Figures of a queue. None where they may not be read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) ready: Option<u64>,
    pub(crate) in_flight: Option<u64>,
    pub(crate) delayed: Option<u64>,
}

impl Figures {
    pub(crate) async fn of(client: &Client, url: &str) -> Result<Self> {
        const NAMES: [QueueAttributeName; 3] = [
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
            QueueAttributeName::ApproximateNumberOfMessagesDelayed,
        ];
        let request = client.get_queue_attributes().queue_url(url);
        let request = request.set_attribute_names(Some(NAMES.to_vec()));
        let attributes = match Box::pin(request.send()).await {
            Ok(answer) => answer.attributes.unwrap_or_default(),
            Err(error) if lacks_permission(&error) => return Ok(Self::default()),
            Err(error) => return Err(failed("state", error)),
        };
        let [ready, in_flight, delayed] =
            NAMES.map(|name| attributes.get(&name).and_then(|figure| figure.parse().ok()));
        Ok(Self { ready, in_flight, delayed })
    }

    pub(crate) fn total(self) -> Option<u64> {
        Some(self.ready? + self.in_flight? + self.delayed?)
    }
}

/// The name of the queue for long delays. None: it would be too long.
pub(crate) fn delays_of(queue: &str) -> Option<String> {
    let name = format!("{queue}{DELAYS}");
    (name.len() <= LONGEST_NAME).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_of_delays_is_named_after_the_queue_if_it_can_be() {
        assert_eq!(delays_of("mail").as_deref(), Some("mail-delays"));
        assert!(delays_of(&"x".repeat(73)).is_some());
        assert!(delays_of(&"x".repeat(74)).is_none());
    }

    #[test]
    fn a_queue_keeps_order_if_its_name_says_so() {
        assert!(Place::at("http://localhost/1/a.fifo".to_owned()).fifo);
        assert!(!Place::at("http://localhost/1/fifo".to_owned()).fifo);
        let plain = Made::plain("dead.fifo").attributes;
        assert!(
            plain
                .iter()
                .any(|(name, value)| (name.as_str(), value.as_str()) == ("FifoQueue", "true"))
        );
    }
}
