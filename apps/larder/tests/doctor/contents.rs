//! What is in pools.

use crate::{
    doctor, everything, found_and_mended,
    support::{Site, capability, create},
    told,
};
use larder_proto::csi;
use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

const SIZE: i64 = 320 << 20;

/// The first entry of a folder.
fn first(folder: &Path) -> Option<PathBuf> {
    Some(std::fs::read_dir(folder).unwrap().next()?.unwrap().path())
}

/// Kills a server at each step of `call` until something is in `folder`; returns that.
async fn killed_with(site: &Site, folder: &str, deletes: bool) -> PathBuf {
    for n in 1..40 {
        site.ok(&["pool", "ls"]);
        if deletes {
            site.ok(&["volume", "create", "half", "--size", "320Mi"]);
        }
        let mut server = site.server_that_crashes_at(n);
        if server.ready().await {
            let mut controller = server.client.controller();
            if deletes {
                let volume_id = "default/half".to_owned();
                let request = csi::DeleteVolumeRequest { volume_id, ..Default::default() };
                let _ = controller.delete_volume(request).await;
            } else {
                let _ = controller.create_volume(create("half", SIZE, capability(false, ""))).await;
            }
        }
        server.kill();
        let _ = std::fs::remove_file(site.endpoint().path());
        if let Some(path) = first(&site.pool.path().join(folder)) {
            return path;
        }
        let _ = site.larder(&["volume", "rm", "half"]);
    }
    panic!("no kill left anything in {folder}");
}

#[rstest::rstest]
#[case::dir("dir")]
#[case::loops("loop")]
#[tokio::test]
async fn what_a_killed_server_had_half_made_or_half_deleted_is_found_and_taken_away(
    #[case] backend: &'static str,
) {
    let site = Site::new(backend, "xfs");
    site.ok(&["volume", "create", "a", "--size", "320Mi"]);
    let before = everything(&site.pool.path().join("volumes"));
    let half = killed_with(&site, "creating", false).await;
    found_and_mended(&site, &[("half-made", &half, true)]);
    let half = killed_with(&site, "deleting", true).await;
    std::fs::write(site.pool.path().join(".larder/scratch/left"), "x").unwrap();
    let scratch = site.pool.path().join(".larder/scratch/left");
    found_and_mended(&site, &[("half-deleted", &half, true), ("temporary-files", &scratch, true)]);
    assert!(everything(&site.pool.path().join("volumes")) == before);
}

#[tokio::test]
async fn what_is_half_made_beside_a_running_driver_is_left_to_its_next_start() {
    let site = Site::new("loop", "xfs");
    let half = killed_with(&site, "creating", false).await;
    let aside = site.path("disk/mnt/aside");
    std::fs::rename(&half, &aside).unwrap();
    let mut server = site.server();
    assert!(server.ready().await);
    std::fs::rename(&aside, &half).unwrap();
    // It may be somebody's work: that it is not shows with time only.
    assert_eq!(told(&doctor(&site, &[])), []);
    assert_eq!(told(&doctor(&site, &["--fix", "--yes"])), []);
    assert!(half.is_dir());
    server.stop();
    found_and_mended(&site, &[("half-made", &half, true)]);
}

#[rstest::rstest]
#[case::dir("dir", "data")]
#[case::loops("loop", "image")]
fn lost_and_foreign_things_are_told_and_left_as_they_are(
    #[case] backend: &'static str,
    #[case] data: &str,
) {
    let site = Site::new(backend, "xfs");
    for name in ["good", "no-record", "bad-record", "no-data", "other", "stray"] {
        site.ok(&["volume", "create", name, "--size", "320Mi"]);
    }
    site.ok(&["snapshot", "create", "good@s"]);
    let pool = site.pool.path();
    let volumes = pool.join("volumes");
    let remove = |path: PathBuf| {
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.unwrap();
    };
    remove(volumes.join("no-record/record.json"));
    std::fs::write(volumes.join("bad-record/record.json"), "{ no record").unwrap();
    remove(volumes.join("no-data").join(data));
    remove(volumes.join("other").join(data));
    std::os::unix::fs::symlink("/etc", volumes.join("other").join(data)).unwrap();
    std::fs::write(volumes.join("stray/backup.qcow2"), "x").unwrap();
    remove(pool.join("snapshots/good.s/record.json"));
    std::fs::create_dir(volumes.join("empty")).unwrap();
    std::fs::set_permissions(volumes.join("empty"), PermissionsExt::from_mode(0o700)).unwrap();
    // Of other tools.
    std::fs::create_dir_all(pool.join("docker/overlay2")).unwrap();
    std::fs::write(pool.join("docker/overlay2/file"), "theirs").unwrap();
    std::fs::write(pool.join("old.img"), "theirs").unwrap();
    std::fs::write(volumes.join("Not A Name"), "theirs").unwrap();
    std::fs::write(pool.join("deleting/notes.txt"), "theirs").unwrap();
    std::fs::create_dir(pool.join("static/Not A Name")).unwrap();
    std::fs::create_dir_all(pool.join("trash/x")).unwrap();
    // Of mkfs.
    std::fs::create_dir(pool.join("lost+found")).unwrap();
    let before = everything(pool);

    let (no_data, other) = (volumes.join("no-data").join(data), volumes.join("other").join(data));
    let empty = volumes.join("empty");
    found_and_mended(
        &site,
        &[
            ("volume-without-record", &volumes.join("no-record"), false),
            ("volume-without-record", &pool.join("snapshots/good.s"), false),
            ("record-unreadable", &volumes.join("bad-record/record.json"), false),
            ("record-without-volume", &no_data, false),
            ("record-without-volume", &other, false),
            ("image-without-owner", &volumes.join("stray/backup.qcow2"), false),
            ("image-without-owner", &pool.join("old.img"), false),
            ("foreign-file", &pool.join("docker"), false),
            ("foreign-file", &volumes.join("Not A Name"), false),
            ("foreign-file", &pool.join("deleting/notes.txt"), false),
            ("foreign-file", &pool.join("trash/x"), false),
            ("static-unusable", &pool.join("static/Not A Name"), false),
            ("empty-folder", &empty, true),
        ],
    );
    let mut after = everything(pool);
    assert!(after.insert(empty.clone(), before[&empty].clone()).is_none());
    assert!(after == before, "something else was changed");

    // What it says about a volume's id.
    let report = doctor(&site, &[]);
    let about =
        report["findings"].as_array().unwrap().iter().find(|f| f["where"] == crate::text(&no_data));
    assert_eq!(about.unwrap()["volume"], "default/no-data");
    assert_eq!(about.unwrap()["severity"], "critical");
    // As it says: the data of a lost record is a static volume.
    let to = pool.join("static").join(if backend == "loop" { "rescued.img" } else { "rescued" });
    std::fs::rename(volumes.join("no-record").join(data), to).unwrap();
    assert!(site.ok(&["volume", "ls"]).contains("default/rescued"));
}

#[test]
fn an_image_that_was_cut_short_is_told_and_left_as_it_is() {
    let site = Site::new("loop", "xfs");
    site.ok(&["volume", "create", "a", "--size", "16Mi", "--block"]);
    let image = site.pool.path().join("volumes/a/image");
    std::fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(8 << 20).unwrap();
    found_and_mended(&site, &[("image-truncated", &image, false)]);
    assert_eq!(std::fs::metadata(&image).unwrap().len(), 8 << 20);
}

/// As a removal that takes hours does it; a lock goes with its process.
#[test]
fn what_is_just_being_removed_is_no_finding_however_long_it_takes() {
    let site = Site::new("dir", "xfs");
    site.ok(&["pool", "ls"]);
    let grave = site.pool.path().join("deleting/volume-large.0123456789ab");
    std::fs::create_dir(&grave).unwrap();
    let work = larder_host::lock::AtWork::on(&grave);
    assert_eq!(told(&doctor(&site, &[])), []);
    drop(work);
    found_and_mended(&site, &[("half-deleted", &grave, true)]);
}

#[rstest::rstest]
#[case::dir("dir", "data")]
#[case::loops("loop", "image")]
fn what_is_wrong_in_the_trash_is_told_and_only_a_record_of_nothing_is_removed(
    #[case] backend: &'static str,
    #[case] data: &str,
) {
    let site = Site::new(backend, "xfs");
    let config = std::fs::read_to_string(site.config()).unwrap();
    let config = config.replace("create: true", "create: true, trash: 24h");
    std::fs::write(site.config(), config).unwrap();
    let trash = site.pool.path().join("trash");
    let binned = |name: &str| {
        let begin = format!("volume-{name}.");
        let entries = std::fs::read_dir(&trash).unwrap().map(|entry| entry.unwrap().path());
        let mut paths: Vec<_> = entries
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&begin))
            .collect();
        paths.sort();
        <[PathBuf; 2]>::try_from(paths).unwrap()
    };
    for name in ["good", "nothing", "no-record", "bad", "no-data"] {
        site.ok(&["volume", "create", name, "--size", "320Mi"]);
        site.ok(&["volume", "rm", name]);
    }
    let [nothing, of_nothing] = binned("nothing");
    std::fs::remove_dir_all(nothing).unwrap();
    let [lost, record] = binned("no-record");
    std::fs::remove_file(record).unwrap();
    let [_, bad] = binned("bad");
    std::fs::write(&bad, "{ no record").unwrap();
    let [empty, _] = binned("no-data");
    let gone = empty.join(data);
    if gone.is_dir() {
        std::fs::remove_dir_all(gone).unwrap();
    } else {
        std::fs::remove_file(gone).unwrap();
    }
    let before = everything(&trash);
    found_and_mended(
        &site,
        &[
            ("trash-record-of-nothing", &of_nothing, true),
            ("trash-without-record", &lost, false),
            ("trash-record-unreadable", &bad, false),
            ("trash-without-data", &empty, false),
        ],
    );
    let mut after = everything(&trash);
    assert!(after.insert(of_nothing.clone(), before[&of_nothing].clone()).is_none());
    assert!(after == before, "something else was changed");
    // As it says.
    let report = doctor(&site, &[]);
    let about = |f: &&serde_json::Value| f["where"] == crate::text(&empty);
    let mend = report["findings"].as_array().unwrap().iter().find(about).unwrap()["mend"].clone();
    let id = mend.as_str().unwrap().strip_prefix("larder trash rm ").unwrap().to_owned();
    site.ok(&["trash", "rm", &id]);
    assert!(!empty.exists());
    assert!(site.ok(&["trash", "ls"]).contains("good"));
}
