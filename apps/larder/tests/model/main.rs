//! A reference model: random calls from several tasks at once, to a real driver on real mounts, and a
//! page of obvious code that says what may be answered.
//!
//! | module | what it is |
//! |---|---|
//! | [`call`] | the calls, of few names so that they meet, and how they are made |
//! | [`state`] | the model: what there is, and what each call may answer and leave |
//! | [`order`] | whether some order of the calls explains all answers |
//! | [`world`] | the driver, its restarts and its kills, and the data in its volumes |
//!
//! Tasks run in batches. Within one, calls overlap as they like; some order of them, that keeps each
//! call before those that began after its answer, must explain every answer. A call whose driver was
//! killed (SIGKILL) may have had its effect, or not. Between batches everything is listed and the data
//! of every mounted volume is read, and compared with all that the model holds possible; new data is
//! written. In the end everything is deleted, and nothing may be left.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]
#![allow(clippy::disallowed_methods, reason = "every task is waited for")]

mod call;
mod order;
mod state;
#[path = "../support/mod.rs"]
mod support;
mod world;

use call::Call;
use proptest::{collection::vec, prelude::*, test_runner::FileFailurePersistence};
use world::World;

/// The seeds of what failed once; they are tried first.
const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/model/regressions.txt");

/// What happens to the driver in and after a batch.
#[derive(Debug, Clone, Copy)]
enum End {
    /// Nothing.
    Goes,
    /// It is stopped in peace, and started.
    Restarts,
    /// It is killed after so many milliseconds, whatever it does then, and started.
    Dies(u64),
}

/// Calls of several tasks at once.
#[derive(Debug, Clone)]
struct Batch {
    tasks: Vec<Vec<Call>>,
    end: End,
    /// New data is written to what is mounted afterwards.
    write: bool,
}

fn batch() -> impl Strategy<Value = Batch> {
    let end = prop_oneof![
        4 => Just(End::Goes),
        2 => Just(End::Restarts),
        3 => (0..400u64).prop_map(End::Dies),
    ];
    // One task alone is compared exactly.
    let tasks = prop_oneof![
        1 => vec(vec(call::any(), 1..12), 1..2),
        3 => vec(vec(call::any(), 1..5), 2..5),
    ];
    (tasks, end, any::<bool>()).prop_map(|(tasks, end, write)| Batch { tasks, end, write })
}

fn history() -> impl Strategy<Value = Vec<Batch>> {
    vec(batch(), 1..7)
}

/// Each case makes file systems and mounts them, which takes seconds: few by default, more in the
/// stage that raises `PROPTEST_CASES`. What fails is simplified for some time, by living it again:
/// what tasks do at once is not the same twice.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: (default.cases / 512).max(1),
        max_shrink_time: 60_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
        ..default
    }
}

fn live(backend: &'static str, fs: &str, batches: &[Batch]) -> Result<(), TestCaseError> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let lived = runtime.block_on(async {
        let mut world = World::new(backend, fs).await;
        for (n, batch) in batches.iter().enumerate() {
            world.live(batch).await.map_err(|why| format!("batch {n}: {why}"))?;
        }
        world.end().await.map_err(|why| format!("at the end: {why}"))
    });
    lived.map_err(TestCaseError::fail)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn loop_volumes_in_random_lives_are_as_the_model_says(batches in history()) {
        live("loop", "xfs", &batches)?;
    }

    #[test]
    fn dir_volumes_in_random_lives_are_as_the_model_says(batches in history()) {
        live("dir", "xfs", &batches)?;
    }

    #[test]
    fn dir_volumes_on_btrfs_in_random_lives_are_as_the_model_says(batches in history()) {
        live("dir", "btrfs", &batches)?;
    }
}
