//! Snapshots, clones and restores.

use crate::support::{Bench, Calls, copied, snapshot, snapshot_spec, spec, volume};
use larder_model::{
    Bytes, Connect, Cx, Kind, Provision,
    volume::{ContentSource, FormatState},
};

#[tokio::test]
async fn clones_and_restores_carry_content_source_and_file_system() {
    let bench = Bench::default();
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    let state = FormatState::Formatted { fs: larder_model::FsType::Xfs };
    backend.set_format_state(&volume("a/v"), state).await.unwrap();
    std::fs::write(bench.pool("a").join("volumes/v/data/content"), "precious").unwrap();
    backend.cut("a/s", "a/v").await.unwrap();
    std::fs::write(bench.pool("a").join("volumes/v/data/content"), "ruined").unwrap();

    let restore = ContentSource::Snapshot(snapshot("a/s"));
    let clone = ContentSource::Volume(volume("a/v"));
    // Into the other pool as well.
    for (id, source, content) in [
        ("a/restored", &restore, "precious"),
        ("b/far", &restore, "precious"),
        ("a/clone", &clone, "ruined"),
    ] {
        let made = backend.create(&copied(id, source.clone())).await.unwrap();
        assert_eq!(made.source.as_ref(), Some(source));
        assert_eq!(backend.create(&copied(id, source.clone())).await.unwrap(), made);
        let (pool, name) = id.split_once('/').unwrap();
        let data = bench.pool(pool).join("volumes").join(name).join("data/content");
        assert_eq!(std::fs::read_to_string(data).unwrap(), content, "{id}");
        assert_eq!(backend.format_state(&volume(id)).await.unwrap(), state);
    }
    // A snapshot outlives its volume.
    backend.delete("a/v").await.unwrap();
    backend.create(&copied("a/late", restore)).await.unwrap();
    assert_eq!(backend.create(&copied("a/no", clone)).await.unwrap_err().kind(), Kind::NotFound);
    let selfish = copied("a/me", ContentSource::Volume(volume("a/me")));
    assert_eq!(backend.create(&selfish).await.unwrap_err().kind(), Kind::NotFound);
    let gone = copied("a/no", ContentSource::Snapshot(snapshot("a/none")));
    assert_eq!(backend.create(&gone).await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(bench.state().len(), 5);
}

#[tokio::test]
async fn a_volume_that_is_formatted_during_a_copy_is_not_copied() {
    let bench = Bench::default();
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    let formatting = FormatState::Formatting { fs: larder_model::FsType::Ext4 };
    let other = backend.clone();
    let runtime = tokio::runtime::Handle::current();
    bench.knobs().while_copying = Some(Box::new(move || {
        runtime.block_on(other.set_format_state(&volume("a/v"), formatting)).unwrap();
    }));
    assert_eq!(backend.cut("a/s", "a/v").await.unwrap_err().kind(), Kind::Unavailable);
    let clone = copied("a/c", ContentSource::Volume(volume("a/v")));
    let refused = async |kind: Kind, word: &str| {
        let (cut, copy) = (backend.cut("a/s", "a/v").await, backend.create(&clone).await);
        for fault in [cut.unwrap_err(), copy.unwrap_err()] {
            assert_eq!(fault.kind(), kind, "{fault}");
            assert!(fault.to_string().contains(word) && fault.hint_text().is_some(), "{fault}");
        }
    };
    refused(Kind::Aborted, "held by format volume a/v, running for").await;
    // The node gave up, or its process was killed: nobody is at it, and waiting would not help.
    let cx = larder_model::Cx::new();
    backend.disconnect(&volume("a/v"), None, &cx).await.unwrap();
    refused(Kind::Precondition, "begun and not finished").await;
    backend.set_format_state(&volume("a/v"), formatting).await.unwrap();
    refused(Kind::Aborted, "make the file system").await;
    drop(backend);
    let backend = bench.start().await;
    assert_eq!(backend.cut("a/s", "a/v").await.unwrap_err().kind(), Kind::Precondition);
    let formatted = FormatState::Formatted { fs: larder_model::FsType::Ext4 };
    backend.set_format_state(&volume("a/v"), formatted).await.unwrap();
    backend.cut("a/s", "a/v").await.unwrap();
    backend.create(&clone).await.unwrap();
    assert_eq!(bench.state().len(), 3);
}

#[tokio::test]
async fn a_snapshot_is_cut_once_and_belongs_to_its_volume() {
    let bench = Bench::default();
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    backend.create(&spec("a/w")).await.unwrap();
    let first = backend.cut("a/s", "a/v").await.unwrap();
    assert!(first.ready);
    assert_eq!((first.size, first.source.as_str()), (Bytes::gib(1), "a/v"));
    assert_eq!(backend.cut("a/s", "a/v").await.unwrap(), first);
    let fault = backend.cut("a/s", "a/w").await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Conflict);
    assert!(fault.to_string().contains("a/v"), "{fault}");
    assert_eq!(backend.cut("a/t", "a/none").await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(backend.cut("b/t", "a/v").await.unwrap_err().kind(), Kind::Invalid);
    let mut odd = snapshot_spec("a/t", "a/v");
    odd.parameters.insert("colour".into(), "red".into());
    let odd = backend.snapshots().unwrap().ensure_snapshot(&odd, &Cx::new()).await;
    assert_eq!(odd.unwrap_err().kind(), Kind::Invalid);
    backend.uncut("a/s").await.unwrap();
    backend.uncut("a/s").await.unwrap();
    let gone = backend.snapshots().unwrap().get_snapshot(&snapshot("a/s")).await;
    assert_eq!(gone.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(bench.state().len(), 2);
}

#[tokio::test]
async fn a_member_of_a_group_is_not_deleted_alone() {
    let bench = Bench::default();
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    backend.cut("a/s", "a/v").await.unwrap();
    drop(backend);
    let record = bench.pool("a").join("snapshots/s/record.json");
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replacen('{', "{\"group\":\"a/g\",", 1)).unwrap();
    let backend = bench.start().await;
    let found = backend.snapshots().unwrap().get_snapshot(&snapshot("a/s")).await.unwrap();
    assert_eq!(found.group.as_deref(), Some("a/g"));
    assert_eq!(backend.uncut("a/s").await.unwrap_err().kind(), Kind::Invalid);
}

#[tokio::test]
async fn a_source_is_not_deleted_while_it_is_copied() {
    let bench = Bench::default();
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    let (other, runtime) = (backend.clone(), tokio::runtime::Handle::current());
    bench.knobs().while_copying = Some(Box::new(move || {
        let fault = runtime.block_on(other.delete("a/v")).unwrap_err();
        assert_eq!(fault.kind(), Kind::Aborted);
        assert!(
            fault.to_string().contains("held by copy volume a/v to volume a/clone, running for"),
            "{fault}"
        );
    }));
    let clone = copied("a/clone", ContentSource::Volume(volume("a/v")));
    backend.create(&clone).await.unwrap();
    backend.delete("a/v").await.unwrap();
    assert_eq!(bench.state().len(), 1);
}
