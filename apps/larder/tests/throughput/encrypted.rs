//! Limits of encrypted volumes, measured, in a machine of their own.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]
#![allow(clippy::disallowed_methods, reason = "it measures for a while")]
#![allow(clippy::print_stdout, reason = "what was measured is worth reading")]

mod lab;
#[path = "../support/mod.rs"]
mod support;

use lab::{MIB, PODS, Pods, READ, Volume, WRITTEN, Workloads, reading, writing};
use std::{fs, path::Path};
use support::{Site, shell};

/// Its workloads write to the opened device, and the kernel's own threads to the one below: there a limit
/// would be nobody's.
#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_volume_is_limited_where_its_pods_write() {
    let pods = Pods::new();
    let site = Site::new("loop", "xfs");
    let mut server = site.server();
    assert!(server.ready().await);
    encrypted(&site, "e", &["--block", "--param", "maxWriteBps=1Mi"]);
    let volume = Volume { site: &site, name: "e", path: site.path("device") };
    let (at, key) = (volume.path.display().to_string(), site.path("key").display().to_string());
    site.ok(&["volume", "mount", "e", &at, "--block", "--passphrase-file", &key]);
    let limits = volume.limits();
    assert_eq!(limits["state"], "held", "{limits}");
    let device = limits["device"].as_str().unwrap().to_owned();
    assert!(Path::new(&format!("/sys/dev/block/{device}/dm")).exists(), "{limits}");
    assert_eq!(Pods::limits().lines().count(), 1, "one device is limited: {}", Pods::limits());

    let writers = Workloads::start(&pods, writing(&volume.path));
    volume.holds(WRITTEN, MIB, "writes to an encrypted volume");
    volume.modify(&["maxWriteBps=2Mi"]);
    // Growing it gives the device another table, and it stays limited.
    site.ok(&["volume", "expand", "e", "--size", "128Mi", "--passphrase-file", &key]);
    volume.holds(WRITTEN, 2.0 * MIB, "changed and grown while in use");
    server.kill();
    fs::write(format!("{PODS}/io.max"), format!("{device} wbps=max")).unwrap();
    let mut server = site.server();
    assert!(server.ready().await);
    assert_eq!(volume.limits()["state"], "held", "after kill -9 and a start");
    volume.modify(&["maxWriteBps=0", "maxReadBps=1M"]);
    drop(writers);
    let readers = Workloads::start(&pods, reading(&volume.path, "64k"));
    volume.holds(READ, 1_000_000.0, "reads of an encrypted volume");
    drop(readers);
    site.ok(&["volume", "unmount", "e"]);
    assert_eq!(Pods::limits(), "", "a limit outlived its volume");
    site.ok(&["volume", "rm", "e"]);
    assert!(server.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_number_that_another_encrypted_volume_has_by_now_keeps_that_ones_limits() {
    let _pods = Pods::new();
    let site = Site::new("loop", "xfs");
    let key = {
        encrypted(&site, "a", &["--param", "maxWriteBps=1Mi"]);
        encrypted(&site, "b", &["--param", "maxWriteBps=2Mi"]);
        site.path("key").display().to_string()
    };
    let mount = |volume: &str| {
        let at = site.path(volume).display().to_string();
        site.ok(&["volume", "mount", volume, &at, "--passphrase-file", &key]);
    };
    mount("a");
    let of_a = Pods::limits();
    // By hand, past Larder: its number is free now, and given to the next.
    let script = "name=$(dmsetup ls | grep -o '^larder-default_a-[0-9a-f]*'); \
                  umount -A /dev/mapper/$name && cryptsetup close $name";
    let closed = shell(script).output().unwrap();
    assert!(closed.status.success(), "{}", String::from_utf8_lossy(&closed.stderr));
    mount("b");
    let of_b = Pods::limits();
    assert_eq!(of_a.split(' ').next(), of_b.split(' ').next(), "it has another number");
    site.ok(&["volume", "unmount", "a"]);
    assert_eq!(Pods::limits(), of_b);
    site.ok(&["volume", "unmount", "b"]);
    assert_eq!(Pods::limits(), "");
    site.ok(&["volume", "rm", "a", "b"]);
}

/// Makes an encrypted volume that `key` opens.
fn encrypted(site: &Site, name: &str, more: &[&str]) {
    fs::write(site.path("key"), "a passphrase").unwrap();
    let words = ["volume", "create", name, "--size", "96Mi", "--param", "encryption=luks2"];
    site.ok(&[&words, ["--param", "encryptionMemory=4Mi"].as_slice(), more].concat());
}
