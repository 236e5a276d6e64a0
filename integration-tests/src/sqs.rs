//! The SQS driver on ElasticMQ and on moto.

mod durable;
mod errors;
mod faults;
mod fifo;
mod foreign;
mod harness;
mod hops;
mod limits;
mod live;
mod permissions;
mod shown;

use std::num::NonZeroUsize;
use std::sync::Arc;

use jobs_core::Pipeline;
use jobs_kit::{Case, CaseError, CaseResult, Fixture, Suite, TestPipeline};

use crate::elasticmq::Servers;
use crate::gate::Gate;

pub use harness::{OnceMoto, Sqs};

type OwnCases = fn(&Arc<Servers>) -> Vec<Case>;

/// Cases that run at once: most of them wait for the server.
const THREADS: usize = 16;

/// The kit's cases and the driver's own, in every configuration.
pub fn suite() -> Suite {
    let shared = Servers::default();
    let add = |suite: Suite, name, make: fn(&Arc<Servers>) -> Sqs, own: &[OwnCases]| {
        let servers = Arc::new(shared.sibling());
        let cases: Vec<_> = own.iter().flat_map(|cases| cases(&servers)).collect();
        suite.configuration(name, move || make(&servers)).cases(name, cases)
    };
    let suite = Suite::new().threads(NonZeroUsize::new(THREADS).expect("not zero"));
    let standard: &[OwnCases] = &[
        durable::cases,
        errors::cases,
        faults::cases,
        faults::standard_cases,
        foreign::cases,
        hops::cases,
        limits::cases,
        permissions::cases,
        shown::cases,
    ];
    let suite = add(suite, "standard", Sqs::standard, standard);
    let suite = add(suite, "fifo", Sqs::fifo, &[faults::cases, fifo::cases, limits::cases]);
    let suite = add(suite, "prefetch_1", Sqs::prefetch_1, &[]);
    let moto = Arc::new(OnceMoto::default());
    suite.configuration("moto", move || Sqs::moto(&moto)).only("moto", ON_MOTO)
}

/// The kit's cases that depend on what a service does, and not on how fast it is: moto answers some tens of
/// requests a second, which is too slow for many jobs, and for leases of a second.
const ON_MOTO: &[&str] = &[
    "abandon::",
    "attempts::",
    "auto_ack::",
    "batch::",
    "delay::",
    "errors::",
    "push::",
    "settle::",
    "state::",
];

/// The kit's cases on the queue of the real service that the environment names, if it does. What
/// needs many jobs is left out.
pub fn live_suite() -> Option<Suite> {
    let cases = [ON_MOTO, &["leases::", "lifecycle::", "ordering::"]].concat();
    let queue = live::queue()?;
    let suite = Suite::new().threads(NonZeroUsize::MIN);
    let suite = suite.configuration("live", move || live::Live::new(&queue));
    Some(suite.only("live", &cases))
}

/// A case that is given the servers.
fn case<F: Future<Output = CaseResult> + 'static>(
    servers: &Arc<Servers>,
    name: &'static str,
    invariants: &'static [u8],
    proves: &'static str,
    run: impl Fn(Fixture, Arc<Servers>) -> F + Send + Sync + 'static,
) -> Case {
    let servers = Arc::clone(servers);
    Case::new(name, invariants, proves, move |fx| run(fx, Arc::clone(&servers)))
}

/// A gate before the shared server, and the configuration of a pipeline through it that notices
/// soon what goes wrong.
async fn gated(fx: &Fixture, servers: &Servers) -> Result<(Gate, Pipeline), CaseError> {
    let gate = Gate::before(servers.shared().await?.address())?;
    let config = fx
        .configure_prefetch(10)
        .await?
        .with_option("endpoint", gate.url())
        .with_option("operation_timeout", "2s")
        .with_option("push_timeout", "4s")
        .with_option("visibility_timeout", 5);
    Ok((gate, config))
}

/// Demands that nothing is left, and stops while the gate is still there.
async fn finish(pipeline: &TestPipeline) -> CaseResult {
    pipeline.expect_empty().await?;
    pipeline.stop().await?;
    Ok(())
}
