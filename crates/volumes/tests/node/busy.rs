//! A device that somebody uses is not let go, whoever it is.

use crate::world::{On, World, block, kind, mount};
use larder_host::{DeviceUser, Unmount, command::Command};
use larder_model::Kind;
use std::{fs, path::Path, time::Duration};

async fn assert_busy(world: &World, name: &str, named: &str) {
    for _ in 0..2 {
        let fault = world.unstage(name).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
        assert!(fault.to_string().contains(named), "{named:?} is not named: {fault}");
    }
    assert_eq!(world.loops().len(), 1, "the device was let go");
    assert_eq!(world.records().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_file_keeps_the_volume_staged() {
    let world = World::new(On::Real);
    world.volume("image");
    world.stage("image", mount()).await.unwrap();
    // Not this process: what is Larder's own passes, and is waited for.
    let file = world.staging("image").join("file");
    let open = Other::start(&world, &[], &format!("exec 7>{}", file.display()));
    assert_busy(&world, "image", "unmount").await;
    assert!(world.host.mounts.is_mount_point(&world.staging("image")).unwrap());
    open.end();
    world.unstage("image").await.unwrap();
    world.assert_nothing_left();
}

/// A process that is ended when the test ends.
struct Other(u32);

impl Other {
    /// Starts `script` in a shell of its own and waits until it has written its process id.
    fn start(world: &World, before: &[&str], script: &str) -> Self {
        let file = world.root.join("pid");
        let _ = fs::remove_file(&file);
        let script =
            format!("{script}; echo $$ > {0}.new; mv {0}.new {0}; exec sleep 300", file.display());
        let shell = ["setsid", "-f"].iter().chain(before).chain(&["sh", "-c"]);
        let mut command = Command::new("env");
        for arg in shell {
            command = command.arg(arg);
        }
        // Its output is not ours, or we would wait for its end.
        command.arg(format!("exec >/dev/null 2>&1 </dev/null; {script}")).run().unwrap();
        for _ in 0..200 {
            if let Ok(pid) = fs::read_to_string(&file) {
                return Self(pid.trim().parse().unwrap());
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        panic!("the other process did not start");
    }
    fn end(self) {}
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg("-9").arg(self.0.to_string()).run_any();
        for _ in 0..200 {
            if !Path::new(&format!("/proc/{}/ns", self.0)).exists() {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_device_keeps_the_volume_connected_and_its_process_is_named() {
    let world = World::new(On::Real);
    for (name, how) in [("image", mount as fn() -> _), ("raw", block)] {
        world.volume(name);
        world.stage(name, how()).await.unwrap();
        let device = world.loops().remove(0);
        let other = Other::start(&world, &[], &format!("exec 7<{}", device.display()));
        assert_busy(&world, name, &format!("process {}", other.0)).await;
        // It comes back as it was, should it be wanted again.
        world.stage(name, how()).await.unwrap();
        world.publish(name, 1, how()).await.unwrap();
        world.unpublish(name, 1).await.unwrap();
        other.end();
        world.unstage(name).await.unwrap();
    }
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_in_another_namespace_keeps_the_volume_connected() {
    let world = World::new(On::Real);
    world.volume("image");
    world.stage("image", mount()).await.unwrap();
    // A private copy of all mounts, as some containers have: our unmount does not reach it.
    let before = ["unshare", "-m", "--propagation", "private"];
    // But only of ours: the other tests' volumes must not be busy because of this one.
    let script = format!(
        "grep -v {} /proc/mounts | grep /larder- | cut -d' ' -f2 | xargs -r -n1 umount -l || true",
        world.root.display()
    );
    let other = Other::start(&world, &before, &script);
    assert_busy(&world, "image", &format!("process {}", other.0)).await;
    assert!(!world.host.mounts.is_mount_point(&world.staging("image")).unwrap());
    other.end();
    world.unstage("image").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_stacked_on_it_keeps_the_volume_connected() {
    let world = World::new(On::Real);
    world.volume("raw");
    world.stage("raw", block()).await.unwrap();
    let device = world.loops().remove(0);
    let losetup = || Command::new("losetup");
    let stacked = losetup().arg("-f").arg("--show").arg(&device).run().unwrap().text();
    assert_busy(&world, "raw", "").await;
    losetup().arg("-d").arg(stacked.trim()).run().unwrap();
    world.unstage("raw").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_volume_is_not_unstaged_and_its_targets_are_named() {
    for on in [On::Fake, On::Real] {
        let world = World::new(on);
        for (name, how) in [("image", mount as fn() -> _), ("raw", block), ("dir-a", mount)] {
            world.volume(name);
            world.stage(name, how()).await.unwrap();
            world.publish(name, 1, how()).await.unwrap();
            let fault = world.unstage(name).await.unwrap_err();
            assert_eq!(fault.kind(), Kind::Precondition);
            assert!(fault.to_string().contains("target-1"), "{fault}");
            world.unpublish(name, 1).await.unwrap();
            world.unstage(name).await.unwrap();
        }
        world.assert_nothing_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_target_stays_published_until_its_user_ends() {
    let world = World::new(On::Real);
    world.volume("image");
    world.stage("image", mount()).await.unwrap();
    world.publish("image", 1, mount()).await.unwrap();
    let file = world.target("image", 1).join("file");
    let open = Other::start(&world, &[], &format!("exec 7>{}", file.display()));
    assert_eq!(kind(world.unpublish("image", 1).await), Kind::Precondition);
    world.publish("image", 1, mount()).await.unwrap();
    open.end();
    world.unpublish("image", 1).await.unwrap();
    world.unstage("image").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_network_mounts_are_detached_while_they_are_busy() {
    let world = World::new(On::Real);
    world.volume("net-a");
    world.stage("net-a", mount()).await.unwrap();
    world.publish("net-a", 1, mount()).await.unwrap();
    let open = fs::File::create(world.target("net-a", 1).join("file")).unwrap();
    world.unpublish("net-a", 1).await.unwrap();
    world.unstage("net-a").await.unwrap();
    world.assert_nothing_left();
    drop(open);
}

#[tokio::test(flavor = "multi_thread")]
async fn holders_and_passing_openers_are_told_apart() {
    let world = World::new(On::Fake);
    let kernel = world.fake.clone().unwrap();
    world.volume("raw");
    world.stage("raw", block()).await.unwrap();
    let device = world.host.mounts.block_device(&world.loops().remove(0)).unwrap();
    kernel.add_user(device, DeviceUser::Holder { name: "dm-7".to_owned() });
    assert_busy(&world, "raw", "held by device dm-7").await;
    kernel.clear_users(device);
    // A udev rule looks at the device for a moment.
    let opener = DeviceUser::Opener { pid: 1, command: "udevd".to_owned(), fd: 9 };
    kernel.add_user(device, opener);
    let clear = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        kernel.clear_users(device);
    };
    let (unstaged, ()) = tokio::join!(world.unstage("raw"), clear);
    unstaged.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn something_mounted_over_a_target_is_named_and_left_alone() {
    let world = World::new(On::Real);
    world.volume("image");
    world.stage("image", mount()).await.unwrap();
    world.publish("image", 1, mount()).await.unwrap();
    let target = world.target("image", 1);
    // Our own doors refuse to stack; others do not.
    let over = Command::new("mount").arg("-t").arg("tmpfs").arg("somebody").arg(&target);
    over.run().unwrap();
    let fault = world.unpublish("image", 1).await.unwrap_err();
    assert!(fault.to_string().contains("tmpfs somebody"), "{fault}");
    let fault = world.publish("image", 1, mount()).await.unwrap_err();
    assert!(fault.to_string().contains("tmpfs somebody"), "{fault}");
    world.host.mounts.unmount(&target, Unmount::Normal).unwrap();
    world.publish("image", 1, mount()).await.unwrap();
    // Twice the same volume, as other drivers leave it: both go.
    let again = Command::new("mount").arg("--bind").arg(world.staging("image")).arg(&target);
    again.run().unwrap();
    world.unpublish("image", 1).await.unwrap();
    world.unstage("image").await.unwrap();
    world.assert_nothing_left();
}

/// Two PersistentVolumes of one share, or a mount of the host's own beside one.
#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_one_share_are_let_go_one_after_the_other() {
    for on in [On::Fake, On::Real] {
        let world = World::new(on);
        for name in ["net-same-1", "net-same-2"] {
            world.volume(name);
            world.stage(name, mount()).await.unwrap();
            world.publish(name, 1, mount()).await.unwrap();
        }
        // Its own publication still counts.
        assert_eq!(kind(world.unstage("net-same-1").await), Kind::Precondition);
        world.unpublish("net-same-1", 1).await.unwrap();
        world.unstage("net-same-1").await.unwrap();
        let table = world.host.mounts.table().unwrap();
        for path in [world.staging("net-same-2"), world.target("net-same-2", 1)] {
            assert!(table.iter().any(|entry| entry.target == path), "{}", path.display());
        }
        world.unpublish("net-same-2", 1).await.unwrap();
        world.unstage("net-same-2").await.unwrap();
        world.assert_nothing_left();
    }
}
