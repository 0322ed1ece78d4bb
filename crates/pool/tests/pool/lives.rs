//! Random lives: several callers at once, crashes and restarts, against a plain model of what has
//! been acknowledged.

use crate::support::{
    Bench, Calls, FakeMedium, copied, crash_at, grow_with, settled, sized, snapshot, volume,
};
use larder_model::{
    Bytes, Cx, Fault, Kind, Provision, Secrets,
    volume::{ContentSource, VolumeSpec},
};
use larder_pool::LocalBackend;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
enum Act {
    Create { volume: u8, mib: u64 },
    Clone { volume: u8, source: u8 },
    Restore { volume: u8, snapshot: u8 },
    Cut { snapshot: u8, source: u8 },
    Grow { volume: u8, mib: u64 },
    Delete { volume: u8 },
    Uncut { snapshot: u8 },
}

fn act() -> impl Strategy<Value = Act> {
    let name = || 0..4_u8;
    let mib = || 1..40_u64;
    prop_oneof![
        3 => (name(), mib()).prop_map(|(volume, mib)| Act::Create { volume, mib }),
        1 => (name(), name()).prop_map(|(volume, source)| Act::Clone { volume, source }),
        1 => (name(), name()).prop_map(|(volume, snapshot)| Act::Restore { volume, snapshot }),
        2 => (name(), name()).prop_map(|(snapshot, source)| Act::Cut { snapshot, source }),
        1 => (name(), mib()).prop_map(|(volume, mib)| Act::Grow { volume, mib }),
        2 => name().prop_map(|volume| Act::Delete { volume }),
        1 => name().prop_map(|snapshot| Act::Uncut { snapshot }),
    ]
}

/// Pools are spread by name, so that copies cross them.
fn id(n: u8) -> String {
    format!("{}/v{n}", if n < 3 { "a" } else { "b" })
}

fn snapshot_id(n: u8, source: u8) -> String {
    format!("{}/s{n}", if source < 3 { "a" } else { "b" })
}

/// What is there: volumes with size and source, snapshots with source and size.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    volumes: BTreeMap<u8, (Bytes, Option<ContentSource>)>,
    snapshots: BTreeMap<u8, (u8, Bytes)>,
}

impl Model {
    /// What the call must answer; the model after it.
    fn apply(&self, act: &Act) -> (Result<(), Kind>, Self) {
        let mut after = self.clone();
        let least = |at_least: Bytes| at_least.max(Bytes::mib(1));
        let mut make =
            |n: u8, size: Bytes, source: Option<ContentSource>| match self.volumes.get(&n) {
                Some((there, from)) if *there >= size && *from == source => Ok(()),
                Some(_) => Err(Kind::Conflict),
                None => {
                    after.volumes.insert(n, (least(size), source));
                    Ok(())
                }
            };
        let answer = match *act {
            Act::Create { volume, mib } => make(volume, Bytes::mib(mib), None),
            Act::Clone { volume: n, source } => {
                let from = Some(ContentSource::Volume(volume(&id(source))));
                match (self.volumes.get(&n), self.volumes.get(&source)) {
                    (None, None) => Err(Kind::NotFound),
                    (None, _) if n == source => Err(Kind::NotFound),
                    (None, Some((size, _))) => make(n, *size, from),
                    (Some(_), _) => make(n, Bytes::ZERO, from),
                }
            }
            Act::Restore { volume: n, snapshot: s } => {
                let pool = self.snapshots.get(&s).map_or(0, |(source, _)| *source);
                let from = Some(ContentSource::Snapshot(snapshot(&snapshot_id(s, pool))));
                match (self.volumes.get(&n), self.snapshots.get(&s)) {
                    (None, None) => Err(Kind::NotFound),
                    (None, Some((_, size))) => make(n, *size, from),
                    (Some(_), _) => make(n, Bytes::ZERO, from),
                }
            }
            Act::Cut { snapshot, source } => {
                match (self.snapshots.get(&snapshot), self.volumes.get(&source)) {
                    (Some((of, _)), _) if *of == source => Ok(()),
                    (Some(_), _) => Err(Kind::Conflict),
                    (None, None) => Err(Kind::NotFound),
                    (None, Some((size, _))) => {
                        after.snapshots.insert(snapshot, (source, *size));
                        Ok(())
                    }
                }
            }
            Act::Grow { volume, mib } => match after.volumes.get_mut(&volume) {
                Some((size, _)) => {
                    *size = (*size).max(Bytes::mib(mib));
                    Ok(())
                }
                None => Err(Kind::NotFound),
            },
            Act::Delete { volume } => {
                after.volumes.remove(&volume);
                Ok(())
            }
            Act::Uncut { snapshot } => {
                after.snapshots.remove(&snapshot);
                Ok(())
            }
        };
        (answer, after)
    }

    /// What the driver has.
    async fn of(backend: &LocalBackend<FakeMedium>) -> Self {
        let mut model = Self::default();
        let number = |id: &str| id.rsplit(['v', 's']).next().unwrap().parse::<u8>().unwrap();
        for id in backend.ids().await {
            let found = backend.get(&id).await.unwrap();
            model.volumes.insert(number(&id), (found.capacity, found.source));
        }
        for id in backend.snapshot_ids().await {
            let snapshots = backend.snapshots().unwrap();
            let found = snapshots.get_snapshot(&snapshot(&id)).await.unwrap();
            model.snapshots.insert(number(&id), (number(found.source.as_str()), found.size));
        }
        model
    }
}

async fn run(
    backend: &LocalBackend<FakeMedium>,
    model: &Model,
    act: &Act,
    cx: &Cx,
) -> Result<(), Fault> {
    let snapshots = backend.snapshots().unwrap();
    let pool_of = |s: u8| model.snapshots.get(&s).map_or(0, |(source, _)| *source);
    let make = |spec: VolumeSpec| async move { backend.ensure_volume(&spec, cx).await.map(drop) };
    match *act {
        Act::Create { volume, mib } => make(sized(&id(volume), Bytes::mib(mib), None)).await,
        Act::Clone { volume: n, source } => {
            make(copied(&id(n), ContentSource::Volume(volume(&id(source))))).await
        }
        Act::Restore { volume: n, snapshot: s } => {
            let from = ContentSource::Snapshot(snapshot(&snapshot_id(s, pool_of(s))));
            make(copied(&id(n), from)).await
        }
        Act::Cut { snapshot, source } => {
            let spec = crate::support::snapshot_spec(&snapshot_id(snapshot, source), &id(source));
            snapshots.ensure_snapshot(&spec, cx).await.map(drop)
        }
        Act::Grow { volume, mib } => {
            grow_with(backend, &id(volume), Bytes::mib(mib), cx).await.map(drop)
        }
        Act::Delete { volume: n } => {
            backend.delete_volume(&volume(&id(n)), &Secrets::default(), cx).await
        }
        Act::Uncut { snapshot: s } => {
            let id = snapshot(&snapshot_id(s, pool_of(s)));
            snapshots.delete_snapshot(&id, &Secrets::default(), cx).await
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: (ProptestConfig::default().cases / 32).max(24), ..ProptestConfig::default() })]

    /// One caller, and a crash now and then: before the call's effect or after it, never between.
    #[test]
    fn driver_and_model_stay_the_same_in_random_lives(
        acts in proptest::collection::vec((act(), 0..24_u64), 1..24)
    ) {
        runtime().block_on(async {
            let bench = Bench::default();
            let mut backend = bench.start().await;
            let mut model = Model::default();
            for (act, crash) in &acts {
                let (wanted, after) = model.apply(act);
                let plan = crash_at(if *crash > 8 { 0 } else { *crash });
                match run(&backend, &model, act, &plan.cx()).await {
                    Err(fault) if fault.is_simulated_crash() => {
                        drop(backend);
                        backend = bench.start().await;
                        let found = Model::of(&backend).await;
                        assert!(found == model || found == after, "{act:?}: {fault}: {found:?}");
                        model = found;
                    }
                    answer => {
                        assert_eq!(answer.as_ref().map_err(Fault::kind).copied(), wanted, "{act:?}: {answer:?}");
                        model = after;
                        assert_eq!(Model::of(&backend).await, model, "{act:?}");
                    }
                }
            }
            drop(backend);
            let backend = bench.start().await;
            assert_eq!(Model::of(&backend).await, model);
            settled(&bench).await;
            assert_eq!(bench.state().len(), model.volumes.len() + model.snapshots.len());
        });
    }

    /// Many callers: each answer is one the contract allows, and memory and disk agree at the end.
    #[test]
    fn many_random_callers_leave_a_pool_that_a_restart_finds_as_it_was(
        acts in proptest::collection::vec(act(), 32..96)
    ) {
        use Kind::{Aborted, Conflict, NotFound};
        runtime().block_on(async {
            let bench = Bench::default();
            let backend = bench.start().await;
            let mut callers = tokio::task::JoinSet::new();
            for part in acts.chunks(acts.len() / 4) {
                let (part, backend) = (part.to_vec(), backend.clone());
                callers.spawn(async move {
                    for act in part {
                        let model = Model::of_snapshots(&backend).await;
                        if let Err(fault) = run(&backend, &model, &act, &Cx::new()).await {
                            assert!(
                                matches!(fault.kind(), Aborted | Conflict | NotFound),
                                "{act:?}: {fault}"
                            );
                        }
                    }
                });
            }
            callers.join_all().await;
            let before = Model::of(&backend).await;
            drop(backend);
            let backend = bench.start().await;
            assert_eq!(Model::of(&backend).await, before);
            settled(&bench).await;
            assert_eq!(bench.state().len(), before.volumes.len() + before.snapshots.len());
        });
    }
}

impl Model {
    /// Only where snapshots are, while others change everything.
    async fn of_snapshots(backend: &LocalBackend<FakeMedium>) -> Self {
        let mut model = Self::default();
        for id in backend.snapshot_ids().await {
            let number = id.rsplit('s').next().unwrap().parse().unwrap();
            let source = if id.starts_with("a/") { 0 } else { 3 };
            model.snapshots.insert(number, (source, Bytes::ZERO));
        }
        model
    }
}
