//! Crashes at every step of every operation: the process is gone, nothing was cleaned up, another one
//! starts.

use super::{Bench, Dir, clone_of, restore_of, spec, with};
use larder_model::{Bytes, Cx, Result, cx::crash::CrashAt};
use std::{collections::BTreeMap, fs};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Operation {
    Create,
    Clone,
    Restore,
    Cut,
    Grow,
    Delete,
    Uncut,
}

use Operation::{Clone as CloneIt, Create, Cut, Delete, Grow, Restore, Uncut};

pub(crate) const ALL: [Operation; 7] = [Create, CloneIt, Restore, Cut, Grow, Delete, Uncut];

impl Operation {
    async fn run(self, dir: &Dir, cx: &Cx) -> Result<()> {
        match self {
            Create => {
                let class = [("mode", "0750"), ("uid", "12")];
                dir.make_cx(&with("p/new", &class), cx).await.map(drop)
            }
            CloneIt => dir.make_cx(&clone_of("p/new", "p/v"), cx).await.map(drop),
            Restore => dir.make_cx(&restore_of("p/new", "p/s"), cx).await.map(drop),
            Cut => dir.cut_cx("p/new", "p/v", cx).await.map(drop),
            Grow => dir.grow_cx("p/v", Bytes::mib(96), cx).await.map(drop),
            Delete => dir.delete_cx("p/v", cx).await,
            Uncut => dir.uncut_cx("p/s", cx).await,
        }
    }
}

/// A volume with files in it and a snapshot of it.
async fn prepare(bench: &Bench, dir: &Dir) {
    dir.make(&spec("p/v")).await.unwrap();
    let data = bench.data("p/v");
    fs::create_dir_all(data.join("d/e")).unwrap();
    for n in 0..5 {
        fs::write(data.join(format!("d/f{n}")), "some text").unwrap();
    }
    if bench.grounds["p"].is_btrfs() {
        larder_host::btrfs::create_subvolume(&data.join("d/nested")).unwrap();
        fs::write(data.join("d/nested/file"), "nested").unwrap();
    }
    dir.cut("p/s", "p/v").await.unwrap();
}

async fn clear(bench: &Bench, dir: &Dir) {
    for id in ["p/v", "p/new"] {
        dir.delete(id).await.unwrap();
    }
    for id in ["p/s", "p/new"] {
        dir.uncut(id).await.unwrap();
    }
    bench.settled().await;
    assert!(bench.state().is_empty());
}

/// What one uninterrupted run comes to, and its steps.
async fn clean(
    bench: &Bench,
    operation: Operation,
) -> (BTreeMap<String, String>, Vec<&'static str>) {
    let dir = bench.start().await;
    prepare(bench, &dir).await;
    let plan = CrashAt::step(0);
    operation.run(&dir, &plan.cx()).await.unwrap();
    let wanted = bench.state();
    clear(bench, &dir).await;
    (wanted, plan.steps())
}

/// All operations, all steps.
pub(crate) async fn sweep(bench: &Bench) {
    for operation in ALL {
        let (wanted, steps) = clean(bench, operation).await;
        assert!(steps.len() >= 3, "{operation:?} has but the steps {steps:?}");
        for n in 1..=steps.len() {
            for repeated in [true, false] {
                let dir = bench.start().await;
                prepare(bench, &dir).await;
                let before = bench.state();
                let plan = CrashAt::step(n as u64);
                let fault = operation.run(&dir, &plan.cx()).await.unwrap_err();
                assert!(fault.is_simulated_crash(), "{operation:?} at {n}: {fault}");
                drop(dir);

                let dir = bench.start().await;
                if repeated {
                    operation.run(&dir, &Cx::new()).await.unwrap();
                    bench.settled().await;
                    assert_eq!(bench.state(), wanted, "{operation:?}: {fault}");
                    // What was acknowledged is usable.
                    if operation != Delete {
                        dir.connect("p/v").await.unwrap();
                        assert_eq!(dir.health("p/v").await, [""; 0], "{operation:?}: {fault}");
                    }
                    assert_eq!(bench.state(), wanted, "{operation:?}: {fault}");
                } else {
                    bench.settled().await;
                    // Done or not done, never half. Only growth may have had its effect already:
                    // a limit above the recorded size, which the next stage takes back.
                    let now = bench.state();
                    assert!(now == before || now == wanted, "{operation:?}: {fault}: {now:?}");
                }
                clear(bench, &dir).await;
            }
        }
    }
}
