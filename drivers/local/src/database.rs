//! An open file, shared by the pipelines on it.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use jobs_core::{ErrorKind, Result};
use tokio::sync::oneshot;

use crate::config::FileOptions;
use crate::error::{Fault, timed_out};
use crate::inbox::Inbox;
use crate::open::Opened;
use crate::writer::Writer;

/// The writer thread of a file. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) options: FileOptions,
    thread: Option<JoinHandle<()>>,
    ended: Option<oneshot::Receiver<()>>,
}

impl Database {
    /// Starts the writer of a file.
    pub(crate) fn start(opened: Opened, patience: Duration) -> Result<Self, Fault> {
        let inbox = Arc::new(Inbox::new(Arc::clone(&opened.owner)));
        let options = opened.options;
        let (end, ended) = oneshot::channel();
        let writer = Writer::new(opened, Arc::clone(&inbox), patience);
        let closing = Closing(Arc::clone(&inbox));
        let thread = std::thread::Builder::new().name("jobs-local".into()).spawn(move || {
            writer.run();
            drop(closing);
            drop(end);
        });
        let thread = thread.map_err(|error| {
            Fault::new(ErrorKind::Broker, format!("the thread of the file: {error}"))
        })?;
        Ok(Self { inbox, options, thread: Some(thread), ended: Some(ended) })
    }

    /// Closes the file, and waits until nothing of it is left.
    ///
    /// # Cancel safety
    /// Cancel safe: called again, it goes on.
    pub(crate) async fn close(&mut self, limit: Duration) -> Result<()> {
        self.inbox.close();
        if let Some(ended) = &mut self.ended {
            // It ends by being dropped.
            let _ = tokio::time::timeout(limit, ended).await.map_err(|_| timed_out("stop"))?;
        }
        self.ended = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing left to do but to return.
            let _ = thread.join();
        }
        Ok(())
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

/// Nobody waits for a writer that has ended, whatever ended it.
struct Closing(Arc<Inbox>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
        drop(self.0.take_writes());
        drop(self.0.take_calls());
    }
}
