//! Consuming, as the driver sees it: a session in its thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jobs_core::{Error, ErrorKind, Inlet, Result};

use crate::hub::Hub;
use crate::lease::Lease;
use crate::session::{Control, Session};

/// How long a pause waits for a session that is busy with its group.
const PAUSE: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub(crate) struct Consumer {
    hub: Arc<Hub>,
    control: Arc<Control>,
    inlet: Arc<Inlet>,
    ready: AtomicBool,
}

impl Consumer {
    /// Subscribes, and starts to fetch.
    pub(crate) fn start(hub: &Arc<Hub>, inlet: Inlet) -> Result<Self> {
        inlet.grant(hub.config.prefetch.get());
        let inlet = Arc::new(inlet);
        let control = Arc::new(Control::new());
        let mut session = Session::new(hub, &control, &inlet);
        let consumer = session.subscribe()?;
        let thread = std::thread::Builder::new().name("kafka-session".into());
        thread
            .spawn(move || session.run(consumer))
            .map_err(|failure| Error::new(ErrorKind::InvalidState, "run").with_source(failure))?;
        Ok(Self { hub: Arc::clone(hub), control, inlet, ready: AtomicBool::new(true) })
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    pub(crate) fn active(&self) -> usize {
        self.inlet.active()
    }

    /// The partitions that are assigned.
    pub(crate) fn leases(&self) -> Vec<Arc<Lease>> {
        crate::hub::lock(&self.control.leases).clone()
    }

    pub(crate) async fn pause(&self) -> Result<()> {
        self.inlet.hold();
        self.control.pause(true);
        let obeyed = self.control.obeyed(&self.hub, PAUSE).await;
        let given_back = self.inlet.hold_and_release().await;
        self.ready.store(false, Ordering::Release);
        match obeyed {
            true => given_back,
            false => Err(crate::error::timed_out("pause")),
        }
    }

    pub(crate) fn resume(&self) {
        self.control.pause(false);
        self.inlet.open();
        self.ready.store(true, Ordering::Release);
        self.hub.session.wake();
    }

    /// Ends the session, within the time given if the broker answers.
    pub(crate) async fn stop(&self, deadline: Instant) -> Result<()> {
        self.ready.store(false, Ordering::Release);
        self.inlet.hold();
        self.control.stop(&self.hub, deadline);
        match self.control.ended(deadline).await {
            true => Ok(()),
            false => Err(crate::error::timed_out("stop")),
        }
    }
}

/// Nobody waits for the end: it may take a moment.
impl Drop for Consumer {
    fn drop(&mut self) {
        self.control.stop(&self.hub, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jobs_core::{Message, Pipeline, Queue, Registry};
    use rdkafka::mocking::MockCluster;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_that_is_never_answered_does_not_hold_up_a_stop() {
        let cluster = MockCluster::new(1).expect("a cluster");
        cluster.create_topic("orders", 1, 1).expect("a topic");
        let mut registry = Registry::new();
        registry.register(crate::constructor()).expect("the only driver");
        let pipeline = Pipeline::new("p", crate::NAME)
            .with_option("brokers", vec![cluster.bootstrap_servers()])
            .with_option("topics", vec!["orders"]);
        let driver = registry.connect(pipeline.clone()).await.expect("it answers");
        let queue = Queue::new();
        driver.run(queue.open_lane(&pipeline)).await.expect("runs once");
        driver.push(Message::new("a", "")).await.expect("stored");
        let job = queue.pop().await.expect("the queue is open");

        cluster.broker_round_trip_time(1, Duration::from_secs(60)).expect("silent");
        job.ack().await.expect("the lease holds");
        driver.stop().await.expect("in time");
    }
}
