//! The Kafka driver on Kafka under the conformance kit.

use std::process::ExitCode;

use integration_tests::kafka;

fn main() -> ExitCode {
    kafka::victim().unwrap_or_else(|| kafka::suite().run())
}
