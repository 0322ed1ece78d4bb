//! Mounts that are not in our mount namespace, or hidden in it. A target of its own: a new namespace
//! begins as a copy of all mounts, also those of other tests, and keeps their devices.
#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

mod support;

use larder_model::{Bytes, FsType, Kind};
use std::{
    fs::File,
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use support::{Ask, Ground, consistency, restored, run};

/// One test at a time: the other's new namespace begins with copies of our mounts, and whoever
/// looks for a device's mounts finds them there until they are taken away.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A process in a mount namespace of its own that has `device` mounted at `target`.
struct Elsewhere {
    thread: JoinHandle<()>,
    done: PathBuf,
}

impl Elsewhere {
    fn mount(ground: &Ground, device: &Path, target: &Path) -> Self {
        let (ready, done) = (ground.path().join("ready"), ground.path().join("done"));
        // The copies of other tests' mounts would keep their devices.
        let script = format!(
            "for m in $(grep -o ' /tmp/larder[^ ]*' /proc/self/mountinfo | grep -v {ground}); do \
             umount -l $m; done; mount -t ext4 {device} {target} && echo kept > {target}/file && touch {ready} && \
             for i in $(seq 6000); do [ -e {done} ] && break; sleep 0.05; done",
            ground = ground.path().display(),
            device = device.display(),
            target = target.display(),
            ready = ready.display(),
            done = done.display(),
        );
        let thread = std::thread::spawn(move || {
            run("unshare", &["--mount", "--propagation", "private", "sh", "-c", &script]);
        });
        let end = Instant::now() + Duration::from_secs(120);
        while !ready.exists() {
            assert!(Instant::now() < end, "the other namespace does not come up");
            std::thread::yield_now();
        }
        Self { thread, done }
    }

    fn end(self) {
        File::create(&self.done).unwrap();
        self.thread.join().unwrap();
    }
}

#[tokio::test]
async fn a_mount_in_another_namespace_is_frozen_too_and_keeps_its_volume() {
    let _alone = ALONE.lock().await;
    let ground = Ground::on(FsType::Xfs, Bytes::gib(1));
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::mount("v", "ext4", Bytes::mib(64))).await.unwrap();
    let staged = driver.stage(&volume).await.unwrap();
    let elsewhere = Elsewhere::mount(&ground, &staged.device, &ground.folder("private"));
    driver.unmount(&staged.target).await.unwrap();

    let snapshot = driver.snapshot(&volume.id, "s").await.unwrap();
    assert_eq!(consistency(&ground, "s"), "frozen");
    let fault = driver.delete(&volume.id).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("private"), "{fault}");
    use larder_model::Connect;
    let cx = larder_model::Cx::new();
    let attachment = Some(&staged.attachment);
    let fault = driver.backend.disconnect(&volume.id, attachment, &cx).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    elsewhere.end();

    let copy = restored(&driver, &snapshot.id, FsType::Ext4).await;
    assert_eq!(std::fs::read_to_string(copy.target.join("file")).unwrap(), "kept\n");
    driver.unstage(&copy).await.unwrap();
    driver.backend.disconnect(&volume.id, attachment, &cx).await.unwrap();
    ground.assert_clean();
}

#[tokio::test]
async fn a_mount_that_is_hidden_is_not_mistaken_for_what_hides_it() {
    let _alone = ALONE.lock().await;
    let ground = Ground::on(FsType::Xfs, Bytes::gib(1));
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::mount("v", "ext4", Bytes::mib(64))).await.unwrap();
    let staged = driver.stage(&volume).await.unwrap();
    let target = staged.target.display().to_string();
    run("mount", &["-t", "tmpfs", "none", &target]);
    let fault = driver.snapshot(&volume.id, "s").await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("cannot be reached"), "{fault}");
    driver.unmount(&staged.target).await.unwrap();
    driver.snapshot(&volume.id, "s").await.unwrap();
    driver.unstage(&staged).await.unwrap();
    ground.assert_clean();
}
