//! The AMQP driver on RabbitMQ under the conformance kit.

use std::process::ExitCode;

fn main() -> ExitCode {
    integration_tests::amqp::suite().run()
}
