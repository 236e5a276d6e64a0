//! One broker of each kind, for programs that use several.

use jobs_core::Result;
use jobs_kit::Fault;

use crate::beanstalkd::{self, Beanstalkd, Mode};
use crate::elasticmq::{self, ElasticMq};
use crate::kafkad::{self, Broker};
use crate::rabbitmq::{self, RabbitMq};

/// Our own, so they may be killed.
#[derive(Debug)]
pub struct Brokers {
    amqp: RabbitMq,
    kafka: Broker,
    sqs: ElasticMq,
    beanstalk: Beanstalkd,
}

impl Brokers {
    /// Starts all four.
    ///
    /// # Errors
    /// One does not start.
    ///
    /// # Panics
    /// The environment names a broker: it is somebody else's.
    pub async fn start() -> Result<Self> {
        let given = rabbitmq::is_given()
            || kafkad::is_given()
            || elasticmq::is_given()
            || beanstalkd::is_given();
        assert!(!given, "no broker may be named by the environment here");
        let (amqp, kafka, sqs, beanstalk) = tokio::try_join!(
            RabbitMq::start(false),
            Broker::start(),
            ElasticMq::start(false),
            Beanstalkd::start(Mode::Synced, false),
        )?;
        Ok(Self { amqp, kafka, sqs, beanstalk })
    }

    /// The sections of a configuration file that say where they are.
    #[must_use]
    pub fn sections(&self) -> String {
        format!(
            "
            amqp: {{ addr: '{amqp}' }}
            kafka: {{ brokers: ['{kafka}'] }}
            sqs: {{ endpoint: '{sqs}', key: x, secret: x }}
            beanstalk: {{ addr: '{beanstalk}' }}
            ",
            amqp = self.amqp.url(),
            kafka = self.kafka.brokers(),
            sqs = self.sqs.url(),
            beanstalk = self.beanstalk.url(),
        )
    }

    /// Kills the broker of a driver.
    ///
    /// # Errors
    /// It cannot be killed.
    pub async fn kill(&self, driver: &str) -> Result<()> {
        match driver {
            jobs_amqp::NAME => self.amqp.begin(Fault::Kill).await,
            jobs_kafka::NAME => self.kafka.begin(Fault::Kill).await,
            jobs_sqs::NAME => self.sqs.begin(Fault::Kill).await,
            _ => self.beanstalk.begin(Fault::Kill).await,
        }
    }

    /// Starts the broker of a driver again, with what it had stored.
    ///
    /// # Errors
    /// It does not start.
    pub async fn bring_back(&self, driver: &str) -> Result<()> {
        match driver {
            jobs_amqp::NAME => self.amqp.end(Fault::Kill).await,
            jobs_kafka::NAME => self.kafka.end(Fault::Kill).await,
            jobs_sqs::NAME => self.sqs.end(Fault::Kill).await,
            _ => self.beanstalk.end(Fault::Kill).await,
        }
    }
}
