//! Pipelines that come and go while the program runs.

use std::collections::BTreeMap;

use jobs_core::{Error, ErrorKind, Options, Pipeline, Problem, Result};

use super::start::connect;
use super::{Jobs, Pipelines, closed};
use crate::PipelineHandle;

impl Jobs {
    /// Adds a pipeline. It consumes at once if its name is listed in `consume`, else from the first
    /// [`resume`](Self::resume) on.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> jobs::Result<()> {
    /// use jobs::{Jobs, Message, Pipeline};
    ///
    /// let jobs = Jobs::builder().connect().await?;
    /// let mail = jobs.declare(Pipeline::new("mail", "memory").with_option("prefetch", 10)).await?;
    /// mail.push(Message::new("email.send", "{}")).await?;
    /// jobs.destroy("mail").await?;
    /// # jobs.shutdown().await
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Config` and `UnknownDriver` with all [problems](Error::problems), `InvalidState` if there is
    /// a pipeline of that name, `Closed` after [`shutdown`](Self::shutdown); then what connecting or
    /// running answers. A failure leaves no pipeline behind.
    ///
    /// # Cancel safety
    /// Not cancel safe: the pipeline may be there or not, and may have to be destroyed.
    pub async fn declare(&self, pipeline: Pipeline) -> Result<PipelineHandle> {
        self.read().admit(pipeline.name())?;
        let shared = self.shared.sections.get(pipeline.driver()).cloned().unwrap_or_default();
        let plan = self.shared.registry.plan(&shared, pipeline.clone()).map_err(|problems| {
            Error::from_problems("declare", problems).with_pipeline(pipeline.shared_name())
        })?;
        let handle = connect((pipeline, plan), self.queue(), self.shared.timeout).await?;
        if let Err(error) = self.insert(&handle) {
            handle.log_failure(handle.stop().await);
            return Err(error);
        }
        if self.shared.consume.contains(handle.name())
            && let Err(error) = handle.resume().await
        {
            self.remove(&handle);
            handle.log_failure(handle.stop().await);
            return Err(error);
        }
        Ok(handle)
    }

    /// As [`declare`](Self::declare), from flat text as other languages send it: `driver`, `name`
    /// (if absent, `queue` is the name), `priority`, `max_running`, and the driver's options, all as
    /// text; lists and maps as JSON.
    ///
    /// # Errors
    /// As [`declare`](Self::declare).
    ///
    /// # Cancel safety
    /// As [`declare`](Self::declare).
    pub async fn declare_flat<K: Into<String>, V: Into<String>>(
        &self,
        options: impl IntoIterator<Item = (K, V)>,
    ) -> Result<PipelineHandle> {
        let options = options.into_iter().map(|(key, value)| (key.into(), value.into()));
        let pipeline = from_flat(options.map(|(key, value)| (key.to_lowercase(), value)).collect());
        let pipeline = pipeline.map_err(|problems| Error::from_problems("declare", problems))?;
        self.declare(pipeline).await
    }

    /// Removes a pipeline and stops its driver. What is at the broker stays there.
    ///
    /// # Errors
    /// `NotFound`; `Closed` after [`shutdown`](Self::shutdown); what stopping answers, and then the
    /// pipeline is gone all the same.
    ///
    /// # Cancel safety
    /// Not cancel safe: the pipeline is removed, but its driver may go on until the program ends.
    pub async fn destroy(&self, name: &str) -> Result<()> {
        let handle = self.pipeline(name)?;
        match self.remove(&handle) {
            true => handle.stop().await,
            // Somebody else destroyed it since; what bears the name now is another pipeline.
            false => Err(Error::new(ErrorKind::NotFound, "destroy").with_pipeline(name)),
        }
    }

    fn insert(&self, handle: &PipelineHandle) -> Result<()> {
        let mut pipelines = self.write();
        pipelines.admit(handle.name())?;
        pipelines.by_name.insert(handle.shared_name(), handle.clone());
        Ok(())
    }

    /// False if it was removed before.
    fn remove(&self, handle: &PipelineHandle) -> bool {
        let mut pipelines = self.write();
        let is_there = pipelines.by_name.get(handle.name()).is_some_and(|it| it.is_same(handle));
        if is_there {
            pipelines.by_name.remove(handle.name());
        }
        is_there
    }
}

impl Pipelines {
    fn admit(&self, name: &str) -> Result<()> {
        if self.closed {
            return Err(closed("declare"));
        }
        if self.by_name.contains_key(name) {
            let error = Error::new(ErrorKind::InvalidState, "declare").with_pipeline(name);
            return Err(error.with_context("there is a pipeline of this name"));
        }
        Ok(())
    }
}

fn from_flat(mut options: BTreeMap<String, String>) -> Result<Pipeline, Vec<Problem>> {
    let name = options.remove("name").or_else(|| options.get("queue").cloned());
    let driver = options.remove("driver");
    let path = name.clone().unwrap_or_else(|| "declare".into());
    let (Some(name), Some(driver)) = (&name, driver.clone()) else {
        let missing = |key, value: &Option<String>, message: &str| {
            value.is_none().then(|| Problem::new(format!("{path}.{key}"), message))
        };
        let name = missing("name", &name, "is required and missing, as is `queue`");
        let driver = missing("driver", &driver, "is required and missing");
        return Err(name.into_iter().chain(driver).collect());
    };
    Pipeline::with_options(name.as_str(), driver, Options::from_pairs(path, options))
}
