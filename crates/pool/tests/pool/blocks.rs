//! Blocks of snapshots that come and go while they are read.

use crate::support::{Bench, Calls, snapshot, spec};
use larder_model::{Kind, Provision, backend::FoundExtents, volume::Extent};
use std::fs;

#[tokio::test]
async fn a_snapshot_that_is_replaced_while_it_is_read_is_not_mistaken_for_the_other() {
    for replaced in ["a/old", "a/new"] {
        for again in [true, false] {
            let bench = Bench::default();
            let backend = bench.start().await;
            backend.create(&spec("a/v")).await.unwrap();
            let write = {
                let content = bench.pool("a").join("volumes/v/data/content");
                move |text: &str| fs::write(&content, text).unwrap()
            };
            write("abcd");
            backend.cut("a/old", "a/v").await.unwrap();
            write("aXcY");
            backend.cut("a/new", "a/v").await.unwrap();
            let blocks = backend.changed_blocks().unwrap();
            let (old, new) = (snapshot("a/old"), snapshot("a/new"));
            let FoundExtents { extents: told, size, .. } =
                blocks.extents(Some(&old), &new, 0, 9).await.unwrap();
            assert_eq!(told, [1, 3].map(|offset| Extent { offset, length: 1 }));
            assert_eq!(size, larder_model::Bytes::gib(1));
            let told = blocks.extents(Some(&old), &new, 2, 9).await.unwrap().extents;
            assert_eq!(told, [Extent { offset: 3, length: 1 }]);

            let (other, runtime) = (backend.clone(), tokio::runtime::Handle::current());
            bench.knobs().while_copying = Some(Box::new(move || {
                runtime.block_on(async {
                    other.uncut(replaced).await.unwrap();
                    write("abcd");
                    if again {
                        other.cut(replaced, "a/v").await.unwrap();
                    }
                });
            }));
            let fault = blocks.extents(Some(&old), &new, 0, 9).await.unwrap_err();
            assert_eq!(fault.kind(), Kind::NotFound, "{fault}");
            assert!(fault.to_string().contains(&format!("find snapshot {replaced}")), "{fault}");
        }
    }
}

#[tokio::test]
async fn blocks_are_told_of_what_is_there_and_within_its_size() {
    let bench = Bench::default();
    let backend = bench.start().await;
    for pool in ["a", "b"] {
        backend.create(&spec(&format!("{pool}/v-{pool}"))).await.unwrap();
        backend.cut(&format!("{pool}/s-{pool}"), &format!("{pool}/v-{pool}")).await.unwrap();
    }
    let blocks = backend.changed_blocks().unwrap();
    let kind = async |base: Option<&str>, target: &str, offset: u64| {
        let base = base.map(snapshot);
        let told = blocks.extents(base.as_ref(), &snapshot(target), offset, 9).await;
        told.err().map(|fault| fault.kind())
    };
    assert_eq!(kind(None, "a/s-a", 1 << 30).await, None);
    assert_eq!(kind(None, "a/s-a", (1 << 30) + 1).await, Some(Kind::OutOfRange));
    assert_eq!(kind(None, "a/none", 0).await, Some(Kind::NotFound));
    assert_eq!(kind(Some("a/none"), "a/s-a", 0).await, Some(Kind::NotFound));
    assert_eq!(kind(Some("b/s-b"), "a/s-a", 0).await, Some(Kind::Invalid));
}
