//! A machine that runs: its output streams, its end.
//!
//! ```text
//! supervisor thread   starts QEMU, waits for its end, the time limit or a power cut
//! one thread a stream copies what the guest writes; the guest waits when it is slow
//! ```
//! QEMU is started by the supervisor thread and asks the kernel to be killed when
//! that thread ends: the thread ends after QEMU, or with this process.

use std::{
    ffi::OsString,
    fs,
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::{image::tail, machine::Streams};

/// Names of the guest's serial ports and of their sockets.
pub(crate) const PORTS: [&str; 3] = ["in", "out", "err"];

/// How often the supervisor looks whether QEMU still runs.
const POLL: Duration = Duration::from_millis(5);

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The command ended with this status, and the machine was switched off cleanly.
    Exited(i32),
    /// [`Running::power_cut`] or [`crate::Machine::kill_after`].
    PowerCut,
    /// The time limit passed.
    TimedOut,
    /// The guest's kernel or QEMU died.
    Crashed,
}

/// What a machine leaves.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub end: End,
    /// What the command wrote to standard output.
    pub stdout: Vec<u8>,
    /// What the command wrote to standard error.
    pub stderr: Vec<u8>,
    /// The end of the guest kernel's log, and QEMU's own complaints.
    pub console: String,
    /// Guest time from power-on to the command's start; none when it never began.
    pub boot: Option<Duration>,
}

impl Output {
    /// Whether the command ended with status 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.end == End::Exited(0)
    }

    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// This output when the command succeeded.
    ///
    /// # Errors
    /// It did not; the message has its end and all that it printed.
    pub fn checked(self) -> Result<Self> {
        if self.success() {
            return Ok(self);
        }
        let console = if matches!(self.end, End::Exited(_)) { "" } else { &self.console };
        bail!(
            "the command in the virtual machine failed: {:?}\n{}{}{console}",
            self.end,
            self.text(),
            String::from_utf8_lossy(&self.stderr)
        )
    }
}

/// What a stream brought so far.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Mutex<Vec<u8>>,
    grown: Condvar,
}

impl Buffer {
    fn snapshot(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Orders to the supervisor, and its word that it is done.
#[derive(Debug, Default)]
struct Shared {
    cut: AtomicBool,
    done: AtomicBool,
}

/// A machine that was started. Dropping it cuts its power.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    out: Arc<Buffer>,
    err: Arc<Buffer>,
    supervisor: Option<JoinHandle<Result<End>>>,
    readers: Vec<JoinHandle<()>>,
    control: TempDir,
}

/// What [`Running::start`] is given.
pub(crate) struct Start {
    pub(crate) control: TempDir,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) streams: Streams,
    pub(crate) stdin: Vec<u8>,
    pub(crate) timeout: Duration,
    pub(crate) kill_after: Option<Duration>,
}

impl Running {
    pub(crate) fn start(start: Start) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (out, err) = (Arc::new(Buffer::default()), Arc::new(Buffer::default()));
        let passed = start.streams == Streams::PassedThrough;
        let listen = |port: &str| {
            let path = start.control.path().join(port);
            // A socket's path holds 107 bytes.
            UnixListener::bind(&path).with_context(|| format!("failed to make {}", path.display()))
        };
        let (stdin, stdout, stderr) = (listen(PORTS[0])?, listen(PORTS[1])?, listen(PORTS[2])?);
        let bytes = if passed { None } else { Some(start.stdin) };
        // Not joined: it may wait for this process's standard input for ever.
        thread::spawn(move || feed(&stdin, bytes));
        let (to_out, to_err) = (Arc::clone(&out), Arc::clone(&err));
        let readers = vec![
            thread::spawn(move || {
                collect(&stdout, &to_out, passed.then_some(&mut std::io::stdout()));
            }),
            thread::spawn(move || {
                collect(&stderr, &to_err, passed.then_some(&mut std::io::stderr()));
            }),
        ];
        let supervisor = Supervisor {
            shared: Arc::clone(&shared),
            control: start.control.path().to_owned(),
            arguments: start.arguments,
            timeout: start.timeout,
            kill_after: start.kill_after,
        };
        let supervisor = Some(thread::spawn(move || supervisor.run()));
        Ok(Self { shared, out, err, supervisor, readers, control: start.control })
    }

    /// Waits until the command has written `needle` to standard output.
    ///
    /// # Errors
    /// The machine ended, or `limit` passed, before it did.
    pub fn wait_for(&self, needle: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut bytes = self.out.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            // Read before the look: what came before the end is seen.
            let done = self.shared.done.load(Ordering::Acquire);
            if contains(&bytes, needle.as_bytes()) {
                return Ok(());
            }
            if done || Instant::now() >= deadline {
                let what = if done { "ended" } else { "ran into the time limit" };
                bail!(
                    "the virtual machine {what} before printing {needle:?}; it printed:\n{}{}",
                    String::from_utf8_lossy(&bytes),
                    String::from_utf8_lossy(&self.err.snapshot())
                );
            }
            let wait = Duration::from_millis(100);
            bytes =
                self.out.grown.wait_timeout(bytes, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What the command has written to standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.out.snapshot()).into_owned()
    }

    /// Cuts the power: QEMU is killed, nothing in the guest gets to run again.
    ///
    /// # Errors
    /// See [`Self::wait`].
    pub fn power_cut(self) -> Result<Output> {
        self.shared.cut.store(true, Ordering::Release);
        self.wait()
    }

    /// Waits for the end of the command, the time limit or the timed power cut.
    ///
    /// # Errors
    /// QEMU could not be started.
    pub fn wait(mut self) -> Result<Output> {
        let end = self.finish().unwrap_or(Ok(End::Crashed))?;
        let ctl = self.control.path().join("ctl");
        let boot = fs::read_to_string(ctl.join("uptime")).ok();
        let boot = boot.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs_f64);
        let console = tail(&self.control.path().join("console"), 40);
        let qemu = tail(&self.control.path().join("qemu"), 10);
        Ok(Output {
            end,
            stdout: self.out.snapshot(),
            stderr: self.err.snapshot(),
            console: format!("{console}\n{qemu}"),
            boot,
        })
    }

    /// Waits for the threads; what the supervisor said, the first time.
    fn finish(&mut self) -> Option<Result<End>> {
        let supervisor = self.supervisor.take()?;
        let end = supervisor.join().ok();
        for reader in self.readers.drain(..) {
            // A reader that panicked has nothing more to bring.
            let _ = reader.join();
        }
        end
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.cut.store(true, Ordering::Release);
        let _ = self.finish();
    }
}

struct Supervisor {
    shared: Arc<Shared>,
    control: PathBuf,
    arguments: Vec<OsString>,
    timeout: Duration,
    kill_after: Option<Duration>,
}

impl Supervisor {
    fn run(&self) -> Result<End> {
        let end = self.start().map(|child| self.watch(child));
        self.shared.done.store(true, Ordering::Release);
        for port in PORTS {
            // Wakes a thread that still waits for QEMU to connect.
            let _ = UnixStream::connect(self.control.join(port));
        }
        end
    }

    fn start(&self) -> Result<Child> {
        let log = fs::File::create(self.control.join("qemu"))?;
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("failed to start setpriv (hint: install util-linux)")
    }

    fn watch(&self, mut child: Child) -> End {
        let ctl = self.control.join("ctl");
        let started = Instant::now();
        let mut began = None;
        let end = loop {
            if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
                let status = fs::read_to_string(ctl.join("status")).ok();
                let status = status.and_then(|text| text.trim().parse().ok());
                return status.map_or(End::Crashed, End::Exited);
            }
            if began.is_none() && self.kill_after.is_some() && ctl.join("uptime").exists() {
                began = Some(Instant::now());
            }
            let due = self.kill_after.zip(began).is_some_and(|(delay, at)| at.elapsed() >= delay);
            if due || self.shared.cut.load(Ordering::Acquire) {
                break End::PowerCut;
            }
            if started.elapsed() >= self.timeout {
                break End::TimedOut;
            }
            thread::sleep(POLL);
        };
        // Either works or the process has ended by itself.
        let _ = child.kill();
        let _ = child.wait();
        end
    }
}

/// Feeds the guest's standard input: the bytes, else this process's own.
fn feed(listener: &UnixListener, bytes: Option<Vec<u8>>) {
    let Ok((mut stream, _)) = listener.accept() else { return };
    let fed = match bytes {
        Some(bytes) => stream.write_all(&bytes),
        None => pump(&mut stream),
    };
    // A guest that stopped reading, or ended, is no error of ours. Only the sending
    // half is closed: QEMU throws away what is under way when both are.
    let _ = fed.and_then(|()| stream.shutdown(Shutdown::Write));
    let _ = stream.read(&mut [0]);
}

/// `io::copy` from standard input, but what came is passed on at once.
fn pump(stream: &mut UnixStream) -> std::io::Result<()> {
    let mut buffer = [0; 16384];
    let mut stdin = std::io::stdin().lock();
    loop {
        let count = stdin.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count])?;
    }
}

fn collect(listener: &UnixListener, into: &Buffer, mut pass: Option<&mut dyn std::io::Write>) {
    let Ok((mut stream, _)) = listener.accept() else { return };
    let mut buffer = vec![0; 65536];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if let Some(sink) = &mut pass {
            // Whoever reads our output may have gone; the command goes on.
            let _ = sink.write_all(&buffer[..count]).and_then(|()| sink.flush());
        }
        let mut bytes = into.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.extend(&buffer[..count]);
        into.grown.notify_all();
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|window| window == needle)
}
