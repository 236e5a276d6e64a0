#![doc = include_str!("docs.md")]

mod config;
mod consumer;
mod control;
mod drivers;
pub mod guide;
mod pipeline;
mod worker;

pub use config::Config;
pub use consumer::Consumer;
pub use control::Jobs;
pub use drivers::default_registry;
/// The driver `amqp`: options, mapping and guarantees.
#[cfg(feature = "amqp")]
pub use jobs_amqp as amqp;
/// The driver `beanstalk`, for its own functions such as
/// [`buried`](beanstalk::BeanstalkConstructor::buried).
#[cfg(feature = "beanstalk")]
pub use jobs_beanstalk as beanstalk;
pub use jobs_core::{
    Attempts, Backoff, Bytes, Capabilities, Constructor, Driver, Error, ErrorKind, ExposeSecret,
    Headers, Job, JobId, KafkaOptions, Lease, Message, Options, Outcome, Pipeline, Plan, Problem,
    Registry, Result, Secret, SettleError, State, Support,
};
/// The driver `kafka`: options, mapping and guarantees.
#[cfg(feature = "kafka")]
pub use jobs_kafka as kafka;
/// The driver `local`, for its own functions such as
/// [`dead_letters`](local::LocalConstructor::dead_letters).
#[cfg(feature = "local")]
pub use jobs_local as local;
/// The driver `memory`, for its own functions such as
/// [`dead_letters`](memory::MemoryConstructor::dead_letters).
#[cfg(feature = "memory")]
pub use jobs_memory as memory;
/// The driver `sqs`: options, mapping and guarantees.
#[cfg(feature = "sqs")]
pub use jobs_sqs as sqs;
pub use pipeline::PipelineHandle;
pub use worker::{
    Context, Failure, HandlerError, Handlers, Inline, Json, Payload, Policy, Report, Worker,
    shutdown_signal,
};

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}
