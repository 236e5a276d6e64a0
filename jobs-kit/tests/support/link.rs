//! The way to the broker, which can break. A connection is a number: the epoch.

use std::time::Duration;

use jobs_kit::Fault;
use tokio::sync::watch;
use tokio::time::timeout;

#[derive(Debug, Default)]
pub(crate) struct Link {
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    epoch: u64,
    fault: Option<Fault>,
}

impl Link {
    /// The connection there is now.
    pub(crate) fn epoch(&self) -> Option<u64> {
        let state = self.state.borrow();
        state.fault.is_none().then_some(state.epoch)
    }

    /// True if the broker holds connections open without a word.
    pub(crate) fn is_silent(&self) -> bool {
        self.state.borrow().fault == Some(Fault::Stall)
    }

    pub(crate) fn is(&self, epoch: u64) -> bool {
        self.epoch() == Some(epoch)
    }

    /// Waits for a connection.
    pub(crate) async fn up(&self) -> u64 {
        let mut states = self.state.subscribe();
        let up = states.wait_for(|state| state.fault.is_none()).await;
        up.expect("the sender is here").epoch
    }

    /// Waits for a connection, but not for ever.
    pub(crate) async fn up_within(&self, patience: Duration) -> Option<u64> {
        timeout(patience, self.up()).await.ok()
    }

    /// Waits until a connection is lost.
    pub(crate) async fn lost(&self, epoch: u64) {
        let mut states = self.state.subscribe();
        let lost = |state: &State| state.fault.is_some() || state.epoch != epoch;
        states.wait_for(lost).await.expect("the sender is here");
    }

    pub(crate) fn begin(&self, fault: Fault) {
        self.state.send_modify(|state| {
            state.epoch += 1;
            state.fault = Some(fault);
        });
    }

    pub(crate) fn end(&self) {
        self.state.send_modify(|state| state.fault = None);
    }
}
