//! `volume mount` and `volume unmount`: what they take back, and what they leave alone.

use crate::support::{Site, larder, leaks};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

fn mounted(site: &Site, volume: &str) -> Value {
    let shown: Value =
        serde_json::from_str(&site.ok(&["volume", "show", volume, "-o", "json"])).unwrap();
    shown["mounted"].clone()
}

/// Folders below which `volume mount` keeps what it did.
fn folders(site: &Site) -> Vec<std::path::PathBuf> {
    let driver = site.path("mounts").join(&site.driver);
    std::fs::read_dir(driver).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn only_root_comes_to_a_volume_by_its_staging_folder() {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "a"]);
    site.ok(&["volume", "mount", "a", text(&site.path("here"))]);
    // World-writable, as a program with its own users makes it.
    std::fs::set_permissions(site.path("here"), PermissionsExt::from_mode(0o777)).unwrap();
    for folder in folders(&site) {
        let mode = std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "{}", folder.display());
    }
    assert_eq!(folders(&site).len(), 1);
    site.ok(&["volume", "unmount", "a"]);
}

#[test]
fn a_mount_at_a_bad_place_leaves_nothing_to_unmount() {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "a"]);
    let (bad, good) = (site.path("bad"), site.path("good"));
    std::fs::create_dir(&bad).unwrap();
    std::fs::write(bad.join("file"), "somebody's").unwrap();

    let why = site.fails(5, &["volume", "mount", "a", text(&bad)]);
    assert!(why.contains("a directory with files in it"), "{why}");
    assert_eq!(mounted(&site, "a"), serde_json::json!([]));
    assert_eq!(folders(&site), Vec::<std::path::PathBuf>::new());

    // Beside a mount that stands, too.
    site.ok(&["volume", "mount", "a", text(&good)]);
    site.fails(5, &["volume", "mount", "a", text(&bad)]);
    assert_eq!(mounted(&site, "a"), serde_json::json!([text(&good)]));
    std::fs::write(good.join("file"), "ours").unwrap();
    site.ok(&["volume", "unmount", "a"]);
    site.ok(&["volume", "rm", "a"]);
    assert_eq!(std::fs::read(bad.join("file")).unwrap(), b"somebody's");
    assert_eq!(leaks::find(site.dir.path(), site.pool.path()), Vec::<String>::new());
}

#[test]
fn a_mount_over_somebody_elses_leaves_nothing_to_unmount() {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "a"]);
    let theirs = site.path("theirs");
    std::fs::create_dir(&theirs).unwrap();
    let request = larder_host::mounts::MountRequest {
        fs_type: "tmpfs".to_owned(),
        source: "none".to_owned(),
        target: theirs.clone(),
        options: Vec::new(),
        read_only: false,
    };
    larder_host::Host::real().mounts.mount(&request).unwrap();
    std::fs::write(theirs.join("file"), "somebody's").unwrap();
    site.fails(5, &["volume", "mount", "a", text(&theirs)]);
    assert_eq!(mounted(&site, "a"), serde_json::json!([]));
    site.ok(&["volume", "rm", "a"]);
    assert_eq!(std::fs::read(theirs.join("file")).unwrap(), b"somebody's");
}

#[test]
fn a_path_that_no_driver_takes_does_not_stay_in_the_record() {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "a"]);
    std::os::unix::fs::symlink(site.path("elsewhere"), site.path("link")).unwrap();
    let bad = site.path("link/in");
    let output = site.larder(&["volume", "mount", "a", text(&bad)]);
    assert!(!output.status.success());
    assert_eq!(mounted(&site, "a"), serde_json::json!([]));

    // Killed between record and call: the record has the path, and the driver refuses it for ever.
    site.ok(&["volume", "mount", "a", text(&site.path("good"))]);
    let record = folders(&site)[0].join("mount.json");
    let mut noted: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    let more = serde_json::json!({"path": text(&bad), "readOnly": false});
    noted["targets"].as_array_mut().unwrap().push(more);
    std::fs::write(&record, serde_json::to_vec(&noted).unwrap()).unwrap();
    site.ok(&["volume", "unmount", "a"]);
    site.ok(&["volume", "rm", "a"]);
    assert_eq!(leaks::find(site.dir.path(), site.pool.path()), Vec::<String>::new());
}

#[test]
fn a_mount_that_fails_when_it_is_repeated_leaves_the_standing_one() {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "a"]);
    let here = site.path("here");
    site.ok(&["volume", "mount", "a", text(&here)]);
    // The node forgot how it was staged: a repeat is refused until it is staged as it was.
    let record = folders(&site)[0].join("mount.json");
    let mut noted: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    noted["context"]["other"] = "value".into();
    std::fs::write(&record, serde_json::to_vec(&noted).unwrap()).unwrap();

    let output = site.larder(&["volume", "mount", "a", text(&here)]);
    assert!(!output.status.success(), "the repeat was to fail");
    assert_eq!(mounted(&site, "a"), serde_json::json!([text(&here)]));
    let mounts = larder_host::Host::real().mounts.mounts_at(&here).unwrap();
    assert_eq!(mounts.len(), 1);
    site.ok(&["volume", "unmount", "a"]);
}

#[test]
fn a_directory_that_was_there_before_is_there_again_after_unmounting_from_within() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "a"]);
    let (theirs, ours) = (site.path("theirs"), site.path("ours"));
    std::fs::create_dir(&theirs).unwrap();
    std::fs::set_permissions(&theirs, std::fs::Permissions::from_mode(0o2751)).unwrap();
    for path in [&theirs, &theirs, &ours] {
        site.ok(&["volume", "mount", "a", text(path)]);
    }
    // The command has the folder of the shell that starts it, and is no user of the volume for that.
    let mut command = crate::support::program();
    command.args(["volume", "unmount", "a"]).env("LARDER_CONFIG", site.config());
    let output = command.current_dir(&theirs).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mode = std::fs::metadata(&theirs).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o2751);
    assert_eq!(std::fs::read_dir(&theirs).unwrap().count(), 0);
    assert!(!ours.exists(), "it was made by mounting");
}

#[test]
fn what_has_the_last_copy_of_a_deleted_image_is_let_go_only_by_force() {
    let site = Site::new("loop", "xfs");
    site.ok(&["volume", "create", "a", "--size", "16Mi", "--fs", "ext4"]);
    let (here, there) = (site.path("here"), site.path("there"));
    for path in [&here, &there] {
        site.ok(&["volume", "mount", "a", text(path)]);
    }
    std::fs::write(here.join("file"), "the last").unwrap();
    std::fs::remove_file(site.pool.path().join("volumes/a/image")).unwrap();
    site.ok(&["volume", "unmount", text(&there)]);
    let said = site.fails(5, &["volume", "unmount", "a"]);
    assert!(said.contains("ImageDeleted") && said.contains("--force"), "{said}");
    assert_eq!(std::fs::read(here.join("file")).unwrap(), b"the last");
    site.ok(&["volume", "unmount", "a", "--force"]);
    site.ok(&["volume", "rm", "a"]);
}

#[test]
fn unmount_takes_a_name_for_a_name_and_a_path_for_a_path() {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "a"]);
    site.ok(&["volume", "create", "b"]);
    // A folder that is called like the one volume holds the other.
    let folder = site.path("b");
    site.ok(&["volume", "mount", "a", text(&folder)]);
    let unmount = |what: &str| {
        let mut command = crate::support::program();
        command.args(["volume", "unmount", what]).env("LARDER_CONFIG", site.config());
        command.current_dir(site.dir.path()).output().unwrap().status.code()
    };
    assert_eq!(unmount("b"), Some(3), "b is not mounted");
    assert_eq!(mounted(&site, "a"), serde_json::json!([text(&folder)]));
    assert_eq!(unmount("./b"), Some(0));
    assert_eq!(mounted(&site, "a"), serde_json::json!([]));
    assert_eq!(unmount("./b"), Some(3));
    assert_eq!(unmount("/no/such"), Some(3));
}

#[test]
fn a_volume_that_is_first_mounted_read_only_is_not_written_to() {
    let site = Site::new("loop", "xfs");
    let [one, two, three] = ["one", "two", "three"].map(|name| site.path(name));
    let image = site.pool.path().join("volumes/a/image");
    let contents = || std::fs::read(&image).unwrap();
    site.ok(&["volume", "create", "a", "--size", "32Mi", "--fs", "ext4"]);
    // Not formatted yet.
    let why = site.fails(5, &["volume", "mount", "a", text(&one), "--read-only"]);
    assert!(why.contains("default/a"), "{why}");
    assert!(contents().iter().all(|byte| *byte == 0), "a mount for reading formatted the volume");
    assert_eq!(mounted(&site, "a"), serde_json::json!([]));

    site.ok(&["volume", "mount", "a", text(&one)]);
    std::fs::write(one.join("file"), "precious").unwrap();
    site.ok(&["volume", "unmount", "a"]);
    let before = contents();
    site.ok(&["volume", "mount", "a", text(&one), "--read-only"]);
    site.ok(&["volume", "mount", "a", text(&two), "--read-only"]);
    assert_eq!(std::fs::read(two.join("file")).unwrap(), b"precious");
    assert!(std::fs::write(one.join("file"), "changed").is_err());
    let why = site.fails(5, &["volume", "mount", "a", text(&three)]);
    assert!(why.contains("mounted for reading only") && why.contains("hint"), "{why}");
    assert_eq!(mounted(&site, "a"), serde_json::json!([text(&one), text(&two)]));
    site.ok(&["volume", "unmount", "a"]);
    assert!(contents() == before, "a mount for reading changed the volume");
    site.ok(&["volume", "mount", "a", text(&three)]);
    std::fs::write(three.join("file"), "changed").unwrap();
    site.ok(&["volume", "unmount", "a"]);
}

#[test]
fn a_directory_can_be_mounted_read_only_at_several_paths() {
    let site = Site::new("dir", "xfs");
    let [one, two, three] = ["one", "two", "three"].map(|name| site.path(name));
    site.ok(&["volume", "create", "a"]);
    site.ok(&["volume", "mount", "a", text(&one), "--read-only"]);
    site.ok(&["volume", "mount", "a", text(&two), "--read-only"]);
    for path in [&one, &two] {
        let refused = std::fs::write(path.join("file"), "x").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
    site.fails(5, &["volume", "mount", "a", text(&three)]);
    site.ok(&["volume", "unmount", "a"]);
    site.ok(&["volume", "mount", "a", text(&three)]);
    std::fs::write(three.join("file"), "x").unwrap();
    site.ok(&["volume", "unmount", "a"]);
}

#[test]
fn what_does_not_go_together_with_a_mount_is_refused_and_changes_nothing() {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "a"]);
    let here = site.path("here");
    site.ok(&["volume", "mount", "a", text(&here), "-O", "nodev,nosuid"]);
    let repeat = |more: &[&str]| {
        let arguments = [&["volume", "mount", "a", text(&here)], more].concat();
        larder(&site.config(), &arguments).status.code()
    };
    assert_eq!(repeat(&["-O", "nodev", "-O", "nosuid"]), Some(0));
    assert_eq!(repeat(&[]), Some(4), "other options");
    assert_eq!(repeat(&["-O", "nodev,nosuid", "--read-only"]), Some(4), "read-only");
    assert_eq!(repeat(&["-O", "nodev,nosuid", "--block"]), Some(4), "as a device");
    assert_eq!(mounted(&site, "a"), serde_json::json!([text(&here)]));
    let options = larder_host::Host::real().mounts.mounts_at(&here).unwrap();
    assert!(format!("{options:?}").contains("nosuid"), "{options:?}");
    site.ok(&["volume", "unmount", "a"]);
}
