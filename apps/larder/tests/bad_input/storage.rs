//! Storage that was changed under us, or that is somebody else's.

use super::*;
use std::os::unix::fs::FileExt;

fn image(ground: &Ground, id: &str) -> PathBuf {
    ground.site.pool.path().join("volumes").join(id.strip_prefix("default/").unwrap()).join("image")
}

#[tokio::test]
async fn an_image_that_is_missing_short_or_replaced_is_refused_and_left_as_it_is() {
    let ground = Ground::of("loop", "xfs").await;
    let staging = ground.text("staging");
    let id = ground.make("v", false).await.volume_id;
    ground.stage(&id, &staging, capability(false, "")).await.unwrap();
    ground.unstage(&id).await.unwrap();
    let image = image(&ground, &id);
    let whole = std::fs::metadata(&image).unwrap().len();

    let file = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(whole / 2).unwrap();
    drop(file);
    let before = sum(&image);
    let answer = ground.stage(&id, &staging, capability(false, "")).await;
    refused(answer, &[Code::DataLoss, Code::FailedPrecondition], &["bytes"]);
    assert_eq!(sum(&image), before);

    // Blank, and yet not to be formatted: this volume had a file system.
    let kept = image.with_extension("kept");
    std::fs::rename(&image, &kept).unwrap();
    std::fs::File::create(&image).unwrap().set_len(whole).unwrap();
    let answer = ground.stage(&id, &staging, capability(false, "")).await;
    refused(answer, &[Code::DataLoss, Code::FailedPrecondition], &["formatted with"]);
    assert_eq!(std::fs::metadata(&image).unwrap().len(), whole);
    std::fs::remove_file(&image).unwrap();
    let answer = ground.stage(&id, &staging, capability(false, "")).await;
    refused(answer, &[Code::DataLoss, Code::FailedPrecondition], &["missing"]);
    assert!(!image.exists(), "no new image takes the place of lost data");
    // And still: what is whole again works again.
    let file = std::fs::OpenOptions::new().write(true).open(&kept).unwrap();
    file.set_len(whole).unwrap();
    drop(file);
    std::fs::rename(&kept, &image).unwrap();
}

/// What other tools leave on disks.
fn others(kind: &str, image: &Path) {
    let run = |program: &str, arguments: &[&str]| {
        let status = Command::new(program).args(arguments).arg(image).output().unwrap();
        assert!(status.status.success(), "{program}: {}", String::from_utf8_lossy(&status.stderr));
    };
    let write = |at: u64, bytes: &[u8]| {
        let file = std::fs::OpenOptions::new().write(true).open(image).unwrap();
        file.write_all_at(bytes, at).unwrap();
    };
    match kind {
        "ext4" => run("mkfs.ext4", &["-q", "-F"]),
        "btrfs" => run("mkfs.btrfs", &["-q", "-f"]),
        "swap" => run("mkswap", &[]),
        "a partition table" => {
            let mut sector = [0; 66];
            sector[64..].copy_from_slice(&[0x55, 0xaa]);
            sector[..16].copy_from_slice(&[0x80, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0]);
            write(446, &sector);
        }
        "an encrypted disk" => {
            write(0, b"LUKS\xba\xbe\0\x02\0\0\0\0\0\0\x40\0");
        }
        "a physical volume" => {
            write(512, b"LABELONE\x01\0\0\0\0\0\0\0");
        }
        "data nobody knows" => write(5 << 20, &[0x5a; 4096]),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn what_somebody_else_left_on_a_disk_is_never_formatted() {
    let ground = Ground::of("loop", "xfs").await;
    let staging = ground.text("staging");
    for kind in [
        "ext4",
        "btrfs",
        "swap",
        "a partition table",
        "an encrypted disk",
        "a physical volume",
        "data nobody knows",
    ] {
        // Put there by an administrator, and asked for with another file system.
        let file = ground.site.pool.path().join("static/theirs.img");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::File::create(&file).unwrap().set_len(SIZE.unsigned_abs()).unwrap();
        others(kind, &file);
        let before = sum(&file);
        let answer = ground.stage("default/theirs", &staging, capability(false, "xfs")).await;
        assert_eq!(sum(&file), before, "{kind} was written to: {answer:?}");
        let status = answer.map(|()| panic!("{kind} was staged as xfs")).unwrap_err();
        let codes = [Code::FailedPrecondition, Code::InvalidArgument, Code::DataLoss];
        assert!(codes.contains(&status.code()), "{kind}: {status}");
        assert!(status.message().contains("default/theirs"), "{kind}: {status}");
        std::fs::remove_file(&file).unwrap();
        for left in std::fs::read_dir(file.parent().unwrap()).unwrap() {
            std::fs::remove_file(left.unwrap().path()).unwrap();
        }
    }
}

#[tokio::test]
async fn a_made_volume_on_which_somebody_put_data_before_its_first_use_is_not_formatted() {
    let ground = Ground::of("loop", "xfs").await;
    for kind in ["ext4", "swap", "an encrypted disk"] {
        let id = ground.make(&format!("v-{}", kind.len()), false).await.volume_id;
        let image = image(&ground, &id);
        others(kind, &image);
        let before = sum(&image);
        let answer = ground.stage(&id, &ground.text("staging"), capability(false, "")).await;
        assert_eq!(sum(&image), before, "{kind} was written to: {answer:?}");
        refused(answer, &[Code::FailedPrecondition, Code::DataLoss], &[]);
        ground.delete(&id).await.unwrap();
    }
}

#[tokio::test]
async fn a_directory_that_became_a_symlink_is_not_followed() {
    let ground = Ground::of("dir", "xfs").await;
    let id = ground.make("v", false).await.volume_id;
    let data = ground.site.pool.path().join("volumes/v/data");
    assert!(data.is_dir());
    let elsewhere = ground.site.path("elsewhere");
    std::fs::create_dir_all(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("theirs"), "x").unwrap();
    std::fs::remove_dir(&data).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &data).unwrap();
    let answer = ground.stage(&id, &ground.text("staging"), capability(false, "")).await;
    refused(answer, &[Code::DataLoss, Code::FailedPrecondition], &[]);
    // Deletion removes the link, and not what it leads to.
    ground.delete(&id).await.unwrap();
    assert!(elsewhere.join("theirs").exists());
}
