//! Crashes at every step: the process is gone, nothing was cleaned up, another one starts.

use crate::support::{
    Bench, Calls, FakeMedium, copied, crash_at, file_names, grow_with, settled, sized, snapshot,
    snapshot_spec, spec, volume,
};
use larder_model::{
    Backend as _, Bytes, Cx, Fault, Provision, Result, Secrets, volume::ContentSource,
};
use larder_pool::LocalBackend;
use std::collections::BTreeMap;

type Backend = LocalBackend<FakeMedium>;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Operation {
    Create,
    Clone,
    Restore,
    RestoreElsewhere,
    Cut,
    Grow,
    Delete,
    Uncut,
}

const ALL: [Operation; 8] = [
    Operation::Create,
    Operation::Clone,
    Operation::Restore,
    Operation::RestoreElsewhere,
    Operation::Cut,
    Operation::Grow,
    Operation::Delete,
    Operation::Uncut,
];

impl Operation {
    async fn run(self, backend: &Backend, cx: &Cx) -> Result<()> {
        let restore = |id| copied(id, ContentSource::Snapshot(snapshot("a/s")));
        let snapshots = backend.snapshots().unwrap();
        match self {
            Self::Create => backend.ensure_volume(&spec("a/new"), cx).await.map(drop),
            Self::Clone => {
                let clone = copied("a/new", ContentSource::Volume(volume("a/v")));
                backend.ensure_volume(&clone, cx).await.map(drop)
            }
            Self::Restore => backend.ensure_volume(&restore("a/new"), cx).await.map(drop),
            Self::RestoreElsewhere => backend.ensure_volume(&restore("b/new"), cx).await.map(drop),
            Self::Cut => {
                snapshots.ensure_snapshot(&snapshot_spec("a/new", "a/v"), cx).await.map(drop)
            }
            Self::Grow => grow_with(backend, "a/v", Bytes::mib(64), cx).await.map(drop),
            Self::Delete => backend.delete_volume(&volume("a/v"), &Secrets::default(), cx).await,
            Self::Uncut => {
                snapshots.delete_snapshot(&snapshot("a/s"), &Secrets::default(), cx).await
            }
        }
    }

    /// Takes back what the operation makes.
    async fn forget(self, backend: &Backend) -> Result<()> {
        match self {
            Self::Cut => backend.uncut("a/new").await,
            Self::RestoreElsewhere => backend.delete("b/new").await,
            _ => backend.delete("a/new").await,
        }
    }
}

/// Two pools, a volume and a snapshot of it.
async fn prepared() -> (Bench, Backend) {
    let bench = Bench::default();
    let backend = bench.start().await;
    backend.create(&sized("a/v", Bytes::mib(8), None)).await.unwrap();
    backend.cut("a/s", "a/v").await.unwrap();
    (bench, backend)
}

/// What one uninterrupted run comes to, and its steps.
async fn clean(operation: Operation) -> (BTreeMap<String, String>, Vec<&'static str>) {
    let (bench, backend) = prepared().await;
    let plan = crash_at(0);
    operation.run(&backend, &plan.cx()).await.unwrap();
    (bench.state(), plan.steps())
}

/// Runs the operation, crashes at step `n`, and starts a new process.
async fn crashed(operation: Operation, n: usize) -> (Bench, Backend, Fault) {
    let (bench, backend) = prepared().await;
    let plan = crash_at(n as u64);
    let fault = operation.run(&backend, &plan.cx()).await.unwrap_err();
    assert!(fault.is_simulated_crash(), "{operation:?} at {n}: {fault}");
    drop(backend);
    let backend = bench.start().await;
    (bench, backend, fault)
}

#[tokio::test]
async fn a_repeat_after_a_crash_at_any_step_comes_to_the_same_as_a_clean_run() {
    for operation in ALL {
        let (wanted, steps) = clean(operation).await;
        assert!(steps.len() >= 4, "{operation:?} has but the steps {steps:?}");
        for n in 1..=steps.len() {
            let (bench, backend, fault) = crashed(operation, n).await;
            operation.run(&backend, &Cx::new()).await.unwrap();
            settled(&bench).await;
            assert_eq!(bench.state(), wanted, "{operation:?}: {fault}");
            // And again by a third process, which finds nothing to mend.
            drop(backend);
            let backend = bench.start().await;
            operation.run(&backend, &Cx::new()).await.unwrap();
            assert_eq!(bench.state(), wanted, "{operation:?}, third run: {fault}");
        }
    }
}

#[tokio::test]
async fn nothing_is_left_when_a_crashed_operation_is_never_repeated() {
    for operation in ALL {
        let (_, steps) = clean(operation).await;
        let before = {
            let (bench, _backend) = prepared().await;
            bench.state()
        };
        for n in 1..=steps.len() {
            let (bench, _backend, fault) = crashed(operation, n).await;
            settled(&bench).await;
            // Done or not done, never half: `state` refuses everything in between.
            let state = bench.state();
            let changed = state != before;
            assert!(changed || state == before, "{operation:?}: {fault}");
            let extra = state.keys().filter(|key| !before.contains_key(*key)).count();
            assert!(extra <= 1, "{operation:?}: {fault}: {state:?}");
        }
    }
}

#[tokio::test]
async fn a_crashed_creation_can_be_deleted_by_its_name() {
    use Operation::{Clone, Create, Cut, Restore, RestoreElsewhere};
    for operation in [Create, Clone, Cut, Restore, RestoreElsewhere] {
        let (_, steps) = clean(operation).await;
        for n in 1..=steps.len() {
            let (bench, backend, fault) = crashed(operation, n).await;
            operation.forget(&backend).await.unwrap();
            settled(&bench).await;
            assert_eq!(bench.state().len(), 2, "{operation:?}: {fault}");
        }
    }
}

#[tokio::test]
async fn a_crash_while_a_crash_is_mended_is_mended() {
    // The clean-up of the crash at the content is itself cut, at each of its steps, by an error:
    // the start after that finds the rest.
    for failures in 1..4 {
        let (bench, backend, _) = crashed(Operation::Create, 3).await;
        drop(backend);
        bench.knobs().failing_removals = failures;
        for _ in 0..failures {
            drop(bench.start().await);
        }
        let backend = bench.start().await;
        settled(&bench).await;
        assert_eq!(bench.state().len(), 2);
        Operation::Create.run(&backend, &Cx::new()).await.unwrap();
        assert_eq!(bench.state().len(), 3);
    }
}

#[tokio::test]
async fn a_start_that_is_killed_at_any_step_is_repeated() {
    for step in 1.. {
        let (bench, backend) = prepared().await;
        let want = bench.state();
        // Two unfinished volumes and a deletion, each cut in the middle.
        backend.create(&spec("a/gone")).await.unwrap();
        for id in ["a/half", "a/other"] {
            backend.ensure_volume(&spec(id), &crash_at(4).cx()).await.unwrap_err();
        }
        let delete = crash_at(5);
        let gone = volume("a/gone");
        backend.delete_volume(&gone, &Secrets::default(), &delete.cx()).await.unwrap_err();
        drop(backend);
        let plan = crash_at(step);
        let backend = bench.stopped();
        let result = backend.start(&plan.cx()).await;
        // The thread that removes is cut as well.
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        let enough = result.is_ok() && plan.steps().len() < usize::try_from(step).unwrap();
        assert!(result.is_ok() || result.unwrap_err().is_simulated_crash());
        drop(backend);
        let backend = bench.start().await;
        settled(&bench).await;
        assert_eq!(bench.state(), want, "killed at step {step} of {:?}", plan.steps());
        backend.create(&spec("a/half")).await.unwrap();
        if enough {
            assert!(step > 4, "{:?}", plan.steps());
            break;
        }
    }
}

#[tokio::test]
async fn a_half_made_volume_is_never_seen() {
    let (_, steps) = clean(Operation::Create).await;
    for n in 1..=steps.len() {
        let (bench, backend) = prepared().await;
        let plan = crash_at(n as u64);
        Operation::Create.run(&backend, &plan.cx()).await.unwrap_err();
        // Not by the process that still lives, not by the next.
        assert_eq!(backend.ids().await, ["a/v"], "step {n}: not acknowledged, not listed");
        drop(backend);
        let backend = bench.start().await;
        for id in backend.ids().await {
            backend.get(&id).await.unwrap();
            let (pool, name) = id.split_once('/').unwrap();
            let folder = bench.pool(pool).join("volumes").join(name);
            assert_eq!(file_names(&folder).len(), 2, "{id} at step {n}");
        }
    }
}

#[tokio::test]
async fn left_overs_that_are_not_ours_stay() {
    let (bench, backend) = prepared().await;
    drop(backend);
    for folder in ["creating", "deleting"] {
        let strange = bench.pool("a").join(folder).join("Keep me");
        std::fs::create_dir(&strange).unwrap();
        std::fs::write(strange.join("file"), "precious").unwrap();
    }
    let backend = bench.start().await;
    settled_but(&bench, "Keep me").await;
    for folder in ["creating", "deleting"] {
        let file = bench.pool("a").join(folder).join("Keep me/file");
        assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
    }
    backend.create(&spec("a/new")).await.unwrap();
}

async fn settled_but(bench: &Bench, keep: &str) {
    let folder = bench.pool("a").join("deleting");
    for _ in 0..100 {
        if file_names(&folder).iter().all(|name| name == keep) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("not settled: {:?}", file_names(&folder));
}
