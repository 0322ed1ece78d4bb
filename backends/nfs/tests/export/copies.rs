//! Snapshots, restored and cloned volumes.

use crate::{
    bench::{Bench, Nfs, cloned, restored, spec, with},
    crashes::{cut_at_every_step, nothing},
};
use larder_model::{Cx, Kind, volume::Page};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

/// Files of all kinds in volume `v`.
async fn fill(bench: &Bench, nfs: &Nfs) {
    nfs.make(&spec("p/v")).await.unwrap();
    let root = bench.export().join("v");
    fs::create_dir_all(root.join("deep/er")).unwrap();
    fs::write(root.join("deep/er/file"), "data").unwrap();
    fs::set_permissions(root.join("deep"), fs::Permissions::from_mode(0o2750)).unwrap();
    for n in 0..100 {
        fs::write(root.join(format!("small-{n}")), n.to_string()).unwrap();
    }
    fs::write(root.join("large"), vec![7; 20 << 20]).unwrap();
    symlink("../outside", root.join("link")).unwrap();
    fs::hard_link(root.join("large"), root.join("deep/same")).unwrap();
}

fn assert_filled(root: &Path) {
    assert_eq!(fs::read_to_string(root.join("deep/er/file")).unwrap(), "data");
    assert_eq!(fs::metadata(root.join("deep")).unwrap().permissions().mode() & 0o7777, 0o2750);
    for n in 0..100 {
        assert_eq!(fs::read_to_string(root.join(format!("small-{n}"))).unwrap(), n.to_string());
    }
    assert!(fs::read(root.join("large")).unwrap() == vec![7; 20 << 20]);
    assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("../outside"));
    let inode = |path: &str| fs::metadata(root.join(path)).unwrap().ino();
    assert_eq!(inode("large"), inode("deep/same"));
}

#[tokio::test]
async fn a_snapshot_outlives_its_volume_and_is_restored_with_everything_in_it() {
    let bench = Bench::new();
    let nfs = bench.backend();
    fill(&bench, &nfs).await;
    let cx = Cx::new();
    let made = nfs.cut("p/s", "p/v", &cx).await.unwrap();
    assert_eq!((made.size, made.ready), (spec_size(&nfs).await, true));
    fs::write(bench.export().join("v/deep/er/file"), "changed since").unwrap();
    assert_eq!(nfs.cut("p/s", "p/v", &cx).await.unwrap(), made, "an equal call cuts nothing anew");
    let nfs = bench.backend();
    nfs.delete("p/v").await.unwrap();
    let volume = nfs.make(&restored("p/w", "p/s")).await.unwrap();
    assert_eq!(volume.source, restored("p/w", "p/s").source);
    assert_filled(&bench.export().join("w"));
    assert_eq!(nfs.make(&restored("p/w", "p/s")).await.unwrap(), volume);
    let listed = async |source: Option<&str>| {
        let source = source.map(crate::bench::volume);
        let snapshots = nfs.0.provision().snapshots().unwrap();
        let page = Page { after: None, max: None };
        snapshots.list_snapshots(source.as_ref(), &page).await.unwrap().items
    };
    assert_eq!(listed(None).await, std::slice::from_ref(&made));
    assert_eq!(listed(Some("p/v")).await, [made]);
    assert_eq!(listed(Some("p/w")).await, []);
    assert_eq!(nfs.0.pool_status().await[0].snapshots, 1);
    nfs.delete_snapshot("p/s", &cx).await.unwrap();
    nfs.delete_snapshot("p/s", &cx).await.unwrap();
    assert_filled(&bench.export().join("w"));
    nfs.delete("p/w").await.unwrap();
    nothing(&bench);
}

async fn spec_size(nfs: &Nfs) -> larder_model::Bytes {
    nfs.0.provision().get_volume(&spec("p/v").id).await.unwrap().capacity
}

#[tokio::test]
async fn a_clone_is_a_volume_of_its_own() {
    let bench = Bench::new();
    let nfs = bench.backend();
    fill(&bench, &nfs).await;
    nfs.make(&cloned("p/c", "p/v")).await.unwrap();
    fs::write(bench.export().join("v/deep/er/file"), "the original changes").unwrap();
    assert_filled(&bench.export().join("c"));
    // In a directory that its class names.
    let named = with("p/d", &[("subDir", "team/data")]);
    let named = larder_model::volume::VolumeSpec { source: cloned("p/d", "p/c").source, ..named };
    nfs.make(&named).await.unwrap();
    assert_filled(&bench.export().join("team/data"));
    for id in ["p/v", "p/c", "p/d"] {
        nfs.delete(id).await.unwrap();
    }
    fs::remove_dir(bench.export().join("team")).unwrap();
    nothing(&bench);
}

#[tokio::test]
async fn what_cannot_be_copied_is_refused_and_nothing_is_touched() {
    let bench = Bench::new();
    let nfs = bench.backend();
    fill(&bench, &nfs).await;
    let cx = Cx::new();
    // Of nothing.
    let fault = nfs.cut("p/s", "p/absent", &cx).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::NotFound, "{fault}");
    // Over what is there.
    fs::create_dir(bench.export().join("taken")).unwrap();
    fs::write(bench.export().join("taken/file"), "precious").unwrap();
    let named = with("p/c", &[("subDir", "taken")]);
    let named = larder_model::volume::VolumeSpec { source: cloned("p/c", "p/v").source, ..named };
    let fault = nfs.make(&named).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    assert_eq!(fs::read_to_string(bench.export().join("taken/file")).unwrap(), "precious");
    // Under a name that is another's.
    nfs.cut("p/s", "p/v", &cx).await.unwrap();
    nfs.make(&spec("p/w")).await.unwrap();
    let fault = nfs.cut("p/s", "p/w", &cx).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Conflict, "{fault}");
    let fault = nfs.make(&cloned("p/w", "p/v")).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Conflict, "{fault}");
    // Of a volume whose directory is gone.
    fs::remove_dir_all(bench.export().join("v")).unwrap();
    let fault = nfs.cut("p/t", "p/v", &cx).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    assert!(fault.to_string().contains("gone"), "{fault}");
    assert!(!bench.export().join(".larder/snapshots/t.json").exists());
}

#[tokio::test]
async fn a_snapshot_that_was_cut_is_invisible_and_finished_by_its_repeat_or_removed() {
    let bench = Bench::new();
    fill(&bench, &bench.backend()).await;
    let snapshots = || bench.left().iter().filter(|p| p.starts_with(".larder/snapshots/")).count();
    for repeat in [true, false] {
        cut_at_every_step(
            &bench,
            async |_| {},
            async |nfs, cx| nfs.cut("p/s", "p/v", cx).await.map(drop),
            async |nfs| {
                if repeat {
                    nfs.cut("p/s", "p/v", &Cx::new()).await.unwrap();
                    assert_filled(&bench.export().join(".larder/snapshots/s.files"));
                }
                nfs.delete_snapshot("p/s", &Cx::new()).await.unwrap();
                assert_eq!(snapshots(), 0, "{:?}", bench.left());
                assert!(nfs.0.pool_status().await[0].warnings.len() < 2, "no copy is left");
            },
        )
        .await;
    }
}

#[tokio::test]
async fn a_deletion_of_a_snapshot_that_was_cut_leaves_nothing_that_seems_whole() {
    let bench = Bench::new();
    fill(&bench, &bench.backend()).await;
    cut_at_every_step(
        &bench,
        async |nfs| drop(nfs.cut("p/s", "p/v", &Cx::new()).await.unwrap()),
        async |nfs, cx| nfs.delete_snapshot("p/s", cx).await,
        async |nfs| {
            // The same name again: whatever is left, it is a whole snapshot then.
            nfs.cut("p/s", "p/v", &Cx::new()).await.unwrap();
            assert_filled(&bench.export().join(".larder/snapshots/s.files"));
        },
    )
    .await;
}

#[tokio::test]
async fn a_clone_that_was_cut_is_finished_by_its_repeat_or_taken_back() {
    let bench = Bench::new();
    fill(&bench, &bench.backend()).await;
    for repeat in [true, false] {
        cut_at_every_step(
            &bench,
            async |_| {},
            async |nfs, cx| {
                let wanted = cloned("p/c", "p/v");
                nfs.0.provision().ensure_volume(&wanted, cx).await.map(drop)
            },
            async |nfs| {
                if repeat {
                    nfs.make(&cloned("p/c", "p/v")).await.unwrap();
                    assert_filled(&bench.export().join("c"));
                }
                nfs.delete("p/c").await.unwrap();
                assert!(!bench.export().join("c").exists());
                assert_eq!(
                    fs::read_dir(bench.export().join(".larder/copying")).unwrap().count(),
                    0
                );
            },
        )
        .await;
    }
}

#[tokio::test]
async fn what_stands_where_a_cut_clone_was_going_is_never_removed() {
    let bench = Bench::new();
    fill(&bench, &bench.backend()).await;
    cut_at_every_step(
        &bench,
        async |_| {},
        async |nfs, cx| {
            let wanted = cloned("p/c", "p/v");
            nfs.0.provision().ensure_volume(&wanted, cx).await.map(drop)
        },
        async |nfs| {
            let place = bench.export().join("c");
            let foreign = fs::create_dir(&place).is_ok();
            if foreign {
                fs::write(place.join("file"), "precious").unwrap();
                let fault = nfs.make(&cloned("p/c", "p/v")).await.unwrap_err();
                assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
            }
            nfs.delete("p/c").await.unwrap();
            if foreign {
                assert_eq!(fs::read_to_string(place.join("file")).unwrap(), "precious");
                fs::remove_dir_all(&place).unwrap();
            }
        },
    )
    .await;
}

#[tokio::test]
async fn a_cut_copy_goes_on_but_not_with_what_another_boot_has_left() {
    let bench = Bench::new();
    fill(&bench, &bench.backend()).await;
    for (boot, trusted) in [(larder_host::boot_id(), true), ("another".to_owned(), false)] {
        let nfs = bench.backend();
        nfs.cut("p/s", "p/v", &Cx::new()).await.unwrap();
        // As a kill leaves it in the middle of the copy.
        let ours = bench.export().join(".larder");
        let record = ours.join("snapshots/s.json");
        let text = fs::read_to_string(&record).unwrap().replace("ready", "creating");
        fs::write(&record, text).unwrap();
        fs::rename(ours.join("snapshots/s.files"), ours.join("copying/snapshot-s.files")).unwrap();
        fs::write(ours.join("copying/snapshot-s.boot"), boot).unwrap();
        fs::remove_dir_all(ours.join("copying/snapshot-s.files/deep")).unwrap();
        let kept = fs::metadata(ours.join("copying/snapshot-s.files/small-7")).unwrap().ino();
        // Held open: its number is no other file's meanwhile.
        let _held = fs::File::open(ours.join("copying/snapshot-s.files/small-7")).unwrap();
        let fault = nfs.0.provision().snapshots().unwrap();
        let fault = fault.get_snapshot(&larder_model::SnapshotId("p/s".parse().unwrap())).await;
        assert_eq!(fault.unwrap_err().kind(), Kind::NotFound, "it is shown to nobody");

        nfs.cut("p/s", "p/v", &Cx::new()).await.unwrap();
        assert_filled(&ours.join("snapshots/s.files"));
        let now = fs::metadata(ours.join("snapshots/s.files/small-7")).unwrap().ino();
        assert_eq!(now == kept, trusted);
        nfs.delete_snapshot("p/s", &Cx::new()).await.unwrap();
    }
}
