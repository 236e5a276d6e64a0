//! Configurations as people have them who come from RoadRunner. Each loads, or every line that cannot is
//! named with the reason.

#![cfg(all(feature = "amqp", feature = "beanstalk", feature = "kafka", feature = "sqs"))]
#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

use std::path::{Path, PathBuf};

use jobs::{Config, Error};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/roadrunner").join(name)
}

fn problems(name: &str) -> Vec<String> {
    let checked = Config::from_file(file(name)).unwrap().check();
    let error = checked.err();
    error.iter().flat_map(Error::problems).map(ToString::to_string).collect()
}

#[test]
fn these_load() {
    for name in [
        "amqp.yaml",
        "amqp-nested.yaml",
        "amqp-tls.yaml",
        "beanstalk.yaml",
        "everything.yaml",
        "kafka.yaml",
        "kafka-partitions.yaml",
        "kafka-secured.yaml",
        "sqs.yaml",
        "sqs-fifo.yaml",
    ] {
        assert_eq!(problems(name), [""; 0], "{name}");
    }
}

#[test]
fn these_say_what_is_refused_and_why() {
    for (name, expected) in [
        (
            "kafka-refused.yaml",
            &[
                "`kafka.sasl.mechanism`: expected `plain`, `SCRAM-SHA-256` or `SCRAM-SHA-512`: the client cannot",
                "`jobs.pipelines.lossy.config.consumer_options.consumer_offset.type`: expected `AtStart` or",
                "`jobs.pipelines.lossy.config.producer_options.required_acks`: expected `AllISRAck`: a push",
                "`jobs.pipelines.lossy.config.producer_options.disable_idempotent`: expected `false`: what",
            ][..],
        ),
        (
            "beanstalk-refused.yaml",
            &[
                "`beanstalk.addr`: expected `tcp://host:port`: the client speaks no unix sockets",
                "`jobs.pipelines.spinning.config.reserve_timeout`: ",
            ],
        ),
        (
            "other-servers.yaml",
            &[
                "`include`: not supported: write the pipelines of the included files here",
                "`envfile`: not supported: set the variables in the environment",
                "`jobs.pipelines.archive.driver`: unknown driver `boltdb`, expected one of `amqp`",
                "`jobs.pipelines.telemetry.driver`: unknown driver `nats`, expected one of `amqp`",
            ],
        ),
    ] {
        let found = problems(name);
        for expected in expected {
            let count = found.iter().filter(|problem| problem.starts_with(expected)).count();
            assert_eq!(count, 1, "{name}: {expected}\n{found:#?}");
        }
        assert_eq!(found.len(), expected.len(), "{name}: {found:#?}");
    }
}
