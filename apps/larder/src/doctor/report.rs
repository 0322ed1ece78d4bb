//! How findings are told.

use super::{Finding, Outcome, for_people};
use crate::output::{self, Format};
use anyhow::Result;
use serde::Serialize;

/// The whole report. The JSON form is part of the interface.
#[derive(Serialize)]
struct Report<'a> {
    findings: &'a [Finding],
    fixes: &'a [Outcome],
}

/// Prints what was found, and what was mended before.
pub(crate) fn print(format: Format, findings: &[Finding], fixes: &[Outcome]) -> Result<()> {
    if !for_people(format) {
        return output::value(format, &Report { findings, fixes });
    }
    for fix in fixes {
        match &fix.error {
            None => output::line(format!("{:7} {}", fix.result, fix.fix))?,
            Some(error) => output::line(format!("failed  {}: failed to {error}", fix.fix))?,
        }
    }
    if !fixes.is_empty() {
        output::line("")?;
    }
    if findings.is_empty() {
        return output::line("Nothing is wrong.");
    }
    for finding in findings {
        let about = finding.volume.as_ref().or(finding.pool.as_ref()).unwrap_or(&finding.driver);
        output::line(format!("{}: {} ({about})", finding.severity, finding.kind))?;
        output::line(format!("  where: {}", finding.place))?;
        output::line(format!("  what:  {}", finding.what))?;
        output::line(format!("  why:   {}", finding.why))?;
        let by = if finding.fix.is_some() { "--fix will" } else { "by hand:" };
        output::line(format!("  mend:  {by} {}", finding.mend))?;
        output::line("")?;
    }
    let fixable = findings.iter().filter(|finding| finding.fix.is_some()).count();
    output::line(format!("{} found; --fix mends {fixable}", findings.len()))
}

/// Tells what `--fix` is about to do, and what it leaves.
pub(crate) fn plan(findings: &[Finding]) {
    output::note("Plan:");
    for finding in findings {
        if finding.fix.is_some() {
            output::note(format!("  {}  [{} at {}]", finding.mend, finding.kind, finding.place));
        }
    }
    let left = findings.iter().filter(|finding| finding.fix.is_none()).count();
    if left > 0 {
        output::note(format!("{left} more need a person; they are told afterwards"));
    }
}
