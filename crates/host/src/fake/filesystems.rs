//! Fake file systems: a header in a real image.

use super::{FakeKernel, MAGIC, State, header};
use crate::{
    FileSystems, Found, Usage,
    filesystems::{Identity, least_size},
};
use larder_model::{Bytes, Cx, Fault, FsType, Result};
use std::{fs::File, os::unix::fs::FileExt, path::Path};

pub(super) struct FakeFileSystems(pub(super) FakeKernel);

const END: u64 = 4 << 20;

impl FileSystems for FakeFileSystems {
    fn probe(&self, device: &Path) -> Result<Found> {
        let mut state = self.0.state();
        state.fail("probe", || format!("probe {}", device.display()))?;
        probe(device)
    }

    fn first_data(&self, device: &Path, cx: &Cx) -> Result<Option<u64>> {
        let what = || format!("read all of {}", device.display());
        self.0.state().fail("first_data", what)?;
        let bytes = std::fs::read(device).map_err(|e| Fault::io(what(), e))?;
        cx.advance(bytes.len() as u64);
        Ok(bytes.iter().position(|b| *b != 0).map(|at| at as u64))
    }

    fn make(&self, device: &Path, fs: FsType, _options: &[String]) -> Result<()> {
        let what = || format!("make {fs} on {}", device.display());
        let mut state = self.0.state();
        let found = probe(device)?;
        if found != Found::Blank {
            return Err(Fault::precondition(format!("{}: {found:?} is on it", what())));
        }
        // An injected failure strikes in the middle, as a killed mkfs would.
        state.cut_mkfs(device, fs)?;
        state.make(device, fs)
    }

    fn make_again(&self, device: &Path, fs: FsType, _options: &[String]) -> Result<()> {
        let mut state = self.0.state();
        state.fail("make_again", || format!("make {fs} on {} again", device.display()))?;
        state.make(device, fs)
    }

    fn check(&self, device: &Path, fs: FsType) -> Result<()> {
        let mut state = self.0.state();
        state.fail("check", || format!("check {fs} on {}", device.display()))?;
        state.log.push(format!("check {fs} {}", device.display()));
        Ok(())
    }

    fn grow(&self, device: &Path, fs: FsType, _mounted_at: Option<&Path>) -> Result<()> {
        let what = || format!("grow {fs} on {}", device.display());
        let mut state = self.0.state();
        state.fail("grow", what)?;
        match header(device).map_err(|e| Fault::io(what(), e))? {
            Some((found, size)) if found == fs => {
                let room = state.size_of(device)?;
                if size < room {
                    write_header(device, fs, room)?;
                    state.log.push(what());
                }
                Ok(())
            }
            found => Err(Fault::corrupt(format!("{}: {found:?} is there", what()))),
        }
    }

    fn size(&self, device: &Path, fs: FsType, _mounted_at: Option<&Path>) -> Result<Bytes> {
        let what = || format!("read the {fs} superblock of {}", device.display());
        self.0.state().fail("size", what)?;
        match header(device).map_err(|e| Fault::io(what(), e))? {
            Some((found, size)) if found == fs => Ok(Bytes::new(size)),
            _ => Err(Fault::corrupt(what())),
        }
    }

    fn usage(&self, path: &Path) -> Result<Usage> {
        let what = || format!("ask how full {} is", path.display());
        let mut state = self.0.state();
        state.fail("usage", what)?;
        if let Some(usage) = state.usage.get(path) {
            return Ok(*usage);
        }
        let mount = state.mounts.iter().skip(1).rev().find(|m| path.starts_with(&m.entry.target));
        let mounted = mount.and_then(|m| header(Path::new(&m.entry.source)).ok().flatten());
        match mounted {
            Some((_, size)) => Ok(Usage {
                total: Bytes::new(size),
                available: Bytes::new(size),
                inodes: 1000,
                inodes_free: 1000,
                ..Usage::default()
            }),
            None => crate::filesystems::usage::usage_here(path),
        }
    }

    fn identity(&self, _device: &Path) -> Result<Identity> {
        Ok(Identity::default())
    }
}

impl State {
    fn cut_mkfs(&mut self, device: &Path, fs: FsType) -> Result<()> {
        let what = || format!("make {fs} on {}", device.display());
        self.fail("make", what).inspect_err(|_| {
            // What a cut mkfs leaves is neither blank nor a file system.
            if let Ok(file) = File::options().write(true).open(device) {
                let _ = file.write_all_at(b"half a superblock", 1024);
            }
        })
    }

    fn make(&mut self, device: &Path, fs: FsType) -> Result<()> {
        let size = self.size_of(device)?;
        if Bytes::new(size) < least_size(fs) {
            return Err(Fault::out_of_range(format!("make {fs} on {}", device.display())));
        }
        write_header(device, fs, size)?;
        self.log.push(format!("mkfs {fs} {}", device.display()));
        Ok(())
    }

    fn size_of(&self, device: &Path) -> Result<u64> {
        let number = self.block_device(device).map(|id| id.minor);
        if let Some(known) = number.and_then(|number| self.loops.get(&number)) {
            return Ok(known.size.get());
        }
        std::fs::metadata(device)
            .map(|m| m.len())
            .map_err(|e| Fault::io(format!("look at {}", device.display()), e))
    }
}

fn write_header(device: &Path, fs: FsType, size: u64) -> Result<()> {
    let mut text = format!("{MAGIC} {fs} {size}\n").into_bytes();
    text.resize(4096, 0);
    File::options()
        .write(true)
        .open(device)
        .and_then(|file| file.write_all_at(&text, 0))
        .map_err(|e| Fault::io(format!("write to {}", device.display()), e))
}

fn probe(device: &Path) -> Result<Found> {
    let what = || format!("probe {}", device.display());
    if let Some((fs, _)) = header(device).map_err(|e| Fault::io(what(), e))? {
        return Ok(Found::FileSystem(fs));
    }
    let file = File::open(device).map_err(|e| Fault::io(what(), e))?;
    let size = file.metadata().map_err(|e| Fault::io(what(), e))?.len();
    for (start, length) in [(0, END.min(size)), (size.saturating_sub(END), END.min(size))] {
        let mut part = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact_at(&mut part, start).map_err(|e| Fault::io(what(), e))?;
        if let Some(at) = part.iter().position(|b| *b != 0) {
            return Ok(Found::Other(format!("data at byte {}", start + at as u64)));
        }
    }
    Ok(Found::Blank)
}
