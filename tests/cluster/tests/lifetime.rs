//! What a cluster leaves behind: nothing.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test starts programs and waits, and a broken helper fails it"
)]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use larder_cluster::{BUSYBOX, Cluster, Options};
use serde_json::json;

/// Tells the test that is run again in a process of its own to make this cluster.
const MAKE: &str = "LARDER_CLUSTER_MAKE";

fn options() -> Options {
    // The other nodes are as this one, and another cluster is up.
    Options { nodes: 1, ..Options::default() }
}

/// One cluster more at a time: they count what is left on the host.
static ALONE: Mutex<()> = Mutex::new(());

/// The namespaces of a cluster's machines.
fn namespaces(cluster: &Cluster) -> BTreeSet<PathBuf> {
    let machines = cluster.nodes().iter().chain([cluster.control()]);
    let folders = machines.map(|machine| machine.root().parent().unwrap().join("ns"));
    let own =
        |dir: PathBuf| ["mnt", "net", "pid"].map(|kind| fs::read_link(dir.join(kind)).unwrap());
    folders.flat_map(own).collect()
}

/// Processes in one of these namespaces.
fn inhabitants(namespaces: &BTreeSet<PathBuf>) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let links = ["mnt", "net", "pid"]
            .map(|kind| fs::read_link(entry.path().join("ns").join(kind)).unwrap_or_default());
        if links.iter().any(|link| namespaces.contains(link)) {
            found.push(fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default());
        }
    }
    found
}

/// All that is known by a cluster's name: its folder, cgroups, mounts, links.
fn traces(name: &str, links: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    if larder_cluster::names().unwrap().iter().any(|other| other == name) {
        found.push("its folder".to_owned());
    }
    let group = format!("larder-{name}");
    let root = PathBuf::from("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(&root).unwrap().flatten().map(|entry| entry.path());
    for dir in hierarchies.chain([root.clone()]) {
        if dir.join(&group).exists() {
            found.push(dir.join(&group).display().to_string());
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let name = format!("/{name}/");
    found.extend(mounts.lines().filter(|line| line.contains(&name)).map(str::to_owned));
    found.extend(self::links().difference(links).cloned());
    found
}

/// How many loop devices are on these files.
fn attached(files: &[(u64, u64)]) -> usize {
    let words = ["--list", "--noheadings", "--output", "BACK-MAJ:MIN,BACK-INO"];
    let list = Command::new("losetup").args(words).output().unwrap().stdout;
    let list = String::from_utf8(list).unwrap();
    let is_one = |line: &&str| {
        let mut words = line.split_whitespace();
        let (disk, inode) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        files.iter().any(|(dev, ino)| {
            disk == format!("{}:{}", rustix::fs::major(*dev), rustix::fs::minor(*dev))
                && inode == ino.to_string()
        })
    };
    list.lines().filter(is_one).count()
}

/// The host's interfaces to clusters.
fn links() -> BTreeSet<String> {
    let names = fs::read_dir("/sys/class/net").unwrap().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("larder")).collect()
}

#[test]
fn nothing_is_left_of_a_cluster_that_was_taken_down_under_running_pods() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let name = format!("life-{}", std::process::id());
    let links = links();
    let cluster = Cluster::throw_away(&name, &options()).unwrap();
    let namespaces = namespaces(&cluster);
    assert!(inhabitants(&namespaces).len() > 6);
    assert!(traces(&name, &links).len() > 2, "the traces of a cluster that is up are found");

    // A pod that attached a loop device and mounted, and cannot clean up.
    let script = "truncate -s 1M /data/image; d=$(losetup -f); losetup $d /data/image; \
                  mkdir /data/t; mount -t tmpfs x /data/t; truncate -s 1M /data/t/image; \
                  d=$(losetup -f); losetup $d /data/t/image; \
                  mkdir /data/m; mount -t tmpfs x /data/m; touch /data/m/done; sleep 1000";
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "messy" },
        "spec": {
            "nodeName": "node1",
            "containers": [{
                "name": "main", "image": BUSYBOX, "command": ["sh", "-ec", script],
                "securityContext": { "privileged": true },
                "volumeMounts": [
                    { "name": "data", "mountPath": "/data", "mountPropagation": "Bidirectional" },
                    { "name": "dev", "mountPath": "/dev" },
                ],
            }],
            "volumes": [
                { "name": "data",
                  "hostPath": { "path": "/var/lib/messy", "type": "DirectoryOrCreate" } },
                { "name": "dev", "hostPath": { "path": "/dev" } },
            ],
        },
    });
    cluster.apply(&pod.to_string()).unwrap();
    let done = cluster.nodes()[0].root().join("var/lib/messy/m/done");
    let began = Instant::now();
    while !done.exists() {
        assert!(began.elapsed() < Duration::from_secs(120), "the pod does not run");
        thread::sleep(Duration::from_millis(100));
    }
    let folder = cluster.nodes()[0].root().join("var/lib/messy");
    let images = ["image", "t/image"].map(|name| fs::metadata(folder.join(name)).unwrap());
    let images = images.map(|metadata| (metadata.dev(), metadata.ino()));
    assert_eq!(attached(&images), 2);

    cluster.down().unwrap();
    assert_eq!(inhabitants(&namespaces), Vec::<String>::new());
    assert_eq!(traces(&name, &links), Vec::<String>::new());
    assert_eq!(attached(&images), 0, "the loop devices are detached");
}

#[test]
fn a_cluster_whose_maker_was_killed_is_ended_by_the_next_one() {
    if let Ok(name) = std::env::var(MAKE) {
        let _cluster = Cluster::throw_away(&name, &options()).unwrap();
        thread::sleep(Duration::from_secs(1000));
        return;
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let name = format!("killed-{}", std::process::id());
    let own = "a_cluster_whose_maker_was_killed_is_ended_by_the_next_one";
    let links = links();
    // The first time by its name, the last time because it is up and has lost its owner.
    for after in [Some(100), Some(700), Some(2500), Some(6000), None] {
        let mut maker = Command::new(std::env::current_exe().unwrap());
        maker.args(["--exact", own]).env(MAKE, &name).env_remove(larder_cluster::NAME_VARIABLE);
        let mut maker = maker.spawn().unwrap();
        let began = Instant::now();
        let limit = Duration::from_millis(after.unwrap_or(180_000));
        while began.elapsed() < limit && (after.is_some() || Cluster::find(&name).is_err()) {
            thread::sleep(Duration::from_millis(20));
        }
        maker.kill().unwrap();
        maker.wait().unwrap();
        if after.is_some() {
            larder_cluster::down(&name).unwrap();
        } else {
            assert!(Cluster::find(&name).is_ok(), "it outlives its maker");
            let next = format!("next-{}", std::process::id());
            Cluster::throw_away(&next, &options()).unwrap().down().unwrap();
        }
        assert_eq!(traces(&name, &links), Vec::<String>::new(), "killed after {after:?} ms");
        assert!(Cluster::find(&name).is_err());
    }
    larder_cluster::down(&name).unwrap();
}
