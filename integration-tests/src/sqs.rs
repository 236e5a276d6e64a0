//! The SQS driver on ElasticMQ and on moto.

mod durable;
mod harness;

use std::num::NonZeroUsize;
use std::sync::Arc;

use jobs_kit::{Case, CaseResult, Fixture, Suite};

use crate::elasticmq::Servers;

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
    let suite = add(suite, "standard", Sqs::standard, &[durable::cases]);
    let suite = add(suite, "fifo", Sqs::fifo, &[]);
    let suite = add(suite, "prefetch_1", Sqs::prefetch_1, &[]);
    let moto = Arc::new(OnceMoto::default());
    suite.configuration("moto", move || Sqs::moto(&moto))
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
