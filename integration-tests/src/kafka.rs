//! The Kafka driver on Kafka.

mod crash;
mod dead;
mod delays;
mod errors;
mod foreign;
mod gone;
mod harness;
mod offsets;
mod order;
mod places;
mod rebalance;
mod stuck;

use std::num::NonZeroUsize;
use std::sync::Arc;

use jobs_kit::{Case, CaseResult, Fixture, Suite};

use crate::kafkad::{Brokers, Operator, is_given};

pub use crash::victim;
pub use harness::Kafka;

type OwnCases = fn(&Arc<Brokers>) -> Vec<Case>;

/// Cases that run at once: most of them wait for the broker.
const THREADS: usize = 16;
/// A partition is one member's at a time, also while that is paused and holds jobs of it.
const PAUSED: &str = "lifecycle::pause_gives_back_what_nobody_popped";
const PAUSED_REASON: &str = "a paused member of a group keeps its partitions, and nobody else reads \
                             them: https://kafka.apache.org/41/design/design/#the-consumer";

/// The kit's cases and the driver's own, in every configuration.
pub fn suite() -> Suite {
    let shared = Brokers::default();
    let add = |suite: Suite, name, make: fn(&Arc<Brokers>) -> Kafka, own: &[OwnCases]| {
        let brokers = Arc::new(shared.sibling());
        let cases: Vec<_> = own.iter().flat_map(|cases| cases(&brokers)).collect();
        let suite = suite.configuration(name, move || make(&brokers)).cases(name, cases);
        if name == "tls" { suite } else { suite.known_gap(name, PAUSED, PAUSED_REASON) }
    };
    let suite = Suite::new().threads(NonZeroUsize::new(THREADS).expect("not zero"));
    let one: &[OwnCases] = &[
        crash::cases,
        delays::cases,
        errors::cases,
        foreign::cases,
        gone::cases,
        offsets::cases,
        rebalance::one_partition,
    ];
    let six: &[OwnCases] = &[dead::cases, places::cases, rebalance::cases, stuck::cases];
    let suite = add(suite, "one", Kafka::one, one);
    let suite = add(suite, "six", Kafka::six, six);
    let suite = add(suite, "key", Kafka::key, &[order::cases]);
    let suite = add(suite, "prefetch_1", Kafka::prefetch_1, &[rebalance::patient]);
    let suite = add(suite, "static", Kafka::with_instances, &[]);
    if is_given() {
        // That broker has no certificate that the tests made.
        return suite;
    }
    let suite = add(suite, "tls", Kafka::tls, &[errors::tls]);
    suite.only("tls", &["push::", "settle::ack_ends_the_job"])
}

/// Deletes a topic and waits until the broker knows it no more: until then it takes records for it.
async fn delete(fx: &Fixture, operator: &Operator, topic: &str) -> CaseResult {
    operator.delete_topics(vec![topic.to_owned()]).await?;
    fx.eventually("it is gone", async || match operator.topics(topic).await {
        Ok(found) if found.is_empty() => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await?;
    Ok(())
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
