//! The AMQP driver on RabbitMQ.

mod broken;
mod errors;
mod gone;
mod harness;
mod limits;
mod names;
mod tls;

use std::num::NonZeroUsize;
use std::sync::Arc;

use jobs_kit::{Case, CaseResult, Fixture, Suite};

use crate::rabbitmq::Brokers;

pub use harness::Amqp;

/// Cases that run at once: most of them wait for the broker.
const THREADS: usize = 16;

/// The kit's cases and the driver's own, in every configuration.
pub fn suite() -> Suite {
    let brokers = Arc::<Brokers>::default();
    let harness = |make: fn(&Arc<Brokers>) -> Amqp| {
        let brokers = Arc::clone(&brokers);
        move || make(&brokers)
    };
    let own = |cases: fn(&Arc<Brokers>) -> Vec<Case>| cases(&brokers);
    Suite::new()
        .threads(NonZeroUsize::new(THREADS).expect("not zero"))
        .configuration("classic", harness(Amqp::classic))
        .configuration("quorum", harness(Amqp::quorum))
        .configuration("max_priority", harness(Amqp::max_priority))
        .configuration("topic", harness(Amqp::topic))
        .configuration("prefetch_1", harness(Amqp::prefetch_1))
        .configuration("tls", harness(Amqp::tls))
        .only("tls", &["push::", "settle::ack_ends_the_job"])
        .cases("classic", own(errors::cases))
        .cases("classic", own(broken::cases))
        .cases("classic", own(gone::cases))
        .cases("classic", own(limits::cases))
        .cases("quorum", own(broken::cases))
        .cases("quorum", own(gone::cases))
        .cases("quorum", own(limits::cases))
        .cases("topic", own(gone::exchange_cases))
        .cases("tls", own(tls::cases))
}

/// A case that is given the brokers.
fn case<F: Future<Output = CaseResult> + 'static>(
    brokers: &Arc<Brokers>,
    name: &'static str,
    invariants: &'static [u8],
    proves: &'static str,
    run: impl Fn(Fixture, Arc<Brokers>) -> F + Send + Sync + 'static,
) -> Case {
    let brokers = Arc::clone(brokers);
    Case::new(name, invariants, proves, move |fx| run(fx, Arc::clone(&brokers)))
}
