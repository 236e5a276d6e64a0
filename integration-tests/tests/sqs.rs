//! The SQS driver on ElasticMQ and moto under the conformance kit.

use std::process::ExitCode;

fn main() -> ExitCode {
    integration_tests::sqs::suite().run()
}
