//! A driver that fails as told. It delivers inside `push` and keeps nothing.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jobs::{
    Capabilities, Constructor, Driver, Error, ErrorKind, Message, Options, Outcome, Pipeline, Plan,
    Problem, Result, State,
};
use jobs_core::{
    Acknowledger, Delivery, Extending, Inlet, Refusal, Settler, Settling, Token, Unsettled,
    async_trait,
};

/// What the driver does, and what it saw. Shared by all its pipelines.
#[derive(Default)]
pub struct Script {
    pub fails: Mutex<Vec<&'static str>>,
    pub hangs: Mutex<Vec<&'static str>>,
    pub capabilities: Mutex<Capabilities>,
    /// Answers to the next settlements, then `Ok`.
    pub settling: Mutex<VecDeque<Answer>>,
    pub settled: Mutex<Vec<Outcome>>,
    pub abandoned: Mutex<usize>,
    pub calls: Mutex<Vec<String>>,
    waiting: Mutex<Vec<Settler>>,
}

pub enum Answer {
    Transient,
    LeaseLost,
    Unsupported,
    Never,
}

#[derive(Clone, Default)]
pub struct Scripted(pub Arc<Script>);

impl Script {
    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    async fn call(&self, operation: &'static str, pipeline: &str) -> Result<()> {
        self.calls.lock().unwrap().push(format!("{operation} {pipeline}"));
        if self.hangs.lock().unwrap().contains(&operation) {
            pending::<()>().await;
        }
        match self.fails.lock().unwrap().contains(&operation) {
            true => Err(Error::new(ErrorKind::Broker, operation).with_driver("scripted")),
            false => Ok(()),
        }
    }
}

impl Constructor for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn plan(&self, _: &Options, pipeline: Pipeline) -> Result<Box<dyn Plan>, Vec<Problem>> {
        Ok(Box::new(Planned { script: Arc::clone(&self.0), pipeline }))
    }
}

struct Planned {
    script: Arc<Script>,
    pipeline: Pipeline,
}

#[async_trait]
impl Plan for Planned {
    fn capabilities(&self) -> Capabilities {
        self.script.capabilities.lock().unwrap().clone()
    }

    async fn connect(self: Box<Self>) -> Result<Arc<dyn Driver>> {
        self.script.call("connect", self.pipeline.name()).await?;
        let (script, name) = (self.script, self.pipeline.name().to_owned());
        Ok(Arc::new(ScriptedDriver { script, name, inlet: Mutex::default() }))
    }
}

struct ScriptedDriver {
    script: Arc<Script>,
    name: String,
    inlet: Mutex<Option<Arc<Inlet>>>,
}

impl std::fmt::Debug for ScriptedDriver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ScriptedDriver")
    }
}

#[async_trait]
impl Driver for ScriptedDriver {
    fn capabilities(&self) -> Capabilities {
        self.script.capabilities.lock().unwrap().clone()
    }

    async fn push(&self, message: Message) -> Result<()> {
        self.script.call("push", &self.name).await?;
        let inlet = self.inlet.lock().unwrap().clone().expect("consuming");
        let acknowledger = Arc::clone(&self.script) as Arc<dyn Acknowledger>;
        let (attempt, token) = (message.priority().map_or(1, |p| p as u32), 0);
        let credit = inlet.credit().await;
        inlet.deliver(credit, Delivery::new(message, token, acknowledger).with_attempt(attempt));
        Ok(())
    }

    async fn push_batch(&self, messages: Vec<Message>) -> Vec<Result<()>> {
        futures::future::join_all(messages.into_iter().map(|message| self.push(message))).await
    }

    async fn run(&self, inlet: Inlet) -> Result<()> {
        self.script.call("run", &self.name).await?;
        inlet.grant(1000);
        *self.inlet.lock().unwrap() = Some(Arc::new(inlet));
        Ok(())
    }

    async fn pause(&self) -> Result<()> {
        self.script.call("pause", &self.name).await
    }

    async fn resume(&self) -> Result<()> {
        self.script.call("resume", &self.name).await
    }

    async fn stop(&self) -> Result<()> {
        self.inlet.lock().unwrap().take();
        self.script.call("stop", &self.name).await
    }

    async fn state(&self) -> Result<State> {
        self.script.call("state", &self.name).await?;
        Ok(State::new(self.name.as_str(), "scripted"))
    }
}

impl Acknowledger for Script {
    fn settle(&self, job: Unsettled, outcome: Outcome) -> Settling {
        self.settled.lock().unwrap().push(outcome);
        let refused = |kind| Error::new(kind, "settle").with_driver("scripted");
        let error = match self.settling.lock().unwrap().pop_front() {
            None => return Settling::done(),
            Some(Answer::Never) => {
                let (settler, settling) = Settling::later();
                self.waiting.lock().unwrap().push(settler);
                return settling;
            }
            Some(Answer::LeaseLost) => return Settling::refused(Refusal::lease_lost("scripted")),
            Some(Answer::Transient) => refused(ErrorKind::Connection).transient(),
            Some(Answer::Unsupported) => refused(ErrorKind::Unsupported),
        };
        Settling::refused(Refusal { error, job: Some(job) })
    }

    fn extend(&self, _: Token, _: Duration) -> Extending {
        Extending::ready(Ok(()))
    }

    fn abandon(&self, _: Unsettled) {
        *self.abandoned.lock().unwrap() += 1;
    }
}
