//! What not every pipeline or harness has, and the proof that it is refused.

use std::time::Duration;

use jobs_core::{Capabilities, ErrorKind, Headers, Message, Outcome, Pipeline};

use crate::{CaseError, CaseResult, Fault, Fixture, Harness};

/// What a case may need beyond pushing and acknowledging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Feature {
    /// Delivering a message later.
    Delay,
    /// Requeueing with a delay or with changed headers.
    Requeue,
    /// Requeueing with changed headers, see [`Harness::changes_headers`](crate::Harness).
    ChangedHeaders,
    /// Keeping jobs with equal ordering keys in order.
    OrderingKey,
    /// Extending a lease on request.
    Extend,
    /// Of the harness: a lease that ends, see [`Harness::with_max_lease`](crate::Harness).
    MaxLease,
    /// Of the harness: a queue that fills, see [`Harness::with_capacity`](crate::Harness).
    Capacity,
    /// Of the harness: jobs arrive in order, see [`Harness::keeps_order`](crate::Harness).
    Order,
    /// Of the harness: a fault it can cause.
    Fault(Fault),
}

impl Feature {
    pub(crate) fn is_available(
        self,
        harness: &dyn Harness,
        config: &Pipeline,
        capabilities: &Capabilities,
    ) -> bool {
        match self {
            Self::Delay => capabilities.delay.is_available(),
            Self::Requeue => capabilities.requeue.is_available(),
            Self::ChangedHeaders => {
                capabilities.requeue.is_available() && harness.changes_headers()
            }
            Self::OrderingKey => capabilities.ordering_key.is_available(),
            Self::Extend => capabilities.extend.is_available(),
            Self::MaxLease => harness.with_max_lease(config.clone(), harness.max_lease()).is_some(),
            Self::Capacity => harness.with_capacity(config.clone(), 1, Duration::ZERO).is_some(),
            Self::Order => harness.keeps_order(),
            Self::Fault(fault) => harness.faults().contains(&fault),
        }
    }

    /// Proves that what the pipeline cannot do is refused and changes nothing.
    pub(crate) async fn expect_refused(self, fx: Fixture) -> CaseResult {
        match self {
            Self::Delay => push_refused(&fx, |m| m.with_delay(Duration::from_secs(1))).await,
            Self::OrderingKey => push_refused(&fx, |m| m.with_ordering_key("key")).await,
            Self::Requeue | Self::ChangedHeaders => requeue_refused(&fx).await,
            Self::Extend => extend_refused(&fx).await,
            Self::MaxLease => Err(CaseError::ignored("leases of this configuration do not end")),
            Self::Capacity => Err(CaseError::ignored("this configuration has no full queue")),
            Self::Order => Err(CaseError::ignored("this configuration keeps no order")),
            Self::Fault(fault) => {
                Err(CaseError::Ignored(format!("the harness has no fault `{}`", fault.name())))
            }
        }
    }
}

async fn push_refused(fx: &Fixture, ask: impl FnOnce(Message) -> Message) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let answer = pipeline.push(ask(fx.message("refused"))).await;
    fx.expect_refused(answer, ErrorKind::Unsupported)?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn requeue_refused(fx: &Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    pipeline.push(fx.message("kept")).await?;
    let headers: Headers = [("changed", "yes")].into_iter().collect();
    let outcome = Outcome::Requeue { delay: Duration::ZERO, headers: Some(headers) };
    let (error, job) = match pipeline.next().await?.settle(outcome).await {
        Ok(()) => panic!("a requeue with changed headers must be refused"),
        Err(refused) => refused.into_parts(),
    };
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    job.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn extend_refused(fx: &Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    pipeline.push(fx.message("kept")).await?;
    let job = pipeline.next().await?;
    let answer = job.extend(Duration::from_secs(60)).await;
    fx.expect_refused(answer, ErrorKind::Unsupported)?;
    job.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}
