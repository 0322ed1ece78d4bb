//! In a virtual machine: the kernel of a stable distribution, and what a restricted machine lacks.
#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

#[path = "clones.rs"]
mod clones;

use clones::support::{Ask, Ground, assert_files, write_files};
use larder_model::{Bytes, Cx, FsType, backend::Connect};
use rstest::rstest;

#[rstest]
#[tokio::test]
async fn a_mounted_volume_is_cut_and_copied_grown_and_its_copies_mounted_beside_it(
    #[values(FsType::Ext4, FsType::Xfs, FsType::Btrfs)] fs: FsType,
) {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(2));
    let driver = ground.driver().await;
    let ask = Ask::mount("v", fs.as_str(), Bytes::mib(300)).parameter("sectorSize", "4096");
    let staged = driver.stage(&driver.create(&ask).await.unwrap()).await.unwrap();
    write_files(&staged.target, 1);
    let snapshot = driver.snapshot(&staged.volume.id, "s").await.unwrap();
    write_files(&staged.target, 50);
    let restore = Ask::mount("r", "", Bytes::mib(400)).restore_of(&snapshot.id);
    let restored = driver.stage(&driver.create(&restore).await.unwrap()).await.unwrap();
    assert_files(&restored.target, 1);
    let clone = Ask::mount("c", "", Bytes::ZERO).clone_of(&staged.volume.id);
    let clone = driver.stage(&driver.create(&clone).await.unwrap()).await.unwrap();
    assert_files(&clone.target, 50);

    // Online, ext4 as well: this machine grants CAP_SYS_RESOURCE.
    let larger = Bytes::mib(600);
    driver.expand(&staged.volume.id, larger).await.unwrap();
    let cx = Cx::new();
    let size = driver.backend.refresh_size(&staged.volume.id, &staged.attachment, &cx).await;
    assert_eq!(size.unwrap(), larger);
    driver.host.filesystems.grow(&staged.device, fs, Some(&staged.target)).unwrap();
    assert!(driver.available(&staged) > Bytes::mib(500));
    assert_files(&staged.target, 50);
    for staged in [staged, restored, clone] {
        driver.unstage(&staged).await.unwrap();
        driver.delete(&staged.volume.id).await.unwrap();
    }
    ground.assert_clean();
}
