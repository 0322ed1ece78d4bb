//! Rows of results, and their form.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use crate::{conditions::Conditions, sample::Samples};

/// What a figure is held against.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Target {
    /// Larger figures are better, or smaller ones.
    at_least: bool,
    value: f64,
    /// How the value came about, where it was measured itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    why: String,
}

/// One result.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    bench: &'static str,
    what: String,
    unit: &'static str,
    figure: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99: Option<f64>,
    samples: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Target>,
    verdict: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
    /// The figures of all runs, in their order.
    runs: Vec<f64>,
}

impl Row {
    /// A row whose figure is a single number.
    pub(crate) fn new(bench: &'static str, what: &str, figure: f64, unit: &'static str) -> Self {
        Self {
            bench,
            what: what.to_owned(),
            unit,
            figure,
            p50: None,
            p99: None,
            samples: 1,
            target: None,
            verdict: "",
            note: String::new(),
            runs: vec![figure],
        }
    }

    /// A row whose figure is the median of times.
    pub(crate) fn times(bench: &'static str, what: &str, samples: &Samples) -> Self {
        Self {
            p50: Some(samples.p50()),
            p99: Some(samples.p99()),
            samples: samples.len(),
            ..Self::new(bench, what, samples.p50(), "ms")
        }
    }

    /// p50 and p99 of the single pieces behind a figure of another kind.
    pub(crate) fn pieces(mut self, samples: &Samples) -> Self {
        (self.p50, self.p99, self.samples) =
            (Some(samples.p50()), Some(samples.p99()), samples.len());
        self
    }

    pub(crate) fn at_most(self, value: f64, why: impl Into<String>) -> Self {
        self.target(Target { at_least: false, value, why: why.into() })
    }

    pub(crate) fn at_least(self, value: f64, why: impl Into<String>) -> Self {
        self.target(Target { at_least: true, value, why: why.into() })
    }

    fn target(mut self, target: Target) -> Self {
        let met = match target.at_least {
            true => self.figure >= target.value,
            false => self.figure <= target.value,
        };
        self.verdict = if met { "pass" } else { "short" };
        self.target = Some(target);
        self
    }

    /// Between which values the figure is known to lie. Where the target is among them, the run does not tell
    /// whether it is met.
    pub(crate) fn known_to(mut self, low: f64, high: f64) -> Self {
        if self.target.as_ref().is_some_and(|t| low < t.value && t.value <= high) {
            self.verdict = "open";
        }
        self
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// What runs are put in order by: targets may be measured themselves, so a run is as good as
    /// its figure is against the target of the same run.
    fn merit(&self) -> f64 {
        self.figure / self.target.as_ref().map_or(1.0, |t| t.value.max(f64::MIN_POSITIVE))
    }
}

/// The rows of all runs.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// In order of appearance; one entry holds the runs of one row.
    rows: Vec<Vec<Row>>,
}

impl Report {
    pub(crate) fn add(&mut self, rows: Vec<Row>) {
        for row in rows {
            let same = |runs: &&mut Vec<Row>| {
                runs.first().is_some_and(|r| (r.bench, &r.what) == (row.bench, &row.what))
            };
            match self.rows.iter_mut().find(same) {
                Some(runs) => runs.push(row),
                None => self.rows.push(vec![row]),
            }
        }
    }

    /// One row each: the run in the middle.
    fn middle(&self) -> Vec<Row> {
        let middle = |runs: &Vec<Row>| {
            let figures: Vec<_> = runs.iter().map(|r| r.figure).collect();
            let mut sorted: Vec<_> = runs.iter().collect();
            sorted.sort_by(|a, b| a.merit().total_cmp(&b.merit()));
            let row = sorted.get((sorted.len().max(1) - 1) / 2)?;
            Some(Row { runs: figures, ..(*row).clone() })
        };
        self.rows.iter().filter_map(middle).collect()
    }

    pub(crate) fn json(&self, conditions: &Conditions) -> Result<String> {
        #[derive(Serialize)]
        struct Whole<'a> {
            conditions: &'a Conditions,
            results: Vec<Row>,
        }
        Ok(serde_json::to_string_pretty(&Whole { conditions, results: self.middle() })?)
    }

    pub(crate) fn text(&self, conditions: &Conditions) -> String {
        let mut text = conditions.text();
        let head = ["benchmark", "what", "figure", "target", "p50", "p99", "n", "", "runs, notes"];
        let mut lines = vec![head.map(str::to_owned)];
        lines.extend(self.middle().iter().map(cells));
        let widths: Vec<_> = (0..head.len())
            .map(|c| lines.iter().map(|l| l[c].chars().count()).max().unwrap_or(0))
            .collect();
        text.push('\n');
        for line in &lines {
            let mut out = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                // Writing to a string does not fail.
                let _ = write!(out, "{cell:width$}  ");
            }
            text.push_str(out.trim_end());
            text.push('\n');
        }
        text
    }
}

fn cells(row: &Row) -> [String; 9] {
    let number = |n: Option<f64>| n.map(shown).unwrap_or_default();
    let target = row.target.as_ref().map(|t| {
        let sign = if t.at_least { "≥" } else { "≤" };
        let why = if t.why.is_empty() { String::new() } else { format!(" ({})", t.why) };
        format!("{sign} {} {}{why}", shown(t.value), row.unit)
    });
    let runs: Vec<_> = row.runs.iter().map(|f| shown(*f)).collect();
    let runs = if runs.len() > 1 { format!("runs {}; ", runs.join(" ")) } else { String::new() };
    [
        row.bench.to_owned(),
        row.what.clone(),
        format!("{} {}", shown(row.figure), row.unit),
        target.unwrap_or_default(),
        number(row.p50),
        number(row.p99),
        row.samples.to_string(),
        row.verdict.to_owned(),
        format!("{runs}{}", row.note).trim_end_matches([' ', ';']).to_owned(),
    ]
}

/// Three digits that mean something.
pub(crate) fn shown(number: f64) -> String {
    match number.abs() {
        n if n >= 100.0 => format!("{number:.0}"),
        n if n >= 10.0 => format!("{number:.1}"),
        n if n >= 1.0 => format!("{number:.2}"),
        _ => format!("{number:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_runs_are_summed_up_by_the_one_in_the_middle_of_figure_against_target() {
        let mut report = Report::default();
        for (figure, target) in [(1.0, 2.0), (3.0, 2.0), (4.0, 5.0)] {
            report.add(vec![Row::new("a", "b", figure, "ms").at_most(target, "")]);
        }
        let rows = report.middle();
        assert_eq!(rows.len(), 1);
        assert!((rows[0].figure - 4.0).abs() < f64::EPSILON);
        assert_eq!(rows[0].verdict, "pass");
        assert_eq!(rows[0].runs.len(), 3);
    }

    #[test]
    fn a_run_that_cannot_tell_says_so() {
        let row = || Row::new("a", "b", 94.0, "%").at_least(95.0, "");
        assert_eq!(row().known_to(90.0, 97.0).verdict, "open");
        assert_eq!(row().known_to(93.0, 94.5).verdict, "short");
        assert_eq!(
            Row::new("a", "b", 96.0, "%").at_least(95.0, "").known_to(95.5, 97.0).verdict,
            "pass"
        );
    }

    #[test]
    fn a_figure_on_the_wrong_side_of_its_target_is_short() {
        assert_eq!(Row::new("a", "b", 2.0, "/s").at_least(3.0, "").verdict, "short");
        assert_eq!(Row::new("a", "b", 2.0, "ms").at_most(1.0, "").verdict, "short");
        assert_eq!(Row::new("a", "b", 2.0, "ms").at_most(2.0, "").verdict, "pass");
        assert_eq!(Row::new("a", "b", 2.0, "ms").verdict, "");
    }
}
