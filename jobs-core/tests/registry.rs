//! Choosing a driver by name, and being told what is wrong.

use jobs_core::{Error, ErrorKind, Message, Options, Pipeline, Registry};

fn registry() -> Registry {
    let mut registry = Registry::new();
    registry.register(jobs_memory::constructor()).expect("the first of its name");
    registry
}

async fn refused(pipeline: Pipeline) -> Error {
    registry().connect(pipeline).await.expect_err("wrong")
}

#[tokio::test]
async fn a_pipeline_is_connected_by_the_name_of_its_driver() {
    let driver = registry().connect(Pipeline::new("mail", "memory")).await.unwrap();
    driver.push(Message::new("a", "")).await.unwrap();
    assert_eq!(driver.state().await.unwrap().reserved, Some(1));
    driver.stop().await.unwrap();
}

#[test]
fn a_name_is_registered_once_and_the_first_stays() {
    let mut registry = registry();
    let error = registry.register(jobs_memory::constructor()).expect_err("taken");
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    assert!(error.to_string().contains("`memory`"), "{error}");
    assert_eq!(registry.names().collect::<Vec<_>>(), ["memory"]);
}

#[tokio::test]
async fn an_unknown_driver_is_told_the_known_ones() {
    let error = refused(Pipeline::new("mail", "memry")).await;
    assert_eq!((error.kind(), error.pipeline()), (ErrorKind::UnknownDriver, Some("mail")));
    let problem = &error.problems()[0];
    assert_eq!(problem.path(), "mail.driver");
    assert_eq!(problem.message(), "unknown driver `memry`, expected one of `memory`");
}

#[tokio::test]
async fn every_wrong_option_is_reported_with_its_path() {
    let options = [("prefech", "1"), ("prefetch", "0"), ("capacity", "many")];
    let options = Options::from_pairs("jobs.pipelines.mail.config", options);
    let error = refused(Pipeline::with_options("mail", "memory", options).unwrap()).await;
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Config, false));
    let mut paths: Vec<_> = error.problems().iter().map(jobs_core::Problem::path).collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        ["capacity", "prefech", "prefetch"]
            .map(|name| format!("jobs.pipelines.mail.config.{name}"))
    );
}

#[tokio::test]
async fn a_pipeline_name_that_no_broker_would_take_is_refused() {
    assert_eq!(refused(Pipeline::new("a b", "memory")).await.kind(), ErrorKind::Config);
}
