//! What a pipeline has at the broker, to be deleted after its case.

use jobs_core::{Pipeline, Result};

use crate::rabbitmq::Operator;

/// More levels than the driver has.
const LEVELS: usize = 40;

fn option<'a>(pipeline: &'a Pipeline, name: &str) -> &'a str {
    pipeline.options().get(name).and_then(|value| value.as_str()).unwrap_or_default()
}

/// The queue of a pipeline.
pub(super) fn queue(pipeline: &Pipeline) -> &str {
    option(pipeline, "queue")
}

/// The exchange of a pipeline, if it has one.
pub(super) fn exchange(pipeline: &Pipeline) -> Option<&str> {
    Some(option(pipeline, "exchange")).filter(|name| !name.is_empty())
}

/// What the names of its delay levels begin with, as the driver's page describes them.
fn delays(pipeline: &Pipeline) -> String {
    let queue = queue(pipeline);
    let Some(exchange) = exchange(pipeline) else { return format!("jobs.delay.{queue}") };
    let parts = [exchange, option(pipeline, "routing_key"), queue];
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0xff]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("jobs.delay.{exchange}.{queue}.{hash:016x}")
}

/// Deletes all of it. Many queues that nobody needs make a broker slow.
pub(super) async fn delete(operator: &Operator, pipeline: &Pipeline) -> Result<()> {
    operator.delete_queue(queue(pipeline)).await?;
    if let Some(exchange) = exchange(pipeline) {
        operator.delete_exchange(exchange).await?;
    }
    let dead = option(pipeline, "dead_letter_exchange");
    if !dead.is_empty() {
        operator.delete_queue(dead).await?;
        operator.delete_exchange(dead).await?;
    }
    let delays = delays(pipeline);
    for level in 0..LEVELS {
        let name = format!("{delays}.{level}");
        operator.delete_queue(&name).await?;
        operator.delete_exchange(&name).await?;
    }
    operator.delete_exchange(&format!("{delays}.due")).await?;
    operator.delete_exchange(&delays).await
}
