//! What nodes make of mounts: letting go of them, and knowing their own again.

use crate::{
    ADDRESS,
    server::server,
    site::{Site, processes},
};
use larder_proto::csi;
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

/// A PersistentVolume of a share that is there already.
fn of_share(id: &str, share: &Path) -> csi::Volume {
    let context = [
        ("server".to_owned(), ADDRESS.to_owned()),
        ("share".to_owned(), share.display().to_string()),
    ];
    csi::Volume { volume_id: id.to_owned(), volume_context: context.into(), ..Default::default() }
}

/// Writes to a mapping of a file that it has closed: nothing is flushed when it is killed.
const MAPS: &str = r#"
import mmap, os, sys, time
file = open(sys.argv[1], "r+b")
memory = mmap.mmap(file.fileno(), 0)
memory[0:4]
os.closerange(3, 256)
print("ready", flush=True)
sys.stdin.readline()
memory[0:4] = b"LATE"
print("written", flush=True)
time.sleep(1000)
"#;

struct Pod(std::process::Child, BufReader<std::process::ChildStdout>);

impl Pod {
    fn start(file: &Path) -> Self {
        let mut python = std::process::Command::new("python3");
        python.args(["-c", MAPS]).arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = python.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut pod = Self(child, stdout);
        pod.wait_for("ready");
        pod
    }
    fn wait_for(&mut self, word: &str) {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word);
    }
    fn write_late(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        self.wait_for("written");
    }
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What a pod that was killed has not written yet must not keep kubelet waiting, and is not lost.
#[tokio::test]
async fn what_was_not_written_yet_holds_no_call_and_reaches_the_server_when_it_is_back() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    fs::write(export.join("file"), "acknowledged").unwrap();
    // Not the export of the pool, which Larder itself may have mounted.
    let site = Site::new(&server.export("rw,no_root_squash"), "");
    let larder = site.serve().await;
    let volume = of_share("a", &export);
    let target = larder.publish(&volume).await.unwrap();
    let mut pod = Pod::start(&target.join("file"));
    server.fall_silent();
    pod.write_late();
    pod.kill();

    let began = Instant::now();
    larder.unpublish(&volume).await.unwrap();
    let took = began.elapsed();
    println!("unpublish and unstage with unwritten data took {took:.1?}");
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert_eq!(site.mounts(), [""; 0]);
    larder.probe().await;
    println!("{} helpers wait for the server", processes("detach"));

    server.wake();
    let until = Instant::now() + Duration::from_secs(180);
    let written = || fs::read_to_string(export.join("file")).unwrap() == "LATEowledged";
    while !written() || processes("detach") > 0 {
        assert!(Instant::now() < until, "what was not written is lost, or its helper does not end");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    larder.publish(&volume).await.unwrap();
    larder.unpublish(&volume).await.unwrap();
}

/// Nothing in the mount table tells them apart.
#[tokio::test]
async fn two_volumes_of_one_share_and_a_mount_of_the_host_do_not_hold_each_other() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    fs::write(export.join("file"), "x").unwrap();
    let site = Site::new(&server.export("rw,no_root_squash"), "");
    let larder = site.serve().await;
    let (a, b) = (of_share("a", &export), of_share("b", &export));
    larder.publish(&a).await.unwrap();
    let kept = larder.publish(&b).await.unwrap();
    larder.unpublish(&a).await.unwrap();
    assert_eq!(fs::read_to_string(kept.join("file")).unwrap(), "x");
    larder.unpublish(&b).await.unwrap();
    assert_eq!(site.mounts(), [""; 0]);
}

/// The node's records may be wiped, the server may be dead, and of such a volume Larder knows nothing else.
#[tokio::test]
async fn without_records_and_server_a_volume_is_let_go_by_its_path() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    let site = Site::new(&server.export("rw,no_root_squash"), "");
    let larder = site.serve().await;
    let (of_others, ours) = (of_share("a", &export), larder.create("ours", &[]).await.unwrap());
    larder.publish(&of_others).await.unwrap();
    larder.publish(&ours).await.unwrap();
    drop(larder);
    site.wipe_records();
    let larder = site.serve().await;
    server.fall_silent();
    larder.unpublish(&of_others).await.unwrap();
    larder.unpublish(&ours).await.unwrap();
    assert_eq!(site.mounts(), [""; 0]);
    server.wake();
}

/// NFS 4 follows symlinks in a share's path itself, and the kernel shows where they led.
#[tokio::test]
async fn a_share_behind_a_symlink_is_published_and_let_go() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    fs::create_dir(export.join("of-2026")).unwrap();
    fs::write(export.join("of-2026/file"), "x").unwrap();
    std::os::unix::fs::symlink("of-2026", export.join("current")).unwrap();
    let site = Site::new(&server.export("rw,no_root_squash"), "");
    let larder = site.serve().await;
    let volume = of_share("a", &export.join("current"));
    let target = larder.publish(&volume).await.unwrap();
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "x");
    let table = larder_host::Host::real().mounts.table().unwrap();
    let shown = table.into_iter().find(|entry| entry.target == target).unwrap().source;
    println!("shown as {shown}");
    larder.publish_at(&volume, "second").await.unwrap();
    drop(larder);
    let larder = site.serve().await;
    larder.unpublish_at(&volume, "second").await.unwrap();
    larder.unpublish(&volume).await.unwrap();
    assert_eq!(site.mounts(), [""; 0]);
}
