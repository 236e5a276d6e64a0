//! Queues of others, on which not everything is allowed.

use std::sync::Arc;

use jobs_core::{ErrorKind, Pipeline};
use jobs_kit::{Case, CaseResult, Fixture};

use super::harness::option;
use super::{case, finish, gated};
use crate::elasticmq::Servers;
use crate::gate::Deed;

pub(super) fn cases(servers: &Arc<Servers>) -> Vec<Case> {
    vec![
        case(
            servers,
            "permissions::to_use_a_queue",
            &[],
            "a queue that exists works without permission to create it or to read its attributes",
            |fx, servers| uses(fx, servers, &ADMINISTRATION, |config, _| config),
        ),
        case(
            servers,
            "permissions::skip_queue_declaration",
            &[],
            "with skip_queue_declaration nobody tries to create the queue",
            |fx, servers| {
                uses(fx, servers, &ADMINISTRATION, |config, _| {
                    config.with_option("skip_queue_declaration", true)
                })
            },
        ),
        case(
            servers,
            "permissions::queue_url",
            &[],
            "with queue_url nobody asks where the queue is",
            |fx, servers| {
                const ALL: [&str; 7] = [
                    "CreateQueue",
                    "GetQueueAttributes",
                    "SetQueueAttributes",
                    "TagQueue",
                    "ListQueueTags",
                    "ListQueues",
                    "GetQueueUrl",
                ];
                uses(fx, servers, &ALL, |config, url| config.with_option("queue_url", url))
            },
        ),
        case(
            servers,
            "permissions::to_push_only",
            &[],
            "who may not receive can push, and is told when it wants to consume",
            to_push_only,
        ),
        case(
            servers,
            "permissions::created_by_others",
            &[],
            "a queue with other attributes than ours is used as it is",
            created_by_others,
        ),
    ]
}

/// What an application's role often may not do.
const ADMINISTRATION: [&str; 6] = [
    "CreateQueue",
    "GetQueueAttributes",
    "SetQueueAttributes",
    "TagQueue",
    "ListQueueTags",
    "ListQueues",
];

fn denied() -> Deed {
    Deed::refuse(403, "AccessDeniedException", "User is not authorized to perform this action.")
}

async fn uses(
    fx: Fixture,
    servers: Arc<Servers>,
    forbidden: &'static [&'static str],
    change: fn(Pipeline, &str) -> Pipeline,
) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let operator = servers.shared().await?.operator();
    let url = operator.create(option(&config, "queue"), &[]).await?;
    gate.rule(move |action, _| match forbidden.contains(&action) {
        true => denied(),
        false => Deed::Pass,
    });
    let pipeline = fx.start(change(config, &url)).await?;
    let pushed = pipeline.push_numbered(3).await?;
    let mut found = pipeline.ack_next(2).await?;
    pipeline.next().await?.release().await?;
    found.extend(pipeline.ack_next(1).await?);
    assert_eq!(found.len(), pushed.len());
    let state = pipeline.state().await?;
    assert_eq!([state.reserved, state.in_flight, state.delayed], [None; 3], "nobody may know");
    finish(&pipeline).await
}

async fn to_push_only(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    gate.rule(|action, _| if action == "ReceiveMessage" { denied() } else { Deed::Pass });
    let pipeline = fx.connect(config).await?;
    let pushed = pipeline.push_numbered(1).await?;
    // Subscribing asks nothing of the service, so that it can be told later only.
    drop(fx.within("run", pipeline.run()).await?);
    pipeline.expect_state("a reason", |state| state.last_error.is_some()).await?;
    gate.open();
    assert_eq!(pipeline.ack_next(1).await?, pushed, "as soon as it is allowed");
    finish(&pipeline).await
}

async fn created_by_others(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let operator = servers.shared().await?.operator();
    let attributes = [("VisibilityTimeout", "7"), ("MessageRetentionPeriod", "3600")];
    operator.create(option(&config, "queue"), &attributes).await?;
    // As the service does: creating it once more with other attributes is refused.
    gate.rule(|action, _| match action {
        "CreateQueue" => Deed::refuse(
            400,
            "QueueNameExists",
            "A queue already exists with the same name and a different value for an attribute.",
        ),
        _ => Deed::Pass,
    });
    let pipeline = fx.start(config).await?;
    let pushed = pipeline.push_numbered(1).await?;
    assert_eq!(pipeline.ack_next(1).await?, pushed);
    let found = operator.attribute(option(pipeline.config(), "queue"), "VisibilityTimeout").await?;
    assert_eq!(found.as_deref(), Some("7"), "nobody changed it");
    finish(&pipeline).await?;
    // Without the queue there is nothing to be used.
    let missing = fx.configure().await?.with_option("skip_queue_declaration", true);
    let answer = fx.within("connect", fx.connect(missing)).await?;
    fx.expect_refused(answer, ErrorKind::NotFound)?;
    Ok(())
}
