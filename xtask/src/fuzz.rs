//! `cargo xtask fuzz`: looks for bytes that break a property of `tests/fuzz`, and keeps the corpus.
//!
//! The targets in `fuzz/` are built on the stable toolchain with the coverage that libFuzzer is guided
//! by, without a sanitizer: what is parsed is parsed by safe code. They run side by side, each for the
//! time that is asked for, from the corpus in `tests/fuzz/corpus`; what they add there is minimised
//! before it is kept. What breaks a property goes to `tests/fuzz/regressions`, where
//! `cargo test -p larder-fuzz` finds it too.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use larder_needs::Purpose;

use crate::proc;

/// All targets: the files in `fuzz/fuzz_targets`.
const TARGETS: [&str; 5] = ["requests", "handles", "config", "mountinfo", "records"];

/// What `cargo fuzz run --sanitizer none` builds with.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
    -Cllvm-args=-sanitizer-coverage-stack-depth -Cdebug-assertions -Ccodegen-units=1";

/// The longest input that is tried, and the longest that is kept: the corpus stays small.
const LONGEST: u64 = 2048;

/// What all kept inputs of one target may take together.
const ROOM: u64 = 160 << 10;

/// How many inputs of one target are kept.
const MOST: usize = 300;

/// Arguments of `fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these (default: all)
    #[arg(value_parser = TARGETS)]
    targets: Vec<String>,
    /// How long, as in 90s, 10m or 1h
    #[arg(long = "for", default_value = "10m", value_parser = period)]
    time: Duration,
    /// Leave the corpus as it is
    #[arg(long)]
    no_keep: bool,
}

fn period(text: &str) -> Result<Duration> {
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => bail!("write a whole number with a unit, as in 90s, 10m or 1h"),
    };
    let number: u64 = number.parse().context("write a whole number with a unit, as in 10m")?;
    Ok(Duration::from_secs(number.checked_mul(unit).context("that is too long")?))
}

/// One target, running.
struct Run {
    target: String,
    program: PathBuf,
    /// Corpus in the project.
    kept: PathBuf,
    /// Corpus of this run.
    work: PathBuf,
    log: PathBuf,
    child: Child,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    larder_needs::ensure(&[Purpose::Build, Purpose::Fuzz])?;
    let targets: Vec<String> = if args.targets.is_empty() {
        TARGETS.map(str::to_owned).to_vec()
    } else {
        args.targets.clone()
    };
    let programs = build()?;
    let mut runs = Vec::new();
    for target in targets {
        runs.push(start(&programs, target, args.time)?);
    }
    eprintln!("fuzz: {} targets for {} s", runs.len(), args.time.as_secs());
    let mut broken = 0;
    for mut run in runs {
        let fine = run.child.wait()?.success();
        println!("fuzz: {}", told(&run)?);
        if !fine {
            broken += 1;
            println!("fuzz: {} failed; see {}", run.target, run.log.display());
        }
        if !args.no_keep {
            keep(&run)?;
        }
    }
    if broken == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    println!("what broke a property is in tests/fuzz/regressions: cargo test -p larder-fuzz");
    Ok(ExitCode::FAILURE)
}

/// Builds all targets; the folder of their programs.
fn build() -> Result<PathBuf> {
    let folder = crate::target_dir()?.join("fuzz");
    // With a target given, what cargo runs while it builds is built without coverage.
    let host = host()?;
    let mut build = proc::cargo();
    build
        .current_dir(crate::root().join("fuzz"))
        // Not `--locked`: a dependency of the workspace that is new is new there, too, and git shows it.
        .args(["build", "--release", "--bins", "--target", &host])
        .arg("--target-dir")
        .arg(&folder)
        .env("RUSTFLAGS", COVERAGE);
    eprintln!("fuzz: building the targets (some minutes the first time)");
    proc::run(&mut build)?;
    Ok(folder.join(host).join("release"))
}

fn host() -> Result<String> {
    let text = proc::output(Command::new("rustc").arg("-vV").current_dir(crate::root()))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc names no host")?.to_owned())
}

fn start(programs: &Path, target: String, time: Duration) -> Result<Run> {
    let kept = crate::root().join("tests/fuzz/corpus").join(&target);
    let found = crate::root().join("tests/fuzz/regressions").join(&target);
    let logs = crate::target_dir()?.join("xtask");
    let work = logs.join("fuzz").join(&target);
    for folder in [&kept, &found, &work] {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let log = logs.join(format!("fuzz-{target}.log"));
    let output = fs::File::create(&log)?;
    let program = programs.join(&target);
    let mut command = Command::new("nice");
    command
        .args(["-n", "15"])
        .arg(&program)
        .args([&work, &kept])
        .arg(format!("-max_total_time={}", time.as_secs()))
        .arg(format!("-max_len={LONGEST}"))
        .arg(format!("-artifact_prefix={}/", found.display()))
        .args(["-print_final_stats=1", "-timeout=10"])
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    let child = command.spawn().with_context(|| format!("start {}", program.display()))?;
    Ok(Run { target, program, kept, work, log, child })
}

/// What came of it, on one line.
fn told(run: &Run) -> Result<String> {
    let log = fs::read(&run.log)?;
    let log = String::from_utf8_lossy(&log);
    let stat = |name: &str| {
        let line = log.lines().rev().find_map(|line| line.strip_prefix(name));
        line.map_or("?", |value| value.trim()).to_owned()
    };
    Ok(format!(
        "{}: {} inputs tried, {} a second, {} new",
        run.target,
        stat("stat::number_of_executed_units:"),
        stat("stat::average_exec_per_sec:"),
        stat("stat::new_units_added:"),
    ))
}

/// Puts the smallest set of inputs that covers as much in the place of the kept corpus.
fn keep(run: &Run) -> Result<()> {
    let minimal = run.work.with_extension("minimal");
    // Left by a run that was ended.
    let _ = fs::remove_dir_all(&minimal);
    fs::create_dir_all(&minimal)?;
    let mut merge = Command::new(&run.program);
    merge.arg("-merge=1").arg(&minimal).args([&run.kept, &run.work]);
    let log = run.log.with_extension("merge.log");
    let ended = proc::run_limited(&mut merge, &log, Duration::from_secs(1800))?;
    if ended != proc::Ended::Well {
        bail!("cannot minimise the corpus of {}: see {}", run.target, log.display());
    }
    let mut inputs = Vec::new();
    for entry in fs::read_dir(&minimal)? {
        let entry = entry?;
        inputs.push((entry.metadata()?.len(), entry.path()));
    }
    // Of more than there is room for, some of every size.
    inputs.sort();
    let step = inputs.len().div_ceil(MOST).max(1);
    for entry in fs::read_dir(&run.kept)? {
        fs::remove_file(entry?.path())?;
    }
    let mut room = ROOM;
    for (size, path) in inputs.into_iter().step_by(step) {
        let name = path.file_name().context("an input without a name")?;
        if size <= LONGEST && size <= room {
            room -= size;
            fs::copy(&path, run.kept.join(name))?;
        }
    }
    fs::remove_dir_all(&minimal)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(period("90s").unwrap().as_secs(), 90);
        assert_eq!(period("1h").unwrap().as_secs(), 3600);
        for wrong in ["", "h", "10", "1.5h", "99999999999999999999h", "18446744073709551615h"] {
            assert!(period(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_target_has_its_file_and_a_corpus() {
        let root = crate::root();
        for target in TARGETS {
            assert!(root.join("fuzz/fuzz_targets").join(format!("{target}.rs")).is_file());
            assert!(root.join("tests/fuzz/corpus").join(target).is_dir());
        }
        assert_eq!(fs::read_dir(root.join("fuzz/fuzz_targets")).unwrap().count(), TARGETS.len());
    }
}
