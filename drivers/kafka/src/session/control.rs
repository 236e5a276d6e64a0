//! How a session is told what to do.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::hub::{Hub, lock};
use crate::lease::Lease;

/// How a session is told what to do, and tells what it has done.
#[derive(Debug)]
pub(crate) struct Control {
    pub(super) paused: AtomicBool,
    /// When it has to have ended, once it was told to.
    deadline: Mutex<Option<Instant>>,
    stopping: AtomicBool,
    pub(super) asked: AtomicU64,
    pub(super) seen: watch::Sender<u64>,
    pub(super) ended: watch::Sender<bool>,
    pub(crate) leases: Arc<Mutex<Vec<Arc<Lease>>>>,
}

impl Control {
    pub(crate) fn new() -> Self {
        Self {
            paused: AtomicBool::new(false),
            deadline: Mutex::default(),
            stopping: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            seen: watch::Sender::new(0),
            ended: watch::Sender::new(false),
            leases: Arc::default(),
        }
    }

    /// Fetching stops, or goes on.
    pub(crate) fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
    }

    /// Waits until the session has seen what it was told. False if it has ended or is too busy.
    pub(crate) async fn obeyed(&self, hub: &Hub, limit: Duration) -> bool {
        let turn = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        hub.session.wake();
        let mut seen = self.seen.subscribe();
        let seen = seen.wait_for(|seen| *seen >= turn);
        tokio::time::timeout(limit, seen).await.is_ok_and(|seen| seen.is_ok())
    }

    pub(crate) fn stop(&self, hub: &Hub, deadline: Instant) {
        lock(&self.deadline).get_or_insert(deadline);
        self.stopping.store(true, Ordering::Release);
        hub.session.wake();
    }

    pub(crate) async fn ended(&self, deadline: Instant) -> bool {
        let mut ended = self.ended.subscribe();
        let ended = ended.wait_for(|ended| *ended);
        tokio::time::timeout_at(deadline.into(), ended).await.is_ok_and(|ended| ended.is_ok())
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn until(&self) -> Instant {
        lock(&self.deadline).unwrap_or_else(Instant::now)
    }
}
