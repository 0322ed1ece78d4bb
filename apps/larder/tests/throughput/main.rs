//! Limits as the kernel holds them, measured: in a machine with version 2 cgroups, where workloads of
//! several pods use one volume at once.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]
#![allow(clippy::disallowed_methods, reason = "it measures for a while")]
#![allow(clippy::print_stdout, reason = "what was measured is worth reading")]

mod lab;
#[path = "../support/mod.rs"]
mod support;

use lab::{MIB, PODS, Pods, READ, READS, Volume, WRITES, WRITTEN, Workloads, reading, writing};
use std::{fs, time::Duration};
use support::{Site, shell};

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_for_all_pods_together_while_it_is_changed_and_across_a_kill() {
    let pods = Pods::new();
    let site = Site::new("loop", "xfs");
    let mut server = site.server();
    assert!(server.ready().await);
    site.ok(&["volume", "create", "v", "--size", "64Mi", "--block", "--param", "maxWriteBps=1Mi"]);
    let path = site.path("device");
    let at = path.display().to_string();
    site.ok(&["volume", "mount", "v", &at, "--block"]);
    let volume = Volume { site: &site, name: "v", path };
    assert_eq!(volume.limits()["state"], "held");
    assert_eq!(volume.limits()["cgroup"], PODS);
    // From outside of the pods, so that the image has its blocks: what is measured is the limit, which
    // must be the slowest part also of an emulated machine.
    let fill = format!("dd if=/dev/zero of={at} bs=1M count=64 oflag=direct status=none");
    assert!(shell(&fill).status().unwrap().success());

    let writers = Workloads::start(&pods, writing(&volume.path));
    volume.holds(WRITTEN, MIB, "writes of two pods");
    volume.modify(&["maxWriteBps=2Mi"]);
    volume.holds(WRITTEN, 2.0 * MIB, "changed while in use");
    server.kill();
    // The kernel holds it, not Larder.
    assert!(Pods::limits().contains("wbps=2097152"), "{}", Pods::limits());
    // Whatever somebody did meanwhile, the next start makes good.
    let device = Pods::limits().split(' ').next().unwrap().to_owned();
    fs::write(format!("{PODS}/io.max"), format!("{device} wbps=max")).unwrap();
    assert_eq!(Pods::limits(), "");
    let mut server = site.server();
    assert!(server.ready().await);
    std::thread::sleep(Duration::from_millis(1500));
    volume.holds(WRITTEN, 2.0 * MIB, "after kill -9 and a start");
    volume.modify(&["maxWriteBps=0"]);
    assert_eq!(Pods::limits(), "");
    let free = volume.rate(WRITTEN);
    println!("without limits: {:.2} MiB/s", free / MIB);
    assert!(free > 2.5 * MIB, "{:.2} MiB/s: too slow a machine to tell", free / MIB);
    volume.modify(&["maxWriteIops=40"]);
    volume.holds(WRITES, 40.0, "write operations");
    drop(writers);

    volume.modify(&["maxWriteIops=0", "maxReadBps=1M"]);
    let readers = Workloads::start(&pods, reading(&volume.path, "64k"));
    volume.holds(READ, 1_000_000.0, "reads of two pods");
    drop(readers);
    volume.modify(&["maxReadBps=0", "maxReadIops=50"]);
    let readers = Workloads::start(&pods, reading(&volume.path, "4k"));
    volume.holds(READS, 50.0, "read operations");
    drop(readers);

    site.ok(&["volume", "unmount", "v"]);
    assert_eq!(Pods::limits(), "", "a limit outlived its volume");
    assert_eq!(volume.limits()["state"], "notInUse");
    site.ok(&["volume", "rm", "v"]);
    assert!(server.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_writes_to_a_file_system_are_held_to_the_limit_too() {
    let pods = Pods::new();
    let site = Site::new("loop", "xfs");
    site.ok(&["volume", "create", "f", "--size", "128Mi", "--fs", "ext4"]);
    let path = site.path("mounted");
    site.ok(&["volume", "mount", "f", &path.display().to_string()]);
    let volume = Volume { site: &site, name: "f", path };
    volume.modify(&["maxWriteBps=1Mi"]);
    let file = volume.path.display().to_string();
    let writers = Workloads::start(&pods, move |n| {
        format!("if=/dev/zero of={file}/{n} bs=64k count=250 conv=fsync")
    });
    // Until the kernel writes what it has cached.
    std::thread::sleep(Duration::from_secs(2));
    volume.holds(WRITTEN, MIB, "cached writes of two pods");
    // They end when what they have cached is written, which nobody shall wait for.
    volume.modify(&["maxWriteBps=0"]);
    drop(writers);
    volume.modify(&["maxWriteBps=1Mi"]);
    site.ok(&["volume", "unmount", "f"]);
    assert_eq!(Pods::limits(), "", "a limit outlived its volume");
    site.ok(&["volume", "rm", "f"]);
}
