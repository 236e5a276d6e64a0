//! The SQS driver on a queue of the real service, if `JOBS_SQS_LIVE_QUEUE` names one.

use std::process::ExitCode;

fn main() -> ExitCode {
    match integration_tests::sqs::live_suite() {
        Some(suite) => suite.run(),
        None => {
            println!("ignored: JOBS_SQS_LIVE_QUEUE is not set");
            ExitCode::SUCCESS
        }
    }
}
