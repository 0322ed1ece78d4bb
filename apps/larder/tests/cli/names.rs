//! Names: nothing is deleted under a name that is not quite right.

use crate::support::Site;

#[test]
fn a_name_that_does_not_exist_is_not_deleted_with_success() {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "data"]);
    site.ok(&["snapshot", "create", "data@monday"]);
    for wrong in ["dta", "default/dta", "data@monday", "/"] {
        site.fails(3, &["volume", "rm", wrong]);
    }
    for wrong in ["data@tuesday", "dta@monday", "default/data.tuesday", "default/data"] {
        site.fails(3, &["snapshot", "rm", wrong]);
    }
    // One wrong name among good ones: nothing goes.
    site.fails(3, &["volume", "rm", "data", "dta"]);
    site.fails(3, &["snapshot", "rm", "data@monday", "data@tuesday"]);
    site.ok(&["volume", "show", "data"]);
    assert!(site.ok(&["snapshot", "ls"]).contains("data@monday"));
    site.ok(&["snapshot", "rm", "default/data.monday"]);
    site.ok(&["volume", "rm", "data"]);
    site.fails(3, &["volume", "rm", "data"]);
}

#[test]
fn a_snapshot_is_one_of_the_volume_that_was_named() {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "db"]);
    site.ok(&["volume", "create", "db.prod"]);
    site.ok(&["snapshot", "create", "db.prod@monday"]);
    // Both would have the CSI name db.prod.monday.
    site.fails(3, &["snapshot", "rm", "db@prod.monday"]);
    site.fails(3, &["volume", "create", "copy", "--from", "db@prod.monday"]);
    site.fails(4, &["snapshot", "create", "db@prod.monday"]);
    assert!(site.ok(&["snapshot", "ls"]).contains("db.prod@monday"));
    site.ok(&["volume", "create", "copy", "--from", "db.prod@monday"]);
    site.ok(&["snapshot", "rm", "db.prod@monday"]);
}

#[test]
fn a_volume_of_another_pool_is_named_with_its_pool() {
    let site = Site::new("dir", "xfs");
    let fast = site.path("disk/mnt/fast");
    let mut yaml = std::fs::read_to_string(site.config()).unwrap();
    yaml.push_str(&format!("    fast: {{ path: {}, create: true }}\n", fast.display()));
    std::fs::write(site.config(), yaml).unwrap();
    site.ok(&["volume", "create", "data", "--pool", "fast"]);
    let why = site.fails(3, &["volume", "rm", "data"]);
    assert!(why.contains("default/data"), "{why}");
    assert!(why.contains("larder volume ls"), "{why}");
    site.ok(&["snapshot", "create", "fast/data@s"]);
    site.ok(&["volume", "create", "copy", "--pool", "fast", "--from", "fast/data@s"]);
    site.ok(&["snapshot", "rm", "fast/data@s"]);
    site.ok(&["volume", "rm", "fast/data", "fast/copy"]);
}

#[test]
fn a_volume_is_not_created_under_a_name_that_reads_as_an_id() {
    let site = Site::new("dir", "xfs");
    let said = site.fails(2, &["volume", "create", "default/x"]);
    assert!(said.contains("larder volume create x --pool default"), "{said}");
    site.ok(&["volume", "create", "x", "--pool", "default"]);
    site.ok(&["volume", "show", "default/x"]);
}
