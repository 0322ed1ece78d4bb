//! `blkio.throttle.*`: each cgroup has limits of its own.
//!
//! The kernel hands nothing down here, so all cgroups below get the same limits. The topmost is
//! written first and cleared last: what it says stands for all.

use super::{is_gone, read, refused, write};
use crate::DeviceId;
use larder_model::{Limits, Result};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

type Field = fn(&mut Limits) -> &mut u64;

const FILES: [(&str, Field); 4] = [
    ("blkio.throttle.read_bps_device", |limits| &mut limits.max_read_bps),
    ("blkio.throttle.write_bps_device", |limits| &mut limits.max_write_bps),
    ("blkio.throttle.read_iops_device", |limits| &mut limits.max_read_iops),
    ("blkio.throttle.write_iops_device", |limits| &mut limits.max_write_iops),
];

pub(super) fn all(group: &Path) -> Result<Vec<(DeviceId, Limits)>> {
    let mut all: BTreeMap<DeviceId, Limits> = BTreeMap::new();
    for (file, field) in FILES {
        let text = read(&group.join(file))?.unwrap_or_default();
        for (device, number) in text.lines().filter_map(|line| line.split_once(' ')) {
            let (Ok(device), Ok(number)) = (device.parse(), number.trim().parse()) else {
                continue;
            };
            *field(all.entry(device).or_default()) = number;
        }
    }
    Ok(all.into_iter().filter(|(_, limits)| !limits.is_none()).collect())
}

pub(super) fn set(group: &Path, device: DeviceId, limits: Limits) -> Result<()> {
    let now = of(group, device)?;
    if now.is_none() && limits.is_none() {
        return Ok(());
    }
    let mut tree = below(group);
    if limits.is_none() {
        tree.reverse();
    }
    for path in tree {
        match set_one(&path, device, limits) {
            // A container has just ended.
            Err(_) if path != group && !path.is_dir() => {}
            set => set?,
        }
    }
    Ok(())
}

fn of(group: &Path, device: DeviceId) -> Result<Limits> {
    Ok(all(group)?.into_iter().find(|(id, _)| *id == device).map(|(_, l)| l).unwrap_or_default())
}

fn set_one(group: &Path, device: DeviceId, mut limits: Limits) -> Result<()> {
    let mut now = of(group, device)?;
    for (file, field) in FILES {
        let (number, now) = (*field(&mut limits), *field(&mut now));
        if number == now {
            continue;
        }
        let file = group.join(file);
        match write(&file, &format!("{device} {number}")) {
            Err(e) if number == 0 && is_gone(&e) => {}
            written => written.map_err(|e| refused(&file, device, e))?,
        }
    }
    Ok(())
}

/// The cgroup and all below it, the topmost first.
fn below(group: &Path) -> Vec<PathBuf> {
    let mut tree = vec![group.to_owned()];
    let mut next = 0;
    while let Some(path) = tree.get(next).cloned() {
        next += 1;
        // What goes away meanwhile holds no limits.
        let entries =
            std::fs::read_dir(path).into_iter().flatten().filter_map(std::result::Result::ok);
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        tree.extend(folders.map(|entry| entry.path()));
    }
    tree
}

/// What the limits do not reach.
pub(super) fn caveats(group: &Path) -> Vec<String> {
    vec![format!(
        "cgroup version 1 hands no limits down: each cgroup below {} is limited by itself, those made \
         later not before the volume is staged or modified again, and the kernel's writing of cached \
         data only in the root (use version 2)",
        group.display()
    )]
}
