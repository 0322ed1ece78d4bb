//! Runs the suite in a virtual machine: this very program, with what was built here.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use larder_needs::Purpose;
use larder_vm::{End, Machine, Streams};

use super::Run;
use crate::test::totals::{self, Totals};

/// For the suite and its folder.
const SCRATCH_BYTES: u64 = 8 << 30;
/// Longer than the suite's own limit.
const LIMIT: Duration = Duration::from_secs(420);

/// Runs it there.
pub(super) fn run(run: &Run<'_>) -> Result<Totals> {
    larder_needs::ensure(&[Purpose::Vm])?;
    let program = std::env::current_exe()?;
    let logs = crate::target_dir()?.join("xtask");
    std::fs::create_dir_all(&logs)?;
    let folder =
        |file: &Path| -> Result<_> { Ok(file.parent().context("a file has a folder")?.to_owned()) };
    let mut machine = Machine::new()
        .memory(2048)
        .scratch(SCRATCH_BYTES)
        .timeout(LIMIT)
        .env("TMPDIR", "/scratch")
        .streams(Streams::PassedThrough)
        .share(crate::root());
    for other in [folder(&program)?, folder(run.larder)?, folder(run.suite)?, logs.clone()] {
        if !other.starts_with(crate::root()) {
            machine = machine.share(other);
        }
    }
    let text = |path: &Path| path.display().to_string();
    let mut command = vec!["sh".to_owned(), "-c".to_owned()];
    command.push("modprobe -a loop xfs && exec \"$@\"".to_owned());
    command.push("sh".to_owned());
    command.extend([text(&program), "sanity".to_owned()]);
    command.extend(["--backend".to_owned(), run.backend.to_string()]);
    command.extend(["--access".to_owned(), run.access.to_string()]);
    command.extend(["--seed".to_owned(), run.seed.to_string()]);
    command.extend(["--larder".to_owned(), text(run.larder)]);
    command.extend(["--inside".to_owned(), text(run.suite), text(&logs)]);
    for parameter in &run.args.parameter {
        command.extend(["--parameter".to_owned(), parameter.clone()]);
    }
    if let Some(focus) = &run.args.focus {
        command.extend(["--focus".to_owned(), focus.clone()]);
    }
    let output = machine.run(&command)?;
    let totals = totals::parse(&output.text());
    match (output.end, totals) {
        (End::Exited(_), Some(totals)) => Ok(totals),
        (End::TimedOut, _) => bail!("the suite was not done after {} s", LIMIT.as_secs()),
        (end, _) => bail!("the machine ended ({end:?}):\n{}", output.console),
    }
}
