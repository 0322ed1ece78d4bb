//! Random histories against a model: the engine and a page of obvious code must agree.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const POOLS: [&str; 2] = ["default", "other"];

/// One call. Names and sizes are few, so that calls meet each other's results.
#[derive(Debug, Clone)]
enum Step {
    Create { name: u8, pool: Option<u8>, mib: i64, limited: bool, source: Option<Source> },
    Delete { id: Id },
    Expand { id: Id, mib: i64 },
    Snapshot { name: u8, source: Id },
    DeleteSnapshot { id: Id },
    Restart,
}

#[derive(Debug, Clone)]
enum Source {
    Volume(Id),
    Snapshot(Id),
}

/// Pool and name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Id(u8, u8);

impl Id {
    fn volume(self) -> String {
        format!("{}/v{}", POOLS[usize::from(self.0)], self.1)
    }
    fn snapshot(self) -> String {
        format!("{}/s{}", POOLS[usize::from(self.0)], self.1)
    }
}

fn id() -> impl Strategy<Value = Id> {
    (0..2u8, 0..3u8).prop_map(|(pool, name)| Id(pool, name))
}

fn source() -> impl Strategy<Value = Source> {
    prop_oneof![id().prop_map(Source::Volume), id().prop_map(Source::Snapshot)]
}

fn step() -> impl Strategy<Value = Step> {
    let create =
        (0..3u8, prop::option::of(0..2u8), 0..5i64, any::<bool>(), prop::option::of(source()))
            .prop_map(|(name, pool, mib, limited, source)| Step::Create {
                name,
                pool,
                mib,
                limited,
                source,
            });
    prop_oneof![
        5 => create,
        2 => id().prop_map(|id| Step::Delete { id }),
        2 => (id(), 1..5i64).prop_map(|(id, mib)| Step::Expand { id, mib }),
        3 => (0..3u8, id()).prop_map(|(name, source)| Step::Snapshot { name, source }),
        1 => id().prop_map(|id| Step::DeleteSnapshot { id }),
        1 => Just(Step::Restart),
    ]
}

#[derive(Debug, Default)]
struct Model {
    /// Size in MiB, and source as text.
    volumes: BTreeMap<Id, (i64, Option<String>)>,
    /// Source, and its size when it was cut.
    snapshots: BTreeMap<Id, (Id, i64)>,
}

impl Model {
    /// The size of a new or existing volume, or the kind of the refusal.
    fn create(
        &mut self,
        name: u8,
        pool: Option<u8>,
        (mib, limited): (i64, bool),
        source: Option<&Source>,
    ) -> Result<i64, Kind> {
        let place = match source {
            Some(Source::Volume(id) | Source::Snapshot(id)) => id.0,
            None => 0,
        };
        let id = Id(pool.unwrap_or(place), name);
        let limit = if limited { mib.max(1) } else { i64::MAX };
        let source_text = source.map(|s| match s {
            Source::Volume(id) => format!("volume {}", id.volume()),
            Source::Snapshot(id) => format!("snapshot {}", id.snapshot()),
        });
        if let Some((size, from)) = self.volumes.get(&id) {
            let same = *from == source_text && *size >= mib && *size <= limit;
            return if same { Ok(*size) } else { Err(Kind::Conflict) };
        }
        if self.volumes.contains_key(&Id(1 - id.0, name)) {
            return Err(Kind::Conflict);
        }
        let least = match source {
            None => 0,
            Some(Source::Volume(id)) => self.volumes.get(id).ok_or(Kind::NotFound)?.0,
            Some(Source::Snapshot(id)) => self.snapshots.get(id).ok_or(Kind::NotFound)?.1,
        };
        if (mib > 0 && mib < least) || limit < least {
            return Err(Kind::OutOfRange);
        }
        let size = match (mib, least) {
            (0, 0) => limit.min(1024),
            (mib, least) => mib.max(least),
        };
        self.volumes.insert(id, (size, source_text));
        Ok(size)
    }

    fn expand(&mut self, id: Id, mib: i64) -> Result<i64, Kind> {
        let (size, _) = self.volumes.get_mut(&id).ok_or(Kind::NotFound)?;
        *size = (*size).max(mib);
        Ok(*size)
    }

    fn snapshot(&mut self, name: u8, source: Id) -> Result<i64, Kind> {
        let id = Id(source.0, name);
        if let Some((of, size)) = self.snapshots.get(&id) {
            return if *of == source { Ok(*size) } else { Err(Kind::Conflict) };
        }
        if self.snapshots.contains_key(&Id(1 - id.0, name)) {
            return Err(Kind::Conflict);
        }
        let size = self.volumes.get(&source).ok_or(Kind::NotFound)?.0;
        self.snapshots.insert(id, (source, size));
        Ok(size)
    }
}

fn mib(n: i64) -> i64 {
    n << 20
}

fn in_mib(size: Bytes) -> i64 {
    size.as_i64() >> 20
}

async fn agree(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (mut engine, mut backend) = engine().await;
    let mut model = Model::default();
    for step in steps {
        let text = format!("{step:?}");
        let (got, expected): (Result<i64>, Result<i64, Kind>) = match step {
            Step::Create { name, pool, mib: size, limited, source } => {
                let pool_name = pool.map(|p| POOLS[usize::from(p)]);
                let parameters = pool_name.map(|p| map(&[("pool", p)])).unwrap_or_default();
                let limit = if limited { mib(size.max(1)) } else { 0 };
                let request = CreateVolume {
                    capacity: range(mib(size), limit),
                    parameters,
                    source: source.as_ref().map(|s| match s {
                        Source::Volume(id) => SourceId::Volume(id.volume()),
                        Source::Snapshot(id) => SourceId::Snapshot(id.snapshot()),
                    }),
                    ..create(&format!("v{name}"))
                };
                let got = engine.create_volume(request).await.map(|v| in_mib(v.capacity));
                (got, model.create(name, pool, (size, limited), source.as_ref()))
            }
            Step::Delete { id } => {
                model.volumes.remove(&id);
                (delete(&engine, &id.volume()).await.map(|()| 0), Ok(0))
            }
            Step::Expand { id, mib: size } => {
                let got = engine.expand_volume(expand(&id.volume(), mib(size))).await;
                (got.map(|e| in_mib(e.capacity)), model.expand(id, size))
            }
            Step::Snapshot { name, source } => {
                let request = snapshot(&format!("s{name}"), &source.volume());
                let got = engine.create_snapshot(request).await.map(|s| in_mib(s.size));
                (got, model.snapshot(name, source))
            }
            Step::DeleteSnapshot { id } => {
                model.snapshots.remove(&id);
                (delete_snapshot(&engine, &id.snapshot()).await.map(|()| 0), Ok(0))
            }
            Step::Restart => {
                (engine, backend) = over(backend.restarted()).await;
                (Ok(0), Ok(0))
            }
        };
        prop_assert_eq!(got.map_err(|f| f.kind()), expected, "{}", text);

        let listed = engine.list_volumes(Paging::default()).await.unwrap().volumes;
        let listed: BTreeMap<String, i64> = listed
            .into_iter()
            .map(|e| (e.volume.id.to_string(), in_mib(e.volume.capacity)))
            .collect();
        let wanted: BTreeMap<String, i64> =
            model.volumes.iter().map(|(id, (size, _))| (id.volume(), *size)).collect();
        prop_assert_eq!(listed, wanted, "{}", text);
        let listed = engine.list_snapshots(ListSnapshots::default()).await.unwrap().snapshots;
        let listed: BTreeMap<String, String> =
            listed.into_iter().map(|s| (s.id.to_string(), s.source.to_string())).collect();
        let wanted: BTreeMap<String, String> =
            model.snapshots.iter().map(|(id, (of, _))| (id.snapshot(), of.volume())).collect();
        prop_assert_eq!(listed, wanted, "{}", text);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::default())]
    #[test]
    fn random_calls_leave_what_the_model_says(steps in prop::collection::vec(step(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(agree(steps))?;
    }
}
