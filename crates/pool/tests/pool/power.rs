//! Power cuts: the disk of a mounted file system is copied as it is at that moment, and the copy is
//! mounted. What was only in memory is not in the copy, exactly as after a cut.
//!
//! The file systems commit by themselves only every few minutes here (`commit=300`), so that what
//! is found in the copy is there because of our own fsyncs.

use crate::support::{
    Bench, Calls, FakeMedium, copied, crash_at, file_names, sized, snapshot, snapshot_spec, volume,
};
use larder_host::{Host, LoopRequest, command::Command, image};
use larder_model::{
    Backend, Bytes, Cx, FsType, Kind, Provision, Secrets,
    volume::{ContentSource, FormatState},
};
use larder_pool::{LocalBackend, OwnerNote, PoolConfig};
use rstest::rstest;
use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// A pool `a` on a disk of its own.
struct Machine {
    bench: Bench,
    fs: FsType,
    cuts: u32,
}

fn attach(image: &Path) -> larder_host::LoopDevice {
    let request = LoopRequest {
        image: image.to_owned(),
        read_only: false,
        autoclear: true,
        direct_io: false,
        sector_size: 512,
    };
    Host::real().loops.attach(&request).unwrap()
}

impl Machine {
    fn new(fs: FsType) -> Self {
        let bench = Bench::new(&["a"]);
        let disk = bench.path().join("disk.img");
        let size = if fs == FsType::Ext4 { Bytes::mib(32) } else { Bytes::mib(320) };
        image::create_sparse(&disk, size).unwrap();
        let device = attach(&disk);
        Host::real().filesystems.make(&device.path, fs, &[]).unwrap();
        let options: &[&str] = if fs == FsType::Xfs { &[] } else { &["commit=300"] };
        let source = device.path.display().to_string();
        bench.mount(fs.as_str(), &source, &bench.pool("a"), options);
        Self { bench, fs, cuts: 0 }
    }

    /// Cuts the power now; the pool as the next boot finds it.
    fn cut(&mut self) -> Boot {
        self.cuts += 1;
        let base = self.bench.path();
        let (from, to) = (base.join("disk.img"), base.join(format!("cut{}.img", self.cuts)));
        Command::new("cp").arg("--sparse=always").arg(&from).arg(&to).run().unwrap();
        let place = base.join(format!("boot{}", self.cuts));
        let device = attach(&to);
        // The first file system is still mounted, with the same UUID. btrfs gives the second one
        // another for the time of the mount (Linux 6.7).
        let options: &[&str] = if self.fs == FsType::Xfs { &["nouuid"] } else { &[] };
        let source = device.path.display().to_string();
        self.bench.mount(self.fs.as_str(), &source, &place, options);
        let device = |path: &Path| std::fs::metadata(path).unwrap().dev();
        assert_ne!(device(&place), device(&self.bench.pool("a")), "the copy, not the original");
        Boot { place, image: to, bench: self.bench.path() }
    }
}

struct Boot {
    place: PathBuf,
    image: PathBuf,
    bench: PathBuf,
}

impl Boot {
    async fn start(&self) -> LocalBackend<FakeMedium> {
        let pools = BTreeMap::from([("a".parse().unwrap(), PoolConfig::new(&self.place))]);
        let medium = FakeMedium::new(&self.bench.join("tickets"));
        let backend = LocalBackend::new(medium, Host::real(), OwnerNote::default(), pools).unwrap();
        backend.start(&Cx::new()).await.unwrap();
        backend
    }
    fn content(&self, native: &str) -> String {
        let data = self.place.join("volumes").join(native).join("data/content");
        std::fs::read_to_string(data).unwrap()
    }
    async fn clean(&self) {
        for _ in 0..200 {
            let left = ["creating", "deleting"].map(|dir| file_names(&self.place.join(dir)).len());
            if left == [0, 0] {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("left-overs stay in {}", self.place.display());
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        let _ = Host::real().mounts.unmount(&self.place, larder_host::Unmount::Lazy);
        let _ = std::fs::remove_file(&self.image);
    }
}

#[rstest]
#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_power_cut(
    #[values(FsType::Ext4, FsType::Xfs, FsType::Btrfs)] fs: FsType,
) {
    use larder_model::Connect;
    let mut machine = Machine::new(fs);
    let backend = machine.bench.start().await;

    backend.create(&sized("a/v", Bytes::mib(8), None)).await.unwrap();
    let boot = machine.cut();
    let after = boot.start().await;
    assert_eq!(after.get("a/v").await.unwrap(), backend.get("a/v").await.unwrap());
    assert_eq!(boot.content("v"), "new");
    drop((after, boot));

    backend.cut("a/s", "a/v").await.unwrap();
    let raw = FormatState::Raw;
    backend.set_format_state(&volume("a/v"), raw).await.unwrap();
    let boot = machine.cut();
    let after = boot.start().await;
    assert_eq!(after.snapshot_ids().await, ["a/s"]);
    assert_eq!(after.format_state(&volume("a/v")).await.unwrap(), raw);
    drop((after, boot));

    let restore = copied("a/r", ContentSource::Snapshot(snapshot("a/s")));
    backend.create(&restore).await.unwrap();
    backend.grow("a/v", Bytes::mib(16)).await.unwrap();
    let boot = machine.cut();
    let after = boot.start().await;
    assert_eq!(after.get("a/v").await.unwrap().capacity, Bytes::mib(16));
    assert_eq!(boot.content("r"), "new");
    drop((after, boot));

    backend.delete("a/v").await.unwrap();
    backend.uncut("a/s").await.unwrap();
    let boot = machine.cut();
    let after = boot.start().await;
    assert_eq!(after.ids().await, ["a/r"]);
    assert_eq!(after.snapshot_ids().await, [""; 0]);
    boot.clean().await;
}

#[rstest]
#[tokio::test]
async fn a_power_cut_at_any_step_of_a_creation_is_mended_by_the_next_start(
    #[values(FsType::Ext4, FsType::Xfs, FsType::Btrfs)] fs: FsType,
) {
    let mut machine = Machine::new(fs);
    for step in 1.. {
        let backend = machine.bench.start().await;
        let asked = sized(&format!("a/v{step}"), Bytes::mib(8), None);
        let plan = crash_at(step);
        let done = backend.ensure_volume(&asked, &plan.cx()).await;
        let boot = machine.cut();
        let after = boot.start().await;
        boot.clean().await;
        for id in after.ids().await {
            let native = id.split_once('/').unwrap().1;
            assert_eq!(boot.content(native), "new", "{id}, cut at step {step}");
        }
        after.create(&asked).await.unwrap();
        let status = &after.pool_status().await[0];
        assert!(status.warnings.is_empty(), "{status:?}");
        after.delete_volume(&asked.id, &Secrets::default(), &Cx::new()).await.unwrap();
        if done.is_ok() {
            assert!(step > 5, "steps: {:?}", plan.steps());
            break;
        }
    }
}

#[rstest]
#[tokio::test]
async fn a_power_cut_at_any_step_of_a_deletion_leaves_it_done_or_not_begun(
    #[values(FsType::Ext4, FsType::Xfs, FsType::Btrfs)] fs: FsType,
) {
    let mut machine = Machine::new(fs);
    for step in 1.. {
        let backend = machine.bench.start().await;
        let name = format!("a/v{step}");
        let made = backend.create(&sized(&name, Bytes::mib(8), None)).await.unwrap();
        let plan = crash_at(step);
        let done = backend.delete_volume(&made.id, &Secrets::default(), &plan.cx()).await;
        let boot = machine.cut();
        let after = boot.start().await;
        boot.clean().await;
        if after.ids().await.contains(&name) {
            assert!(done.is_err(), "acknowledged");
            assert_eq!(boot.content(made.id.native().as_str()), "new");
            after.delete(&name).await.unwrap();
        }
        assert!(!after.ids().await.contains(&name));
        if done.is_ok() {
            assert!(step > 3, "steps: {:?}", plan.steps());
            break;
        }
    }
}

#[rstest]
#[tokio::test]
async fn what_a_restart_finds_is_durable_before_it_is_acted_upon(
    #[values(FsType::Ext4, FsType::Xfs, FsType::Btrfs)] fs: FsType,
) {
    use larder_model::Connect;
    let mut machine = Machine::new(fs);
    let backend = machine.bench.start().await;
    let steps = {
        let plan = crash_at(0);
        let asked = sized("a/counted", Bytes::mib(8), None);
        backend.ensure_volume(&asked, &plan.cx()).await.unwrap();
        plan.steps().len() as u64
    };
    backend.create(&sized("a/old", Bytes::mib(8), None)).await.unwrap();
    // Killed between the rename and its fsync, twice: of a new volume, and of a record.
    let asked = sized("a/v", Bytes::mib(8), None);
    backend.ensure_volume(&asked, &crash_at(steps).cx()).await.unwrap_err();
    let record = machine.bench.pool("a").join("volumes/old/record.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let raw = text.replace("unformatted", "raw");
    assert_ne!(raw, text);
    std::fs::write(record.with_extension("new"), raw).unwrap();
    std::fs::rename(record.with_extension("new"), &record).unwrap();
    let boot = machine.cut();
    assert_eq!(boot.start().await.ids().await, ["a/counted", "a/old"], "it was not durable");
    drop((backend, boot));

    let backend = machine.bench.start().await;
    backend.create(&asked).await.unwrap();
    assert_eq!(backend.format_state(&volume("a/old")).await.unwrap(), FormatState::Raw);
    let boot = machine.cut();
    let after = boot.start().await;
    after.get("a/v").await.unwrap();
    assert_eq!(after.format_state(&volume("a/old")).await.unwrap(), FormatState::Raw);
}

#[rstest]
#[tokio::test]
async fn a_power_cut_at_any_step_leaves_a_group_whole_or_absent(
    #[values(FsType::Ext4, FsType::Xfs, FsType::Btrfs)] fs: FsType,
) {
    let mut machine = Machine::new(fs);
    let backend = machine.bench.start().await;
    for id in ["a/u", "a/v"] {
        backend.create(&sized(id, Bytes::mib(8), None)).await.unwrap();
    }
    let mut backend = backend;
    for (deleted, steps) in [(false, 10), (true, 8)] {
        for step in 1.. {
            let names = [format!("a/g{step}-1"), format!("a/g{step}-2")];
            let (id, name) = (snapshot(&format!("a/g{step}")), format!("g{step}"));
            let specs = [snapshot_spec(&names[0], "a/u"), snapshot_spec(&names[1], "a/v")];
            let ids = names.each_ref().map(|name| snapshot(name));
            let (plan, cx) = (crash_at(step), Cx::new());
            let groups = backend.groups().unwrap();
            let done = if deleted {
                groups.ensure_group(&id, &name, &specs, &cx).await.unwrap();
                groups.delete_group(&id, &ids, &plan.cx()).await
            } else {
                groups.ensure_group(&id, &name, &specs, &plan.cx()).await.map(drop)
            };
            let boot = machine.cut();
            let after = boot.start().await;
            boot.clean().await;
            let seen = after.snapshot_ids().await;
            let seen = names.iter().filter(|name| seen.contains(name)).count();
            let groups = after.groups().unwrap();
            match groups.get_group(&id).await {
                Ok(group) => {
                    assert_eq!((group.snapshots.len(), seen), (2, 2), "cut at step {step}");
                    assert!(!deleted || done.is_err(), "acknowledged");
                }
                Err(fault) => {
                    assert_eq!((fault.kind(), seen), (Kind::NotFound, 0), "cut at step {step}");
                    assert!(deleted || done.is_err(), "acknowledged");
                }
            }
            groups.ensure_group(&id, &name, &specs, &cx).await.unwrap();
            for name in &names {
                let native = name.split_once('/').unwrap().1;
                let data = boot.place.join("snapshots").join(native).join("data/content");
                assert_eq!(std::fs::read_to_string(data).unwrap(), "new");
            }
            groups.delete_group(&id, &ids, &cx).await.unwrap();
            boot.clean().await;
            drop(after);
            drop(backend);
            backend = machine.bench.start().await;
            if done.is_ok() {
                assert!(step > steps, "steps: {:?}", plan.steps());
                break;
            }
        }
    }
}
