//! `cargo xtask image`: the container image, without a container engine.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use larder_needs::Purpose;

use crate::proc;

/// Arguments of `image`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A debug build, stripped: minutes faster to build, several times as large
    #[arg(long)]
    dev: bool,
    /// This program instead of a build
    #[arg(long, value_name = "FILE", conflicts_with = "dev")]
    program: Option<PathBuf>,
    /// The image's full name
    #[arg(long, value_name = "NAME:TAG", default_value = concat!("ghcr.io/larder-dev/larder:", env!("CARGO_PKG_VERSION")))]
    tag: String,
    /// The archive [default: larder-image.tar in cargo's output folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    larder_needs::ensure(&[Purpose::Build, Purpose::Image])?;
    let target = crate::target_dir()?;
    let program = match (&args.program, args.dev) {
        (Some(program), _) => program.clone(),
        (None, dev) => {
            let mut cargo = proc::cargo();
            cargo.args(["build", "--package", "larder"]);
            proc::run(if dev { &mut cargo } else { cargo.args(["--release", "--locked"]) })?;
            target.join(if dev { "debug/larder" } else { "release/larder" })
        }
    };
    let out = args.out.clone().unwrap_or_else(|| target.join("larder-image.tar"));
    let write = if args.dev {
        larder_cluster::larder::write_stripped
    } else {
        larder_cluster::larder::write
    };
    let size = write(&program, &args.tag, &out).context("failed to make the image")?;
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    println!("{}: {} in {}", args.tag, mib(size.tools + size.program), out.display());
    println!("  tools and libraries {}, larder {}", mib(size.tools), mib(size.program));
    println!("  cargo xtask cluster import {}", out.display());
    println!(
        "  or: ctr --namespace k8s.io images import FILE; docker load --input FILE; skopeo copy oci-archive:FILE …"
    );
    Ok(ExitCode::SUCCESS)
}
