//! The beanstalkd driver on beanstalkd.

mod broken;
mod foreign;
mod harness;
mod limits;
mod names;
mod shown;

use std::num::NonZeroUsize;
use std::sync::Arc;

use jobs_kit::{Case, CaseError, CaseResult, Fixture, Suite};

use crate::beanstalkd::{Mode, Servers, is_given};

pub use harness::Beanstalk;

type OwnCases = fn(&Arc<Servers>) -> Vec<Case>;

/// Cases that run at once: most of them wait for the server.
const THREADS: usize = 16;

/// The kit's cases and the driver's own, in every configuration.
pub fn suite() -> Suite {
    let add = |suite: Suite, name, mode, make: fn(&Arc<Servers>) -> Beanstalk, own: &[OwnCases]| {
        let servers = Arc::new(Servers::new(mode));
        let cases: Vec<_> = own.iter().flat_map(|cases| cases(&servers)).collect();
        suite.configuration(name, move || make(&servers)).cases(name, cases)
    };
    let suite = Suite::new().threads(NonZeroUsize::new(THREADS).expect("not zero"));
    let own: &[OwnCases] =
        &[broken::cases, foreign::cases, limits::cases, names::cases, shown::cases];
    let suite = add(suite, "memory", Mode::Memory, Beanstalk::memory, &[]);
    let suite = add(suite, "binlog", Mode::Synced, Beanstalk::binlog, own);
    let suite = add(suite, "prefetch_1", Mode::Memory, Beanstalk::prefetch_1, &[]);
    add(suite, "one_connection", Mode::Memory, Beanstalk::one_connection, &[])
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

/// Ignores a case that needs a server of its own.
fn ours() -> CaseResult {
    match is_given() {
        true => Err(CaseError::ignored("the server is somebody else's")),
        false => Ok(()),
    }
}
