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

use crate::rabbitmq::{Brokers, is_given};

pub use harness::Amqp;

type OwnCases = fn(&Arc<Brokers>) -> Vec<Case>;

/// Cases that run at once: most of them wait for the broker.
const THREADS: usize = 16;

/// The kit's cases and the driver's own, in every configuration.
pub fn suite() -> Suite {
    let shared = Brokers::default();
    let add = |suite: Suite, name, make: fn(&Arc<Brokers>) -> Amqp, own: &[OwnCases]| {
        let brokers = Arc::new(shared.sibling());
        let cases: Vec<_> = own.iter().flat_map(|cases| cases(&brokers)).collect();
        suite.configuration(name, move || make(&brokers)).cases(name, cases)
    };
    let suite = Suite::new().threads(NonZeroUsize::new(THREADS).expect("not zero"));
    let own: &[OwnCases] = &[errors::cases, broken::cases, gone::cases, limits::cases];
    let suite = add(suite, "classic", Amqp::classic, own);
    let suite = add(suite, "quorum", Amqp::quorum, &own[1..]);
    let suite = add(suite, "max_priority", Amqp::max_priority, &[]);
    let suite = add(suite, "topic", Amqp::topic, &[gone::exchange_cases]);
    let suite = add(suite, "prefetch_1", Amqp::prefetch_1, &[]);
    if is_given() {
        // That broker has no certificate that the tests made.
        return suite;
    }
    let suite = add(suite, "tls", Amqp::tls, &[tls::cases]);
    suite.only("tls", &["push::", "settle::ack_ends_the_job"])
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
