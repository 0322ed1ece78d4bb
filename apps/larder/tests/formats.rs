//! Upgrade and rollback: pools that another release wrote are served, and what this release does not
//! know is kept or refused, never lost.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]
#![allow(clippy::disallowed_methods, reason = "tests start programs as a user would")]

mod support;

use rstest::rstest;
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command};
use support::{Site, filled};

/// Lays out a pool as the sample says, with the data that belongs to its records.
fn lay_out(site: &Site, sample: &Value) {
    let pool = site.pool.path();
    for (file, content) in sample.as_object().unwrap() {
        let path = pool.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content.to_string()).unwrap();
        let Some(size) = content["size"].as_u64() else { continue };
        let folder = path.parent().unwrap();
        if site.backend == "dir" {
            fs::create_dir(folder.join("data")).unwrap();
            fs::write(folder.join("data/precious"), "data").unwrap();
        } else {
            let (image, files) = (folder.join("image"), site.path("files"));
            fs::create_dir_all(&files).unwrap();
            fs::write(files.join("precious"), "data").unwrap();
            fs::File::create(&image).unwrap().set_len(size).unwrap();
            let mut mkfs = Command::new("mkfs.ext4");
            let made = mkfs.args(["-q", "-F", "-d"]).arg(&files).arg(&image).output().unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
    }
}

fn sample(backend: &str, format: u32) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples");
    let text = fs::read(folder.join(format!("format-{format}/{backend}.json"))).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn show(site: &Site) -> Value {
    serde_json::from_str(&site.ok(&["volume", "show", "v", "-o", "json"])).unwrap()
}

fn precious(site: &Site, volume: &str) -> Vec<u8> {
    let at = site.path("mounted").display().to_string();
    site.ok(&["volume", "mount", volume, &at]);
    let read = fs::read(site.path("mounted/precious")).unwrap();
    site.ok(&["volume", "unmount", volume]);
    read
}

#[rstest]
fn a_pool_of_every_released_format_is_served_whole(
    #[values("dir", "loop")] backend: &'static str,
    #[values(1)] format: u32,
) {
    let site = Site::new(backend, "xfs");
    let sample = sample(backend, format);
    lay_out(&site, &sample);
    let shown = show(&site);
    assert_eq!(shown["id"], "default/v");
    assert_eq!(shown["size"], sample["volumes/v/record.json"]["size"]);
    assert_eq!(precious(&site, "v"), b"data");
    // Its snapshot can be restored, and all of it deleted.
    site.ok(&["volume", "create", "r", "--from", "v@a"]);
    assert_eq!(precious(&site, "r"), b"data");
    site.ok(&["snapshot", "rm", "v@a"]);
    site.ok(&["volume", "rm", "v", "r"]);
    for folder in ["volumes", "snapshots", "creating", "deleting"] {
        let left = fs::read_dir(site.pool.path().join(folder)).unwrap().count();
        assert_eq!(left, 0, "{folder}");
    }
}

/// A later release may note more in the same format: after a rollback that is kept.
#[rstest]
fn keys_that_this_release_does_not_know_survive_its_writing(
    #[values("dir", "loop")] backend: &'static str,
) {
    let site = Site::new(backend, "xfs");
    let mut sample = sample(backend, 1);
    sample["volumes/v/record.json"]["ofLater"] = json!({ "kept": [1, 2] });
    lay_out(&site, &sample);
    site.ok(&["volume", "expand", "v", "--size", "64Mi"]);
    let record = fs::read(site.pool.path().join("volumes/v/record.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    assert_eq!(record["size"], 64 << 20, "it was written");
    assert_eq!(record["ofLater"], json!({ "kept": [1, 2] }));
}

#[rstest]
fn what_a_later_format_holds_is_refused_with_words_and_left_as_it_is(
    #[values("dir", "loop")] backend: &'static str,
    #[values("larder-pool.json", "volumes/v/record.json", "snapshots/v.a/record.json")] file: &str,
) {
    let site = Site::new(backend, "xfs");
    let mut sample = sample(backend, 1);
    sample[file]["format"] = json!(2);
    lay_out(&site, &sample);
    let before = fs::read(site.pool.path().join(file)).unwrap();
    let (show, remove) = if file.starts_with("snapshots") {
        (
            ["volume", "create", "r", "--from", "v@a"].as_slice(),
            ["snapshot", "rm", "v@a"].as_slice(),
        )
    } else {
        (["volume", "show", "v"].as_slice(), ["volume", "rm", "v"].as_slice())
    };
    for command in [show, remove] {
        let refused = site.larder(command);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success(), "{command:?}");
        assert!(said.contains("format 2"), "{command:?}: {said}");
    }
    assert_eq!(fs::read(site.pool.path().join(file)).unwrap(), before);
    let data = if backend == "dir" { "data/precious" } else { "image" };
    assert!(site.pool.path().join("volumes/v").join(data).exists());
    assert!(site.pool.path().join("snapshots/v.a").join(data).exists());
}

#[test]
fn limits_of_a_released_record_are_told_and_kept() {
    let site = Site::new("loop", "xfs");
    let sample = sample("loop-limits", 1);
    lay_out(&site, &sample);
    let asked = &sample["volumes/v/record.json"]["limits"];
    assert_eq!(&show(&site)["limits"]["asked"], asked);
    assert_eq!(precious(&site, "v"), b"data");
    site.ok(&["volume", "expand", "v", "--size", "64Mi"]);
    let record = fs::read(site.pool.path().join("volumes/v/record.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    assert_eq!((&record["size"], &record["limits"]), (&json!(64 << 20), asked));
}

/// The record of `volume mount` in the site, with what is in the sample about the path.
fn note(site: &Site, sample: &str, format: Option<u32>) -> std::path::PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples/format-1");
    let text = fs::read_to_string(folder.join(sample)).unwrap();
    let text = text.replace("TARGET", site.path("mounted").to_str().unwrap());
    let mut record: Value = serde_json::from_str(&text).unwrap();
    if let Some(format) = format {
        record["format"] = json!(format);
    }
    let found = Command::new("find").arg(site.dir.path()).args(["-name", "mount.json"]).output();
    let found = String::from_utf8(found.unwrap().stdout).unwrap();
    let path = std::path::PathBuf::from(found.trim());
    fs::write(&path, record.to_string()).unwrap();
    path
}

#[rstest]
fn a_volume_that_another_release_mounted_is_found_and_unmounted(
    #[values("mount.json", "mount-without-number.json")] noted: &str,
) {
    let site = Site::new("dir", "xfs");
    lay_out(&site, &sample("dir", 1));
    let at = site.path("mounted").display().to_string();
    site.ok(&["volume", "mount", "v", &at]);
    // One of a release to come is left as it is, and so is its mount.
    let path = note(&site, noted, Some(2));
    let before = fs::read(&path).unwrap();
    let refused = site.larder(&["volume", "unmount", "v"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("format 2"), "{said}");
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(site.path("mounted/precious").exists());
    note(&site, noted, None);
    site.ok(&["volume", "unmount", "v"]);
    assert!(!site.path("mounted/precious").exists() && !path.exists());
}

#[test]
fn a_group_that_another_release_cut_is_shown_restored_and_deleted_whole() {
    let site = Site::new("loop", "xfs");
    lay_out(&site, &sample("loop", 1));
    lay_out(&site, &sample("loop-group", 1));
    let member = "default/g-75830db626746a4a";
    assert!(site.ok(&["snapshot", "group", "ls", "g"]).contains(member));
    site.ok(&["volume", "create", "r", "--from", &format!("@{member}")]);
    assert_eq!(precious(&site, "r"), b"data");
    site.ok(&["snapshot", "group", "rm", "g"]);
    for folder in ["snapshots/g-75830db626746a4a", "groups/g"] {
        assert!(!site.pool.path().join(folder).exists(), "{folder}");
    }
    assert!(site.pool.path().join("snapshots/v.a").exists(), "it is in no group");
}

#[rstest]
fn a_volume_that_another_release_staged_and_published_is_taken_back(
    #[values("dir", "loop")] backend: &'static str,
) {
    let site = Site::new(backend, "xfs");
    lay_out(&site, &sample(backend, 1));
    let at = site.path("mounted").display().to_string();
    site.ok(&["volume", "mount", "v", &at]);
    let records = site.path("state").join(&site.driver);
    let mut found = fs::read_dir(&records).unwrap().map(|entry| entry.unwrap().path());
    let path = found.find(|path| path.extension().is_some_and(|e| e == "json")).unwrap();
    let written: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let record = filled(&sample(&format!("node-{backend}"), 1), &written, "the record");
    fs::write(&path, record.to_string()).unwrap();
    // It is understood: what stands is what is asked for again.
    site.ok(&["volume", "mount", "v", &at]);
    assert_eq!(fs::read(site.path("mounted/precious")).unwrap(), b"data");
    fs::write(&path, record.to_string()).unwrap();
    site.ok(&["volume", "unmount", "v"]);
    assert!(!site.path("mounted/precious").exists() && !path.exists());
    site.ok(&["snapshot", "rm", "v@a"]);
    site.ok(&["volume", "rm", "v"]);
}

/// Opening one takes a kernel with dm-crypt: `encryption/owners.rs` does, with the same sample. Anywhere
/// its record keeps it from being taken for a volume that is not encrypted.
#[test]
fn an_encrypted_volume_of_a_released_record_is_known_as_one() {
    let site = Site::new("loop", "xfs");
    let sample = sample("loop-encryption", 1);
    lay_out(&site, &sample);
    assert_eq!(show(&site)["encrypted"], true);
    // Whatever lies in its place is neither mounted nor encrypted anew.
    let image = site.pool.path().join("volumes/v/image");
    let before = fs::read(&image).unwrap();
    let (at, key) = (site.path("mounted"), site.path("key"));
    fs::write(&key, "a passphrase").unwrap();
    let (at, key) = (at.display().to_string(), key.display().to_string());
    let refused = site.larder(&["volume", "mount", "v", &at, "--passphrase-file", &key]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("its header is gone"), "{said}");
    assert!(fs::read(&image).unwrap() == before, "it was written to");
    site.ok(&["volume", "expand", "v", "--size", "256Mi"]);
    let record = fs::read(site.pool.path().join("volumes/v/record.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    assert_eq!(record["fileSystem"], sample["volumes/v/record.json"]["fileSystem"]);
    site.ok(&["volume", "rm", "v"]);
}
