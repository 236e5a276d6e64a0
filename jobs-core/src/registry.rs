//! Which drivers an application has.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::{Constructor, Driver, Error, ErrorKind, Options, Pipeline, Plan, Problem, Result};

/// Driver constructors by name. A value: two registries in one program share nothing.
#[derive(Clone, Default)]
pub struct Registry {
    constructors: BTreeMap<&'static str, Arc<dyn Constructor>>,
}

impl Registry {
    /// No drivers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a constructor under its name.
    ///
    /// # Errors
    /// `InvalidState` if the name is taken: the constructor registered first stays.
    pub fn register(&mut self, constructor: impl Constructor) -> Result<()> {
        let name = constructor.name();
        if self.constructors.contains_key(name) {
            let context = format!("a driver named `{name}` is registered already");
            return Err(Error::new(ErrorKind::InvalidState, "register").with_context(context));
        }
        self.constructors.insert(name, Arc::new(constructor));
        Ok(())
    }

    /// The registered names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.constructors.keys().copied()
    }

    /// True if a driver of that name is registered.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.constructors.contains_key(name)
    }

    /// Checks a pipeline's configuration without I/O. `shared` is the driver's root section.
    ///
    /// # Errors
    /// All problems; an unknown driver is one of kind [`ErrorKind::UnknownDriver`].
    pub fn plan(
        &self,
        shared: &Options,
        pipeline: Pipeline,
    ) -> Result<Box<dyn Plan>, Vec<Problem>> {
        pipeline.validate().map_err(|problem| vec![problem])?;
        match self.constructors.get(pipeline.driver()) {
            Some(constructor) => constructor.plan(shared, pipeline),
            None => {
                let names: Vec<_> = self.names().map(|name| format!("`{name}`")).collect();
                let known = match names.as_slice() {
                    [] => "no driver is registered".to_owned(),
                    names => format!("expected one of {}", names.join(", ")),
                };
                let message = format!("unknown driver `{}`, {known}", pipeline.driver());
                let path = pipeline.options().path();
                let path = path.strip_suffix(".config").unwrap_or(path);
                Err(vec![
                    Problem::new(format!("{path}.driver"), message)
                        .with_kind(ErrorKind::UnknownDriver),
                ])
            }
        }
    }

    /// Plans and connects in one step, without a shared section.
    ///
    /// # Errors
    /// As [`plan`](Self::plan) and [`Plan::connect`].
    pub async fn connect(&self, pipeline: Pipeline) -> Result<Arc<dyn Driver>> {
        let name = pipeline.shared_name();
        self.plan(&Options::default(), pipeline)
            .map_err(|problems| Error::from_problems("plan", problems).with_pipeline(name))?
            .connect()
            .await
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}
