//! The demo's workbench: a folder, a pool, a server, and the table of what was done.

use super::{
    leftovers::{self, DISK},
    process::Larder,
};
use crate::output::{self, Format, Row};
use anyhow::{Context, Result};
use larder_host::{
    Host,
    lock::FileLock,
    loops::LoopRequest,
    mounts::{MountRequest, Unmount},
};
use larder_model::{Bytes, FsType};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    time::Instant,
};
use tokio::process::Child;

const POOL_SIZE: Bytes = Bytes::gib(4);
const SOCKET: &str = "run/csi.sock";

/// Where the demo works.
#[derive(Debug)]
pub(crate) struct Bench {
    folder: Option<tempfile::TempDir>,
    /// Says that the folder is in use.
    lock: Option<FileLock>,
    root: bool,
    keep: bool,
    server: Option<Child>,
    larder: Larder,
    rows: Vec<StepRow>,
    started: Instant,
}

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StepRow {
    step: String,
    milliseconds: u128,
    ok: bool,
    check: String,
}

impl Row for StepRow {
    const HEADINGS: &'static [&'static str] = &["", "STEP", "TIME", "CHECK"];
    const NARROW: usize = 4;
    fn cells(&self) -> Vec<String> {
        let mark = if self.ok { "ok" } else { "FAILED" };
        vec![
            mark.to_owned(),
            self.step.clone(),
            format!("{} ms", self.milliseconds),
            self.check.clone(),
        ]
    }
}

/// What was done.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    steps: Vec<StepRow>,
    left_out: Vec<&'static str>,
    total_milliseconds: u128,
}

impl Report {
    /// How many steps failed.
    pub(crate) fn failed(&self) -> usize {
        self.steps.iter().filter(|s| !s.ok).count()
    }
    /// Prints the table.
    pub(crate) fn print(&self, format: Format) -> Result<()> {
        if matches!(format, Format::Json | Format::Yaml) {
            return output::value(format, self);
        }
        output::list(format, &self.steps)?;
        for left_out in &self.left_out {
            output::line(format!("left out: {left_out}"))?;
        }
        let failed = self.failed();
        let outcome = if failed == 0 {
            "everything is as it should be".to_owned()
        } else {
            format!("{failed} FAILED")
        };
        output::line(format!(
            "{} steps in {} ms: {outcome}",
            self.steps.len(),
            self.total_milliseconds
        ))
    }
}

impl Bench {
    /// Makes the folder, the pool and the configuration, and starts a server.
    pub(crate) async fn set_up(root: bool, keep: bool) -> Result<Self> {
        let started = Instant::now();
        let temporary = std::env::temp_dir();
        let cleared = leftovers::clear(&temporary);
        if cleared > 0 {
            output::note(format!("removed what {cleared} killed demos had left"));
        }
        let folder = tempfile::Builder::new()
            .prefix(leftovers::PREFIX)
            .tempdir_in(&temporary)
            .context("failed to make the demo's folder")?;
        let lock = leftovers::hold(folder.path())?;
        let config = folder.path().join("config.yaml");
        let larder = Larder::new(&config)?;
        let mut bench = Self {
            folder: Some(folder),
            lock,
            root,
            keep,
            server: None,
            larder,
            rows: Vec::new(),
            started,
        };
        if let Err(error) = bench.prepare(&config).await {
            let _ = bench.tear_down().await;
            return Err(error);
        }
        Ok(bench)
    }

    async fn prepare(&mut self, config: &Path) -> Result<()> {
        let pool = self.path("pool");
        std::fs::create_dir(&pool)?;
        let mut on = "this file system";
        let start = Instant::now();
        if self.root {
            let image = self.path(DISK);
            let at = pool.clone();
            larder_host::blocking(move || mount_disk(&image, &at))
                .await
                .context("failed to make the demo's disk")?;
            on = "xfs";
        }
        let (backend, fs) = if self.root { ("loop", ", fs: xfs") } else { ("dir", "") };
        let yaml = format!(
            "node: demo\nstateDir: {state}\ndrivers:\n- name: demo.csi.larder.dev\n  backend: {backend}\n  \
             endpoint: unix://{socket}\n  pools:\n    default: {{ path: {pool}{fs} }}\n",
            state = self.path("state").display(),
            socket = self.path(SOCKET).display(),
            pool = pool.display(),
        );
        std::fs::write(config, yaml)?;
        self.larder.run(&["pool", "init"]).await?;
        self.start_server().await?;
        let check = format!("{backend} pool on {on}, served");
        self.rows.push(StepRow {
            step: "larder pool init; larder serve".into(),
            milliseconds: start.elapsed().as_millis(),
            ok: true,
            check,
        });
        Ok(())
    }

    /// A path in the demo's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.as_ref().map(|f| f.path().join(name)).unwrap_or_default()
    }

    /// Whether loop devices and file systems can be had.
    pub(crate) fn is_root(&self) -> bool {
        self.root
    }

    /// The program.
    pub(crate) fn larder(&self) -> Larder {
        self.larder.clone()
    }

    /// Starts the server (again).
    pub(crate) async fn start_server(&mut self) -> Result<()> {
        let (log, socket) = (self.path("serve.log"), self.path(SOCKET));
        self.server = Some(self.larder.serve(&log, &socket).await?);
        Ok(())
    }

    /// Kills the server as hard as can be.
    pub(crate) async fn kill_server(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            server.kill().await.context("failed to kill the server")?;
        }
        Ok(())
    }

    /// Does one step and notes it. `work` returns what was checked.
    pub(crate) async fn step(
        &mut self,
        step: impl Into<String>,
        work: impl AsyncFnOnce(&mut Self) -> Result<String>,
    ) -> Result<()> {
        let start = Instant::now();
        let result = work(self).await;
        let (ok, check) = match &result {
            Ok(check) => (true, check.clone()),
            Err(error) => (false, format!("{error:#}")),
        };
        self.rows.push(StepRow {
            step: step.into(),
            milliseconds: start.elapsed().as_millis(),
            ok,
            check,
        });
        result.map(|_| ())
    }

    /// The table so far.
    pub(crate) fn report(&self) -> Report {
        let left_out: &[&str] = if self.root {
            &[]
        } else {
            &[
                "loop images, file systems, raw block, freezing and growth while mounted (they need root)",
                "size limits (project quota or btrfs qgroup need root)",
            ]
        };
        Report {
            steps: self.rows.clone(),
            left_out: left_out.to_vec(),
            total_milliseconds: self.started.elapsed().as_millis(),
        }
    }

    /// Stops the server and removes everything.
    pub(crate) async fn tear_down(&mut self) -> Result<()> {
        let start = Instant::now();
        if let Some(mut server) = self.server.take() {
            if let Some(pid) = server
                .id()
                .and_then(|id| i32::try_from(id).ok())
                .and_then(rustix::process::Pid::from_raw)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            let _ = tokio::time::timeout(std::time::Duration::from_secs(10), server.wait()).await;
            let _ = server.kill().await;
        }
        let Some(folder) = self.folder.take() else { return Ok(()) };
        let root = self.root;
        let path = folder.path().to_owned();
        larder_host::blocking(move || unmount_all(&path, root)).await?;
        let check = if self.keep {
            format!("kept: {}", folder.keep().display())
        } else {
            folder.close().context("failed to remove the demo's folder")?;
            self.lock = None;
            "no mount, no loop device, no file".to_owned()
        };
        self.rows.push(StepRow {
            step: "clean up".into(),
            milliseconds: start.elapsed().as_millis(),
            ok: true,
            check,
        });
        Ok(())
    }
}

/// A file as a disk with an xfs, so that reflink works wherever the demo runs.
fn mount_disk(image: &Path, at: &Path) -> larder_model::Result<()> {
    let host = Host::real();
    larder_host::image::create_sparse(image, POOL_SIZE)?;
    let device = host.loops.attach(&LoopRequest {
        image: image.to_owned(),
        read_only: false,
        autoclear: true,
        direct_io: false,
        sector_size: 512,
    })?;
    host.filesystems.make(&device.path, FsType::Xfs, &[])?;
    host.mounts.mount(&MountRequest {
        fs_type: "xfs".to_owned(),
        source: device.path.display().to_string(),
        target: at.to_owned(),
        options: Vec::new(),
        read_only: false,
    })
}

/// Unmounts whatever is mounted below the demo's folder, innermost first, and frees its devices.
fn unmount_all(folder: &Path, root: bool) -> larder_model::Result<()> {
    let host = Host::real();
    let mut targets: Vec<_> = host
        .mounts
        .table()?
        .into_iter()
        .map(|m| m.target)
        .filter(|t| t.starts_with(folder))
        .collect();
    targets.sort_by_key(|t| std::cmp::Reverse(t.components().count()));
    for target in targets {
        host.mounts.unmount(&target, Unmount::Normal)?;
    }
    if root {
        leftovers::detach(&host, &folder.join(DISK))?;
    }
    Ok(())
}
