//! What an operator does at the broker, without the driver.

use jobs_core::{Error, ErrorKind, Result};
use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};

/// A connection of an operator. Drop it with [`close`](Self::close), so that it is gone.
#[derive(Debug)]
pub struct Operator {
    connection: Connection,
    channel: Channel,
}

impl Operator {
    pub(super) async fn connect(url: &str) -> Result<Self> {
        let mut uri: AMQPUri = url.parse().map_err(|error: String| {
            Error::new(ErrorKind::Config, "operate").with_context(error)
        })?;
        // The client's task for it lives half of it longer than the connection, and cases wait for
        // the end of all tasks.
        uri.query.heartbeat = Some(1);
        let connection = Connection::connect_uri(uri, ConnectionProperties::default()).await;
        let connection = connection.map_err(failed)?;
        let channel = connection.create_channel().await.map_err(failed)?;
        Ok(Self { connection, channel })
    }

    /// Closes the connection.
    ///
    /// # Errors
    /// The client's.
    pub async fn close(self) -> Result<()> {
        self.connection.close(200, "done".into()).await.map_err(failed)
    }

    /// Deletes a queue with all it holds; one that does not exist is fine.
    ///
    /// # Errors
    /// The broker's.
    pub async fn delete_queue(&self, name: &str) -> Result<()> {
        let deleted = self.channel.queue_delete(name.into(), QueueDeleteOptions::default()).await;
        deleted.map(drop).map_err(failed)
    }

    /// Deletes an exchange; one that does not exist is fine.
    ///
    /// # Errors
    /// The broker's.
    pub async fn delete_exchange(&self, name: &str) -> Result<()> {
        let options = ExchangeDeleteOptions::default();
        self.channel.exchange_delete(name.into(), options).await.map_err(failed)
    }

    /// Declares a fanout exchange, and a queue of the same name that gets all it takes.
    ///
    /// # Errors
    /// The broker's.
    pub async fn declare_collector(&self, name: &str) -> Result<()> {
        let (channel, none) = (&self.channel, FieldTable::default);
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let declared = channel.exchange_declare(name.into(), ExchangeKind::Fanout, options, none());
        declared.await.map_err(failed)?;
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(name.into(), options, none()).await.map_err(failed)?;
        let options = QueueBindOptions::default();
        let bound = channel.queue_bind(name.into(), name.into(), "".into(), options, none());
        bound.await.map_err(failed)
    }

    /// Declares a classic queue that no pipeline would declare so.
    ///
    /// # Errors
    /// The broker's.
    pub async fn declare_other(&self, name: &str) -> Result<()> {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(7));
        let declared = self.channel.queue_declare(name.into(), options, arguments).await;
        declared.map(drop).map_err(failed)
    }

    /// How many messages are ready in a queue.
    ///
    /// # Errors
    /// The broker's; if there is no such queue, this operator is of no use any more.
    pub async fn ready(&self, name: &str) -> Result<u32> {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = self.channel.queue_declare(name.into(), options, FieldTable::default()).await;
        Ok(queue.map_err(failed)?.message_count())
    }
}

fn failed(error: lapin::Error) -> Error {
    Error::new(ErrorKind::Broker, "operate").with_source(error)
}
