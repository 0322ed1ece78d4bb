//! Snapshots, restores and clones keep everything, also of trees that make it hard, of pools on other
//! file systems, and while somebody writes.

use crate::support::{
    Bench, Dir, On, clone_of, file_names,
    manifest::{assert_same, manifest},
    nasty, restore_of, settle_data, spec,
};
use larder_host::btrfs;
use larder_model::{Bytes, CapacityRange, Cx, Kind, volume::VolumeSpec};
use rstest::rstest;
use std::{
    fs,
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Writes on a thread of its own until it is dropped, and at least once.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Writer {
    fn start(mut round: impl FnMut(u64) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for n in 1.. {
                round(n);
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the writer failed");
        }
    }
}

#[rstest]
#[tokio::test]
async fn a_nasty_tree_survives_snapshot_restore_and_clone(
    #[values(
        On::Ext4 { quota: false },
        On::Xfs { quota: false },
        On::Btrfs { quota: false },
        On::Btrfs { quota: true }
    )]
    on: On,
) {
    let bench = Bench::on(on);
    let dir = bench.start().await;
    let any = VolumeSpec {
        capacity: CapacityRange { required: Bytes::gib(2), limit: None },
        ..spec("p/v")
    };
    dir.make(&any).await.unwrap();
    nasty::make(&bench.data("p/v"));
    settle_data(&bench.data("p/v"));
    let original = manifest(&bench.data("p/v"));
    assert!(original.len() > 140, "{}", original.len());

    dir.cut("p/s", "p/v").await.unwrap();
    assert_same(&original, &manifest(&bench.cut_data("p/s")));
    let sized = |spec| VolumeSpec { capacity: any.capacity, ..spec };
    dir.make(&sized(clone_of("p/c", "p/v"))).await.unwrap();
    assert_same(&original, &manifest(&bench.data("p/c")));
    dir.make(&sized(restore_of("p/r", "p/s"))).await.unwrap();
    assert_same(&original, &manifest(&bench.data("p/r")));
    // A copy of a copy.
    dir.make(&sized(clone_of("p/cc", "p/r"))).await.unwrap();
    assert_same(&original, &manifest(&bench.data("p/cc")));

    // Changes of one are seen in none of the others.
    let overwrite = |id: &str| {
        let file = fs::File::options().write(true).open(bench.data(id).join("large")).unwrap();
        file.write_all_at(&[0x55; 4096], 4096).unwrap();
        fs::remove_file(bench.data(id).join("links/two")).unwrap();
    };
    overwrite("p/v");
    overwrite("p/cc");
    for copy in [bench.cut_data("p/s"), bench.data("p/c"), bench.data("p/r")] {
        assert_same(&original, &manifest(&copy));
    }
    for id in ["p/v", "p/c", "p/r", "p/cc"] {
        dir.delete(id).await.unwrap();
    }
    dir.uncut("p/s").await.unwrap();
    assert!(bench.state().is_empty());
}

#[tokio::test]
async fn ten_thousand_files_are_copied_and_deleted_whole() {
    for on in On::HERE {
        let bench = Bench::on(on);
        let dir = bench.start().await;
        dir.make(&spec("p/v")).await.unwrap();
        nasty::many(&bench.data("p/v"), 10_000);
        settle_data(&bench.data("p/v"));
        let original = manifest(&bench.data("p/v"));
        assert_eq!(original.len(), 10_101);
        dir.cut("p/s", "p/v").await.unwrap();
        dir.make(&restore_of("p/r", "p/s")).await.unwrap();
        assert_same(&original, &manifest(&bench.data("p/r")));
        for id in ["p/v", "p/r"] {
            dir.delete(id).await.unwrap();
        }
        dir.uncut("p/s").await.unwrap();
        assert!(bench.state().is_empty());
    }
}

#[tokio::test]
async fn a_tree_deeper_than_paths_can_be_long_is_copied_and_deleted() {
    const LEVELS: usize = 3000;
    for on in On::HERE {
        let bench = Bench::on(on);
        let dir = bench.start().await;
        dir.make(&spec("p/v")).await.unwrap();
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::RDONLY;
        let open = |at: &rustix::fd::OwnedFd, name: &str| {
            rustix::fs::openat(at, name, flags, rustix::fs::Mode::empty()).unwrap()
        };
        let top = |id: &str| rustix::fd::OwnedFd::from(fs::File::open(bench.data(id)).unwrap());
        let mut at = top("p/v");
        for _ in 0..LEVELS {
            rustix::fs::mkdirat(&at, "level", rustix::fs::Mode::from_raw_mode(0o700)).unwrap();
            at = open(&at, "level");
        }
        rustix::fs::mkdirat(&at, "bottom", rustix::fs::Mode::from_raw_mode(0o700)).unwrap();
        dir.cut("p/s", "p/v").await.unwrap();
        dir.make(&restore_of("p/r", "p/s")).await.unwrap();
        let mut at = top("p/r");
        for _ in 0..LEVELS {
            at = open(&at, "level");
        }
        open(&at, "bottom");
        drop(at);
        dir.delete("p/v").await.unwrap();
        dir.delete("p/r").await.unwrap();
        dir.uncut("p/s").await.unwrap();
        assert!(bench.state().is_empty());
    }
}

#[tokio::test]
async fn a_volume_can_be_copied_to_a_pool_on_any_other_file_system() {
    let mut bench = Bench::empty();
    let all = [
        ("ext4", On::Ext4 { quota: false }),
        ("xfs", On::Xfs { quota: false }),
        ("btrfs", On::Btrfs { quota: true }),
        ("btrfs2", On::Btrfs { quota: false }),
    ];
    for (name, on) in all {
        bench.add(name, on, Bytes::mib(512));
    }
    // A second pool on one of the file systems.
    let twin = bench.pool("btrfs").with_file_name("twin");
    bench.add_directory("twin", &twin);
    let dir = bench.start().await;
    for (from, _) in all {
        let source = format!("{from}/v-{from}");
        dir.make(&spec(&source)).await.unwrap();
        let tree = bench.data(&source);
        nasty::make(&tree);
        settle_data(&tree);
        let mut original = manifest(&tree);
        for to in ["ext4", "xfs", "btrfs", "btrfs2", "twin"] {
            let copy = format!("{to}/{from}-to-{to}");
            dir.make(&clone_of(&copy, &source)).await.unwrap();
            let mut copied = manifest(&bench.data(&copy));
            // Where data lies within blocks is each file system's own affair; what must stay is that
            // holes do.
            for entry in original.values_mut().chain(copied.values_mut()) {
                let held: u64 = entry.data.iter().map(|(_, length)| length).sum();
                assert!(held < 8 << 20, "a hole was filled: {entry:?}");
                entry.data = Vec::new();
            }
            assert_same(&original, &copied);
            original = manifest(&tree);
        }
    }
    assert!(btrfs::is_subvolume(&bench.data("twin/ext4-to-twin")).unwrap());
    bench.state();
}

#[tokio::test]
async fn many_clones_of_one_volume_are_made_at_a_time() {
    for on in On::HERE {
        let bench = Bench::on(on);
        let dir = bench.start().await;
        dir.make(&spec("p/v")).await.unwrap();
        nasty::many(&bench.data("p/v"), 300);
        settle_data(&bench.data("p/v"));
        let original = manifest(&bench.data("p/v"));
        let clones: Vec<_> = (0..8)
            .map(|n| {
                let dir = dir.clone();
                #[allow(clippy::disallowed_methods, reason = "the test waits for all of them")]
                tokio::spawn(async move {
                    let source =
                        if n % 2 == 0 { "p/v".to_owned() } else { format!("p/c{}", n - 1) };
                    let spec = clone_of(&format!("p/c{n}"), &source);
                    loop {
                        match dir.make(&spec).await {
                            // The clone that it is made from is not there yet, or just being made.
                            Err(f) if matches!(f.kind(), Kind::NotFound | Kind::Aborted) => {
                                tokio::time::sleep(Duration::from_millis(5)).await;
                            }
                            other => return other,
                        }
                    }
                })
            })
            .collect();
        for clone in clones {
            clone.await.unwrap().unwrap();
        }
        for n in 0..8 {
            assert_same(&original, &manifest(&bench.data(&format!("p/c{n}"))));
        }
        bench.state();
    }
}

#[tokio::test]
async fn files_that_come_and_go_during_a_copy_do_not_break_it() {
    for on in On::HERE {
        let bench = Bench::on(on);
        let dir = bench.start().await;
        dir.make(&spec("p/v")).await.unwrap();
        let root = bench.data("p/v");
        nasty::many(&root, 500);
        let before = manifest(&root);
        let churn = root.join("churn");
        fs::create_dir(&churn).unwrap();
        let _writer = Writer::start(move |n| {
            let at = |n: u64| churn.join(format!("{}", n % 50));
            let _ = fs::remove_dir_all(at(n));
            let _ = fs::remove_file(at(n));
            if n % 3 == 0 {
                fs::create_dir(at(n)).unwrap();
                fs::write(at(n).join("inside"), "x").unwrap();
            } else {
                fs::write(at(n), "x").unwrap();
                let _ = fs::rename(at(n), churn.join("renamed"));
            }
        });
        for n in 0..5 {
            let id = format!("p/s{n}");
            dir.cut(&id, "p/v").await.unwrap();
            let copied = manifest(&bench.cut_data(&id));
            for (path, entry) in before.iter().filter(|(path, _)| path.components().count() == 2) {
                assert_eq!(copied.get(path).map(|e| &e.content), Some(&entry.content));
            }
        }
    }
}

/// Each write replaces the whole file by one other byte.
fn one_byte_writer(file: &Path) -> Writer {
    let file = fs::File::create(file).unwrap();
    file.set_len(1 << 20).unwrap();
    Writer::start(move |n| {
        let byte = (n % 251) as u8;
        file.write_all_at(&vec![byte; 1 << 20], 0).unwrap();
    })
}

#[tokio::test]
async fn a_file_that_is_being_written_is_cut_at_one_moment_where_blocks_are_shared() {
    let bench = Bench::on(On::Xfs { quota: false });
    let dir = bench.start().await;
    dir.make(&spec("p/v")).await.unwrap();
    let _writer = one_byte_writer(&bench.data("p/v").join("file"));
    for n in 0..20 {
        let id = format!("p/s{n}");
        dir.cut(&id, "p/v").await.unwrap();
        let cut = fs::read(bench.cut_data(&id).join("file")).unwrap();
        assert_eq!(cut.len(), 1 << 20);
        assert!(cut.iter().all(|byte| *byte == cut[0]), "a write was cut in two");
    }
}

#[tokio::test]
async fn a_subvolume_is_cut_at_one_moment_of_what_was_made_durable() {
    let bench = Bench::on(On::Btrfs { quota: true });
    let dir = bench.start().await;
    dir.make(&spec("p/v")).await.unwrap();
    let root = bench.data("p/v");
    // First a, then b; each durable before the next. A cut between them must never show b ahead.
    let durably = |path: &Path, n: u64| {
        let mut file = fs::File::create(path.with_extension("new")).unwrap();
        file.write_all(n.to_string().as_bytes()).unwrap();
        file.sync_all().unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
        fs::File::open(path.parent().unwrap()).unwrap().sync_all().unwrap();
    };
    durably(&root.join("a"), 0);
    durably(&root.join("b"), 0);
    let writing = root.clone();
    let _writer = Writer::start(move |n| {
        durably(&writing.join("a"), n);
        durably(&writing.join("b"), n);
    });
    let mut seen = Vec::new();
    for n in 0..20 {
        let id = format!("p/s{n}");
        dir.cut(&id, "p/v").await.unwrap();
        let read = |name: &str| -> u64 {
            fs::read_to_string(bench.cut_data(&id).join(name)).unwrap().parse().unwrap()
        };
        let (a, b) = (read("a"), read("b"));
        assert!(a == b || a == b + 1, "a {a}, b {b}");
        seen.push(a);
    }
    assert!(seen.last() > seen.first(), "nobody wrote: {seen:?}");
}

#[tokio::test]
async fn subvolumes_that_workloads_nest_are_copied_and_deleted_with_the_volume() {
    for quota in [false, true] {
        let bench = Bench::on(On::Btrfs { quota });
        let dir = bench.start().await;
        dir.make(&spec("p/v")).await.unwrap();
        let root = bench.data("p/v");
        fs::create_dir_all(root.join("var/lib")).unwrap();
        for nested in ["images", "var/lib/machines", "var/lib/machines/inner"] {
            btrfs::create_subvolume(&root.join(nested)).unwrap();
            nasty::many(&root.join(nested), 20);
        }
        fs::write(root.join("file"), "x").unwrap();
        btrfs::set_read_only(&root.join("images"), true).unwrap();
        settle_data(&root);
        let original = manifest(&root);
        dir.cut("p/s", "p/v").await.unwrap();
        assert_same(&original, &manifest(&bench.cut_data("p/s")));
        assert!(fs::write(bench.cut_data("p/s").join("var/lib/machines/x"), "").is_err());
        dir.make(&restore_of("p/r", "p/s")).await.unwrap();
        dir.make(&clone_of("p/c", "p/v")).await.unwrap();
        for id in ["p/r", "p/c"] {
            assert_same(&original, &manifest(&bench.data(id)));
            fs::write(bench.data(id).join("var/lib/machines/inner/new"), "x").unwrap();
        }
        for id in ["p/v", "p/r", "p/c"] {
            dir.delete(id).await.unwrap();
        }
        dir.uncut("p/s").await.unwrap();
        assert!(bench.state().is_empty());
    }
}

#[tokio::test]
async fn a_copy_that_does_not_fit_leaves_nothing_behind() {
    let bench = Bench::of_size(On::Ext4 { quota: false }, Bytes::mib(128));
    let dir = bench.start().await;
    dir.make(&spec("p/v")).await.unwrap();
    fs::write(bench.data("p/v").join("file"), nasty::noise(1, 60 << 20)).unwrap();
    settle_data(&bench.data("p/v"));
    let free = || bench.host.filesystems.usage(&bench.pool("p")).unwrap().available;
    let before = free();
    assert!(before < Bytes::mib(60), "{before:?}");
    let faults = [
        dir.make(&clone_of("p/c", "p/v")).await.unwrap_err(),
        dir.cut("p/s", "p/v").await.unwrap_err(),
    ];
    for fault in faults {
        assert_eq!(fault.kind(), Kind::Exhausted, "{fault}");
    }
    assert_eq!(bench.state().len(), 1);
    assert_eq!(free(), before);
}

/// The space runs out in the middle, although it looked enough before.
#[tokio::test]
async fn a_disk_that_fills_up_during_a_copy_takes_everything_back() {
    for on in [On::Ext4 { quota: false }, On::Xfs { quota: false }, On::Btrfs { quota: false }] {
        let mut bench = Bench::of_size(on, Bytes::mib(400));
        bench.add("source", On::Ext4 { quota: false }, Bytes::mib(400));
        let dir = bench.start().await;
        dir.make(&spec("source/v")).await.unwrap();
        let files = bench.data("source/v");
        for n in 0..40 {
            fs::write(files.join(format!("f{n}")), nasty::noise(n, 4 << 20)).unwrap();
        }
        settle_data(&files);
        // Takes what is left as soon as the copy has begun.
        let (pool, ballast) = (bench.pool("p"), bench.pool("p").with_file_name("ballast"));
        let eaten = ballast.clone();
        let eater = Writer::start(move |_| {
            if file_names(&pool.join("creating")).is_empty() || eaten.exists() {
                return;
            }
            let file = fs::File::create(&eaten).unwrap();
            let none = rustix::fs::FallocateFlags::empty();
            let mut at = 0;
            for step in [64 << 20, 1 << 20, 64 << 10] {
                while rustix::fs::fallocate(&file, none, at, step).is_ok() {
                    at += step;
                }
            }
        });
        let fault = dir.make(&clone_of("p/c", "source/v")).await.unwrap_err();
        drop(eater);
        assert_eq!(fault.kind(), Kind::Exhausted, "{on:?}: {fault}");
        fs::remove_file(&ballast).unwrap();
        settle_data(&bench.pool("p"));
        assert_eq!(bench.state().len(), 1, "only the source");
        dir.make(&clone_of("p/c", "source/v")).await.unwrap();
        let (a, b) = (manifest(&files), manifest(&bench.data("p/c")));
        assert_eq!(
            a.values().map(|e| &e.content).collect::<Vec<_>>(),
            b.values().map(|e| &e.content).collect::<Vec<_>>()
        );
    }
}

#[tokio::test]
async fn sharing_blocks_takes_hardly_any_space() {
    for on in [On::Xfs { quota: false }, On::Btrfs { quota: true }] {
        let bench = Bench::of_size(on, Bytes::mib(400));
        let dir = bench.start().await;
        let large = CapacityRange { required: Bytes::mib(300), limit: None };
        dir.make(&VolumeSpec { capacity: large, ..spec("p/v") }).await.unwrap();
        fs::write(bench.data("p/v").join("file"), nasty::noise(1, 150 << 20)).unwrap();
        settle_data(&bench.data("p/v"));
        for n in 0..6 {
            dir.cut(&format!("p/s{n}"), "p/v").await.unwrap();
            let copy = clone_of(&format!("p/c{n}"), "p/v");
            dir.make(&VolumeSpec { capacity: large, ..copy }).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_long_copy_tells_how_far_it_is() {
    let bench = Bench::on(On::Ext4 { quota: false });
    let dir = bench.start().await;
    dir.make(&spec("p/v")).await.unwrap();
    for n in 0..50 {
        fs::write(bench.data("p/v").join(format!("f{n}")), nasty::noise(n, 4 << 20)).unwrap();
    }
    let cx = Cx::new();
    let watched = cx.clone();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = seen.clone();
    let watcher = Writer::start(move |_| {
        let progress = watched.progress();
        if progress.step == "copy the files" {
            noted.lock().unwrap().push(progress.done);
        }
    });
    let begun = Instant::now();
    dir.cut_cx("p/s", "p/v", &cx).await.unwrap();
    drop(watcher);
    let seen = seen.lock().unwrap();
    assert!(seen.windows(2).all(|pair| pair[0] <= pair[1]), "it went backwards");
    let most = seen.last().copied().unwrap_or_default();
    assert!(most > 0, "no progress in {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_snapshot_of_what_is_absent_is_not_found() {
    let bench = Bench::on(On::Xfs { quota: false });
    let dir: Dir = bench.start().await;
    assert_eq!(dir.cut("p/s", "p/v").await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(dir.make(&clone_of("p/c", "p/v")).await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(dir.make(&restore_of("p/c", "p/s")).await.unwrap_err().kind(), Kind::NotFound);
    assert!(bench.state().is_empty());
}
