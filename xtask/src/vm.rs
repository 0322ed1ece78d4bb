//! `cargo xtask vm`: one command in a throw-away machine, its output and status ours.

use std::{ffi::OsString, fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use larder_vm::{Cache, Disk, End, Image, Machine, Streams};

/// Exit status when the time limit passed, as timeout(1) has it.
const STATUS_TIMED_OUT: u8 = 124;
/// Exit status when the machine died under the command.
const STATUS_CRASHED: u8 = 125;
/// Exit status after `--kill-after`, as of a command that SIGKILL ended.
const STATUS_POWER_CUT: u8 = 137;

/// Arguments of `vm`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The command's exit status is passed on; 124: time limit, 125: the machine \
                        died, 137: power cut. LARDER_VM_ACCEL=tcg|kvm overrides the probe."
)]
pub(crate) struct Args {
    /// Folder shared read-write at its own path, /share as well [default: the checkout]
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,
    /// Memory in MiB
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    memory: u32,
    /// Number of processors
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Throw-away ext4 at /scratch, sparse on the host (0: none), such as 8G
    #[arg(long, default_value = "8G", value_parser = parse_size, value_name = "SIZE")]
    scratch: u64,
    /// A disk that outlives the machine: /dev/larder/NAME, flushed for real; FILE is made when absent
    #[arg(long, value_name = "NAME=FILE[:SIZE]")]
    disk: Vec<String>,
    /// Start udev in the guest
    #[arg(long)]
    udev: bool,
    /// Seconds until the machine is ended
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,
    /// Cut the power this many seconds after the command began
    #[arg(long, value_name = "SECONDS")]
    kill_after: Option<f64>,
    /// Variable for the command
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Print the guest kernel's log at the end, and when the command began
    #[arg(long)]
    console: bool,
    /// Only make the image
    #[arg(long)]
    build: bool,
    /// Program of the guest, or a path in a share, and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required_unless_present = "build")]
    command: Vec<OsString>,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    if args.build {
        println!("{}", Image::get()?.root().display());
        return Ok(ExitCode::SUCCESS);
    }
    let here = std::env::current_dir()?;
    let mut machine = Machine::new()
        .memory(args.memory)
        .cpus(args.cpus)
        .scratch(args.scratch)
        .udev(args.udev)
        .timeout(Duration::from_secs(args.timeout))
        .streams(Streams::PassedThrough);
    let shares = if args.share.is_empty() { vec![crate::root()] } else { args.share };
    for share in shares {
        if here.starts_with(&share) {
            machine = machine.cwd(&here);
        }
        machine = machine.share(share);
    }
    for disk in &args.disk {
        machine = machine.disk(&parse_disk(disk)?);
    }
    for pair in &args.env {
        let (name, value) = pair.split_once('=').context("--env wants NAME=VALUE")?;
        machine = machine.env(name, value);
    }
    if let Some(seconds) = args.kill_after {
        machine = machine.kill_after(Duration::try_from_secs_f64(seconds)?);
    }
    let output = machine.run(&args.command)?;
    if args.console || output.end == End::Crashed {
        eprintln!("vm: {:?}, command began at {:?}\n{}", output.end, output.boot, output.console);
    }
    Ok(ExitCode::from(match output.end {
        End::Exited(status) => u8::try_from(status).unwrap_or(u8::MAX),
        End::TimedOut => STATUS_TIMED_OUT,
        End::Crashed => STATUS_CRASHED,
        End::PowerCut => STATUS_POWER_CUT,
    }))
}

fn parse_disk(text: &str) -> Result<Disk> {
    let (name, rest) = text.split_once('=').context("--disk wants NAME=FILE[:SIZE]")?;
    let (path, bytes) = match rest.rsplit_once(':') {
        Some((path, size)) => (path, parse_size(size)?),
        None => (rest, 0),
    };
    ensure!(bytes > 0 || fs::metadata(path).is_ok(), "disk {path} does not exist: give a size");
    let path = std::path::absolute(path)?;
    Ok(Disk::new(name, path, bytes)?.cache(Cache::Writeback))
}

fn parse_size(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().with_context(|| format!("{text:?} is no size"))?;
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        other => bail!("unknown unit {other:?} (hint: K, M, G or T)"),
    };
    number.checked_mul(1 << shift).with_context(|| format!("{text} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two() {
        assert_eq!(parse_size("0").unwrap(), 0);
        assert_eq!(parse_size("8G").unwrap(), 8 << 30);
        assert!(parse_size("8X").is_err());
        assert!(parse_size("G").is_err());
        assert!(parse_size("99999999999T").is_err());
    }

    #[test]
    fn a_new_disk_needs_a_size() {
        let dir = tempfile_dir();
        let path = dir.join("never-made");
        assert!(parse_disk(&format!("data={}", path.display())).is_err());
    }

    fn tempfile_dir() -> PathBuf {
        std::env::temp_dir()
    }
}
