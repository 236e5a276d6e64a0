//! `${VAR}` and `${VAR:-default}` in the text values of a configuration.
//!
//! Expanded after the YAML was parsed, so that a variable's value stays one value whatever it
//! holds, and never expanded again.

use serde_json::Value;

use super::findings::Findings;

pub(super) type Variable<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Expands every text in `value`; keys stay as they are.
pub(super) fn expand(path: &str, value: &mut Value, get: Variable<'_>, findings: &mut Findings) {
    match value {
        Value::String(text) => *text = expand_text(path, text, get, findings),
        Value::Array(items) => items
            .iter_mut()
            .enumerate()
            .for_each(|(index, item)| expand(&format!("{path}.{index}"), item, get, findings)),
        Value::Object(map) => map
            .iter_mut()
            .for_each(|(key, item)| expand(&format!("{path}.{key}"), item, get, findings)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn expand_text(path: &str, text: &str, get: Variable<'_>, findings: &mut Findings) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        literal(path, before, findings);
        expanded.push_str(before);
        let Some((inside, after)) = after.split_once('}') else {
            findings.problem(path, "`${` is not closed by `}`");
            return expanded;
        };
        match value_of(inside, get) {
            Ok(value) => expanded.push_str(&value),
            Err(message) => findings.problem(path, message),
        }
        rest = after;
    }
    literal(path, rest, findings);
    expanded + rest
}

/// The value of what stands between `${` and `}`. As in a shell, a default also replaces a variable
/// that is set to nothing.
fn value_of(inside: &str, get: Variable<'_>) -> Result<String, String> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    if !is_name(name) || inside.contains("${") {
        return Err("expected `${NAME}` or `${NAME:-default}`, nothing nested".into());
    }
    match (get(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!(
            "the environment variable `{name}` is not set (`${{{name}:-}}` would mean empty text)"
        )),
    }
}

/// RoadRunner expands `$NAME` too; here it could be part of a password.
fn literal(path: &str, text: &str, findings: &mut Findings) {
    let is_variable =
        |(at, _)| text[at + 1..].starts_with(|c: char| c == '_' || c.is_ascii_alphabetic());
    if text.match_indices('$').any(is_variable) {
        findings.warn(path, "`$NAME` without braces is not expanded, write `${NAME}`");
    }
}

fn is_name(name: &str) -> bool {
    let word = |c: char| c == '_' || c.is_ascii_alphanumeric();
    name.chars().all(word) && !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn expanded(text: &str) -> (String, Findings) {
        let get = |name: &str| match name {
            "A" => Some("a".to_owned()),
            "EMPTY" => Some(String::new()),
            "ODD" => Some("x: ${A}\n- $A".to_owned()),
            _ => None,
        };
        let (mut value, mut findings) = (json!(text), Findings::default());
        expand("p", &mut value, &get, &mut findings);
        (value.as_str().expect("still text").to_owned(), findings)
    }

    #[test]
    fn expands_variables_and_defaults() {
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("${A}", "a"),
            ("<${A}-${A}>", "<a-a>"),
            ("${NONE:-b}", "b"),
            ("${NONE:-}", ""),
            ("${NONE:-x:-y}", "x:-y"),
            ("${A:-b}", "a"),
            ("${EMPTY:-b}", "b"),
            ("[${EMPTY}]", "[]"),
            ("${ODD}", "x: ${A}\n- $A"),
            ("5$ and $$", "5$ and $$"),
            ("}", "}"),
        ] {
            let (value, findings) = expanded(text);
            assert_eq!(value, expected, "{text}");
            assert!(findings.problems.is_empty(), "{text}: {findings:?}");
        }
    }

    #[test]
    fn names_what_is_wrong() {
        for (text, expected) in [
            ("${NONE}", "`NONE` is not set"),
            ("${A", "not closed"),
            ("${}", "expected `${NAME}`"),
            ("${1A}", "expected `${NAME}`"),
            ("${A-b}", "expected `${NAME}`"),
            ("${NONE:-${A}}", "nothing nested"),
        ] {
            let (_, findings) = expanded(text);
            let problem = findings.problems.first().expect(text).to_string();
            assert!(problem.contains(expected), "{problem}");
        }
        assert_eq!(expanded("${NONE} ${NEITHER}").1.problems.len(), 2);
    }

    #[test]
    fn a_name_without_braces_stays() {
        let (value, findings) = expanded("pa$word");
        assert_eq!(value, "pa$word");
        assert!(findings.problems.is_empty());
        assert!(format!("{findings:?}").contains("without braces"));
    }
}
