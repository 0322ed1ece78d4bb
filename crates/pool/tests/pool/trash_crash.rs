//! Crashes at every step on the way into the trash, out of it and away.

use crate::{
    support::{Bench, Calls, FakeMedium, crash_at, settled, sized, snapshot, spec, volume},
    trash::{bench, restore, trash},
};
use larder_model::{
    Bytes, Cx, Kind, Provision, Result, Secrets,
    trash::{Sort, Trash as _},
};
use larder_pool::LocalBackend;
use std::collections::BTreeMap;

type Backend = LocalBackend<FakeMedium>;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Operation {
    Delete,
    Uncut,
    Restore,
    RestoreAs,
    RestoreSnapshot,
    Remove,
}

const ALL: [Operation; 6] = [
    Operation::Delete,
    Operation::Uncut,
    Operation::Restore,
    Operation::RestoreAs,
    Operation::RestoreSnapshot,
    Operation::Remove,
];

impl Operation {
    async fn run(self, backend: &Backend, cx: &Cx) -> Result<()> {
        let secrets = Secrets::default();
        let sort = if self == Self::RestoreSnapshot { Sort::Snapshot } else { Sort::Volume };
        let item = trash(backend).await.into_iter().find(|item| item.sort == sort);
        let id = item.map_or_else(|| "0".to_owned(), |item| item.id);
        match self {
            Self::Delete => backend.delete_volume(&volume("a/v"), &secrets, cx).await,
            Self::Uncut => {
                backend.snapshots().unwrap().delete_snapshot(&snapshot("a/s"), &secrets, cx).await
            }
            Self::Restore | Self::RestoreSnapshot => backend.restore(&id, None, cx).await.map(drop),
            Self::RestoreAs => {
                backend.restore(&id, Some(&"other".parse().unwrap()), cx).await.map(drop)
            }
            Self::Remove => backend.remove(&id, cx).await,
        }
    }
}

/// A volume and a snapshot; another of each in the trash.
async fn prepared() -> (Bench, Backend) {
    let bench = bench(|_| {});
    let backend = bench.start().await;
    backend.create(&sized("a/v", Bytes::mib(8), None)).await.unwrap();
    backend.cut("a/s", "a/v").await.unwrap();
    backend.create(&spec("a/deleted")).await.unwrap();
    backend.delete("a/deleted").await.unwrap();
    backend.cut("a/uncut", "a/v").await.unwrap();
    backend.uncut("a/uncut").await.unwrap();
    (bench, backend)
}

async fn clean(operation: Operation) -> (BTreeMap<String, String>, Vec<&'static str>) {
    let (bench, backend) = prepared().await;
    let plan = crash_at(0);
    operation.run(&backend, &plan.cx()).await.unwrap();
    (bench.state(), plan.steps())
}

#[tokio::test]
async fn a_crash_at_any_step_of_the_trash_loses_nothing_and_a_repeat_ends_it() {
    for operation in ALL {
        let before = prepared().await.0.state();
        let (wanted, steps) = clean(operation).await;
        assert!(steps.len() >= 3, "{operation:?} has but the steps {steps:?}");
        for n in 1..=steps.len() {
            let (bench, backend) = prepared().await;
            let fault = operation.run(&backend, &crash_at(n as u64).cx()).await.unwrap_err();
            assert!(fault.is_simulated_crash(), "{operation:?} at {n}: {fault}");
            drop(backend);
            let backend = bench.start().await;
            settled(&bench).await;
            let state = bench.state();
            assert!(state == before || state == wanted, "{operation:?} at {fault}: {state:?}");
            match operation.run(&backend, &Cx::new()).await {
                Ok(()) => {}
                // A restoration that was complete but for the trash's record.
                Err(second) => {
                    assert_eq!(second.kind(), Kind::NotFound, "{operation:?}: {fault}: {second}");
                    assert_eq!(state, wanted);
                }
            }
            settled(&bench).await;
            assert_eq!(bench.state(), wanted, "{operation:?}: {fault}");
            drop(backend);
            let _backend = bench.start().await;
            assert_eq!(bench.state(), wanted, "{operation:?}, third start: {fault}");
        }
    }
}

#[tokio::test]
async fn a_half_done_rename_on_restore_is_taken_back_by_the_next_one() {
    let (bench, backend) = prepared().await;
    let id = trash(&backend).await.into_iter().find(|item| item.sort == Sort::Volume).unwrap().id;
    // Dies after the new name was written and before the volume was moved.
    let other = "other".parse().unwrap();
    let fault = backend.restore(&id, Some(&other), &crash_at(2).cx()).await.unwrap_err();
    assert!(fault.to_string().contains("take it out of the trash"), "{fault}");
    drop(backend);
    let backend = bench.start().await;
    assert_eq!(restore(&backend, &id, None).await.unwrap(), "a/deleted");
    assert_eq!(backend.get("a/deleted").await.unwrap().name, "deleted");
    backend.create(&spec("a/deleted")).await.unwrap();
}

/// The steps of the attempt that finds no room, and of taking it back.
const BEFORE: u64 = 6;

#[tokio::test]
async fn a_crash_while_room_is_made_leaves_nothing() {
    for n in 1..=5 {
        let bench = bench(|_| {});
        bench.mount("tmpfs", "tmpfs", &bench.pool("a"), &["size=1m"]);
        let backend = bench.start().await;
        bench.knobs().weight = 400 << 10;
        for name in ["a/x", "a/y"] {
            backend.create(&spec(name)).await.unwrap();
            backend.delete(name).await.unwrap();
        }
        let plan = crash_at(BEFORE + n);
        let fault = backend.ensure_volume(&spec("a/new"), &plan.cx()).await.unwrap_err();
        assert!(fault.is_simulated_crash(), "step {n}: {fault}");
        let steps = plan.steps();
        assert_eq!(steps[usize::try_from(BEFORE).unwrap()], "take it from the trash for good");
        drop(backend);
        let backend = bench.start().await;
        settled(&bench).await;
        bench.state();
        backend.create(&spec("a/new")).await.unwrap();
        settled(&bench).await;
        bench.state();
    }
}
