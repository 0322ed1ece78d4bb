//! The fake kernel answers as the real one does: one story, told to both.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use larder_host::{
    BindRequest, DeviceUser, Found, Host, LoopRequest, Unmount, fake::FakeKernel, image,
};
use larder_model::{Bytes, FsType, Kind};
use std::path::Path;
use support::{Scratch, mount_request, request};

/// The life of a volume, with the mistakes that callers make on the way.
fn story(host: &Host, dir: &Path) {
    let image = dir.join("a.img");
    image::create_sparse(&image, Bytes::mib(64)).unwrap();
    let backing = larder_host::Backing::of(&image).unwrap();
    let wanted = LoopRequest { autoclear: true, ..request(&image) };
    let device = host.loops.attach(&wanted).unwrap();
    let (number, path) = (device.number, device.path.clone());
    let id = host.mounts.block_device(&path).unwrap();
    assert_eq!(host.loops.find(&image).unwrap()[0].device, id);
    assert_eq!(host.loops.detach(number, backing).unwrap_err().kind(), Kind::Precondition);

    let filesystems = &host.filesystems;
    assert_eq!(filesystems.probe(&path).unwrap(), Found::Blank);
    filesystems.make(&path, FsType::Ext4, &[]).unwrap();
    assert_eq!(filesystems.probe(&path).unwrap(), Found::FileSystem(FsType::Ext4));
    let again = filesystems.make(&path, FsType::Ext4, &[]).unwrap_err();
    assert_eq!(again.kind(), Kind::Precondition);
    filesystems.make_again(&path, FsType::Ext4, &[]).unwrap();
    filesystems.check(&path, FsType::Ext4).unwrap();
    assert_eq!(filesystems.size(&path, FsType::Ext4, None).unwrap(), Bytes::mib(64));
    let wrong = filesystems.size(&path, FsType::Xfs, None).unwrap_err();
    assert_eq!(wrong.kind(), Kind::Corrupt);

    let (staging, target) = (dir.join("staging"), dir.join("target"));
    std::fs::create_dir(&staging).unwrap();
    std::fs::create_dir(&target).unwrap();
    let mounts = &host.mounts;
    let wrong = mount_request(&path, FsType::Xfs, &staging, &[]);
    assert_eq!(mounts.mount(&wrong).unwrap_err().kind(), Kind::Precondition);
    let mount = mount_request(&path, FsType::Ext4, &staging, &["noatime"]);
    mounts.mount(&mount).unwrap();
    assert_eq!(mounts.mount(&mount).unwrap_err().kind(), Kind::Precondition);
    drop(device);
    let at = mounts.mounts_at(&staging).unwrap();
    assert_eq!((at.len(), at[0].device, at[0].fs_type.as_str()), (1, id, "ext4"));
    assert_eq!(mounts.mount_root(&staging).unwrap().unwrap().device, id);
    assert!(at[0].options.iter().any(|o| o == "noatime"));
    let bind = BindRequest {
        source: staging.clone(),
        target: target.clone(),
        read_only: true,
        options: vec![],
    };
    mounts.bind(&bind).unwrap();
    assert_eq!(mounts.bind(&bind).unwrap_err().kind(), Kind::Precondition);
    let shown = mounts.mounts_at(&target).unwrap().remove(0);
    assert!(shown.is_mount_read_only() && shown.device == id);
    let users = mounts.users_of_device(id).unwrap();
    let is_mount = |u: &DeviceUser| matches!(u, DeviceUser::Mount { .. });
    assert_eq!(users.iter().filter(|u| is_mount(u)).count(), 2, "{users:?}");
    assert_eq!(host.loops.detach(number, backing).unwrap_err().kind(), Kind::Precondition);

    image::grow(&image, Bytes::mib(96)).unwrap();
    assert_eq!(host.loops.set_capacity(number).unwrap(), Bytes::mib(96));
    for _ in 0..2 {
        mounts.unmount(&target, Unmount::Normal).unwrap();
        mounts.unmount(&staging, Unmount::Normal).unwrap();
    }
    assert!(!mounts.is_mount_point(&staging).unwrap());
    assert_eq!(host.loops.info(number).unwrap().map(|l| l.backing_inode), None, "autoclear");
    host.loops.detach(number, backing).unwrap();

    let device = host.loops.attach(&request(&image)).unwrap();
    filesystems.grow(&device.path, FsType::Ext4, None).unwrap();
    filesystems.grow(&device.path, FsType::Ext4, None).unwrap();
    assert_eq!(filesystems.size(&device.path, FsType::Ext4, None).unwrap(), Bytes::mib(96));
    let number = device.number;
    drop(device);
    host.loops.detach(number, backing).unwrap();
    assert_eq!(host.loops.find(&image).unwrap(), vec![]);
}

#[test]
fn the_real_kernel_tells_the_story() {
    let scratch = Scratch::new();
    story(&scratch.host, &scratch.path());
}

#[test]
fn the_fake_kernel_tells_the_same_story() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    story(&kernel.host(), &dir.path().canonicalize().unwrap());
    assert_eq!((kernel.mounted(), kernel.attached()), (vec![], vec![]));
}

#[test]
fn the_fake_kernel_fails_when_told_and_forgets_all_at_a_reboot() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = FakeKernel::new();
    let host = kernel.host();
    let image = dir.path().join("a.img");
    image::create_sparse(&image, Bytes::mib(64)).unwrap();
    kernel.fail_next("attach", rustix::io::Errno::NOSPC);
    assert_eq!(host.loops.attach(&request(&image)).unwrap_err().kind(), Kind::Exhausted);
    let device = host.loops.attach(&request(&image)).unwrap();
    kernel.fail_next("make", rustix::io::Errno::IO);
    host.filesystems.make(&device.path, FsType::Ext4, &[]).unwrap_err();
    let remains = host.filesystems.probe(&device.path).unwrap();
    assert!(matches!(remains, Found::Other(_)), "a cut mkfs leaves remains: {remains:?}");
    host.filesystems.make_again(&device.path, FsType::Ext4, &[]).unwrap();
    let target = dir.path().join("m");
    std::fs::create_dir(&target).unwrap();
    host.mounts.mount(&mount_request(&device.path, FsType::Ext4, &target, &[])).unwrap();
    kernel.set_busy(&target, true);
    let busy = host.mounts.unmount(&target, Unmount::Normal).unwrap_err();
    assert_eq!(busy.kind(), Kind::Precondition);
    kernel.set_loop_devices(1);
    assert_eq!(host.loops.attach(&request(&image)).unwrap_err().kind(), Kind::Exhausted);
    kernel.reboot();
    assert_eq!((kernel.mounted(), kernel.attached()), (vec![], vec![]));
    let again = host.loops.attach(&request(&image)).unwrap();
    let found = host.filesystems.probe(&again.path).unwrap();
    assert_eq!(found, Found::FileSystem(FsType::Ext4), "files stay");
}
