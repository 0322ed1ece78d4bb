//! Two processes at work in one export: a failed leader's calls may still end in its driver. Whatever one
//! does between two steps of the other, what was acknowledged stays whole.

use crate::{
    bench::{Bench, Nfs, cloned, restored, spec, volume, with},
    crashes::nothing,
};
use larder_model::{Cx, Kind, Result, cx::crash::CrashAt, volume::VolumeSpec};
use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
};
use tokio::runtime::Handle;

/// Does `work`, and before its step 1, 2, 3 … all of `meanwhile` in another process; then looks at both
/// results. Ends when there is no such step.
pub(crate) async fn interleaved<T: Send + 'static>(
    bench: &Bench,
    work: impl AsyncFn(&Nfs, &Cx) -> Result<()>,
    meanwhile: impl AsyncFn(&Nfs) -> T + Clone + Send + 'static,
    look: impl AsyncFn(Result<()>, T),
) {
    for step in 1..50 {
        let (nfs, other) = (bench.backend(), bench.backend());
        let result = Arc::new(Mutex::new(None));
        let (told, handle, meanwhile) = (result.clone(), Handle::current(), meanwhile.clone());
        let plan = CrashAt::meanwhile(step, move || {
            let done = handle.block_on(meanwhile(&other));
            *told.lock().unwrap() = Some(done);
        });
        let done = work(&nfs, &plan.cx()).await;
        let Some(result) = result.lock().unwrap().take() else {
            assert!(step > 3, "there are only {step} steps: {:?}", plan.steps());
            return;
        };
        look(done, result).await;
    }
    unreachable!("it never ends");
}

/// A volume's pod has written already.
async fn used(nfs: &Nfs, file: PathBuf, spec: &VolumeSpec) -> Result<()> {
    nfs.make(spec).await?;
    fs::write(file, "precious").unwrap();
    Ok(())
}

fn aborted_or_done(result: Result<()>) {
    if let Err(fault) = result {
        assert_eq!(fault.kind(), Kind::Aborted, "{fault}");
    }
}

#[tokio::test]
async fn of_two_equal_creations_none_takes_back_what_the_other_has_made() {
    let bench = Bench::new();
    let wanted = with("p/v", &[("subDir", "team/v")]);
    let file = bench.export().join("team/v/file");
    let (there, same) = (file.clone(), wanted.clone());
    interleaved(
        &bench,
        async |nfs, cx| nfs.0.provision().ensure_volume(&wanted, cx).await.map(drop),
        async move |nfs| used(nfs, there.clone(), &same).await,
        async |first, second| {
            second.unwrap();
            aborted_or_done(first);
            let nfs = bench.backend();
            nfs.make(&wanted).await.unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
            let fault = nfs.make(&with("p/w", &[("subDir", "team/v")])).await.unwrap_err();
            assert_eq!(fault.kind(), Kind::Precondition, "it is claimed: {fault}");
            nfs.delete("p/v").await.unwrap();
            assert!(!file.exists(), "it is no directory that was found");
            fs::remove_dir(bench.export().join("team")).unwrap();
            nothing(&bench);
        },
    )
    .await;
}

#[tokio::test]
async fn a_creation_that_another_one_or_a_deletion_has_overtaken_leaves_nothing_and_takes_nothing()
{
    let bench = Bench::new();
    let wanted = with("p/v", &[("subDir", "first")]);
    let file = bench.export().join("second/file");
    let there = file.clone();
    interleaved(
        &bench,
        async |nfs, cx| nfs.0.provision().ensure_volume(&wanted, cx).await.map(drop),
        async move |nfs| used(nfs, there.clone(), &with("p/v", &[("subDir", "second")])).await,
        async |first, second| {
            let fault = first.unwrap_err();
            assert!(matches!(fault.kind(), Kind::Aborted | Kind::Conflict), "{fault}");
            second.unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
            assert!(!bench.export().join("first").exists());
            bench.backend().delete("p/v").await.unwrap();
            nothing(&bench);
        },
    )
    .await;
    let bench = Bench::new();
    bench.backend().make(&spec("p/other")).await.unwrap();
    bench.backend().delete("p/other").await.unwrap();
    interleaved(
        &bench,
        async |nfs, cx| nfs.0.provision().ensure_volume(&wanted, cx).await.map(drop),
        async move |nfs| nfs.delete("p/v").await,
        async |first, second| {
            second.unwrap();
            aborted_or_done(first);
            bench.backend().delete("p/v").await.unwrap();
            nothing(&bench);
        },
    )
    .await;
}

#[tokio::test]
async fn a_slow_deletion_never_takes_the_volume_that_was_made_under_its_name() {
    for policy in ["delete", "archive"] {
        let bench = Bench::new();
        let wanted = with("p/v", &[("onDelete", policy)]);
        let file = bench.export().join("v/file");
        let (there, same) = (file.clone(), wanted.clone());
        let before = wanted.clone();
        interleaved(
            &bench,
            async |nfs, cx| {
                nfs.make(&before).await?;
                nfs.delete_in("p/v", cx).await
            },
            async move |nfs| {
                nfs.delete("p/v").await?;
                used(nfs, there.clone(), &same).await
            },
            async |first, second| {
                aborted_or_done(first);
                second.unwrap();
                assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
                let nfs = bench.backend();
                nfs.make(&wanted).await.unwrap();
                nfs.delete("p/v").await.unwrap();
                for name in ["archived-v", "archived-v-2", "archived-v-3"] {
                    let _ = fs::remove_dir_all(bench.export().join(name));
                }
                nothing(&bench);
            },
        )
        .await;
    }
}

#[tokio::test]
async fn of_two_volumes_one_within_the_other_one_alone_comes_to_be() {
    for (outer, inner) in [("team", "team/data"), ("team/data", "team")] {
        let bench = Bench::new();
        interleaved(
            &bench,
            async |nfs, cx| {
                let wanted = with("p/a", &[("subDir", outer)]);
                nfs.0.provision().ensure_volume(&wanted, cx).await.map(drop)
            },
            async move |nfs| nfs.make(&with("p/b", &[("subDir", inner)])).await.map(drop),
            async |first, second| {
                assert!(first.is_err() || second.is_err(), "both came to be");
                let nfs = bench.backend();
                nfs.delete("p/a").await.unwrap();
                nfs.delete("p/b").await.unwrap();
                let _ = fs::remove_dir_all(bench.export().join("team"));
                nothing(&bench);
            },
        )
        .await;
    }
}

#[tokio::test]
async fn of_two_equal_snapshots_or_clones_none_takes_back_what_the_other_has_made() {
    let bench = Bench::new();
    let nfs = bench.backend();
    nfs.make(&spec("p/v")).await.unwrap();
    fs::write(bench.export().join("v/file"), "precious").unwrap();
    interleaved(
        &bench,
        async |nfs, cx| nfs.cut("p/s", "p/v", cx).await.map(drop),
        async move |nfs| nfs.cut("p/s", "p/v", &Cx::new()).await.map(drop),
        async |first, second| {
            second.unwrap();
            aborted_or_done(first);
            let nfs = bench.backend();
            nfs.make(&restored("p/r", "p/s")).await.unwrap();
            assert_eq!(fs::read_to_string(bench.export().join("r/file")).unwrap(), "precious");
            nfs.delete("p/r").await.unwrap();
            nfs.delete_snapshot("p/s", &Cx::new()).await.unwrap();
        },
    )
    .await;
    interleaved(
        &bench,
        async |nfs, cx| nfs.0.provision().ensure_volume(&cloned("p/c", "p/v"), cx).await.map(drop),
        async move |nfs| nfs.make(&cloned("p/c", "p/v")).await.map(drop),
        async |first, second| {
            second.unwrap();
            aborted_or_done(first);
            let nfs = bench.backend();
            nfs.make(&cloned("p/c", "p/v")).await.unwrap();
            assert_eq!(fs::read_to_string(bench.export().join("c/file")).unwrap(), "precious");
            nfs.delete("p/c").await.unwrap();
            assert!(!bench.export().join("c").exists());
        },
    )
    .await;
}

#[tokio::test]
async fn a_slow_deletion_of_a_snapshot_never_takes_the_one_that_was_cut_under_its_name() {
    let bench = Bench::new();
    let nfs = bench.backend();
    nfs.make(&spec("p/v")).await.unwrap();
    fs::write(bench.export().join("v/file"), "precious").unwrap();
    interleaved(
        &bench,
        async |nfs, cx| {
            nfs.cut("p/s", "p/v", &Cx::new()).await?;
            nfs.delete_snapshot("p/s", cx).await
        },
        async move |nfs| {
            nfs.delete_snapshot("p/s", &Cx::new()).await?;
            nfs.cut("p/s", "p/v", &Cx::new()).await.map(drop)
        },
        async |first, second| {
            aborted_or_done(first);
            second.unwrap();
            let nfs = bench.backend();
            nfs.make(&restored("p/r", "p/s")).await.unwrap();
            assert_eq!(fs::read_to_string(bench.export().join("r/file")).unwrap(), "precious");
            nfs.delete("p/r").await.unwrap();
        },
    )
    .await;
    assert!(nfs.0.provision().get_volume(&volume("p/v")).await.is_ok());
}
