//! Groups of snapshots that lost something, and the way out of that.

use crate::{found_and_mended, support::Site};
use std::path::PathBuf;

/// A group of two volumes called `name`, and the folders of its snapshots.
fn group(site: &Site, name: &str) -> [PathBuf; 2] {
    let out = site.ok(&["snapshot", "group", "create", name, "one", "two", "-o", "json"]);
    let made: serde_json::Value = serde_json::from_str(&out).unwrap();
    [0, 1].map(|n| {
        let id = made[n]["id"].as_str().unwrap();
        site.pool.path().join("snapshots").join(id.strip_prefix("default/").unwrap())
    })
}

fn refused(site: &Site, arguments: &[&str], status: i32, word: &str) {
    let output = site.larder(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
    assert!(said.contains(word), "{arguments:?}: {said}");
}

#[test]
fn what_a_group_lost_is_told_and_the_rest_can_be_deleted() {
    let site = Site::new("loop", "xfs");
    for name in ["one", "two"] {
        site.ok(&["volume", "create", name, "--size", "16Mi", "--block"]);
    }
    let pool = site.pool.path().to_owned();
    let [lost, _] = group(&site, "some");
    let all = group(&site, "none");
    let [left, right] = group(&site, "alone");
    let [kept, _] = group(&site, "damaged");
    let without_data = group(&site, "hollow")[0].join("image");
    for folder in [&lost, &all[0], &all[1], &pool.join("groups/alone")] {
        std::fs::remove_dir_all(folder).unwrap();
    }
    let record = pool.join("groups/damaged/record.json");
    let text = std::fs::read(&record).unwrap();
    std::fs::write(&record, &text[..text.len() / 2]).unwrap();
    std::fs::remove_file(&without_data).unwrap();
    std::fs::write(pool.join("groups/hollow/Notes"), "theirs").unwrap();
    found_and_mended(
        &site,
        &[
            ("group-without-member", &pool.join("groups/some"), false),
            ("group-without-member", &pool.join("groups/none"), false),
            ("group-record-unreadable", &record, false),
            ("member-without-group", &left, false),
            ("member-without-group", &right, false),
            ("record-without-volume", &without_data, false),
            ("image-without-owner", &pool.join("groups/hollow/Notes"), false),
        ],
    );
    std::fs::remove_file(pool.join("groups/hollow/Notes")).unwrap();
    assert!(site.ok(&["pool", "ls", "-o", "json"]).contains("group some: its snapshot"));
    refused(&site, &["snapshot", "group", "ls", "some"], 1, "is missing");
    refused(&site, &["snapshot", "group", "ls", "none"], 1, "is missing");
    for name in ["some", "default/none", "hollow"] {
        site.ok(&["snapshot", "group", "rm", name]);
        refused(&site, &["snapshot", "group", "rm", name], 3, "find group");
    }
    // One by one, as it is told, or under the name that their group had.
    let id = format!("default/{}", left.file_name().unwrap().to_str().unwrap());
    site.ok(&["snapshot", "rm", &id]);
    site.ok(&["snapshot", "group", "rm", "alone"]);
    let member = format!("default/{}", kept.file_name().unwrap().to_str().unwrap());
    refused(&site, &["snapshot", "rm", &member], 2, "delete the group");
    std::fs::remove_dir_all(pool.join("groups/damaged")).unwrap();
    site.ok(&["snapshot", "group", "rm", "damaged"]);
    found_and_mended(&site, &[]);
    assert_eq!(std::fs::read_dir(pool.join("snapshots")).unwrap().count(), 0);
}
