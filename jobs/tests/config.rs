//! Reading a configuration: everything that is wrong, at once, before anything connects.

#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::memory;
use common::scripted::Scripted;
use jobs::{Config, Error, ErrorKind, Jobs, Pipeline, Registry, default_registry};

fn read(yaml: &str) -> Config {
    Config::from_yaml_with(yaml, |_| None).expect("is YAML")
}

fn problems(yaml: &str) -> Vec<String> {
    texts(&read(yaml).check().expect_err("wrong"))
}

fn texts(error: &Error) -> Vec<String> {
    error.problems().iter().map(ToString::to_string).collect()
}

/// The problems of one pipeline, given as flow YAML.
fn of_pipeline(pipeline: &str) -> Vec<String> {
    problems(&format!("{{version: '3', jobs: {{pipelines: {{mail: {pipeline}}}}}}}"))
}

#[track_caller]
fn assert_only(problems: &[String], expected: &str) {
    assert!(problems.len() == 1 && problems[0].contains(expected), "{expected}\n{problems:#?}");
}

#[tokio::test]
async fn a_file_connects_and_runs_what_it_lists() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let yaml = "
        version: '3'
        memory: { capacity: 5 }
        jobs:
          timeout: 30
          consume: mail
          pipelines:
            mail: { driver: memory, config: { prefetch: 10, priority: 5 } }
            Scratch: { driver: memory }
        http: { address: '0.0.0.0:8080' }
    ";
    std::fs::write(file.path(), yaml).unwrap();
    let jobs = Jobs::from_file(file.path()).await.unwrap();
    assert_eq!(jobs.list(), [Arc::from("Scratch"), Arc::from("mail")]);
    let stat = jobs.stat().await;
    let (mail, scratch) = (stat["mail"].as_ref().unwrap(), stat["Scratch"].as_ref().unwrap());
    assert_eq!((mail.ready, mail.priority), (true, 5));
    assert_eq!((scratch.ready, scratch.priority), (false, 10));
    jobs.shutdown().await.unwrap();
}

#[test]
fn all_mistakes_are_reported_together() {
    let found = problems(
        "
        version: 3
        envfile: .env
        memory: { prefech: 1 }
        jobs:
          consum: [mail]
          consume: [mial]
          timeout: soon
          pipelines:
            a: { driver: memry }
            b: { driver: memory, config: { prefetch: 0, priority: high, max_lease: -1 } }
            c: { config: {} }
            d: { driver: memory, config: { queue: '${NOT_SET}' }, colour: red }
            e: [driver, memory]
        ",
    );
    // Those that this build has, all of them.
    let drivers = default_registry().names().map(|name| format!("`{name}`")).collect::<Vec<_>>();
    let unknown = format!(
        "`jobs.pipelines.a.driver`: unknown driver `memry`, expected one of {}",
        drivers.join(", ")
    );
    assert!(unknown.contains("`memory`"), "{unknown}");
    for expected in [
        "`version`: expected the text `\"3\"`, found `3`",
        "`envfile`: not supported",
        "`memory.prefech`: unknown option, expected one of `queue`, `prefetch`",
        "`jobs.consum`: unknown option, expected one of `consume`, `pipelines`, `timeout`",
        "`jobs.consume`: no pipeline is named `mial`, expected one of `a`, `b`, `d`",
        "`jobs.timeout`: expected a duration such as `500ms`, `30s` or `1m`, found `soon`",
        &unknown,
        "`jobs.pipelines.b.config.prefetch`: expected a whole number of at least 1, found `0`",
        "`jobs.pipelines.b.config.priority`: expected a whole number, found `high`",
        "`jobs.pipelines.b.config.max_lease`: expected a duration",
        "`jobs.pipelines.c.driver`: is required and missing",
        "`jobs.pipelines.d.config.queue`: the environment variable `NOT_SET` is not set",
        "`jobs.pipelines.d.colour`: unknown option, expected one of `driver`, `config`",
        "`jobs.pipelines.e`: expected options as `name: value`, found a list",
    ] {
        let count = found.iter().filter(|problem| problem.starts_with(expected)).count();
        assert_eq!(count, 1, "{expected}\n{found:#?}");
    }
    assert_eq!(found.len(), 14, "{found:#?}");
}

#[test]
fn the_kind_is_that_of_all_problems() {
    let kind = |yaml| read(yaml).check().expect_err("wrong").kind();
    let unknown = "{version: '3', jobs: {pipelines: {a: {driver: x}, b: {driver: y}}}}";
    assert_eq!(kind(unknown), ErrorKind::UnknownDriver);
    let mixed = "{version: '3', jobs: {pipelines: {a: {driver: x}, b: {}}}}";
    assert_eq!(kind(mixed), ErrorKind::Config);
}

#[test]
fn the_version_is_the_text_3() {
    let with = |version| format!("{{{version} jobs: {{}}}}");
    assert!(read(&with("version: '3',")).check().is_ok());
    assert!(read(&with("VERSION: \"2.7\",")).check().is_ok());
    for wrong in ["", "version: 3,", "version: '4',", "version: 2.7,"] {
        assert_only(&problems(&with(wrong)), "`version`: ");
    }
}

#[test]
fn text_that_is_no_configuration() {
    for yaml in ["", "[]", "just text", "version: '3'"] {
        assert!(!problems(yaml).is_empty(), "{yaml}");
    }
    for yaml in [": : :", "a: [", "version: '3'\nversion: '3'", "jobs: {pipelines: {a: {}, a: {}}}"]
    {
        let error = Config::from_yaml(yaml).expect_err(yaml);
        assert_eq!(error.kind(), ErrorKind::Config);
    }
    let missing = Config::from_file("no/such/file.yaml").expect_err("missing");
    assert!(missing.to_string().contains("no/such/file.yaml"), "{missing}");
    assert_eq!(missing.kind(), ErrorKind::Config);
}

#[test]
fn yaml_mistakes_show_no_values() {
    let yaml = "memory: { password: hunter2 }\nmemory: { password: hunter2 }\n";
    let error = Config::from_yaml(yaml).expect_err("twice");
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    assert!(
        !format!("{:?}", read("{version: '3', memory: {password: hunter2}}")).contains("hunter")
    );
}

#[test]
fn keys_that_differ_in_case_only_are_one() {
    assert_only(&of_pipeline("{driver: memory, config: {Prefetch: 1, prefetch: 2}}"), "twice");
    assert_only(&of_pipeline("{driver: memory, DRIVER: memory}"), "`jobs.pipelines.mail.driver`");
    let names =
        read("{version: '3', jobs: {pipelines: {a: {driver: memory}, A: {Driver: memory}}}}");
    assert!(names.check().is_ok(), "pipelines' names keep their case");
}

#[test]
fn options_of_a_pipeline() {
    assert_only(&of_pipeline("{driver: memory, config: {prefetch: ten}}"), "found `ten`");
    assert_only(&of_pipeline("{driver: memory, config: {push_timeout: -5}}"), "a duration");
    assert_only(&of_pipeline("{driver: memory, config: {max_lease: -1s}}"), "a duration");
    assert_only(&of_pipeline("{driver: memory, config: {max_running: 0}}"), "at least 1");
    assert_only(&of_pipeline("{driver: memory, config: 5}"), "found `5`");
    assert_only(&of_pipeline("{driver: 5}"), "`jobs.pipelines.mail.driver`");
    assert_only(&of_pipeline("~"), "`jobs.pipelines.mail.driver`: is required and missing");
}

#[test]
fn what_a_driver_misses_is_named() {
    struct Picky;
    impl jobs::Constructor for Picky {
        fn name(&self) -> &'static str {
            "picky"
        }

        fn plan(
            &self,
            shared: &jobs::Options,
            pipeline: Pipeline,
        ) -> Result<Box<dyn jobs::Plan>, Vec<jobs::Problem>> {
            #[derive(serde::Deserialize)]
            #[serde(deny_unknown_fields)]
            struct Required {
                #[expect(dead_code)]
                addr: String,
            }
            Err(pipeline.parse::<Required>(shared).err().unwrap_or_default())
        }
    }
    let mut registry = Registry::new();
    registry.register(Picky).unwrap();
    let yaml = "{version: '3', jobs: {pipelines: {a: {driver: picky}}}}";
    let error = read(yaml).registry(registry).check().expect_err("missing");
    assert_only(&texts(&error), "`jobs.pipelines.a.config.addr`: is required and missing");
}

#[test]
fn keys_of_roadrunner_without_effect_are_accepted() {
    let yaml = "
        version: '3'
        rpc: { listen: 'tcp://127.0.0.1:6001', token: '${NOT_SET}' }
        jobs:
          num_pollers: 10
          pipeline_size: 100000
          options: { parallelism: 10 }
          pool: { num_workers: 8, supervisor: { exec_ttl: 120s } }
          pools: {}
          pipelines: { mail: { driver: memory, pool: a, config: {} } }
    ";
    read(yaml).check().unwrap();
    let include = "{version: '3', include: [a.yaml], jobs: {}}";
    assert_only(&problems(include), "`include`: not supported");
}

#[test]
fn variables_are_expanded_after_parsing() {
    let values: BTreeMap<_, _> =
        [("N", "7"), ("Q", "a: {b: c}\n- d"), ("DRIVER", "memory"), ("LIST", "mail")].into();
    let yaml = "
        version: '3'
        memory: { capacity: '${N}' }
        jobs:
          timeout: ${TIMEOUT:-5}
          consume: ['${LIST}']
          pipelines:
            mail:
              driver: ${DRIVER}
              config: { prefetch: '${N:-1}', queue: '${Q}', push_timeout: '${WAIT:-5s}' }
    ";
    let config = Config::from_yaml_with(yaml, |name| values.get(name).map(ToString::to_string));
    config.unwrap().check().unwrap();
}

#[tokio::test]
async fn two_pipelines_of_one_name() {
    let twice = Jobs::builder().pipeline(memory("a")).pipeline(memory("a"));
    assert_eq!(twice.connect().await.expect_err("twice").kind(), ErrorKind::InvalidState);
    let zero = Jobs::builder().timeout(Duration::ZERO).connect().await.expect_err("zero");
    assert_eq!(zero.problems()[0].path(), "jobs.timeout");
}

#[test]
fn one_driver_name_twice() {
    let mut registry = default_registry();
    let error = registry.register(jobs_memory::constructor()).expect_err("twice");
    assert_eq!(error.kind(), ErrorKind::InvalidState);
}

#[tokio::test]
async fn nothing_connects_if_anything_is_wrong() {
    let scripted = Scripted::default();
    let mut registry = default_registry();
    registry.register(scripted.clone()).unwrap();
    let config = Jobs::builder()
        .registry(registry)
        .pipeline(Pipeline::new("good", "scripted"))
        .pipeline(Pipeline::new("bad", "memory").with_option("prefech", 1));
    assert!(config.connect().await.is_err());
    assert!(scripted.0.calls().is_empty());
}
