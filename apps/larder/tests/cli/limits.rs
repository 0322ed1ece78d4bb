//! `volume modify`, and what `volume show` says of limits.

use crate::support::Site;
use serde_json::{Value, json};

fn limits(site: &Site, volume: &str) -> Value {
    let text = site.ok(&["volume", "show", volume, "-o", "json"]);
    serde_json::from_str::<Value>(&text).unwrap()["limits"].clone()
}

#[test]
fn limits_are_asked_for_at_creation_changed_while_in_use_and_shown() {
    let site = Site::new("loop", "xfs");
    site.limit_in_files();
    let class = ["--param", "maxReadBps=10Mi", "--param", "maxWriteIops=1k"];
    site.ok(&[&["volume", "create", "a", "--size", "64Mi", "--fs", "ext4"][..], &class].concat());
    let asked = json!({ "maxReadBps": 10 << 20, "maxWriteIops": 1000 });
    let told = limits(&site, "a");
    assert_eq!((&told["asked"], &told["state"]), (&asked, &json!("notInUse")));
    assert!(site.read_limits().is_empty());

    let at = site.path("mounted").display().to_string();
    site.ok(&["volume", "mount", "a", &at]);
    let told = limits(&site, "a");
    assert_eq!((&told["held"], &told["state"]), (&asked, &json!("held")), "{told}");
    assert_eq!(site.read_limits(), [10 << 20]);
    let text = site.ok(&["volume", "show", "a"]);
    assert!(text.contains("maxReadBps=10Mi, maxWriteIops=1000 (held"), "{text}");
    assert!(text.contains("version 1 hands no limits down"), "{text}");

    let modified = ["volume", "modify", "a", "--param", "maxReadBps=20Mi"];
    let told = site.ok(&[&modified[..], &["--param", "maxWriteIops=0", "-o", "json"]].concat());
    let told = serde_json::from_str::<Value>(&told).unwrap()["limits"].clone();
    assert_eq!(told["held"], json!({ "maxReadBps": 20 << 20 }));
    assert_eq!(site.ok(&modified), site.ok(&modified), "it can be repeated");
    assert_eq!(site.read_limits(), [20 << 20]);

    // Nothing is changed by what is wrong.
    for wrong in ["maxReadBps=fast", "maxReadbps=1", "fs=xfs", "pool=other"] {
        let key = wrong.split('=').next().unwrap();
        let parameters = ["--param", "maxWriteBps=1", "--param", wrong];
        let said = site.fails(2, &[&["volume", "modify", "a"][..], &parameters].concat());
        assert!(said.contains(key), "{said}");
    }
    assert_eq!(limits(&site, "a")["asked"], json!({ "maxReadBps": 20 << 20 }));

    site.ok(&["volume", "unmount", "a"]);
    assert!(site.read_limits().is_empty());
    // A copy has limits of its own.
    site.ok(&["volume", "create", "b", "--from", "a"]);
    assert_eq!(limits(&site, "b")["state"], "none");
    site.ok(&["volume", "rm", "a", "b"]);
}

#[test]
fn what_cannot_be_limited_is_said() {
    let site = Site::new("loop", "xfs");
    site.limit_in_files();
    std::fs::remove_file(site.path("cgroup/blkio.throttle.read_bps_device")).unwrap();
    site.ok(&["volume", "create", "a", "--size", "64Mi", "--fs", "ext4"]);
    site.ok(&["volume", "modify", "a", "--param", "maxReadBps=1Mi"]);
    let at = site.path("mounted").display().to_string();
    // It is used all the same.
    site.ok(&["volume", "mount", "a", &at]);
    let told = limits(&site, "a");
    assert_eq!(told["state"], "notHeld");
    assert!(told["fault"].as_str().unwrap().contains("cgroup"), "{told}");
    let said = site.fails(5, &["volume", "modify", "a", "--param", "maxReadBps=2Mi"]);
    assert!(said.contains("default/a") && said.contains("hint"), "{said}");
    // What was asked is kept for where it can be had.
    assert_eq!(limits(&site, "a")["asked"], json!({ "maxReadBps": 2 << 20 }));
    site.ok(&["volume", "unmount", "a"]);
    site.ok(&["volume", "rm", "a"]);
}

#[test]
fn directories_are_not_limited_and_say_why() {
    let site = Site::new("dir", "xfs");
    let said = site.fails(2, &["volume", "create", "a", "--param", "maxReadBps=1Mi"]);
    assert!(said.contains("maxReadBps") && said.contains("dir backend"), "{said}");
    site.ok(&["volume", "create", "a"]);
    let said = site.fails(1, &["volume", "modify", "a", "--param", "maxReadBps=1Mi"]);
    assert!(said.contains("dir backend"), "{said}");
    let told = limits(&site, "a");
    assert_eq!(told["state"], "impossible");
    assert!(site.ok(&["volume", "show", "a"]).contains("no device of their own"));
}

#[test]
fn a_static_volume_can_be_modified() {
    let site = Site::new("loop", "xfs");
    site.limit_in_files();
    site.ok(&["pool", "init"]);
    let image = site.pool.path().join("static/s.img");
    std::fs::create_dir_all(image.parent().unwrap()).unwrap();
    std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    site.ok(&["volume", "modify", "s", "--param", "maxReadBps=3M"]);
    let at = site.path("mounted").display().to_string();
    site.ok(&["volume", "mount", "s", &at]);
    assert_eq!(site.read_limits(), [3_000_000]);
    site.ok(&["volume", "unmount", "s"]);
    assert!(site.read_limits().is_empty());
    // Another image has the name now: what was asked of the former one is not asked of it.
    std::fs::remove_file(&image).unwrap();
    std::fs::File::create(&image).unwrap().set_len(128 << 20).unwrap();
    assert_eq!(limits(&site, "s")["asked"], json!({}));
    site.ok(&["volume", "modify", "s", "--param", "maxReadBps=4M"]);
    assert_eq!(limits(&site, "s")["asked"], json!({ "maxReadBps": 4_000_000 }));
}
