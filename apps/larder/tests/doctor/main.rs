//! `larder doctor`: each kind of damage is done for real, found, explained and mended, and nothing else
//! is changed.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

#[path = "../../../../crates/pool/tests/pool/dead.rs"]
mod dead;
#[path = "../support/mod.rs"]
mod support;

mod contents;
mod devices;
mod elsewhere;
mod freezes;
mod groups;
mod mounts;
mod places;

use serde_json::Value;
use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};
use support::Site;

/// Runs doctor; returns its report. The exit status must fit it.
fn doctor(site: &Site, more: &[&str]) -> Value {
    let output = site.larder(&[&["doctor", "-o", "json"], more].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    let empty = report["findings"].as_array().unwrap().is_empty();
    assert_eq!(output.status.code(), Some(if empty { 0 } else { 8 }), "{report:#} {said}");
    report
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Kind, place and whether `--fix` mends it.
type Told = (String, String, bool);

fn told(report: &Value) -> Vec<Told> {
    let findings = report["findings"].as_array().unwrap();
    let field = |finding: &Value, name: &str| finding[name].as_str().unwrap().to_owned();
    for finding in findings {
        for name in ["what", "why", "mend", "severity"] {
            assert!(!field(finding, name).is_empty(), "{finding:#}");
        }
        assert!(field(finding, "id").starts_with(&field(finding, "kind")));
    }
    let mut told: Vec<_> = findings
        .iter()
        .map(|f| (field(f, "kind"), field(f, "where"), f["fixable"].as_bool().unwrap()))
        .collect();
    told.sort();
    told
}

fn expected(list: &[(&str, &Path, bool)]) -> Vec<Told> {
    let own = |(kind, place, fix): &(&str, &Path, bool)| {
        ((*kind).to_owned(), place.display().to_string(), *fix)
    };
    let mut expected: Vec<_> = list.iter().map(own).collect();
    expected.sort();
    expected
}

/// All of this is found and nothing else, twice under the same ids; `--fix` mends what it says, leaves
/// the rest as it is, and then finds only that.
fn found_and_mended(site: &Site, list: &[(&str, &Path, bool)]) {
    let first = doctor(site, &[]);
    assert_eq!(told(&first), expected(list), "{first:#}");
    assert_eq!(first, doctor(site, &[]), "ids and words are the same in each run");
    let after = doctor(site, &["--fix", "--yes"]);
    let failed = |fix: &&Value| fix["result"] == "failed";
    assert_eq!(after["fixes"].as_array().unwrap().iter().find(failed), None, "{after:#}");
    let left: Vec<_> = list.iter().filter(|(_, _, fix)| !fix).copied().collect();
    assert_eq!(told(&after), expected(&left), "{after:#}");
    let again = doctor(site, &["--fix", "--yes"]);
    assert_eq!(told(&again), expected(&left), "{again:#}");
    assert_eq!(again["fixes"], serde_json::json!([]));
}

/// Every file below `folder` but locks: its mode, size and contents.
fn everything(folder: &Path) -> BTreeMap<PathBuf, (u32, u64, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let mut contents = Vec::new();
            if meta.is_dir() {
                folders.push(path.clone());
            } else if meta.is_file() && meta.len() < 64 << 20 && !path.ends_with(".larder/lock") {
                contents = std::fs::read(&path).unwrap();
            }
            let size = if meta.is_file() && !path.ends_with("lock") { meta.len() } else { 0 };
            all.insert(path, (meta.mode(), size, contents));
        }
    }
    all
}

#[rstest::rstest]
#[case::dir("dir")]
#[case::loops("loop")]
#[tokio::test]
async fn nothing_is_found_where_nothing_is_wrong(#[case] backend: &'static str) {
    let site = Site::new(backend, "xfs");
    // Not even a pool yet.
    assert_eq!(told(&doctor(&site, &[])), []);
    site.ok(&["volume", "create", "a", "--size", "320Mi"]);
    site.ok(&["volume", "create", "b", "--size", "320Mi"]);
    site.ok(&["volume", "mount", "a", text(&site.path("a"))]);
    std::fs::write(site.path("a/file"), "precious").unwrap();
    site.ok(&["snapshot", "create", "b@s"]);
    let before = everything(site.pool.path());
    assert!(site.ok(&["doctor"]).contains("Nothing is wrong"));
    assert!(site.ok(&["doctor", "--fix", "--yes"]).contains("Nothing is wrong"));

    let mut server = site.server();
    assert!(server.ready().await);
    assert_eq!(told(&doctor(&site, &[])), []);
    assert_eq!(told(&doctor(&site, &["--fix", "--yes"])), []);
    // Beside somebody who works all the time.
    let working = async {
        for n in 0..40 {
            let name = format!("w{n}");
            let mut controller = server.client.controller();
            let request = support::create(&name, 320 << 20, support::capability(false, ""));
            let volume =
                controller.create_volume(request).await.unwrap().into_inner().volume.unwrap();
            let request = larder_proto::csi::DeleteVolumeRequest {
                volume_id: volume.volume_id,
                ..Default::default()
            };
            controller.delete_volume(request).await.unwrap();
        }
    };
    let looking = async {
        for _ in 0..4 {
            let (config, arguments) = (site.config(), ["doctor"]);
            let output =
                tokio::task::spawn_blocking(move || support::larder(&config, &arguments)).await;
            let said = String::from_utf8(output.unwrap().stdout).unwrap();
            assert!(said.contains("Nothing is wrong"), "{said}");
        }
    };
    tokio::join!(working, looking);
    assert_eq!(server.stop().code(), Some(0));
    assert!(everything(site.pool.path()) == before, "looking changed something");
    site.ok(&["volume", "unmount", "a"]);
}

#[test]
fn a_fix_is_asked_for_first_and_anything_but_yes_changes_nothing() {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "a"]);
    let empty = site.pool.path().join("volumes/empty");
    std::fs::create_dir(&empty).unwrap();
    std::fs::set_permissions(&empty, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let answered = |answer: &str| {
        let script = format!("echo '{answer}' | '{}' doctor --fix", env!("CARGO_BIN_EXE_larder"));
        support::shell(&script).env("LARDER_CONFIG", site.config()).output().unwrap()
    };
    for no in ["no", "", "y", "yes please"] {
        let output = answered(no);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(report.contains("empty-folder"), "what was found is told all the same: {report}");
        assert_eq!(output.status.code(), Some(8), "{said}");
        assert!(said.contains("Plan:") && said.contains(text(&empty)), "{said}");
        assert!(said.contains("nothing was changed") && empty.is_dir(), "{said}");
    }
    // No terminal and no answer.
    assert_eq!(site.larder(&["doctor", "--fix"]).status.code(), Some(8));
    assert!(empty.is_dir());
    assert_eq!(answered("yes").status.code(), Some(0));
    assert!(!empty.exists());
    site.fails(2, &["doctor", "--yes"]);
}
