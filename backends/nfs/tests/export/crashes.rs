//! Cut at every step: the repeated call ends as one clean run would, and deletion leaves nothing.

use crate::bench::{Bench, Nfs, spec, with};
use larder_model::{Cx, Kind, Result, cx::crash::CrashAt, volume::VolumeSpec};
use std::fs;

/// Cuts `work` at step 1, 2, 3 … until it ends by itself; `mended` works with a backend that knows nothing.
pub(crate) async fn cut_at_every_step(
    bench: &Bench,
    before: impl AsyncFn(&Nfs),
    work: impl AsyncFn(&Nfs, &Cx) -> Result<()>,
    mended: impl AsyncFn(&Nfs),
) {
    for step in 1..50 {
        let nfs = bench.backend();
        before(&nfs).await;
        let plan = CrashAt::step(step);
        let done = work(&nfs, &plan.cx()).await;
        drop(nfs);
        mended(&bench.backend()).await;
        match done {
            Ok(()) => {
                assert!(step > 3, "there are only {step} steps: {:?}", plan.steps());
                return;
            }
            Err(fault) => assert!(fault.is_simulated_crash(), "{fault}"),
        }
    }
    unreachable!("it never ends");
}

async fn create(nfs: &Nfs, spec: &VolumeSpec, cx: &Cx) -> Result<()> {
    nfs.0.provision().ensure_volume(spec, cx).await.map(drop)
}

pub(crate) fn nothing(bench: &Bench) {
    assert_eq!(bench.left(), [".larder", ".larder/pool.json", ".larder/volumes"]);
}

#[tokio::test]
async fn a_creation_that_was_cut_is_finished_by_its_repeat() {
    let bench = Bench::new();
    let wanted = with("p/v", &[("subDir", "v")]);
    cut_at_every_step(
        &bench,
        async |_| {},
        async |nfs, cx| create(nfs, &wanted, cx).await,
        async |nfs| {
            let made = nfs.make(&wanted).await.unwrap();
            assert!(bench.export().join("v").is_dir());
            fs::write(bench.export().join("v/file"), "x").unwrap();
            assert_eq!(nfs.0.provision().get_volume(&made.id).await.unwrap(), made);
            nfs.delete("p/v").await.unwrap();
            nothing(&bench);
        },
    )
    .await;
}

#[tokio::test]
async fn a_creation_that_was_cut_is_invisible_and_taken_back_by_a_deletion_or_another_creation() {
    let bench = Bench::new();
    cut_at_every_step(
        &bench,
        async |_| {},
        async |nfs, cx| create(nfs, &with("p/v", &[("subDir", "first")]), cx).await,
        async |nfs| {
            let found = nfs.0.provision().get_volume(&spec("p/v").id).await;
            if found.is_err_and(|fault| fault.kind() == Kind::NotFound) {
                nfs.make(&with("p/v", &[("subDir", "second")])).await.unwrap();
                assert!(!bench.export().join("first").exists());
            }
            nfs.delete("p/v").await.unwrap();
            nothing(&bench);
        },
    )
    .await;
    cut_at_every_step(
        &bench,
        async |_| {},
        async |nfs, cx| create(nfs, &spec("p/v"), cx).await,
        async |nfs| {
            nfs.delete("p/v").await.unwrap();
            nothing(&bench);
        },
    )
    .await;
}

#[tokio::test]
async fn a_deletion_that_was_cut_is_finished_by_its_repeat_or_a_new_creation() {
    for policy in ["delete", "archive"] {
        let bench = Bench::new();
        let wanted = with("p/v", &[("onDelete", policy)]);
        let fill = async |nfs: &Nfs| {
            nfs.make(&wanted).await.unwrap();
            fs::create_dir_all(bench.export().join("v/deep")).unwrap();
            fs::write(bench.export().join("v/deep/file"), "x").unwrap();
        };
        let archived = || {
            let gone = fs::remove_dir_all(bench.export().join("archived-v"));
            assert_eq!(gone.is_ok(), policy == "archive");
        };
        let work = async |nfs: &Nfs, cx: &Cx| nfs.delete_in("p/v", cx).await;
        cut_at_every_step(&bench, fill, work, async |nfs| {
            nfs.delete("p/v").await.unwrap();
            archived();
            nothing(&bench);
        })
        .await;
        cut_at_every_step(&bench, fill, work, async |nfs| {
            if nfs.0.provision().get_volume(&wanted.id).await.is_err() {
                nfs.make(&wanted).await.unwrap();
                assert!(!bench.export().join("v/deep").exists(), "never a former volume's data");
            }
            nfs.delete("p/v").await.unwrap();
            let _ = fs::remove_dir_all(bench.export().join("archived-v-2"));
            archived();
            nothing(&bench);
        })
        .await;
    }
}
