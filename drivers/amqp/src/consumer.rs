//! Consuming: one task per pipeline owns the channel, delivers, and writes settlements in order.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jobs_core::{Backoff, Error, ErrorKind, Inlet, Result};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::error::closed;
use crate::session::{Context, End, Session};

/// A session that lasts less was over at once. Those that are cut every few seconds are not: they
/// get work done, and are opened anew without a wait.
const BRIEF: Duration = Duration::from_secs(2);

/// The consuming side of a pipeline.
pub(crate) struct Consumer {
    inlet: Arc<Inlet>,
    commands: mpsc::Sender<Command>,
    task: tokio::sync::Mutex<Option<AbortOnDropHandle<()>>>,
}

/// What the task is asked to do.
pub(crate) enum Command {
    /// Stop fetching, and give back what was fetched and not delivered. Again: nothing.
    Pause(oneshot::Sender<()>),
    /// Fetch again and open the lane; while running only the latter, should a pause have held it
    /// and been dropped.
    Resume(oneshot::Sender<Result<()>>),
    /// Write what is to be settled and end.
    Stop,
}

impl Consumer {
    /// Subscribes, and starts the task.
    pub(crate) async fn run(context: Context) -> Result<Self> {
        let inlet = Arc::clone(&context.inlet);
        let (commands, receiver) = mpsc::channel(8);
        let mut worker = Worker { context, commands: receiver, running: true };
        let first = worker.context.open().await?;
        let task = AbortOnDropHandle::new(tokio::spawn(async move { worker.work(first).await }));
        Ok(Self { inlet, commands, task: tokio::sync::Mutex::new(Some(task)) })
    }

    pub(crate) fn inlet(&self) -> &Inlet {
        &self.inlet
    }

    /// Returns when nothing more will be delivered and what nobody popped was given back.
    pub(crate) async fn pause(&self) -> Result<()> {
        self.inlet.hold();
        let (done, answer) = oneshot::channel();
        self.commands.send(Command::Pause(done)).await.map_err(|_| closed("pause"))?;
        answer.await.map_err(|_| closed("pause"))?;
        self.inlet.hold_and_release().await
    }

    /// Returns when subscribed, or at once if the broker is away.
    pub(crate) async fn resume(&self) -> Result<()> {
        let (done, answer) = oneshot::channel();
        self.commands.send(Command::Resume(done)).await.map_err(|_| closed("resume"))?;
        answer.await.map_err(|_| closed("resume"))?
    }

    /// Pauses, writes the last settlements and ends; gives up at the deadline. Jobs that are still
    /// with workers go back to the queue.
    pub(crate) async fn stop(&self, deadline: Instant) -> Result<()> {
        let mut slot = self.task.lock().await;
        let Some(task) = slot.as_mut() else { return Ok(()) };
        let finished = timeout_at(deadline, async {
            let paused = self.pause().await;
            // Refused if the task has ended already.
            let _ = self.commands.send(Command::Stop).await;
            let _ = (&mut *task).await;
            paused
        });
        let answer = finished.await;
        if answer.is_err() {
            task.abort();
            let _ = task.await;
        }
        *slot = None;
        match answer.unwrap_or(Ok(())) {
            // What could not be given back to a broker that is away comes back by itself; and the
            // task of a stop that is called again may have ended.
            Err(error) if error.is_retryable() || error.kind() == ErrorKind::Closed => Ok(()),
            answer => answer,
        }
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("inlet", &self.inlet).finish_non_exhaustive()
    }
}

/// What the task owns.
struct Worker {
    context: Context,
    commands: mpsc::Receiver<Command>,
    /// False while paused.
    running: bool,
}

/// How often consuming was interrupted since a session lasted: what closes the connection may be
/// waiting in the queue.
#[derive(Default)]
struct Relapses(u32);

impl Relapses {
    /// How many there were before a session that lasted so long was interrupted. None is the usual
    /// case: the broker was restarted, and is asked at once.
    fn before(&mut self, lasted: Duration) -> u32 {
        if lasted >= BRIEF {
            self.0 = 0;
        }
        let before = self.0;
        self.0 = before.saturating_add(1);
        before
    }
}

impl Worker {
    /// Consumes from one channel after the other until stopped.
    async fn work(&mut self, first: Session) {
        let mut session = first;
        let mut relapses = Relapses::default();
        loop {
            let opened = Instant::now();
            match session.serve(&mut self.commands, &mut self.running).await {
                End::Stopped => return,
                End::Lost(error) => {
                    tracing::warn!(
                        job.pipeline = %self.context.inlet.pipeline(), %error, "consuming is interrupted"
                    );
                    self.context.health.met(&error);
                }
            }
            match self.reopen(relapses.before(opened.elapsed())).await {
                Some(opened) => session = opened,
                None => return,
            }
        }
    }

    /// Tries until it succeeds, as after so many failures; none if stopped meanwhile.
    async fn reopen(&mut self, mut failures: u32) -> Option<Session> {
        loop {
            let attempt = async {
                if !self.running {
                    // Nothing to consume: whoever resumes starts it.
                    return std::future::pending().await;
                }
                if failures > 0 {
                    sleep(Backoff::RECONNECT.delay(failures)).await;
                }
                self.context.open().await
            };
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::Pause(done)) => {
                        self.running = false;
                        let _ = done.send(());
                    }
                    Some(Command::Resume(done)) => {
                        if !self.running {
                            (self.running, failures) = (true, 0);
                        }
                        self.context.inlet.open();
                        let _ = done.send(Ok(()));
                    }
                    Some(Command::Stop) | None => return None,
                },
                opened = attempt => match opened {
                    Ok(session) => return Some(session),
                    Err(error) => {
                        failures += 1;
                        self.complain(&error, failures);
                    }
                },
            }
        }
    }

    fn complain(&self, error: &Error, failures: u32) {
        let pipeline = self.context.inlet.pipeline();
        tracing::warn!(job.pipeline = %pipeline, %error, failures, "cannot consume, trying again");
        self.context.health.met(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_that_last_are_opened_anew_at_once_and_others_after_a_wait() {
        let mut relapses = Relapses::default();
        let moment = Duration::from_millis(5);
        let before = [moment, moment, moment, BRIEF, moment, BRIEF, BRIEF, moment, moment];
        assert_eq!(before.map(|lasted| relapses.before(lasted)), [0, 1, 2, 0, 1, 0, 0, 1, 2]);
    }
}
