//! Threads that failed attempts to connect left behind.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use jobs_core::Result;
use tokio::time::sleep;

use crate::config::Address;
use crate::error::timed_out;
use crate::pool::{Crew, lock};

/// Crews of attempts to connect that failed. Their threads may wait for a silent server.
#[derive(Default)]
pub(crate) struct Strays(Mutex<Vec<(Address, Weak<Crew>)>>);

impl Strays {
    pub(crate) fn add(&self, address: &Address, crew: &Arc<Crew>) {
        lock(&self.0).push((address.clone(), Arc::downgrade(crew)));
    }

    /// Refuses another attempt as long as so many threads wait for that server.
    pub(crate) async fn admit(
        &self,
        address: &Address,
        most: usize,
        deadline: Instant,
    ) -> Result<()> {
        /// A thread whose server is not silent ends in a moment.
        const MOMENT: Duration = Duration::from_millis(10);
        loop {
            let waiting = self.waiting(address);
            if waiting < most {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let context = format!("{address} does not answer: {waiting} threads wait for it");
                return Err(timed_out("connect").with_context(context));
            }
            sleep(MOMENT).await;
        }
    }

    fn waiting(&self, address: &Address) -> usize {
        let mut strays = lock(&self.0);
        strays.retain(|(_, crew)| crew.strong_count() > 0);
        // Each thread keeps its crew, and nobody else does.
        let threads = |(other, crew): &(Address, Weak<Crew>)| match other == address {
            true => crew.strong_count(),
            false => 0,
        };
        strays.iter().map(threads).sum()
    }
}
