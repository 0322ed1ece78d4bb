//! The `dir` backend on ext4 and xfs with project quota, in a virtual machine: small host kernels have
//! no quota.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use larder_host::{command::Command, quota};
use larder_model::{Bytes, CapacityRange, Kind, volume::VolumeSpec};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};
use support::{
    Bench, On, clone_of, file_names,
    manifest::{assert_same, manifest},
    map, nasty, restore_of, settle_data, spec, volume, with,
};

/// A shell command as an ordinary user, whom ext4 binds (root it does not).
fn as_user(dir: &Path, script: &str) -> Result<(), String> {
    let script = format!("cd '{}' && {script}", dir.display());
    let args = ["--reuid=1000", "--regid=1000", "--clear-groups", "sh", "-c", &script];
    let output = Command::new("setpriv").args(args).run_any().unwrap();
    if output.code() == Some(0) { Ok(()) } else { Err(output.stderr) }
}

/// Random bytes, because copies do not write zeros.
fn write(dir: &Path, name: &str, mib: usize) -> Result<(), String> {
    as_user(dir, &format!("dd if=/dev/urandom of={name} bs=1M count={mib} conv=fsync"))
}

/// A bench whose mounts an ordinary user can reach.
fn bench(on: On) -> Bench {
    let bench = Bench::on(on);
    fs::set_permissions(bench.path(), fs::Permissions::from_mode(0o755)).unwrap();
    bench
}

/// The ids that anything has on the pool's file system.
fn ids(bench: &Bench) -> BTreeSet<u32> {
    // The mount point: before the start there is no pool.
    quota::used_ids(bench.pool("p").parent().unwrap()).unwrap()
}

/// Waits until the file system has the ids of `before` and no others: xfs frees the inodes of
/// removed files in the background.
#[allow(clippy::disallowed_methods, reason = "each test has a thread of its own")]
fn assert_ids_are_back(bench: &Bench, before: &BTreeSet<u32>, what: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    while ids(bench) != *before && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(ids(bench), *before, "{what}");
}

#[tokio::test]
async fn a_volume_is_held_to_its_size_from_creation_to_deletion() {
    for on in On::WITH_PROJECTS {
        let bench = bench(on);
        let before = ids(&bench);
        let dir = bench.start().await;
        let status = dir.0.pool_status().await.remove(0);
        assert!(status.storage.ends_with("project quota"), "{}", status.storage);
        assert!(!status.warnings.iter().any(|w| w.contains("not enforced")), "{status:?}");
        let made = dir.make(&with("p/v", &[("requireQuota", "true"), ("inodes", "20")])).await;
        assert_eq!(made.unwrap().context, map(&[("enforced", "true")]));
        let staged = bench.bind(&dir.connect("p/v").await.unwrap(), "staged");

        let seen = rustix::fs::statvfs(&staged).unwrap();
        assert_eq!(Bytes::new(seen.f_blocks * seen.f_frsize), Bytes::mib(64), "df shows the size");
        assert_eq!(seen.f_files, 20, "and the number of files");
        assert_eq!(dir.0.connect().usage(&volume("p/v")).await.unwrap(), None);

        let error = write(&staged, "big", 80).unwrap_err();
        assert!(error.contains("No space") || error.contains("quota"), "{on:?}: {error}");
        as_user(&staged, "rm big").unwrap();
        write(&staged, "fits", 50).unwrap();
        assert!(write(&staged, "more", 30).is_err());
        assert_eq!(dir.grow("p/v", Bytes::mib(200)).await.unwrap(), Bytes::mib(200));
        write(&staged, "more", 30).unwrap();
        let error = as_user(&staged, "for n in $(seq 30); do : > n$n || exit 1; done").unwrap_err();
        assert!(!error.is_empty(), "{on:?}");
        as_user(&staged, "rm -f n*").unwrap();
        assert_eq!(dir.health("p/v").await, [""; 0]);

        bench.unmount(&staged);
        dir.delete("p/v").await.unwrap();
        settle_data(&bench.pool("p"));
        assert_ids_are_back(&bench, &before, &format!("{on:?}: its id is free again"));
        assert!(bench.state().is_empty());
    }
}

#[tokio::test]
async fn copies_have_an_id_and_a_limit_of_their_own_and_snapshots_have_none() {
    for on in On::WITH_PROJECTS {
        let bench = bench(on);
        let before = ids(&bench);
        let dir = bench.start().await;
        let large = CapacityRange { required: Bytes::gib(2), limit: None };
        dir.make(&VolumeSpec { capacity: large, ..spec("p/v") }).await.unwrap();
        nasty::make(&bench.data("p/v"));
        settle_data(&bench.data("p/v"));
        let original = manifest(&bench.data("p/v"));
        dir.cut("p/s", "p/v").await.unwrap();
        assert_same(&original, &manifest(&bench.cut_data("p/s")));
        assert_eq!(quota::project_of(&bench.cut_data("p/s")).unwrap(), None);
        assert_eq!(quota::project_of(&bench.cut_data("p/s").join("large")).unwrap(), None);
        dir.make(&VolumeSpec { capacity: large, ..clone_of("p/c", "p/v") }).await.unwrap();
        dir.make(&VolumeSpec { capacity: large, ..restore_of("p/r", "p/s") }).await.unwrap();
        let mut projects = BTreeSet::new();
        for id in ["p/v", "p/c", "p/r"] {
            assert_same(&original, &manifest(&bench.data(id)));
            let project = quota::project_of(&bench.data(id)).unwrap().unwrap();
            assert_eq!(quota::project_of(&bench.data(id).join("large")).unwrap(), Some(project));
            let usage = quota::project_usage(&bench.data(id), project).unwrap();
            assert_eq!(usage.total, Bytes::gib(2));
            assert!(usage.used > Bytes::mib(3), "{usage:?}");
            assert!(projects.insert(project), "every volume has its own");
        }
        for id in ["p/v", "p/c", "p/r"] {
            dir.delete(id).await.unwrap();
        }
        dir.uncut("p/s").await.unwrap();
        settle_data(&bench.pool("p"));
        assert_eq!(ids(&bench), before);
    }
}

#[tokio::test]
async fn a_volume_that_is_full_can_still_be_cut_and_cloned() {
    for on in On::WITH_PROJECTS {
        let bench = bench(on);
        let dir = bench.start().await;
        dir.make(&spec("p/v")).await.unwrap();
        let staged = bench.bind(&dir.connect("p/v").await.unwrap(), "staged");
        write(&staged, "big", 80).unwrap_err();
        dir.cut("p/s", "p/v").await.unwrap();
        dir.make(&clone_of("p/c", "p/v")).await.unwrap();
        let clone = bench.bind(&dir.connect("p/c").await.unwrap(), "clone");
        assert!(write(&clone, "more", 40).is_err(), "{on:?}: the clone holds as much");
        as_user(&clone, "rm -f big more").unwrap();
        write(&clone, "more", 40).unwrap();
        bench.unmount(&staged);
        bench.unmount(&clone);
    }
}

#[tokio::test]
async fn two_pools_on_one_file_system_never_share_an_id() {
    for on in On::WITH_PROJECTS {
        let mut first = bench(on);
        let twin = first.pool("p").with_file_name("twin");
        first.add_directory("twin", &twin);
        // Two processes, each with a pool of its own.
        let (mut one, mut two) = (first.pools.clone(), first.pools.clone());
        one.retain(|name, _| name.as_str() == "p");
        two.retain(|name, _| name.as_str() == "twin");
        let start = async |pools| {
            let settings = larder_backend_dir::Settings { pools };
            let note = larder_pool::OwnerNote::this("test", None);
            let node = "n1".parse().unwrap();
            let backend =
                larder_backend_dir::DirBackend::new(settings, &first.host, node, note).unwrap();
            backend.start(&larder_model::Cx::new()).await.unwrap();
            support::Dir(backend)
        };
        let dirs = [(start(one).await, "p"), (start(two).await, "twin")];
        let mut tasks = Vec::new();
        for (dir, pool) in &dirs {
            for n in 0..25 {
                let (dir, id) = (dir.clone(), format!("{pool}/{pool}-{n}"));
                #[allow(clippy::disallowed_methods, reason = "the test waits for all of them")]
                tasks.push(tokio::spawn(async move { dir.make(&spec(&id)).await }));
            }
        }
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        let mut found = BTreeSet::new();
        for (_, pool) in &dirs {
            for n in 0..25 {
                let data = first.data(&format!("{pool}/{pool}-{n}"));
                assert!(found.insert(quota::project_of(&data).unwrap().unwrap()));
            }
        }
        assert_eq!(found.len(), 50);
    }
}

#[tokio::test]
async fn a_lost_limit_and_a_lost_id_are_told_and_put_back_at_the_next_stage() {
    for on in On::WITH_PROJECTS {
        let bench = bench(on);
        let dir = bench.start().await;
        dir.make(&spec("p/v")).await.unwrap();
        let data = bench.data("p/v");
        fs::create_dir(data.join("d")).unwrap();
        fs::write(data.join("d/file"), "x").unwrap();
        let id = quota::project_of(&data).unwrap().unwrap();

        quota::limit_project(&data, id, None, None).unwrap();
        assert_eq!(dir.health("p/v").await, ["QuotaLost"]);
        dir.connect("p/v").await.unwrap();
        assert_eq!(dir.health("p/v").await, [""; 0]);

        // The owner of a file may give it another project.
        Command::new("chattr").args(["-p", "5"]).arg(&data).run().unwrap();
        assert_eq!(dir.health("p/v").await, ["QuotaLost"]);
        dir.connect("p/v").await.unwrap();
        assert_eq!(dir.health("p/v").await, [""; 0]);
        assert_eq!(quota::project_of(&data).unwrap(), Some(id));

        // As after a restore from a backup that keeps no projects.
        for lost in [data.clone(), data.join("d"), data.join("d/file")] {
            Command::new("chattr").args(["-p", "0"]).arg(&lost).run().unwrap();
        }
        dir.connect("p/v").await.unwrap();
        let again = quota::project_of(&data.join("d/file")).unwrap();
        assert_eq!(again, quota::project_of(&data).unwrap());
        assert!(again.is_some());
        assert_eq!(dir.health("p/v").await, [""; 0]);
    }
}

#[tokio::test]
async fn a_workload_that_changes_its_project_cannot_touch_the_limit_of_another() {
    for on in On::WITH_PROJECTS {
        let bench = bench(on);
        let before = ids(&bench);
        let dir = bench.start().await;
        dir.make(&spec("p/victim")).await.unwrap();
        dir.make(&spec("p/v")).await.unwrap();
        let victim = quota::project_of(&bench.data("p/victim")).unwrap().unwrap();
        fs::write(bench.data("p/v").join("file"), "x").unwrap();
        let mut chattr = Command::new("chattr").arg("-p").arg(victim.to_string());
        chattr = chattr.arg(bench.data("p/v"));
        chattr.run().unwrap();
        dir.delete("p/v").await.unwrap();
        let usage = quota::project_usage(&bench.data("p/victim"), victim).unwrap();
        assert_eq!(usage.total, Bytes::mib(64), "{on:?}");
        assert_eq!(dir.health("p/victim").await, [""; 0]);
        dir.delete("p/victim").await.unwrap();
        settle_data(&bench.pool("p"));
        assert_ids_are_back(&bench, &before, &format!("{on:?}: no id is left behind"));
    }
}

#[tokio::test]
async fn a_pool_that_is_mounted_without_quota_later_says_so_and_goes_on() {
    let bench = bench(On::Xfs { quota: true });
    let dir = bench.start().await;
    dir.make(&spec("p/v")).await.unwrap();
    drop(dir);
    let mount = bench.pool("p").parent().unwrap().to_owned();
    let device = bench.host.mounts.mounts_at(&mount).unwrap()[0].source.clone();
    // Keeps the loop device, which goes with its last user.
    let _held = fs::File::open(&device).unwrap();
    let remount = |options: &str| {
        bench.unmount(&mount);
        let request = larder_host::MountRequest {
            fs_type: "xfs".into(),
            source: device.clone(),
            target: mount.clone(),
            options: vec![options.into()],
            read_only: false,
        };
        bench.host.mounts.mount(&request).unwrap();
    };
    remount("noquota");
    let dir = bench.start().await;
    assert_eq!(dir.health("p/v").await, ["QuotaLost"]);
    dir.connect("p/v").await.unwrap();
    dir.grow("p/v", Bytes::mib(100)).await.unwrap();
    let fault = dir.make(&with("p/w", &[("requireQuota", "true")])).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Exhausted, "{fault}");
    assert!(fault.to_string().contains("prjquota"), "{fault}");
    drop(dir);
    remount("prjquota");
    let dir = bench.start().await;
    dir.connect("p/v").await.unwrap();
    assert_eq!(dir.health("p/v").await, [""; 0]);
    let id = quota::project_of(&bench.data("p/v")).unwrap().unwrap();
    let usage = quota::project_usage(&bench.data("p/v"), id).unwrap();
    assert_eq!(usage.total, Bytes::mib(100), "the growth meanwhile is in force");
}

#[tokio::test]
async fn an_administrators_directory_with_a_project_has_its_size() {
    for on in On::WITH_PROJECTS {
        let bench = bench(on);
        let dir = bench.start().await;
        let there = bench.pool("p").join("static/old");
        fs::create_dir(&there).unwrap();
        quota::set_project(&there, 77).unwrap();
        let get = async || dir.0.provision().get_volume(&volume("p/old")).await.unwrap();
        assert_eq!(get().await.capacity, Bytes::ZERO);
        quota::limit_project(&there, 77, Some(Bytes::mib(50)), None).unwrap();
        assert_eq!(get().await.capacity, Bytes::mib(50));
        assert_eq!(get().await.context, map(&[("enforced", "true")]));
        assert_eq!(file_names(&there).len(), 0);
    }
}

#[tokio::test]
async fn a_crash_at_any_step_is_mended_and_no_id_is_left_behind() {
    for on in On::WITH_PROJECTS {
        let bench = bench(on);
        let before = ids(&bench);
        support::sweep::sweep(&bench).await;
        settle_data(&bench.pool("p"));
        assert_eq!(ids(&bench), before, "{on:?}");
    }
}

#[tokio::test]
async fn what_is_in_the_trash_keeps_its_id_and_its_limit_until_it_is_removed() {
    for on in On::WITH_PROJECTS {
        let mut bench = bench(on);
        bench.change("p", |config| config.trash = Some("24h".parse().unwrap()));
        let before = ids(&bench);
        let dir = bench.start().await;
        dir.make(&spec("p/v")).await.unwrap();
        let project = quota::project_of(&bench.data("p/v")).unwrap().unwrap();
        dir.delete("p/v").await.unwrap();
        assert!(ids(&bench).contains(&project), "{on:?}");
        let trash = dir.0.trash().unwrap();
        let id = trash.list_trash().await.unwrap().remove(0).id;
        trash.restore(&id, None, &larder_model::Cx::new()).await.unwrap();
        assert_eq!(quota::project_of(&bench.data("p/v")).unwrap(), Some(project));
        let usage = quota::project_usage(&bench.data("p/v"), project).unwrap();
        assert_eq!(usage.total, Bytes::mib(64), "{on:?}");
        dir.delete("p/v").await.unwrap();
        trash.empty(None, &larder_model::Cx::new()).await.unwrap();
        settle_data(&bench.pool("p"));
        assert_ids_are_back(&bench, &before, "the trash is empty");
    }
}
