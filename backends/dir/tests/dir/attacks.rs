//! Symlinks and replaced directories: nothing outside of a volume is ever touched or shown.

use crate::support::{Bench, On, clone_of, file_names, spec};
use larder_host::btrfs;
use larder_model::Kind;
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// A directory outside of the pools with something in it.
fn victim(bench: &Bench) -> PathBuf {
    let victim = bench.dir("victim");
    fs::write(victim.join("precious"), "x").unwrap();
    victim
}

fn is_intact(victim: &Path) -> bool {
    file_names(victim).len() == 1 && fs::read(victim.join("precious")).unwrap() == b"x"
}

/// Takes a volume's directory away as an attacker with access to the pool would.
fn remove(on: On, data: &Path) {
    if on.is_btrfs() {
        btrfs::delete_subvolume(data).unwrap();
    } else {
        fs::remove_dir_all(data).unwrap();
    }
}

#[tokio::test]
async fn a_volume_replaced_by_a_symlink_is_not_used_and_its_target_survives_deletion() {
    for on in On::HERE {
        let bench = Bench::on(on);
        let dir = bench.start().await;
        let victim = victim(&bench);
        dir.make(&spec("p/v")).await.unwrap();
        let data = bench.data("p/v");
        remove(on, &data);
        symlink(&victim, &data).unwrap();
        let faults = [
            dir.connect("p/v").await.unwrap_err(),
            dir.make(&clone_of("p/c", "p/v")).await.map(drop).unwrap_err(),
            dir.cut("p/s", "p/v").await.map(drop).unwrap_err(),
            dir.grow("p/v", larder_model::Bytes::mib(100)).await.map(drop).unwrap_err(),
        ];
        for fault in faults {
            assert_eq!(fault.kind(), Kind::Precondition, "{on:?}: {fault}");
            assert!(fault.to_string().contains("symlink"), "{fault}");
        }
        assert_eq!(dir.health("p/v").await, ["DirectoryReplaced"]);
        dir.delete("p/v").await.unwrap();
        assert!(is_intact(&victim));
        assert!(bench.state().is_empty());
    }
}

#[tokio::test]
async fn a_folder_replaced_by_a_symlink_is_not_followed_either() {
    for on in On::HERE {
        let bench = Bench::on(on);
        let dir = bench.start().await;
        let victim = victim(&bench);
        fs::create_dir(victim.join("data")).unwrap();
        dir.make(&spec("p/v")).await.unwrap();
        let folder = bench.data("p/v").parent().unwrap().to_owned();
        let aside = bench.pool("p").join("aside");
        fs::rename(&folder, &aside).unwrap();
        symlink(&victim, &folder).unwrap();
        let fault = dir.connect("p/v").await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition, "{on:?}: {fault}");
        assert!(dir.make(&clone_of("p/c", "p/v")).await.is_err());
        let _ = dir.delete("p/v").await;
        assert!(victim.join("data").is_dir() && victim.join("precious").exists(), "{on:?}");
    }
}

#[tokio::test]
async fn a_file_or_mount_in_place_of_the_directory_is_refused() {
    for on in On::HERE {
        let bench = Bench::on(on);
        let dir = bench.start().await;
        let victim = victim(&bench);
        dir.make(&spec("p/file")).await.unwrap();
        remove(on, &bench.data("p/file"));
        fs::write(bench.data("p/file"), "x").unwrap();
        let fault = dir.connect("p/file").await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
        dir.delete("p/file").await.unwrap();

        dir.make(&spec("p/covered")).await.unwrap();
        let data = bench.data("p/covered");
        let place = data.strip_prefix(bench.path()).unwrap().to_str().unwrap().to_owned();
        bench.bind(&victim, &place);
        let fault = dir.connect("p/covered").await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
        assert!(dir.delete("p/covered").await.is_err(), "something is mounted on it");
        assert!(is_intact(&victim));
    }
}

#[tokio::test]
async fn symlinks_inside_a_volume_are_copied_and_deleted_as_symlinks() {
    for on in On::HERE {
        let bench = Bench::on(on);
        let dir = bench.start().await;
        let victim = victim(&bench);
        dir.make(&spec("p/v")).await.unwrap();
        let data = bench.data("p/v");
        symlink(&victim, data.join("away")).unwrap();
        symlink("/", data.join("root")).unwrap();
        symlink("../../../..", data.join("up")).unwrap();
        fs::create_dir(data.join("d")).unwrap();
        symlink(victim.join("precious"), data.join("d/file")).unwrap();
        dir.cut("p/s", "p/v").await.unwrap();
        dir.make(&clone_of("p/c", "p/v")).await.unwrap();
        assert_eq!(fs::read_link(bench.data("p/c").join("away")).unwrap(), victim);
        assert_eq!(fs::read_link(bench.cut_data("p/s").join("root")).unwrap(), Path::new("/"));
        for id in ["p/v", "p/c"] {
            dir.delete(id).await.unwrap();
        }
        dir.uncut("p/s").await.unwrap();
        assert!(is_intact(&victim));
        assert!(bench.state().is_empty());
    }
}

/// A workload that goes on swapping a directory with a symlink while its volume is copied and
/// deleted.
#[tokio::test]
async fn swapping_directories_and_symlinks_during_a_copy_leads_nowhere() {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };
    for on in On::HERE {
        let bench = Bench::on(on);
        let dir = bench.start().await;
        let victim = victim(&bench);
        dir.make(&spec("p/v")).await.unwrap();
        let data = bench.data("p/v");
        for n in 0..50 {
            fs::create_dir_all(data.join(format!("d{n}/sub"))).unwrap();
            fs::write(data.join(format!("d{n}/sub/file")), "x").unwrap();
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, root, target) = (stop.clone(), data.clone(), victim.clone());
        let attacker = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for n in 0..50 {
                    let (real, hidden) = (root.join(format!("d{n}")), root.join(format!("h{n}")));
                    if fs::rename(&real, &hidden).is_ok() && symlink(&target, &real).is_ok() {
                        let _ = fs::remove_file(&real);
                        let _ = fs::rename(&hidden, &real);
                    }
                }
            }
        });
        for n in 0..10 {
            let id = format!("p/s{n}");
            // It may be refused, when names change too fast; it may never show the victim.
            if dir.cut(&id, "p/v").await.is_ok() {
                let mut todo = vec![bench.cut_data(&id)];
                while let Some(at) = todo.pop() {
                    for entry in fs::read_dir(&at).unwrap().map(Result::unwrap) {
                        assert_ne!(entry.file_name(), "precious", "the victim was copied");
                        if entry.file_type().unwrap().is_dir() {
                            todo.push(entry.path());
                        }
                    }
                }
            }
        }
        let deleted = dir.delete("p/v").await;
        stop.store(true, Ordering::Relaxed);
        attacker.join().unwrap();
        if deleted.is_err() {
            dir.delete("p/v").await.unwrap();
        }
        assert!(is_intact(&victim), "{on:?}");
    }
}
