//! Describes a machine and starts QEMU.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs::{self, File},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use larder_needs::Purpose;

use crate::{
    accel::Accel,
    disk::{Cache, Disk},
    image::Image,
    running::{Output, Running},
};

const RUN: &str = include_str!("../guest/run.sh");

/// Where the command's output goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streams {
    /// Into [`Output`] only; standard input is empty.
    #[default]
    Captured,
    /// To this process's standard output and error as well; standard input is this
    /// process's own.
    PassedThrough,
}

/// A machine to be started; every start is a fresh one.
#[derive(Clone, Debug)]
pub struct Machine {
    memory_mib: u32,
    cpus: u32,
    shares: Vec<PathBuf>,
    cwd: Option<PathBuf>,
    env: BTreeMap<OsString, OsString>,
    disks: Vec<Disk>,
    scratch_bytes: u64,
    udev: bool,
    timeout: Duration,
    kill_after: Option<Duration>,
    accel: Option<Accel>,
    streams: Streams,
    stdin: Vec<u8>,
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// 1 GiB of memory, 2 processors, no shares, no disks, 10 minutes.
    #[must_use]
    pub fn new() -> Self {
        Self {
            memory_mib: 1024,
            cpus: 2,
            shares: Vec::new(),
            cwd: None,
            env: BTreeMap::new(),
            disks: Vec::new(),
            scratch_bytes: 0,
            udev: false,
            timeout: Duration::from_secs(600),
            kill_after: None,
            accel: None,
            streams: Streams::default(),
            stdin: Vec::new(),
        }
    }

    /// Memory in MiB. Three quarters of it can hold what the guest writes to its root.
    #[must_use]
    pub fn memory(mut self, mib: u32) -> Self {
        self.memory_mib = mib;
        self
    }

    /// Number of processors.
    #[must_use]
    pub fn cpus(mut self, count: u32) -> Self {
        self.cpus = count;
        self
    }

    /// Shares a host folder, read-write, at its own absolute path; the first one is
    /// `/share` as well.
    #[must_use]
    pub fn share(mut self, folder: impl Into<PathBuf>) -> Self {
        self.shares.push(folder.into());
        self
    }

    /// The command's working folder (default: the first share, else `/`).
    #[must_use]
    pub fn cwd(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cwd = Some(folder.into());
        self
    }

    /// Sets a variable for the command.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Adds a disk, `/dev/larder/NAME` in the guest.
    #[must_use]
    pub fn disk(mut self, disk: &Disk) -> Self {
        self.disks.push(disk.clone());
        self
    }

    /// Adds a throw-away ext4 of this many bytes (sparse on the host) at `/scratch`.
    #[must_use]
    pub fn scratch(mut self, bytes: u64) -> Self {
        self.scratch_bytes = bytes;
        self
    }

    /// Starts udev in the guest (`/dev/disk/by-*`, modules for devices that appear).
    #[must_use]
    pub fn udev(mut self, on: bool) -> Self {
        self.udev = on;
        self
    }

    /// Ends the machine as [`crate::End::TimedOut`] after this long.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Cuts the power this long after the command began.
    #[must_use]
    pub fn kill_after(mut self, delay: Duration) -> Self {
        self.kill_after = Some(delay);
        self
    }

    /// Decides who runs the guest's instructions (default: what works).
    #[must_use]
    pub fn accel(mut self, accel: Accel) -> Self {
        self.accel = Some(accel);
        self
    }

    /// Decides where output goes.
    #[must_use]
    pub fn streams(mut self, streams: Streams) -> Self {
        self.streams = streams;
        self
    }

    /// What the command reads from standard input while output is captured.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Starts the machine, runs the command in it and waits for its end.
    ///
    /// # Errors
    /// See [`Self::spawn`]. A command that fails, a time-out and a crash are no errors
    /// but an [`Output`].
    pub fn run<I>(&self, command: I) -> Result<Output>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.spawn(command)?.wait()
    }

    /// Starts the machine and the command in it: the first item is a program of the
    /// guest or a path in a share, the others are its arguments, unchanged.
    ///
    /// # Errors
    /// The image cannot be had, a share is no folder, or QEMU cannot be started.
    pub fn spawn<I>(&self, command: I) -> Result<Running>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let image = Image::get()?;
        larder_needs::ensure(&[Purpose::Vm])?;
        let accel = match self.accel {
            Some(accel) => accel,
            None => Accel::detect(&image)?,
        };
        let control = tempfile::Builder::new().prefix("larder-vm-").tempdir()?;
        let shares = self.canonical_shares()?;
        let mut disks = self.disks.clone();
        if self.scratch_bytes > 0 {
            let path = control.path().join("scratch");
            disks.insert(0, scratch(path, self.scratch_bytes)?);
        }
        let guest = control.path().join("ctl");
        fs::create_dir(&guest)?;
        fs::write(guest.join("run.sh"), RUN)?;
        fs::write(guest.join("env"), self.guest_env(&shares))?;
        fs::write(guest.join("cmd"), self.guest_command(command))?;
        let arguments = self.qemu_arguments(&image, accel, control.path(), &shares, &disks)?;
        Running::start(crate::running::Start {
            control,
            arguments,
            streams: self.streams,
            stdin: self.stdin.clone(),
            timeout: self.timeout,
            kill_after: self.kill_after,
        })
    }

    fn canonical_shares(&self) -> Result<Vec<PathBuf>> {
        let canonical = |path: &PathBuf| {
            let real = path.canonicalize();
            let real = real.with_context(|| format!("failed to share {}", path.display()))?;
            ensure!(real.is_dir(), "failed to share {}: not a folder", path.display());
            Ok(real)
        };
        self.shares.iter().map(canonical).collect()
    }

    fn guest_env(&self, shares: &[PathBuf]) -> Vec<u8> {
        let mut text = b"VM_SHARES=(".to_vec();
        for share in shares {
            text.extend(quoted(share.as_os_str()));
            text.push(b' ');
        }
        text.extend(b")\nVM_CWD=");
        let root = PathBuf::from("/");
        let cwd = self.cwd.as_ref().or(shares.first()).unwrap_or(&root);
        text.extend(quoted(cwd.as_os_str()));
        let flag = |on: bool| if on { "1" } else { "" };
        let mut rest = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(
            rest,
            "\nVM_SCRATCH={}\nVM_UDEV={}",
            flag(self.scratch_bytes > 0),
            flag(self.udev)
        );
        text.extend(rest.as_bytes());
        text
    }

    fn guest_command<I>(&self, command: I) -> Vec<u8>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut text = Vec::new();
        for (name, value) in &self.env {
            text.extend(b"export ");
            text.extend(name.as_bytes());
            text.push(b'=');
            text.extend(quoted(value));
            text.push(b'\n');
        }
        text.extend(b"exec");
        for word in command {
            text.push(b' ');
            text.extend(quoted(word.as_ref()));
        }
        text.push(b'\n');
        text
    }

    fn qemu_arguments(
        &self,
        image: &Image,
        accel: Accel,
        control: &Path,
        shares: &[PathBuf],
        disks: &[Disk],
    ) -> Result<Vec<OsString>> {
        let mut qemu = Arguments::default();
        match accel {
            Accel::Tcg => qemu.add("-accel", "tcg,thread=multi").add("-cpu", "max"),
            Accel::Kvm => qemu.add("-accel", "kvm").add("-cpu", "host"),
        };
        qemu.add("-M", "q35").add("-m", self.memory_mib.to_string());
        qemu.add("-smp", self.cpus.to_string());
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            qemu.0.push(flag.into());
        }
        qemu.add("-display", "none").add("-kernel", image.kernel()).add("-initrd", image.initrd());
        // It saves a second of boot under emulation: no self-tests of the crypto code, no calibration
        // of clocks. Time is read from a clock of its own there: on a busy host the processor's was
        // found to run ten times too fast, and with it all patience of tests.
        let clock = match accel {
            Accel::Tcg => "clocksource=hpet",
            Accel::Kvm => "",
        };
        let words = "console=ttyS0 quiet rdinit=/init panic=-1 mitigations=off random.trust_cpu=on \
                     cryptomgr.notests tsc=reliable no_timer_check";
        qemu.add("-append", format!("{words} {clock}"));
        qemu.with_path("-chardev", "file,id=console,path=", &control.join("console"), "");
        qemu.add("-serial", "chardev:console").add("-device", "virtio-rng-pci");
        qemu.add("-device", "virtio-serial-pci");
        for port in crate::running::PORTS {
            let socket = control.join(port);
            qemu.with_path("-chardev", &format!("socket,id={port},path="), &socket, "");
            qemu.add("-device", format!("virtserialport,chardev={port},name={port}"));
        }
        let guest = control.join("ctl");
        let plain = ",mount_tag=ctl,security_model=none";
        qemu.with_path("-virtfs", "local,path=", &guest, plain);
        for (index, share) in shares.iter().enumerate() {
            let rest = format!(",mount_tag=share{index},security_model=none,multidevs=remap");
            qemu.with_path("-virtfs", "local,path=", share, &rest);
        }
        let root = "driver=raw,node-name=root,read-only=on,file.driver=file,file.locking=off,\
                    file.filename=";
        qemu.with_path("-blockdev", root, &image.root(), "");
        qemu.add("-device", "virtio-blk-pci,drive=root");
        for disk in disks {
            qemu.add_disk(disk)?;
        }
        Ok(qemu.0)
    }
}

/// QEMU's command line.
#[derive(Debug, Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn add(&mut self, option: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.push(option.into());
        self.0.push(value.into());
        self
    }

    /// An option with a path in its value; QEMU reads `,,` as a comma.
    fn with_path(&mut self, option: &str, before: &str, path: &Path, after: &str) -> &mut Self {
        let mut value = before.as_bytes().to_vec();
        for &byte in path.as_os_str().as_bytes() {
            value.extend(std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }));
        }
        value.extend(after.as_bytes());
        self.add(option, OsStr::from_bytes(&value))
    }

    fn add_disk(&mut self, disk: &Disk) -> Result<()> {
        let name = &disk.name;
        let no_flush = if disk.cache == Cache::Unsafe { "on" } else { "off" };
        let file = format!(
            "driver=file,node-name=file-{name},discard=unmap,cache.no-flush={no_flush},filename="
        );
        self.with_path("-blockdev", &file, &disk.path, "");
        self.add(
            "-blockdev",
            format!("driver=raw,node-name=raw-{name},file=file-{name},discard=unmap"),
        );
        let mut node = format!("raw-{name}");
        if let Some(log) = &disk.log {
            File::create(log).with_context(|| format!("failed to create {}", log.display()))?;
            let file = format!("driver=file,node-name=log-{name},cache.no-flush=on,filename=");
            self.with_path("-blockdev", &file, log, "");
            node = format!("recorded-{name}");
            self.add(
                "-blockdev",
                format!(
                    "driver=blklogwrites,node-name={node},file=raw-{name},log=log-{name},\
                     log-sector-size=512"
                ),
            );
        }
        let device = format!("virtio-blk-pci,drive={node},serial={name},write-cache=on");
        self.add("-device", device);
        Ok(())
    }
}

/// A throw-away ext4, made on the host, where it takes no time. Without a journal:
/// nobody reads it after a crash.
fn scratch(path: PathBuf, bytes: u64) -> Result<Disk> {
    let disk = Disk::new("scratch", path, bytes)?;
    let mkfs = larder_needs::find_command("mkfs.ext4").context("no mkfs.ext4")?;
    let output = Command::new(mkfs)
        .args(["-q", "-F", "-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=1"])
        .arg(disk.path())
        .stdin(Stdio::null())
        .output()
        .context("failed to start mkfs.ext4")?;
    ensure!(
        output.status.success(),
        "mkfs.ext4 of the scratch disk failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(disk)
}

/// One word for a POSIX shell.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut out = vec![b'\''];
    for &byte in word.as_bytes() {
        if byte == b'\'' {
            out.extend(b"'\\''");
        } else {
            out.push(byte);
        }
    }
    out.push(b'\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_word_is_quoted_for_the_shell() {
        assert_eq!(quoted(OsStr::new("a b$c'd")), b"'a b$c'\\''d'");
        assert_eq!(quoted(OsStr::new("")), b"''");
    }

    #[test]
    fn a_comma_in_a_path_is_doubled_for_qemu() {
        let mut qemu = Arguments::default();
        qemu.with_path("-x", "path=", Path::new("/a,b"), ",c=d");
        assert_eq!(qemu.0, ["-x", "path=/a,,b,c=d"]);
    }
}
