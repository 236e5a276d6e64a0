//! The shape of a configuration file.

use std::collections::BTreeMap;
use std::time::Duration;

use jobs_core::{Options, Pipeline, Problem, options};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::env::{self, Variable};
use super::findings::Findings;
use super::{Config, Listed, Section};

/// Keys of RoadRunner's `jobs` section that have nothing to act on here.
const WITHOUT_EFFECT: [(&str, &str); 5] = [
    ("num_pollers", "workers take jobs themselves, see `Worker::concurrency`"),
    ("pipeline_size", "each pipeline's `prefetch` bounds the jobs in memory"),
    ("options", "pipelines always start at the same time"),
    ("pool", "there are no worker processes, see `Worker::concurrency`"),
    ("pools", "there are no worker processes, see `Worker::concurrency`"),
];

/// Root keys that would bring in more than this file; ignoring them would lose pipelines.
const REFUSED: [(&str, &str); 2] = [
    ("include", "not supported: write the pipelines of the included files here"),
    ("envfile", "not supported: set the variables in the environment"),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JobsSection {
    #[serde(default)]
    #[expect(dead_code, reason = "read apart, also when another key is wrong")]
    consume: IgnoredAny,
    #[serde(default)]
    #[expect(dead_code, reason = "read apart, to keep the pipelines' names as they are")]
    pipelines: IgnoredAny,
    #[serde(default, deserialize_with = "options::seconds")]
    timeout: Option<Duration>,
}

#[derive(Deserialize)]
struct Consume {
    #[serde(default)]
    consume: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PipelineSection {
    driver: String,
    #[serde(default)]
    #[expect(dead_code, reason = "read by the driver")]
    config: IgnoredAny,
}

/// Reads a file's text. Fails only on what is no YAML.
pub(super) fn read(text: &str, variable: Variable<'_>) -> Result<Config, String> {
    let mut config = Config::new();
    let mut findings = Findings::default();
    match parse(text)? {
        Value::Object(root) => {
            read_root(lower_case("", root, &mut findings), variable, &mut config, &mut findings);
        }
        _ => findings.problem("version", "expected a map with `version` and `jobs` at the root"),
    }
    config.problems = findings.report();
    Ok(config)
}

fn parse(text: &str) -> Result<Value, String> {
    let mut options = serde_saphyr::Options::default();
    options.duplicate_keys = serde_saphyr::DuplicateKeyPolicy::Error;
    // Only `true` and `false`, as in RoadRunner: `no` may be a queue's name.
    options.strict_booleans = true;
    // A snippet could show a password that stands near the mistake.
    options.with_snippet = false;
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}

fn read_root(
    mut root: Map<String, Value>,
    variable: Variable<'_>,
    config: &mut Config,
    findings: &mut Findings,
) {
    check_version(root.remove("version"), findings);
    for (key, why) in REFUSED {
        if root.remove(key).is_some() {
            findings.problem(key, why);
        }
    }
    match root.remove("jobs") {
        None => findings.problem("jobs", "is required and missing"),
        Some(mut jobs) => {
            env::expand("jobs", &mut jobs, variable, findings);
            read_jobs(jobs, config, findings);
        }
    }
    for (name, mut value) in root {
        let mut findings = Findings::default();
        env::expand(&name, &mut value, variable, &mut findings);
        let options = section(&name, value, &mut findings).unwrap_or_default();
        config.sections.insert(name, Section { options, findings });
    }
}

fn check_version(version: Option<Value>, findings: &mut Findings) {
    match version {
        Some(Value::String(version)) if version == "3" => {}
        Some(Value::String(version)) if version == "2.7" => {
            findings.warn("version", "`2.7` is read as `3`");
        }
        None => findings.problem("version", "is required and missing, expected `version: \"3\"`"),
        Some(found) => {
            findings.problem("version", format!("expected the text `\"3\"`, found `{found}`"));
        }
    }
}

fn read_jobs(jobs: Value, config: &mut Config, findings: &mut Findings) {
    let Some(mut jobs) = section("jobs", jobs, findings) else { return };
    for (key, why) in WITHOUT_EFFECT {
        if !jobs.take(&[key]).is_empty() {
            findings.warn(format!("jobs.{key}"), format!("has no effect here: {why}"));
        }
    }
    if let Some(section) = findings.note(jobs.parse::<JobsSection>()) {
        config.timeout = section.timeout.unwrap_or(Config::DEFAULT_TIMEOUT);
    }
    if let Some(read) = findings.note(jobs.take(&["consume"]).parse::<Consume>()) {
        let listed = |name| Listed { name, path: Some("jobs.consume".into()) };
        config.consume = read.consume.into_iter().map(listed).collect();
    }
    match jobs.get("pipelines") {
        None | Some(Value::Null) => {}
        Some(Value::Object(pipelines)) => {
            for (name, value) in pipelines {
                match pipeline(name, value, findings) {
                    Some(pipeline) => config.pipelines.push(pipeline),
                    None => config.broken.push(name.clone()),
                }
            }
        }
        Some(_) => findings.problem("jobs.pipelines", "expected pipelines as `name: options`"),
    }
}

/// A pipeline, also one with problems if its driver is known, so that the driver's problems are
/// found too.
fn pipeline(name: &str, value: &Value, findings: &mut Findings) -> Option<Pipeline> {
    let path = format!("jobs.pipelines.{name}");
    let mut shape = section(&path, value.clone(), findings)?;
    if !shape.take(&["pool"]).is_empty() {
        findings.warn(format!("{path}.pool"), "has no effect here: there are no worker processes");
    }
    let config = shape.get("config").cloned().unwrap_or_default();
    let config = section(&format!("{path}.config"), config, findings);
    let driver = findings.note(shape.parse::<PipelineSection>()).map(|read| read.driver);
    let driver = driver.or_else(|| shape.get("driver")?.as_str().map(str::to_owned))?;
    let mut config = config?;
    let read = Pipeline::with_options(name, driver.as_str(), config.clone());
    findings.note(read).or_else(|| {
        drop(config.take(&["priority", "max_running"]));
        Pipeline::with_options(name, driver, config).ok()
    })
}

fn section(path: &str, value: Value, findings: &mut Findings) -> Option<Options> {
    let value = match value {
        Value::Object(map) => Value::Object(lower_case(path, map, findings)),
        other => other,
    };
    let options = Options::from_value(path, value);
    findings.note(options.map_err(|problem: Problem| vec![problem]))
}

/// Keys are not case-sensitive, so two that differ in case only would be one.
fn lower_case(path: &str, map: Map<String, Value>, findings: &mut Findings) -> Map<String, Value> {
    let mut lower = BTreeMap::new();
    for (key, value) in map {
        let name = key.to_lowercase();
        if lower.insert(name.clone(), value).is_some() {
            let path = if path.is_empty() { name } else { format!("{path}.{name}") };
            findings.problem(path, "stands here twice: upper and lower case are the same");
        }
    }
    lower.into_iter().collect()
}
