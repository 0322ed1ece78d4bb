//! Reads the suite's JSON report.

use std::{fs, path::Path};

use anyhow::{Context as _, bail};
use serde::Deserialize;

/// What a spec said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Result {
    /// All is well.
    Passed,
    /// Why the suite did not do it.
    Skipped(String),
    /// What went wrong.
    Failed(String),
}

/// One spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Its containers and itself, `CreateVolume [Controller Server] should …`.
    pub(crate) name: String,
    /// What became of it.
    pub(crate) result: Result,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    #[serde(default)]
    special_suite_failure_reasons: Option<Vec<String>>,
    #[serde(default)]
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_text: String,
    leaf_node_type: String,
    state: String,
    #[serde(default)]
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

/// All specs of a report.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Outcome>> {
    let json = fs::read_to_string(path).context("the suite left no report")?;
    parse(&json).context("the suite's report cannot be read")
}

fn parse(json: &str) -> anyhow::Result<Vec<Outcome>> {
    let suites: Vec<Suite> = serde_json::from_str(json)?;
    let mut outcomes = Vec::new();
    for suite in suites {
        for reason in suite.special_suite_failure_reasons.into_iter().flatten() {
            outcomes.push(Outcome { name: "the suite".to_owned(), result: Result::Failed(reason) });
        }
        outcomes.extend(suite.spec_reports.into_iter().flatten().filter_map(outcome));
    }
    if !outcomes.iter().any(|outcome| outcome.result == Result::Passed) {
        bail!("no spec passed");
    }
    Ok(outcomes)
}

/// A spec's outcome; none for what is neither a spec nor wrong, such as a set-up
/// node, and for specs that `--focus` left out.
fn outcome(spec: Spec) -> Option<Outcome> {
    let message = spec.failure.map(|failure| failure.message).unwrap_or_default();
    let result = match spec.state.as_str() {
        "passed" if spec.leaf_node_type == "It" => Result::Passed,
        "skipped" if spec.leaf_node_type == "It" && !message.is_empty() => Result::Skipped(message),
        "passed" | "skipped" => return None,
        "pending" => Result::Skipped("pending".to_owned()),
        state => Result::Failed(format!("{state}: {message}")),
    };
    let mut name = spec.container_hierarchy_texts.unwrap_or_default().join(" ");
    let leaf =
        if spec.leaf_node_text.is_empty() { &spec.leaf_node_type } else { &spec.leaf_node_text };
    name.push(' ');
    name.push_str(leaf);
    Some(Outcome { name: name.trim().to_owned(), result })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: &str, state: &str, message: &str) -> String {
        format!(
            r#"{{"ContainerHierarchyTexts": ["Node Service", "NodeX"], "LeafNodeText": "should y",
            "LeafNodeType": "{kind}", "State": "{state}", "Failure": {{"Message": "{message}"}}}}"#
        )
    }

    fn parsed(specs: &[String]) -> anyhow::Result<Vec<Outcome>> {
        parse(&format!(r#"[{{"SpecReports": [{}]}}]"#, specs.join(",")))
    }

    #[test]
    fn each_state_of_a_spec_is_told_apart() {
        let outcomes = parsed(&[
            spec("It", "passed", ""),
            spec("It", "skipped", "X not supported"),
            spec("It", "skipped", ""),
            spec("It", "failed", "expected y"),
            spec("It", "panicked", "z"),
            spec("BeforeSuite", "passed", ""),
            spec("BeforeSuite", "failed", "no socket"),
        ])
        .unwrap();
        let results: Vec<_> = outcomes.iter().map(|outcome| outcome.result.clone()).collect();
        assert_eq!(
            results,
            [
                Result::Passed,
                Result::Skipped("X not supported".into()),
                Result::Failed("failed: expected y".into()),
                Result::Failed("panicked: z".into()),
                Result::Failed("failed: no socket".into()),
            ]
        );
        assert_eq!(outcomes[0].name, "Node Service NodeX should y");
    }

    #[test]
    fn a_report_in_which_nothing_passed_is_an_error() {
        assert!(parsed(&[]).is_err());
        assert!(parsed(&[spec("It", "skipped", "x")]).is_err());
        assert!(parse("[]").is_err());
        assert!(parse("").is_err());
    }
}
