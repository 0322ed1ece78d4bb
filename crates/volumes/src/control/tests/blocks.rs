//! Allocated and changed blocks.

use super::*;
use crate::testing::BLOCK;
use futures::StreamExt;
use larder_model::{backend::FoundExtents, volume::Extent};

fn query(base: Option<&str>, snapshot: &str) -> QueryBlocks {
    QueryBlocks {
        base_snapshot_id: base.map(str::to_owned),
        snapshot_id: snapshot.into(),
        ..QueryBlocks::default()
    }
}

/// The numbers of the blocks in a whole stream, and its number of pages.
async fn read(engine: &ControlEngine, query: QueryBlocks) -> Result<(Vec<u64>, usize)> {
    let mut stream = engine.blocks(query).await?;
    let (mut numbers, mut pages) = (Vec::new(), 0);
    while let Some(page) = stream.next().await {
        let page = page?;
        assert_eq!(page.volume_capacity, Bytes::mib(1));
        numbers.extend(page.extents.iter().map(|e| e.offset / BLOCK));
        // An empty one only gives way; callers are not told of it.
        pages += usize::from(!page.extents.is_empty());
    }
    Ok((numbers, pages))
}

/// Snapshot `one` holds blocks 1, 3 and 5; `two` has 3 changed and 7 added.
async fn two_snapshots() -> (ControlEngine, MemoryBackend) {
    let (engine, backend) = engine().await;
    let id = make(&engine, "a").await.id;
    for number in [1, 3, 5] {
        backend.write(&id, number, number);
    }
    engine.create_snapshot(snapshot("one", "default/a")).await.unwrap();
    backend.write(&id, 3, 33);
    backend.write(&id, 7, 77);
    engine.create_snapshot(snapshot("two", "default/a")).await.unwrap();
    make(&engine, "b").await;
    engine.create_snapshot(snapshot("of-b", "default/b")).await.unwrap();
    (engine, backend)
}

#[tokio::test]
async fn allocated_and_changed_blocks_come_in_order_in_pages() {
    let (engine, _) = two_snapshots().await;
    let allocated = query(None, "default/two");
    assert_eq!(read(&engine, allocated.clone()).await.unwrap(), (vec![1, 3, 5, 7], 1));
    let delta = query(Some("default/one"), "default/two");
    assert_eq!(read(&engine, delta).await.unwrap(), (vec![3, 7], 1));
    let paged = QueryBlocks { max_results: 2, ..allocated.clone() };
    assert_eq!(read(&engine, paged).await.unwrap(), (vec![1, 3, 5, 7], 2));
    let singly = QueryBlocks { max_results: 1, ..allocated };
    assert_eq!(read(&engine, singly).await.unwrap(), (vec![1, 3, 5, 7], 4));
    assert_eq!(read(&engine, query(None, "default/of-b")).await.unwrap(), (vec![], 0));
}

#[tokio::test]
async fn a_stream_resumes_at_any_byte() {
    let (engine, _) = two_snapshots().await;
    let from = async |starting_offset: u64| {
        let starting_offset = i64::try_from(starting_offset).unwrap();
        read(&engine, QueryBlocks { starting_offset, ..query(None, "default/two") }).await
    };
    // In the middle of a block that is allocated: that block ends after it.
    assert_eq!(from(3 * BLOCK + 5).await.unwrap().0, [3, 5, 7]);
    assert_eq!(from(4 * BLOCK).await.unwrap().0, [5, 7]);
    assert_eq!(from(8 * BLOCK).await.unwrap().0, [0u64; 0]);
    assert_eq!(from(1 << 20).await.unwrap().0, [0u64; 0]);
    assert_eq!(kind(from((1 << 20) + 1).await), Kind::OutOfRange);
    let negative = QueryBlocks { starting_offset: -1, ..query(None, "default/two") };
    assert_eq!(kind(read(&engine, negative).await), Kind::OutOfRange);
}

#[tokio::test]
async fn streams_are_refused_before_they_begin() {
    let (engine, backend) = two_snapshots().await;
    for (wrong, expected) in [
        (query(None, ""), Kind::Invalid),
        (query(None, "what?"), Kind::NotFound),
        (query(None, "default/none"), Kind::NotFound),
        (query(Some(""), "default/two"), Kind::Invalid),
        (query(Some("what?"), "default/two"), Kind::NotFound),
        (query(Some("default/none"), "default/two"), Kind::NotFound),
        (query(Some("default/one"), "default/none"), Kind::NotFound),
        (query(Some("default/of-b"), "default/two"), Kind::Invalid),
        (query(None, "gone/two"), Kind::Unavailable),
        (QueryBlocks { max_results: -1, ..query(None, "default/two") }, Kind::Invalid),
    ] {
        let text = format!("{wrong:?}");
        let Err(fault) = engine.blocks(wrong).await else { panic!("{text} was accepted") };
        assert_eq!(fault.kind(), expected, "{text}");
    }
    backend.inject("extents", Inject::Fail(Fault::precondition("track changes")));
    let result = read(&engine, query(Some("default/one"), "default/two")).await;
    assert_eq!(kind(result), Kind::Precondition);
}

#[tokio::test]
async fn a_fault_in_the_middle_ends_the_stream_with_it() {
    let (engine, backend) = two_snapshots().await;
    let paged = QueryBlocks { max_results: 2, ..query(None, "default/two") };
    let mut stream = engine.blocks(paged).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().extents.len(), 2);
    backend.inject("extents", Inject::Fail(Fault::unavailable("read the map")));
    assert_eq!(kind(stream.next().await.unwrap()), Kind::Unavailable);
    assert!(stream.next().await.is_none());
}

/// A backend whose extents are given by the test.
struct Given(MemoryBackend, Box<dyn Fn(u64) -> FoundExtents + Send + Sync>);

mod given {
    use super::*;
    use larder_model::{
        Provision,
        backend::{ChangedBlocks, Connect, Parameter, Snapshots},
        volume::{Facts, PoolStatus, VolumeSpec},
    };

    #[async_trait]
    impl Backend for Given {
        fn kind(&self) -> &'static str {
            "given"
        }
        fn facts(&self) -> &Facts {
            self.0.facts()
        }
        fn pools(&self) -> Vec<larder_model::PoolName> {
            self.0.pools()
        }
        fn parameters(&self) -> &'static [Parameter] {
            self.0.parameters()
        }
        async fn start(&self, cx: &Cx) -> Result<()> {
            self.0.start(cx).await
        }
        async fn stop(&self) {}
        async fn pool_status(&self) -> Vec<PoolStatus> {
            Vec::new()
        }
        fn provision(&self) -> &dyn Provision {
            self
        }
        fn connect(&self) -> &dyn Connect {
            Backend::connect(&self.0)
        }
    }

    #[async_trait]
    impl Provision for Given {
        async fn ensure_volume(&self, spec: &VolumeSpec, cx: &Cx) -> Result<Volume> {
            self.0.provision().ensure_volume(spec, cx).await
        }
        async fn delete_volume(&self, id: &VolumeId, s: &Secrets, cx: &Cx) -> Result<()> {
            self.0.provision().delete_volume(id, s, cx).await
        }
        async fn get_volume(&self, id: &VolumeId) -> Result<Volume> {
            self.0.provision().get_volume(id).await
        }
        fn check_parameters(&self, parameters: &Attributes) -> Result<()> {
            self.0.provision().check_parameters(parameters)
        }
        fn snapshots(&self) -> Option<&dyn Snapshots> {
            self.0.provision().snapshots()
        }
        fn changed_blocks(&self) -> Option<&dyn ChangedBlocks> {
            Some(self)
        }
    }

    #[async_trait]
    impl ChangedBlocks for Given {
        async fn extents(
            &self,
            _: Option<&SnapshotId>,
            _: &SnapshotId,
            offset: u64,
            _: usize,
        ) -> Result<FoundExtents> {
            Ok((self.1)(offset))
        }
    }
}

/// An engine with a snapshot `default/s` of which the test tells the extents.
async fn given(tell: impl Fn(u64) -> FoundExtents + Send + Sync + 'static) -> ControlEngine {
    let backend = Arc::new(Given(Memory::default().build(), Box::new(tell)));
    let engine = ControlEngine::new(backend, Claims::new(), None);
    engine.start().await.unwrap();
    make(&engine, "a").await;
    engine.create_snapshot(snapshot("s", "default/a")).await.unwrap();
    engine
}

#[tokio::test]
async fn a_long_look_gives_way_and_marks_how_far_it_came() {
    const GIB: u64 = 1 << 30;
    let size = Bytes::new(40 * GIB);
    let engine = given(move |offset| FoundExtents {
        extents: Vec::new(),
        size,
        next: (offset + GIB).min(size.get()),
    });
    let mut stream = engine.await.blocks(query(None, "default/s")).await.unwrap();
    let mut pages = Vec::new();
    while let Some(page) = stream.next().await {
        pages.push(page.unwrap().extents);
    }
    assert_eq!(pages.len(), 40, "one for each look, so that a caller that has gone is noticed");
    let told: Vec<_> = pages.into_iter().flatten().collect();
    let mark = |end: u64| Extent { offset: end - 4096, length: 4096 };
    assert_eq!(told, [mark(16 * GIB), mark(32 * GIB)], "a caller that is cut goes on from there");
}

#[tokio::test]
async fn extents_from_which_no_backup_could_be_restored_are_never_passed_on() {
    let extent = |offset, length| Extent { offset, length };
    let ends = |extents: &[Extent]| {
        extents.last().map_or(0, |last| last.offset.saturating_add(last.length))
    };
    for (what, extents) in [
        ("nothing, and no way on", Vec::new()),
        ("backwards", vec![extent(8192, 4096), extent(0, 4096)]),
        ("overlapping", vec![extent(0, 8192), extent(4096, 8192)]),
        ("empty", vec![extent(0, 0)]),
        ("beyond the end", vec![extent(0, (1 << 20) + 1)]),
        ("beyond all numbers", vec![extent(u64::MAX, 2)]),
        ("the same again in the next page", vec![extent(0, 4096)]),
    ] {
        let size = Bytes::mib(1);
        let engine =
            given(move |_| FoundExtents { next: ends(&extents), extents: extents.clone(), size });
        let engine = engine.await;
        let result = read(&engine, query(None, "default/s")).await;
        assert_eq!(kind(result), Kind::Internal, "{what}");
    }
}

#[tokio::test]
async fn a_stream_never_goes_on_with_another_snapshot_of_the_same_name() {
    for name in ["one", "two"] {
        let (engine, backend) = two_snapshots().await;
        let delta = QueryBlocks { max_results: 1, ..query(Some("default/one"), "default/two") };
        let mut stream = engine.blocks(delta).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap().extents[0].offset, 3 * BLOCK);
        let id = format!("default/{name}");
        delete_snapshot(&engine, &id).await.unwrap();
        backend.write(&VolumeId("default/a".parse().unwrap()), 2, 2);
        engine.create_snapshot(snapshot(name, "default/a")).await.unwrap();
        assert_eq!(kind(stream.next().await.unwrap()), Kind::Aborted, "{name}");
        assert!(stream.next().await.is_none());
    }
}
