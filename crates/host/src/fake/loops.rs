//! Fake loop devices: a table over real image files.

use super::{FakeKernel, FakeLoop, State};
use crate::{Backing, DeviceId, LoopDevice, LoopInfo, LoopRequest, Loops, sys::io_fault};
use larder_model::{Bytes, Fault, Kind, Result};
use rustix::io::Errno;
use std::{os::unix::fs::MetadataExt, path::Path};

pub(super) struct FakeLoops(pub(super) FakeKernel);

impl Loops for FakeLoops {
    fn attach(&self, request: &LoopRequest) -> Result<LoopDevice> {
        let what = || format!("attach {} to a loop device", request.image.display());
        if !matches!(request.sector_size, 512 | 4096) {
            return Err(Fault::invalid(format!("{}: wrong sector size", what())));
        }
        let mut state = self.0.state();
        state.fail("attach", what)?;
        let meta = std::fs::symlink_metadata(&request.image).map_err(|e| Fault::io(what(), e))?;
        if !meta.is_file() || meta.len() == 0 || meta.len() % u64::from(request.sector_size) != 0 {
            return Err(Fault::precondition(format!("{}: it is no image", what())));
        }
        let free = (0..state.most_loops).find(|n| !state.loops.contains_key(n));
        let number =
            free.ok_or_else(|| io_fault(what(), Errno::BUSY).with_kind(Kind::Exhausted))?;
        let (holder, hold) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|e| io_fault(what(), e))?;
        state.make_dev()?;
        let path = state.loop_path(number);
        std::os::unix::fs::symlink(&request.image, &path).map_err(|e| Fault::io(what(), e))?;
        let device = FakeLoop {
            image: request.image.clone(),
            device: meta.dev(),
            inode: meta.ino(),
            read_only: request.read_only,
            autoclear: request.autoclear,
            direct_io: request.direct_io,
            sector_size: request.sector_size,
            size: Bytes::new(meta.len()),
            holder,
        };
        state.loops.insert(number, device);
        state.log.push(format!("attach {}", request.image.display()));
        Ok(LoopDevice { number, path, hold })
    }

    fn find(&self, image: &Path) -> Result<Vec<LoopInfo>> {
        let meta = std::fs::metadata(image)
            .map_err(|e| Fault::io(format!("look at image {}", image.display()), e))?;
        let mut found = self.list()?;
        found.retain(|l| (l.backing_device, l.backing_inode) == (meta.dev(), meta.ino()));
        Ok(found)
    }

    fn list(&self) -> Result<Vec<LoopInfo>> {
        let mut state = self.0.state();
        state.fail("list", || "list the loop devices".to_owned())?;
        Ok(state.loops.keys().filter_map(|number| state.info(*number)).collect())
    }

    fn info(&self, number: u32) -> Result<Option<LoopInfo>> {
        let mut state = self.0.state();
        state.fail("info", || format!("look at loop device {number}"))?;
        Ok(state.info(number))
    }

    fn detach(&self, number: u32, backing: Backing) -> Result<()> {
        let mut state = self.0.state();
        state.fail("detach", || format!("detach loop device {number}"))?;
        if state
            .loops
            .get(&number)
            .is_none_or(|l| (l.device, l.inode) != (backing.device, backing.inode))
        {
            return Ok(());
        }
        let device = DeviceId { major: 7, minor: number };
        let used = state.users.get(&device).is_some_and(|users| !users.is_empty());
        if used || state.is_held(number) || state.is_mounted(device) {
            return Err(Fault::precondition(format!("detach loop device {number}: it is in use")));
        }
        state.detach(number);
        state.log.push(format!("detach {number}"));
        Ok(())
    }

    fn set_capacity(&self, number: u32) -> Result<Bytes> {
        let what = || format!("take over the new size of loop device {number}");
        let mut state = self.0.state();
        state.fail("set_capacity", what)?;
        let path = state.loop_path(number);
        let device = state.loops.get_mut(&number).ok_or_else(|| Fault::not_found(what()))?;
        let meta = std::fs::metadata(path).map_err(|e| Fault::io(what(), e))?;
        device.size = Bytes::new(meta.len());
        Ok(device.size)
    }

    fn set_autoclear(&self, number: u32, on: bool) -> Result<()> {
        let what = || format!("change autoclear of loop device {number}");
        let mut state = self.0.state();
        state.fail("set_autoclear", what)?;
        let device = state.loops.get_mut(&number).ok_or_else(|| Fault::not_found(what()))?;
        device.autoclear = on;
        Ok(())
    }
}

impl State {
    fn info(&self, number: u32) -> Option<LoopInfo> {
        let device = self.loops.get(&number)?;
        let now = std::fs::symlink_metadata(&device.image);
        let same = now.is_ok_and(|m| (m.dev(), m.ino()) == (device.device, device.inode));
        Some(LoopInfo {
            number,
            path: self.loop_path(number),
            device: DeviceId { major: 7, minor: number },
            backing_device: device.device,
            backing_inode: device.inode,
            backing_file: Some(device.image.clone()),
            deleted: !same,
            read_only: device.read_only,
            autoclear: device.autoclear,
            direct_io: device.direct_io,
            sector_size: device.sector_size,
            size: device.size,
        })
    }
}
