//! What the server itself keeps, shown without the driver.

use std::collections::BTreeSet;
use std::sync::Arc;

use aws_sdk_sqs::types::SendMessageBatchRequestEntry as Entry;
use futures::stream::{FuturesUnordered, StreamExt};
use jobs_core::JobId;
use jobs_kit::{Case, CaseResult, Fault, Feature, Fixture};

use super::case;
use crate::elasticmq::{ElasticMq, Operator, Servers};

pub(super) fn cases(servers: &Arc<Servers>) -> Vec<Case> {
    vec![
        case(
            servers,
            "durable::bare_client",
            &[1],
            "ElasticMQ with WRITE_DELAY=0 has everything it confirmed when it was killed",
            bare_client,
        )
        .needs(&[Feature::Fault(Fault::Kill)]),
    ]
}

/// Batches that are sent until the server is killed, so many at once.
const IN_FLIGHT: usize = 8;
/// So many are confirmed before it is killed.
const CONFIRMED: usize = 1_000;

async fn bare_client(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let server = servers.own().await?;
    let queue = format!("bare-{}", JobId::random());
    let url = server.operator().create(&queue, &[]).await?;
    let confirmed = send_until_killed(server, &url).await?;
    server.control.end(Fault::Kill).await?;
    let operator = server.operator();
    let missing = receive_all(&fx, &operator, &url, confirmed.clone()).await;
    operator.delete(&queue).await?;
    let missing = missing?;
    assert!(missing.is_empty(), "{} of {} are lost", missing.len(), confirmed.len());
    Ok(())
}

/// What was confirmed before the server was killed in the midst of it.
async fn send_until_killed(
    server: &ElasticMq,
    url: &str,
) -> Result<BTreeSet<String>, jobs_kit::CaseError> {
    let operator = server.operator();
    let mut confirmed = BTreeSet::new();
    let mut flights = FuturesUnordered::new();
    let mut number = 0;
    let mut batch = || {
        let bodies = (number..number + 10).map(|number| number.to_string());
        number += 10;
        Box::pin(send(&operator, url, bodies.collect()))
    };
    (0..IN_FLIGHT).for_each(|_| flights.push(batch()));
    let kill = async {
        while confirmed.len() < CONFIRMED {
            let answered = flights.next().await.expect("one is sent for each");
            confirmed.extend(answered.expect("the server runs"));
            flights.push(batch());
        }
        // The rest is under way when it dies.
        let kill = server.control.begin(Fault::Kill);
        tokio::pin!(kill);
        loop {
            tokio::select! {
                killed = &mut kill => return killed,
                Some(answered) = flights.next() => {
                    if let Some(bodies) = answered {
                        confirmed.extend(bodies);
                        flights.push(batch());
                    }
                }
            }
        }
    };
    kill.await?;
    while let Some(answered) = flights.next().await {
        confirmed.extend(answered.into_iter().flatten());
    }
    Ok(confirmed)
}

/// Those bodies that were confirmed; none if the batch was not answered.
async fn send(operator: &Operator, url: &str, bodies: Vec<String>) -> Option<Vec<String>> {
    let entry = |body: &String| {
        let entry = Entry::builder().id(body).message_body(body);
        entry.build().expect("it has an id and a body")
    };
    let send = operator.client().send_message_batch().queue_url(url);
    let send = send.set_entries(Some(bodies.iter().map(entry).collect()));
    let answer = send.send().await.ok()?;
    Some(answer.successful.into_iter().map(|stored| stored.id).collect())
}

/// Receives and deletes until nothing is missing, or nothing comes any more.
async fn receive_all(
    fx: &Fixture,
    operator: &Operator,
    url: &str,
    mut missing: BTreeSet<String>,
) -> Result<BTreeSet<String>, jobs_kit::CaseError> {
    const EMPTY_ANSWERS: usize = 3;
    let mut empty = 0;
    while !missing.is_empty() && empty < EMPTY_ANSWERS {
        let receive = operator.client().receive_message().queue_url(url).max_number_of_messages(10);
        let received = fx.within("a receive", receive.wait_time_seconds(1).send()).await??;
        let messages = received.messages.unwrap_or_default();
        empty = if messages.is_empty() { empty + 1 } else { 0 };
        for message in messages {
            missing.remove(&message.body.unwrap_or_default());
        }
    }
    Ok(missing)
}
