//! The beanstalkd driver on beanstalkd under the conformance kit.

use std::process::ExitCode;

fn main() -> ExitCode {
    integration_tests::beanstalk::suite().run()
}
