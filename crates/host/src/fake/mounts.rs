//! The fake mount table.

use super::{FakeKernel, FakeMount, State, header};
use crate::{
    BindRequest, DeviceId, DeviceUser, MountEntry, MountRequest, Mounts, Unmount,
    mounts::attributes::{self, Sorted},
    sys::io_fault,
};
use larder_model::{Fault, FsType, Kind, Result};
use rustix::{io::Errno, mount::MountAttrFlags};
use std::path::{Path, PathBuf};

pub(super) struct FakeMounts(pub(super) FakeKernel);

impl Mounts for FakeMounts {
    fn table(&self) -> Result<Vec<MountEntry>> {
        let mut state = self.0.state();
        state.fail("table", || "read the mount table".to_owned())?;
        Ok(state.mounts.iter().map(|m| m.entry.clone()).collect())
    }

    fn is_mount_point(&self, path: &Path) -> Result<bool> {
        Ok(!self.mounts_at(path)?.is_empty())
    }

    fn mounts_at(&self, path: &Path) -> Result<Vec<MountEntry>> {
        let mut state = self.0.state();
        state.fail("mounts_at", || format!("look at {}", path.display()))?;
        let path = resolve_parent(path);
        let here = state.mounts.iter().filter(|m| m.entry.target == path);
        Ok(here.map(|m| m.entry.clone()).collect())
    }

    fn block_device(&self, path: &Path) -> Result<DeviceId> {
        if let Some(device) = self.0.state().block_device(&resolve_parent(path)) {
            return Ok(device);
        }
        DeviceId::of_block_device(path)
    }

    fn mount(&self, request: &MountRequest) -> Result<()> {
        let sorted = attributes::sort(&request.options, request.read_only)?;
        let target = check_target(&request.target)?;
        let what = || format!("mount {} at {}", request.source, target.display());
        let mut state = self.0.state();
        state.fail("mount", what)?;
        state.refuse_to_stack(&target)?;
        if !std::fs::metadata(&target).is_ok_and(|m| m.is_dir()) {
            return Err(Fault::precondition(format!("{}: it is no directory", what())));
        }
        let source = Path::new(&request.source);
        let mut device = DeviceId { major: 0, minor: u32::try_from(state.next_mount).unwrap_or(0) };
        if let Ok(fs) = request.fs_type.parse::<FsType>() {
            let found = header(source).map_err(|e| Fault::io(what(), e))?;
            if found.map(|(fs, _)| fs) != Some(fs) {
                return Err(io_fault(format!("{}: no {fs} is there", what()), Errno::INVAL)
                    .with_kind(Kind::Precondition));
            }
            if let Some(known) = state.block_device(source) {
                device = known;
            }
        }
        let mut super_options = vec![read_write(&sorted)];
        super_options.extend(sorted.fs.iter().map(|(key, value)| match value {
            Some(value) => format!("{key}={value}"),
            None => key.clone(),
        }));
        let entry = MountEntry {
            id: 0,
            parent: 0,
            device,
            root: "/".into(),
            target: target.clone(),
            options: options(&sorted),
            fs_type: request.fs_type.clone(),
            source: state.shown.get(&request.source).unwrap_or(&request.source).clone(),
            super_options,
        };
        state.log.push(format!("mount {} {}", request.fs_type, target.display()));
        state.add(entry, None);
        Ok(())
    }

    fn bind(&self, request: &BindRequest) -> Result<()> {
        let sorted = attributes::sort(&request.options, request.read_only)?;
        let target = check_target(&request.target)?;
        let source = resolve_parent(&request.source);
        let what = || format!("show {} at {}", source.display(), target.display());
        if let Some((word, _)) = sorted.fs.first() {
            return Err(Fault::invalid(format!("{}: option {word} is none of a bind", what())));
        }
        let mut state = self.0.state();
        state.fail("bind", what)?;
        state.refuse_to_stack(&target)?;
        let from = std::fs::metadata(&source).map_err(|e| Fault::io(what(), e))?;
        let to = std::fs::metadata(&target).map_err(|e| Fault::io(what(), e))?;
        if from.is_dir() != to.is_dir() {
            return Err(Fault::precondition(format!("{}: kinds differ", what())));
        }
        let block_device = state.block_device(&source);
        let below = state
            .mounts
            .iter()
            .filter(|m| source.starts_with(&m.entry.target))
            .max_by_key(|m| m.entry.target.as_os_str().len())
            .map(|m| m.entry.clone())
            .ok_or_else(|| Fault::internal(format!("{}: there is no root", what())))?;
        let rest = source.strip_prefix(&below.target).unwrap_or(&source);
        let root =
            if rest.as_os_str().is_empty() { below.root.clone() } else { below.root.join(rest) };
        let mut options = options(&sorted);
        if below.is_mount_read_only() {
            options[0] = "ro".into();
        }
        let entry = MountEntry { root, target: target.clone(), options, ..below };
        state.log.push(format!("bind {} {}", source.display(), target.display()));
        state.add(entry, block_device);
        Ok(())
    }

    fn remount(&self, target: &Path, read_only: bool, words: &[String]) -> Result<()> {
        let sorted = attributes::sort(words, read_only)?;
        let path = resolve_parent(target);
        let what = || format!("remount {}", target.display());
        let mut state = self.0.state();
        state.fail("remount", what)?;
        let Some(index) = state.mounts.iter().rposition(|m| m.entry.target == path) else {
            return Err(Fault::precondition(format!("{}: nothing is mounted there", what())));
        };
        let device = state.mounts[index].entry.device;
        state.mounts[index].entry.options = options(&sorted);
        if !read_only {
            for mount in state.mounts.iter_mut().filter(|m| m.entry.device == device) {
                mount.entry.super_options.retain(|o| o != "ro" && o != "rw");
                mount.entry.super_options.insert(0, "rw".into());
            }
        }
        state.log.push(what());
        Ok(())
    }

    fn unmount(&self, target: &Path, how: Unmount) -> Result<()> {
        let path = resolve_parent(target);
        let what = || format!("unmount {}", target.display());
        let mut state = self.0.state();
        state.fail("unmount", what)?;
        let Some(index) = state.mounts.iter().rposition(|m| m.entry.target == path) else {
            return Ok(());
        };
        let below = |m: &FakeMount| m.entry.target != path && m.entry.target.starts_with(&path);
        let busy = state.busy.contains(&path) || state.mounts.iter().any(below);
        if busy && how == Unmount::Normal {
            return Err(io_fault(what(), Errno::BUSY).with_kind(Kind::Precondition));
        }
        if how == Unmount::Lazy {
            state.mounts.retain(|m| !below(m));
        }
        state.mounts.remove(index);
        state.log.push(what());
        Ok(())
    }

    fn users_of_device(&self, device: DeviceId) -> Result<Vec<DeviceUser>> {
        let mut state = self.0.state();
        state.fail("users_of_device", || format!("see who uses device {device}"))?;
        let mut users: Vec<DeviceUser> = state
            .mounts
            .iter()
            .filter(|m| m.entry.device == device)
            .map(|m| DeviceUser::Mount {
                pid: std::process::id(),
                namespace: 1,
                target: m.entry.target.clone(),
            })
            .collect();
        if device.major == 7 && state.is_held(device.minor) {
            let command = "test".to_owned();
            users.push(DeviceUser::Opener { pid: std::process::id(), command, fd: 3 });
        }
        users.extend(state.users.get(&device).into_iter().flatten().cloned());
        users.sort();
        users.dedup();
        Ok(users)
    }
}

impl State {
    fn refuse_to_stack(&self, target: &Path) -> Result<()> {
        if self.mounts.iter().any(|m| m.entry.target == target) {
            return Err(Fault::precondition(format!(
                "mount at {}: something is mounted there already",
                target.display()
            )));
        }
        Ok(())
    }

    fn add(&mut self, entry: MountEntry, block_device: Option<DeviceId>) {
        let parent = self
            .mounts
            .iter()
            .filter(|m| entry.target.starts_with(&m.entry.target))
            .max_by_key(|m| m.entry.target.as_os_str().len())
            .map_or(1, |m| m.entry.id);
        let entry = MountEntry { id: self.next_mount, parent, ..entry };
        self.next_mount += 1;
        self.mounts.push(FakeMount { entry, block_device });
    }
}

/// As the real one: exists, no symlink.
fn check_target(target: &Path) -> Result<PathBuf> {
    let what = || format!("open mount target {}", target.display());
    let meta = std::fs::symlink_metadata(target).map_err(|e| Fault::io(what(), e))?;
    if meta.is_symlink() {
        return Err(Fault::precondition(format!("{}: it is a symlink", what())));
    }
    Ok(resolve_parent(target))
}

fn resolve_parent(path: &Path) -> PathBuf {
    let resolved = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    resolved().unwrap_or_else(|| path.to_owned())
}

fn read_write(sorted: &Sorted) -> String {
    let read_only = sorted.set.contains(MountAttrFlags::MOUNT_ATTR_RDONLY);
    if read_only { "ro".into() } else { "rw".into() }
}

fn options(sorted: &Sorted) -> Vec<String> {
    let words = [
        (MountAttrFlags::MOUNT_ATTR_NOSUID, "nosuid"),
        (MountAttrFlags::MOUNT_ATTR_NODEV, "nodev"),
        (MountAttrFlags::MOUNT_ATTR_NOEXEC, "noexec"),
        (MountAttrFlags::MOUNT_ATTR_NOATIME, "noatime"),
        (MountAttrFlags::MOUNT_ATTR_NODIRATIME, "nodiratime"),
        (MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow"),
    ];
    let mut options = vec![read_write(sorted)];
    options.extend(words.iter().filter(|(a, _)| sorted.set.contains(*a)).map(|(_, w)| (*w).into()));
    options
}
