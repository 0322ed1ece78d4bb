//! The helper's end of the pipe.

use super::{
    Site,
    tree::Tree,
    wire::{Ask, Reply, Told},
};
use crate::mounts::{self, MountRequest};
use larder_model::{Cx, Fault, Result};
use rustix::{
    fd::OwnedFd,
    fs::{CWD, Mode, OFlags},
};
use serde_json::Value;
use std::{
    cell::Cell,
    io::{BufRead, Write},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// How often what is long says that it goes on.
const SIGN: Duration = Duration::from_secs(1);

/// What the helper process does: mounts what the first line says, then answers questions until nobody
/// asks any more.
pub(crate) fn main() -> ExitCode {
    let mut lines = std::io::stdin().lock().lines();
    let mut tree = None;
    while let Some(Ok(line)) = lines.next() {
        let result = match &tree {
            None => open(&line).map(|opened| {
                tree = Some(opened);
                Value::Null
            }),
            Some(tree) => answer(tree, &line),
        };
        let reply = match result {
            Ok(value) => Reply::Done(value),
            Err(fault) => Reply::Failed(Told::from(&fault)),
        };
        if say(&reply).is_err() {
            break;
        }
    }
    ExitCode::SUCCESS
}

#[allow(clippy::print_stdout, reason = "this is how the helper answers")]
fn say(reply: &Reply) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line)?;
    out.flush()
}

fn open(line: &str) -> Result<Tree> {
    let site: Site = understand(line)?;
    let (root, copies): (OwnedFd, bool) = match site {
        Site::Mounted { fs_type, source, options } => {
            let request = MountRequest { fs_type, source, options, ..MountRequest::default() };
            mounts::network::detached(&request)?
        }
        Site::Directory(path) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::openat(CWD, &path, flags, Mode::empty())
                .map_err(|e| crate::sys::io_fault(format!("open {}", path.display()), e))
                .map_err(|f| f.with_kind(larder_model::Kind::Unavailable))?;
            (root, false)
        }
    };
    Ok(Tree { root, copies })
}

fn understand<T: serde::de::DeserializeOwned>(line: &str) -> Result<T> {
    serde_json::from_str(line)
        .map_err(|e| Fault::internal("understand what a helper is asked").because(e))
}

fn answer(tree: &Tree, line: &str) -> Result<Value> {
    fn value(of: impl serde::Serialize) -> Result<Value> {
        serde_json::to_value(of).map_err(|e| Fault::internal("put an answer into words").because(e))
    }
    match understand(line)? {
        Ask::Hello => Ok(Value::Null),
        Ask::Look { path } => value(tree.look(&path)?),
        Ask::IsEmpty { path } => value(tree.is_empty(&path)?),
        Ask::Read { path } => value(tree.read(&path)?),
        Ask::Names { path } => value(tree.names(&path)?),
        Ask::Write { path, text, new } => value(tree.write(&path, text.as_bytes(), new)?),
        Ask::MakeDir { path, mode, above } => value(tree.make_dir(&path, mode, above)?),
        Ask::SetMode { path, mode } => value(tree.set_mode(&path, mode)?),
        Ask::Rename { from, to } => value(tree.rename(&from, &to)?),
        Ask::RemoveFile { path } => value(tree.remove_file(&path)?),
        Ask::RemoveDir { path } => value(tree.remove_dir(&path)?),
        Ask::RemoveTree { path } => {
            let (last, more) = (Cell::new(Instant::now()), Cell::new(0));
            value(tree.remove_tree(&path, &|| {
                more.set(more.get() + 1);
                last.get().elapsed() < SIGN || {
                    last.set(Instant::now());
                    // Nobody listens any more: then nobody wants it removed by us.
                    say(&Reply::Going(more.replace(0))).is_ok()
                }
            })?)
        }
        Ask::CopyTree { from, to } => value(telling(|cx| tree.copy_tree(&from, &to, cx))?),
        Ask::Usage => value(tree.usage()?),
    }
}

/// Does `work` and says meanwhile how it goes on; as long as nothing moves, nothing is said.
fn telling<T>(work: impl FnOnce(&Cx) -> Result<T>) -> Result<T> {
    let (cx, ended) = (Cx::new(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let teller = scope.spawn(|| {
            let mut told = 0;
            while !ended.load(Ordering::Acquire) {
                std::thread::park_timeout(SIGN);
                let done = cx.progress().done;
                if done > told && say(&Reply::Going(done - told)).is_ok() {
                    told = done;
                }
            }
        });
        let result = work(&cx);
        ended.store(true, Ordering::Release);
        teller.thread().unpark();
        result
    })
}
