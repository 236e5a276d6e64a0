//! The drivers of this suite under the conformance kit, on real brokers.
//!
//! A broker is where the environment says (`JOBS_AMQP_URL`, `JOBS_BEANSTALK_ADDR`, `JOBS_KAFKA_BROKERS`,
//! `JOBS_SQS_ENDPOINT`), else a container of an image that `compose/images.env` names and `compose/images`
//! provides. One that does not start is a failure, never a skip. Containers are removed when the suite or
//! harness that started them is dropped.

pub mod amqp;
pub mod beanstalk;
pub mod beanstalkd;
pub mod brokers;
pub mod control;
pub mod elasticmq;
pub mod gate;
mod images;
pub mod kafka;
pub mod kafkad;
pub mod moto;
pub mod rabbitmq;
pub mod sqs;
