//! What the kit needs to know about a broker.

use std::sync::Arc;
use std::time::Duration;

use jobs_core::{Error, ErrorKind, Options, Pipeline, Registry, Result, async_trait};

use crate::Fault;

/// How to make pipelines of one configuration on one broker, and how to disturb it.
///
/// The kit makes a harness for each case, within that case's runtime: a broker that takes long to
/// start is started by the first and shared by the others.
#[async_trait]
pub trait Harness: Send + Sync + 'static {
    /// The registry with the driver under test. All pipelines of a case come from it.
    fn registry(&self) -> &Registry;

    /// The driver's root section. Default: empty.
    fn shared_options(&self) -> Options {
        Options::default()
    }

    /// The configuration of a pipeline on an empty queue. `name` is used by nobody else and is fit
    /// for the names of queues: at most 40 letters, digits and dashes.
    ///
    /// Connecting the same configuration twice must make two consumers of one queue. Any prefetch
    /// will do: a case that holds several jobs at once sets its own.
    async fn pipeline(&self, name: &str) -> Result<Pipeline>;

    /// Removes what a pipeline left at the broker. Called when its drivers have stopped. Default:
    /// nothing.
    async fn clean_up(&self, _pipeline: &Pipeline) -> Result<()> {
        Ok(())
    }

    /// The configuration of the connection with this number, counted from 0 in each case, to the queue
    /// of a pipeline: for options that no two consumers of a queue may have in common. Default: as it
    /// is.
    fn connection(&self, pipeline: Pipeline, _number: usize) -> Pipeline {
        pipeline
    }

    /// Limits the jobs in the process. Default: the option `prefetch`.
    fn with_prefetch(&self, pipeline: Pipeline, prefetch: u32) -> Pipeline {
        pipeline.with_option("prefetch", prefetch)
    }

    /// Limits how long a push waits for its broker. Default: the option `push_timeout`, as text.
    /// Needed for faults only.
    fn with_push_timeout(&self, pipeline: Pipeline, push_timeout: Duration) -> Pipeline {
        pipeline.with_option("push_timeout", format!("{}ms", push_timeout.as_millis()))
    }

    /// Limits how long a worker may hold a job without a sign of life. Default: not available.
    fn with_max_lease(&self, _pipeline: Pipeline, _max_lease: Duration) -> Option<Pipeline> {
        None
    }

    /// Limits the jobs in the queue, and how long a push waits for room. Default: not available.
    fn with_capacity(
        &self,
        _pipeline: Pipeline,
        _capacity: u32,
        _push_timeout: Duration,
    ) -> Option<Pipeline> {
        None
    }

    /// True if one consumer gets jobs of equal priority in the order they were stored. Default:
    /// true.
    fn keeps_order(&self) -> bool {
        true
    }

    /// True if a requeue may change the headers of a job. Where jobs are retried in place to keep their
    /// order it may not, and must be refused. Default: true.
    fn changes_headers(&self) -> bool {
        true
    }

    /// The lease that cases ask for: the shortest the configuration can have. Default: 1 s.
    fn max_lease(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// How long nothing must arrive before the kit believes that nothing will: longer than the
    /// broker usually needs to deliver a job. Default: 100 ms.
    fn quiet(&self) -> Duration {
        Duration::from_millis(100)
    }

    /// How long the kit waits for what must happen. Default: 30 s.
    fn deadline(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// The faults that [`begin`](Self::begin) can cause. Default: none.
    fn faults(&self) -> &[Fault] {
        &[]
    }

    /// This configuration on a broker of its own, for cases that cause faults. They run one after
    /// another, beside the other cases and those of other configurations.
    ///
    /// Default: there is no second broker, and while one of them runs no other case does.
    fn apart(&self) -> Option<Arc<dyn Harness>> {
        None
    }

    /// Returns when what pipelines have declared so far outlives a [`Fault::Kill`]: some brokers write
    /// that down late, and lose confirmed jobs with it. Default: at once.
    async fn sync(&self) -> Result<()> {
        Ok(())
    }

    /// Begins a fault, and returns when it has happened: connections are gone, or nothing more
    /// crosses them.
    async fn begin(&self, _fault: Fault) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "begin"))
    }

    /// Ends a fault, and returns when the broker can be reached again. Ending one that was not
    /// begun, or only half, does what is left to do. The kit ends what a case leaves behind.
    async fn end(&self, _fault: Fault) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "end"))
    }

    /// How long a stall lasts: longer than the driver takes to notice that its broker is silent.
    /// Default: 1 s.
    fn silence(&self) -> Duration {
        Duration::from_secs(1)
    }
}
