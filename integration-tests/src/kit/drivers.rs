//! The drivers the command knows, each with its harness.

use std::path::Path;
use std::sync::Arc;

use integration_tests::amqp::{self, Amqp};
use integration_tests::beanstalk::{self, Beanstalk};
use integration_tests::beanstalkd::{Mode, Servers};
use integration_tests::kafka::{self, Kafka};
use integration_tests::sqs::{self, Sqs};
use jobs_core::{Capabilities, Pipeline};
use jobs_kit::{Harness, Suite};

use crate::bench;
use crate::local::Local;
use crate::memory::Memory;

/// Makes pipelines that are all on one queue in a file, whichever process asks.
pub(crate) type Shared = fn(&Path) -> Arc<dyn Harness>;

/// A driver of this suite.
pub(crate) struct Driver {
    pub(crate) name: &'static str,
    /// What it can do with default options, without a broker.
    pub(crate) capabilities: fn() -> Capabilities,
    pub(crate) suite: fn() -> Suite,
    pub(crate) harness: fn() -> Arc<dyn Harness>,
    /// For those without a broker that outlive their process.
    pub(crate) shared: Option<Shared>,
    /// Prints the lines of its benchmark.
    pub(crate) bench: fn(),
    /// What that compares it with.
    pub(crate) beside: &'static str,
}

/// All drivers, in the order of the tables.
pub(crate) const DRIVERS: &[Driver] = &[
    Driver {
        name: jobs_memory::NAME,
        capabilities: || planned(&jobs_memory::constructor(), &[]),
        suite: || Suite::new().configuration("default", || Memory::new(&[])),
        harness: || Arc::new(Memory::new(&[])),
        shared: None,
        bench: bench::memory::run,
        beside: "`tokio::sync::mpsc`",
    },
    Driver {
        name: jobs_local::NAME,
        capabilities: || planned(&jobs_local::constructor(), &[("path", "jobs.db")]),
        suite: || Suite::new().configuration("full", || Local::new(&[])),
        harness: || Arc::new(Local::new(&[])),
        shared: Some(|path| Arc::new(Local::at(path, &[]))),
        bench: bench::local::run,
        beside: "a plain file to which the same bytes are appended, one sync for all that wait",
    },
    Driver {
        name: jobs_amqp::NAME,
        capabilities: || planned(&jobs_amqp::constructor(), &[("queue", "jobs")]),
        suite: amqp::suite,
        harness: || Arc::new(Amqp::quorum(&Arc::default())),
        shared: None,
        bench: bench::amqp::run,
        beside: "lapin: the same persistent, mandatory, confirmed messages, ordered multiple acks",
    },
    Driver {
        name: jobs_beanstalk::NAME,
        capabilities: || planned(&jobs_beanstalk::constructor(), &[]),
        suite: beanstalk::suite,
        harness: || Arc::new(Beanstalk::binlog(&Arc::new(Servers::new(Mode::Synced)))),
        shared: None,
        bench: bench::beanstalk::run,
        beside: "beanstalkc in one plain thread for each connection",
    },
    Driver {
        name: jobs_kafka::NAME,
        capabilities: || {
            planned(
                &jobs_kafka::constructor(),
                &[("brokers", "127.0.0.1:9092"), ("topics", "jobs")],
            )
        },
        suite: kafka::suite,
        harness: || Arc::new(Kafka::one(&Arc::default())),
        shared: None,
        bench: bench::kafka::run,
        beside: "rdkafka: an idempotent producer; a consumer that copies payloads and stores offsets",
    },
    Driver {
        name: jobs_sqs::NAME,
        capabilities: || planned(&jobs_sqs::constructor(), &[("region", "us-east-1")]),
        suite: sqs::suite,
        harness: || Arc::new(Sqs::standard(&Arc::default())),
        shared: None,
        bench: bench::sqs::run,
        beside: "aws-sdk-sqs with batches made by hand",
    },
];

fn planned(constructor: &dyn jobs_core::Constructor, required: &[(&str, &str)]) -> Capabilities {
    let pipeline = Pipeline::new("capabilities", constructor.name());
    let with =
        |pipeline: Pipeline, (name, value): &(&str, &str)| pipeline.with_option(*name, *value);
    let plan =
        constructor.plan(&jobs_core::Options::default(), required.iter().fold(pipeline, with));
    plan.unwrap_or_else(|problems| panic!("{problems:?}")).capabilities()
}

/// The driver of that name, or all of them.
///
/// # Errors
/// A message that lists the names, if there is none.
pub(crate) fn select(name: &str) -> Result<Vec<&'static Driver>, String> {
    let selected: Vec<_> =
        DRIVERS.iter().filter(|driver| name == "all" || driver.name == name).collect();
    if selected.is_empty() {
        let names: Vec<_> = DRIVERS.iter().map(|driver| driver.name).collect();
        return Err(format!("no driver `{name}`; expected `all` or one of {names:?}"));
    }
    Ok(selected)
}
