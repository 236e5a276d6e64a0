//! Bad input gets a clear error and changes nothing.

use jobs_core::{ErrorKind, Message, Pipeline};

use crate::{Case, CaseResult, Feature, Fixture, Unexpected};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "errors::invalid_messages_are_refused",
            &[8],
            "an id, name or header name that no broker carries is InvalidMessage",
            invalid_messages_are_refused,
        ),
        Case::new(
            "errors::oversized_payloads_are_refused",
            &[8],
            "more bytes than the pipeline takes are PayloadTooLarge",
            oversized_payloads_are_refused,
        ),
        Case::new(
            "errors::ordering_keys_are_refused_where_unsupported",
            &[8],
            "what a pipeline cannot promise is refused before any I/O",
            ordering_keys,
        )
        .needs(&[Feature::OrderingKey]),
        Case::new(
            "errors::name_driver_and_pipeline",
            &[8],
            "an error says what was being done, on which driver and pipeline",
            name_driver_and_pipeline,
        ),
        Case::new(
            "errors::a_plan_lists_all_problems",
            &[8],
            "plan returns all problems, each with its path, before any I/O",
            a_plan_lists_all_problems,
        ),
        Case::new(
            "errors::a_prefetch_of_zero_is_a_problem",
            &[8],
            "values out of range are problems of the configuration",
            a_prefetch_of_zero_is_a_problem,
        ),
        Case::new(
            "errors::capabilities_are_never_wider_than_planned",
            &[],
            "a driver's capabilities may be narrower than its plan's, never wider",
            capabilities_are_never_wider,
        ),
    ]
}

async fn invalid_messages_are_refused(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let long = "x".repeat(256);
    let texts = ["", long.as_str(), "a\nb", "\u{0}", "\u{7f}", "\u{85}"];
    for text in texts {
        let bad = [
            fx.message("bad").with_id(text),
            Message::new(text.to_owned(), "bad"),
            fx.message("bad").with_header(text, "value"),
        ];
        for message in bad {
            let answer = pipeline.push(message.clone()).await;
            let problem = |error: Unexpected| Unexpected::new(format!("{message:?}: {error}"));
            fx.expect_refused(answer, ErrorKind::InvalidMessage).map_err(problem)?;
        }
    }
    pipeline.push(fx.message("good")).await?;
    pipeline.ack_next(1).await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn oversized_payloads_are_refused(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let Some(limit) = pipeline.driver().capabilities().max_payload else { return Ok(()) };
    let large = || fx.message(vec![0; limit + 1]);
    fx.expect_refused(pipeline.push(large()).await, ErrorKind::PayloadTooLarge)?;
    let mut answers = pipeline.push_batch(vec![large(), fx.message("fits")]).await;
    assert_eq!(answers.len(), 2);
    answers.pop().expect("two")?;
    fx.expect_refused(answers.pop().expect("two"), ErrorKind::PayloadTooLarge)?;
    pipeline.ack_next(1).await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn ordering_keys(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    for key in ["", "a\nb"] {
        let answer = pipeline.push(fx.message("bad").with_ordering_key(key)).await;
        fx.expect_refused(answer, ErrorKind::InvalidMessage)?;
    }
    pipeline.push(fx.message("good").with_ordering_key("k".repeat(255))).await?;
    pipeline.ack_next(1).await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn name_driver_and_pipeline(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let refused = pipeline.push(fx.message("bad").with_id("")).await;
    let twice = pipeline.run().await;
    pipeline.stop().await?;
    let closed = pipeline.push(fx.message("late")).await;
    for (operation, answer) in [("push", refused), ("run", twice), ("push", closed)] {
        let error = answer.expect_err("refused");
        assert_eq!(error.operation(), operation, "{error:?}");
        assert_eq!(error.driver(), Some(pipeline.config().driver()), "{error:?}");
        assert_eq!(error.pipeline(), Some(pipeline.config().name()), "{error:?}");
    }
    Ok(())
}

fn problems(fx: &Fixture, config: Pipeline) -> Result<Vec<String>, Unexpected> {
    match fx.plan(config) {
        Ok(_) => Err(Unexpected::new("the configuration must be refused")),
        Err(error) if error.kind() == ErrorKind::Config => {
            Ok(error.problems().iter().map(ToString::to_string).collect())
        }
        Err(error) => Err(Unexpected::new(format!("expected Config, found {error:?}"))),
    }
}

async fn a_plan_lists_all_problems(fx: Fixture) -> CaseResult {
    let config = fx.configure().await?;
    let wrong = config.with_option("no_such_option", 1).with_option("nor_this", "x");
    let found = problems(&fx, wrong)?;
    assert_eq!(found.len(), 2, "{found:?}");
    for option in ["no_such_option", "nor_this"] {
        assert!(found.iter().any(|problem| problem.contains(option)), "{option} in {found:?}");
    }
    Ok(())
}

async fn a_prefetch_of_zero_is_a_problem(fx: Fixture) -> CaseResult {
    let found = problems(&fx, fx.configure_prefetch(0).await?)?;
    assert_eq!(found.len(), 1, "{found:?}");
    Ok(())
}

async fn capabilities_are_never_wider(fx: Fixture) -> CaseResult {
    let pipeline = fx.connect(fx.configure().await?).await?;
    let planned = fx.plan(pipeline.config().clone())?.capabilities();
    let driver = pipeline.driver().capabilities();
    let supports = [
        ("delay", driver.delay, planned.delay),
        ("priority", driver.priority, planned.priority),
        ("reject", driver.reject, planned.reject),
        ("requeue", driver.requeue, planned.requeue),
        ("batch", driver.batch, planned.batch),
        ("ordering_key", driver.ordering_key, planned.ordering_key),
        ("extend", driver.extend, planned.extend),
    ];
    for (feature, driver, planned) in supports {
        assert!(planned.is_available() || !driver.is_available(), "{feature}");
    }
    assert!(planned.durable || !driver.durable);
    assert!(planned.acks_confirmed || !driver.acks_confirmed);
    assert!(planned.uncounted_release || !driver.uncounted_release);
    let (wide, narrow) = (&planned.priorities, &driver.priorities);
    assert!(wide.start() <= narrow.start() && wide.end() >= narrow.end());
    assert!(within(driver.max_payload, planned.max_payload));
    assert!(within(driver.max_delay, planned.max_delay));
    assert!(within(driver.max_batch, planned.max_batch));
    Ok(())
}

/// No limit is the widest.
fn within<T: PartialOrd>(limit: Option<T>, planned: Option<T>) -> bool {
    planned.is_none_or(|planned| limit.is_some_and(|limit| limit <= planned))
}
