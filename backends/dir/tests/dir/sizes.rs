//! Sizes: enforced by btrfs qgroups, or by nothing. (Project quota: `project_quota.rs`.)

use crate::support::{Bench, On, clone_of, restore_of, spec, volume, with};
use larder_host::btrfs;
use larder_model::{
    Bytes, Kind,
    volume::{Attributes, VolumeUsage},
};
use std::{
    fs,
    io::{ErrorKind, Write},
    path::Path,
};

const QGROUPS: On = On::Btrfs { quota: true };

fn write(path: &Path, mib: usize) -> std::io::Result<()> {
    let mut file = fs::File::create(path)?;
    for n in 0..mib {
        file.write_all(&crate::support::nasty::noise(n as u64, 1 << 20))?;
    }
    file.sync_all()
}

async fn usage(dir: &crate::support::Dir, id: &str) -> Option<VolumeUsage> {
    dir.0.connect().usage(&volume(id)).await.unwrap()
}

#[tokio::test]
async fn a_qgroup_really_stops_the_writer_and_lets_go_on_when_the_volume_grows() {
    let bench = Bench::on(QGROUPS);
    let dir = bench.start().await;
    dir.make(&spec("p/v")).await.unwrap();
    let staged = bench.bind(&dir.connect("p/v").await.unwrap(), "staged");
    let error = write(&staged.join("big"), 80).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded, "{error}");
    fs::remove_file(staged.join("big")).unwrap();
    rustix::fs::sync();
    write(&staged.join("fits"), 40).unwrap();
    rustix::fs::sync();
    let used = usage(&dir, "p/v").await.unwrap();
    assert_eq!(used.total, Bytes::mib(64));
    assert!((Bytes::mib(40)..Bytes::mib(42)).contains(&used.used), "{used:?}");
    assert_eq!(used.available, Bytes::mib(64).saturating_sub(used.used));
    assert!(write(&staged.join("more"), 40).is_err());
    assert_eq!(dir.grow("p/v", Bytes::mib(200)).await.unwrap(), Bytes::mib(200));
    fs::remove_file(staged.join("more")).unwrap();
    write(&staged.join("more"), 40).unwrap();
    assert_eq!(usage(&dir, "p/v").await.unwrap().total, Bytes::mib(200));
}

#[tokio::test]
async fn copies_are_held_to_their_own_size_and_snapshots_take_none_of_the_volumes() {
    let bench = Bench::on(QGROUPS);
    let dir = bench.start().await;
    dir.make(&spec("p/v")).await.unwrap();
    write(&bench.data("p/v").join("a"), 40).unwrap();
    dir.cut("p/s", "p/v").await.unwrap();
    // What the snapshot keeps does not count for the volume.
    fs::remove_file(bench.data("p/v").join("a")).unwrap();
    rustix::fs::sync();
    write(&bench.data("p/v").join("b"), 40).unwrap();
    dir.make(&restore_of("p/r", "p/s")).await.unwrap();
    rustix::fs::sync();
    assert_eq!(usage(&dir, "p/r").await.unwrap().total, Bytes::mib(64));
    let error = write(&bench.data("p/r").join("c"), 40).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded, "{error}");
    dir.make(&clone_of("p/c", "p/v")).await.unwrap();
    let error = write(&bench.data("p/c").join("c"), 40).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded, "{error}");
}

#[tokio::test]
async fn a_limit_that_was_lost_is_told_and_put_back_at_the_next_stage() {
    let bench = Bench::on(QGROUPS);
    let dir = bench.start().await;
    dir.make(&spec("p/v")).await.unwrap();
    assert_eq!(dir.health("p/v").await, [""; 0]);
    btrfs::set_limit(&bench.data("p/v"), None).unwrap();
    assert_eq!(dir.health("p/v").await, ["QuotaLost"]);
    dir.connect("p/v").await.unwrap();
    assert_eq!(dir.health("p/v").await, [""; 0]);
    assert_eq!(btrfs::usage(&bench.data("p/v")).unwrap().total, Bytes::mib(64));
}

#[tokio::test]
async fn where_quota_is_turned_off_volumes_go_on_and_health_tells() {
    let bench = Bench::on(QGROUPS);
    let dir = bench.start().await;
    dir.make(&spec("p/v")).await.unwrap();
    larder_host::command::Command::new("btrfs")
        .args(["quota", "disable"])
        .arg(bench.pool("p"))
        .run()
        .unwrap();
    let data = dir.connect("p/v").await.unwrap();
    write(&data.join("file"), 1).unwrap();
    assert_eq!(dir.health("p/v").await, ["QuotaUnknown"]);
    drop(dir);
    // A process that starts now knows that there is none.
    let dir = bench.start().await;
    assert_eq!(dir.health("p/v").await, ["QuotaLost"]);
    dir.grow("p/v", Bytes::mib(100)).await.unwrap();
    assert_eq!(usage(&dir, "p/v").await.unwrap().total, Bytes::mib(100));
    dir.delete("p/v").await.unwrap();
}

#[tokio::test]
async fn an_unenforced_volume_shows_what_it_holds_itself() {
    for on in [On::Ext4 { quota: false }, On::Xfs { quota: false }, On::Btrfs { quota: false }] {
        let bench = Bench::on(on);
        let dir = bench.start().await;
        dir.make(&spec("p/v")).await.unwrap();
        write(&bench.data("p/v").join("file"), 10).unwrap();
        let seen = usage(&dir, "p/v").await.unwrap();
        assert_eq!(seen.total, Bytes::mib(64), "{on:?}");
        assert!((Bytes::mib(10)..Bytes::mib(11)).contains(&seen.used), "{on:?}: {seen:?}");
        assert_eq!(seen.available, Bytes::mib(64).saturating_sub(seen.used));
        assert_eq!(seen.inodes_used, 2);
        assert_eq!(seen.inodes, seen.inodes_free + 2);
    }
}

#[tokio::test]
async fn an_unenforced_volume_that_holds_more_than_its_size_is_degraded() {
    let bench = Bench::on(On::Xfs { quota: false });
    let dir = bench.start().await;
    dir.make(&spec("p/v")).await.unwrap();
    write(&bench.data("p/v").join("file"), 70).unwrap();
    let seen = usage(&dir, "p/v").await.unwrap();
    assert_eq!(seen.available, Bytes::ZERO);
    assert_eq!(dir.health("p/v").await, ["SizeExceeded"]);
    dir.grow("p/v", Bytes::mib(128)).await.unwrap();
    assert_eq!(dir.health("p/v").await, [""; 0]);
}

#[tokio::test]
async fn a_class_or_pool_that_requires_quota_gets_no_volume_without() {
    for on in On::HERE {
        let mut bench = Bench::on(on);
        let dir = bench.start().await;
        let required = with("p/v", &[("requireQuota", "true")]);
        let capacity = async |dir: &crate::support::Dir, parameters: &Attributes| {
            let capacity = dir.0.provision().capacity().unwrap();
            capacity.capacity(&"p".parse().unwrap(), parameters).await.unwrap().available
        };
        let made = dir.make(&required).await;
        if on.quota() {
            made.unwrap();
            dir.delete("p/v").await.unwrap();
        } else {
            let fault = made.unwrap_err();
            assert_eq!(fault.kind(), Kind::Exhausted, "another node may have it: {fault}");
            assert!(fault.to_string().contains("quota"), "{fault}");
            assert!(bench.state().is_empty());
            assert_eq!(capacity(&dir, &required.parameters).await, Bytes::ZERO);
        }
        assert!(capacity(&dir, &Attributes::new()).await > Bytes::ZERO);
        drop(dir);
        bench.change("p", |config| config.require_quota = true);
        let dir = bench.start().await;
        match dir.make(&spec("p/v")).await {
            Ok(_) => assert!(on.quota()),
            Err(fault) => assert!(!on.quota() && fault.kind() == Kind::Exhausted, "{fault}"),
        }
    }
}

#[tokio::test]
async fn growth_never_shrinks_and_is_repeatable() {
    for on in On::HERE {
        let bench = Bench::on(on);
        let dir = bench.start().await;
        dir.make(&spec("p/v")).await.unwrap();
        for (asked, has) in [(100, 100), (100, 100), (10, 100), (300, 300)] {
            assert_eq!(dir.grow("p/v", Bytes::mib(asked)).await.unwrap(), Bytes::mib(has));
        }
        if on.quota() {
            let limit = btrfs::usage(&bench.data("p/v")).unwrap().total;
            assert_eq!(limit, Bytes::mib(300));
        }
        let fault = dir.grow("p/absent", Bytes::mib(1)).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::NotFound);
    }
}
