//! Handlers without a broker, for an application's own tests.

use jobs_core::{Capabilities, Message, Outcome, Result, Support};

use super::{Context, Handlers};

/// Runs a job's handler inside `push`, in the caller's task, and tells what would become of the
/// job. Made by [`Handlers::inline`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> jobs::Result<()> {
/// use jobs::{Context, HandlerError, Handlers, Json, Message, Outcome, Payload};
///
/// async fn add(Json((a, b)): Json<(u8, u8)>, _: Context) -> Result<(), HandlerError> {
///     a.checked_add(b).map(drop).ok_or_else(|| HandlerError::reject("too large"))
/// }
///
/// let inline = Handlers::new().handle("add", add).inline()?;
/// assert_eq!(inline.push(Json((1, 2)).message("add")?).await?, Outcome::Ack);
/// assert_eq!(inline.push(Json((1, 255)).message("add")?).await?, Outcome::Reject);
/// let unknown = inline.push(Message::new("subtract", "")).await?;
/// assert!(matches!(unknown, Outcome::Requeue { .. }));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Inline {
    handlers: Handlers,
}

impl Inline {
    pub(super) fn new(handlers: Handlers) -> Self {
        Self { handlers }
    }

    /// Runs the handler of this message now, as attempt 1, whatever its delay, and answers the
    /// outcome a worker would settle with.
    ///
    /// # Errors
    /// `InvalidMessage` for what no driver would take. A failing handler is an outcome.
    ///
    /// # Cancel safety
    /// Dropping it drops the handler.
    pub async fn push(&self, message: Message) -> Result<Outcome> {
        self.push_attempt(message, 1).await
    }

    /// As [`push`](Self::push), as a later attempt.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub async fn push_attempt(&self, message: Message, attempt: u32) -> Result<Outcome> {
        accepting_all().admit(&message)?;
        Ok(self.handlers.run(Context::inline(message, attempt)).await.outcome)
    }
}

fn accepting_all() -> Capabilities {
    let mut capabilities = Capabilities::default();
    capabilities.delay = Support::Native;
    capabilities.ordering_key = Support::Native;
    capabilities
}
