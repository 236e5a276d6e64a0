//! What people do to a server by hand, past every driver: the bare client.

use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_sqs::error::ProvideErrorMetadata;
use aws_sdk_sqs::types::{
    Message, MessageAttributeValue, MessageSystemAttributeName, QueueAttributeName,
};
use jobs_core::{Error, ErrorKind, Result};

/// The region that all of the tests are in.
pub(crate) const REGION: &str = "us-east-1";
/// What a server that checks nothing takes for a key, and for its secret.
pub(crate) const KEY: &str = "test";

/// The bare client, as its users are advised to configure it, without retries.
#[must_use]
pub fn client(url: &str) -> Client {
    const PATIENCE: Duration = Duration::from_secs(30);
    let timeouts = TimeoutConfig::builder().operation_timeout(PATIENCE).build();
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(url)
        .credentials_provider(Credentials::new(KEY, KEY, None, None, "tests"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts);
    Client::from_conf(config.build())
}

/// A bare client. It is to be dropped before a case ends, as its connections have tasks.
#[derive(Debug)]
pub struct Operator(Client);

/// A message as somebody else would send it.
#[derive(Clone, Debug, Default)]
pub struct Raw {
    /// What it says.
    pub body: String,
    /// Its attributes, by their names.
    pub attributes: Vec<(String, MessageAttributeValue)>,
    /// Its group, in a FIFO queue.
    pub group: Option<String>,
}

impl Raw {
    /// A message without attributes.
    pub fn new(body: impl Into<String>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    /// With one more attribute of type `String`.
    #[must_use]
    pub fn with_text(self, name: &str, value: &str) -> Self {
        let value = MessageAttributeValue::builder().data_type("String").string_value(value);
        self.with(name, value.build().expect("it has a type"))
    }

    /// With one more attribute.
    #[must_use]
    pub fn with(mut self, name: &str, value: MessageAttributeValue) -> Self {
        self.attributes.push((name.to_owned(), value));
        self
    }
}

fn wrong(error: impl Into<aws_sdk_sqs::Error>) -> Error {
    let error = error.into();
    // Of some requests the client knows it by its code only.
    let kind = match error.code() {
        Some(code) if code.contains("QueueDoesNotExist") => ErrorKind::NotFound,
        Some(code) if code.contains("NonExistentQueue") => ErrorKind::NotFound,
        _ => ErrorKind::Broker,
    };
    Error::new(kind, "operate").with_source(error)
}

impl Operator {
    /// On the server with this address.
    #[must_use]
    pub fn at(url: &str) -> Self {
        Self(client(url))
    }

    /// The client itself.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.0
    }

    /// Makes a queue, and returns its address.
    ///
    /// # Errors
    /// The server's.
    pub async fn create(&self, name: &str, attributes: &[(&str, &str)]) -> Result<String> {
        let mut create = self.0.create_queue().queue_name(name);
        if name.ends_with(".fifo") {
            create = create.attributes(QueueAttributeName::FifoQueue, "true");
        }
        for (name, value) in attributes {
            create = create.attributes(QueueAttributeName::from(*name), *value);
        }
        let created = create.send().await.map_err(wrong)?;
        Ok(created.queue_url.unwrap_or_default())
    }

    /// The address of a queue.
    ///
    /// # Errors
    /// `NotFound` if there is no such queue, or the server's.
    pub async fn url(&self, name: &str) -> Result<String> {
        let found = self.0.get_queue_url().queue_name(name).send().await.map_err(wrong)?;
        Ok(found.queue_url.unwrap_or_default())
    }

    /// Deletes a queue, if there is one.
    ///
    /// # Errors
    /// The server's.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let url = match self.url(name).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            url => url?,
        };
        self.0.delete_queue().queue_url(url).send().await.map_err(wrong)?;
        Ok(())
    }

    /// An attribute of a queue, by the service's name for it.
    ///
    /// # Errors
    /// The server's.
    pub async fn attribute(&self, queue: &str, name: &str) -> Result<Option<String>> {
        let name = QueueAttributeName::from(name);
        let ask = self.0.get_queue_attributes().queue_url(self.url(queue).await?);
        let found = ask.attribute_names(name.clone()).send().await.map_err(wrong)?;
        Ok(found.attributes.and_then(|mut attributes| attributes.remove(&name)))
    }

    /// How many messages a queue has: to be received, received, and delayed.
    ///
    /// # Errors
    /// The server's.
    pub async fn count(&self, queue: &str) -> Result<[u64; 3]> {
        const NAMES: [&str; 3] = ["", "NotVisible", "Delayed"];
        let mut counts = [0; 3];
        for (count, name) in counts.iter_mut().zip(NAMES) {
            let name = format!("ApproximateNumberOfMessages{name}");
            let found = self.attribute(queue, &name).await?;
            *count = found.and_then(|count| count.parse().ok()).unwrap_or(0);
        }
        Ok(counts)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// The server's.
    pub async fn send(&self, queue: &str, message: Raw) -> Result<()> {
        let url = self.url(queue).await?;
        let mut send = self.0.send_message().queue_url(url).message_body(&message.body);
        for (name, value) in message.attributes {
            send = send.message_attributes(name, value);
        }
        if let Some(group) = message.group {
            send = send.message_group_id(group).message_deduplication_id(&message.body);
        }
        Box::pin(send.send()).await.map_err(wrong)?;
        Ok(())
    }

    /// Receives up to ten messages, which are hidden for so many seconds, with all they have.
    ///
    /// # Errors
    /// The server's.
    pub async fn receive(&self, queue: &str, hidden: i32) -> Result<Vec<Message>> {
        let receive = self
            .0
            .receive_message()
            .queue_url(self.url(queue).await?)
            .max_number_of_messages(10)
            .visibility_timeout(hidden)
            .message_attribute_names("All")
            .message_system_attribute_names(MessageSystemAttributeName::All);
        let received = receive.send().await.map_err(wrong)?;
        Ok(received.messages.unwrap_or_default())
    }
}
