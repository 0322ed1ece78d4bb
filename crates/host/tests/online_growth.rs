//! ext4 grown while it is mounted and written, on the kernel of a virtual machine: the kernel demands
//! CAP_SYS_RESOURCE for it, which containers lack.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use larder_host::{command::Command, image};
use larder_model::{Bytes, FsType};
use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};
use support::Scratch;

#[test]
fn ext4_grows_while_it_is_written_and_as_often_as_asked() {
    let scratch = Scratch::new();
    let (device, target) = scratch.mounted("m", FsType::Ext4, Bytes::mib(64));
    let number = scratch.host.loops.find(&scratch.path().join("m.img")).unwrap()[0].number;
    let (stop, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    let filesystems = &scratch.host.filesystems;
    let size = || filesystems.size(&device, FsType::Ext4, Some(&target)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let n = written.load(Ordering::Relaxed);
                if fs::write(target.join(n.to_string()), n.to_string()).is_err() {
                    return;
                }
                written.store(n + 1, Ordering::Relaxed);
            }
        });
        let grown: Vec<_> = [100, 512, 2048]
            .into_iter()
            .map(|mib| {
                image::grow(&scratch.path().join("m.img"), Bytes::mib(mib))?;
                scratch.host.loops.set_capacity(number)?;
                for _ in 0..2 {
                    filesystems.grow(&device, FsType::Ext4, Some(&target))?;
                }
                Ok::<_, larder_model::Fault>((Bytes::mib(mib), size()))
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        for grown in grown {
            let (wanted, is) = grown.unwrap();
            assert_eq!(is, wanted);
        }
    });
    let total = filesystems.usage(&target).unwrap().total;
    assert!(total > Bytes::mib(1900), "{total}");
    let written = written.into_inner();
    assert!(written > 10, "{written}");
    for n in 0..written {
        assert_eq!(fs::read_to_string(target.join(n.to_string())).unwrap(), n.to_string());
    }
    scratch.unmount(&target);
    Command::new("e2fsck").args(["-f", "-n"]).arg(&device).run().unwrap();
}
