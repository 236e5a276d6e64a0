//! One broker of each kind, for programs that use several.

use jobs_core::Result;
use jobs_kit::Fault;

use crate::beanstalkd::{self, Beanstalkd, Mode};
use crate::control::Control;
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
            ElasticMq::start(true),
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
        self.control(driver).begin(Fault::Kill).await
    }

    /// Starts the broker of a driver again, with what it had stored.
    ///
    /// # Errors
    /// It does not start.
    pub async fn bring_back(&self, driver: &str) -> Result<()> {
        self.control(driver).end(Fault::Kill).await
    }

    fn control(&self, driver: &str) -> &Control {
        match driver {
            jobs_amqp::NAME => &self.amqp.control,
            jobs_kafka::NAME => &self.kafka.control,
            jobs_sqs::NAME => &self.sqs.control,
            jobs_beanstalk::NAME => &self.beanstalk.control,
            _ => panic!("{driver} has no broker"),
        }
    }
}
