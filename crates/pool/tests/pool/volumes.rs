//! Volumes and snapshots: what each call answers.

use crate::support::{Bench, Calls, file_names, settled, sized, spec, volume};
use larder_model::{
    AccessMode, AccessType, Bytes, CapacityRange, Connect, Cx, Kind, MountAccess, Provision,
    VolumeCapability,
    backend::ConnectRequest,
    volume::{Attributes, ContentSource, VolumeSpec},
};
use rstest::rstest;

#[tokio::test]
async fn a_repeated_create_returns_the_same_volume() {
    let bench = Bench::default();
    let backend = bench.start().await;
    let first = backend.create(&spec("a/v")).await.unwrap();
    assert_eq!((first.capacity, first.name.as_str()), (Bytes::gib(1), "v"));
    assert_eq!(first.topology.len(), 1);
    assert_eq!(backend.create(&spec("a/v")).await.unwrap(), first);
    drop(backend);
    let backend = bench.start().await;
    assert_eq!(backend.create(&spec("a/v")).await.unwrap(), first, "also after a restart");
    assert_eq!(backend.get("a/v").await.unwrap(), first);
    assert_eq!(bench.state().len(), 1);
}

fn with(change: impl FnOnce(&mut VolumeSpec)) -> VolumeSpec {
    let mut spec = sized("a/v", Bytes::mib(8), None);
    change(&mut spec);
    spec
}

#[rstest]
#[case::larger(with(|s| s.capacity.required = Bytes::mib(9)), "size is 8Mi")]
#[case::smaller(with(|s| s.capacity = CapacityRange { required: Bytes::mib(1), limit: Some(Bytes::mib(7)) }), "size is 8Mi")]
#[case::source(with(|s| s.source = Some(ContentSource::Volume(volume("a/x")))), "made empty")]
#[case::parameter(with(|s| drop(s.parameters.insert("colour".into(), "red".into()))), "colour")]
#[case::mutable(with(|s| drop(s.mutable_parameters.insert("iops".into(), "1".into()))), "iops")]
#[case::block(with(|s| s.capabilities[0].access = AccessType::Block), "raw block")]
#[case::ephemeral(with(|s| s.ephemeral = true), "not ephemeral")]
#[tokio::test]
async fn a_create_that_differs_is_a_conflict_that_says_where(
    #[case] other: VolumeSpec,
    #[case] word: &str,
) {
    let bench = Bench::default();
    let backend = bench.start().await;
    let before = backend.create(&with(|_| ())).await.unwrap();
    let fault = backend.create(&other).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Conflict, "{fault}");
    assert!(fault.to_string().contains(word), "{fault}");
    assert_eq!(backend.get("a/v").await.unwrap(), before, "nothing changed");
    assert_eq!(bench.state().len(), 1);
}

#[rstest]
#[case::same_range(with(|s| s.capacity.limit = Some(Bytes::gib(1))))]
#[case::mode(with(|s| s.capabilities[0].mode = AccessMode::SingleNodeMultiWriter))]
#[case::fs_named(with(|s| s.capabilities[0].access = AccessType::Mount(MountAccess { fs_type: "xfs".into(), ..MountAccess::default() })))]
#[tokio::test]
async fn a_create_that_fits_returns_the_volume(#[case] other: VolumeSpec) {
    let bench = Bench::default();
    let backend = bench.start().await;
    let before = backend.create(&with(|_| ())).await.unwrap();
    assert_eq!(backend.create(&other).await.unwrap(), before);
}

#[tokio::test]
async fn file_systems_that_differ_are_a_conflict() {
    let bench = Bench::default();
    let backend = bench.start().await;
    let mount = |fs: &str| {
        with(|s| {
            let mount = MountAccess { fs_type: fs.to_owned(), ..MountAccess::default() };
            let mode = AccessMode::SingleNodeWriter;
            s.capabilities = vec![VolumeCapability { access: AccessType::Mount(mount), mode }];
        })
    };
    backend.create(&mount("ext4")).await.unwrap();
    backend.create(&mount("")).await.unwrap();
    assert_eq!(backend.create(&mount("xfs")).await.unwrap_err().kind(), Kind::Conflict);
}

#[tokio::test]
async fn names_with_one_native_form_are_told_apart() {
    let bench = Bench::default();
    let backend = bench.start().await;
    let plain = backend.create(&spec("a/My Volume")).await.unwrap();
    let native = plain.id.native().to_string();
    let fault = backend.create(&spec(&format!("a/{native}"))).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Conflict);
    assert!(fault.to_string().contains("My Volume"), "{fault}");
}

#[tokio::test]
async fn a_name_belongs_to_one_pool_of_the_driver() {
    let bench = Bench::default();
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    let fault = backend.create(&spec("b/v")).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Conflict);
    assert!(fault.to_string().contains("pool a"), "{fault}");
    backend.create(&spec("b/w")).await.unwrap();
    backend.cut("a/s", "a/v").await.unwrap();
    assert_eq!(backend.cut("b/s", "b/w").await.unwrap_err().kind(), Kind::Conflict);
    backend.delete("a/v").await.unwrap();
    backend.create(&spec("b/v")).await.unwrap();
}

#[tokio::test]
async fn sizes_follow_request_limit_and_source() {
    let bench = Bench::default();
    let backend = bench.start().await;
    let odd = backend.create(&sized("a/odd", Bytes::new(5_000_000), None)).await.unwrap();
    assert_eq!(odd.capacity, Bytes::new(5_001_216), "whole steps");
    let tight = sized("a/tight", Bytes::new(4100 << 10), Some(Bytes::new((4100 << 10) + 1)));
    assert_eq!(backend.create(&tight).await.unwrap().capacity, Bytes::new(4100 << 10));
    let never = sized("a/never", Bytes::new(5_000_001), Some(Bytes::new(5_000_001)));
    assert_eq!(backend.create(&never).await.unwrap_err().kind(), Kind::OutOfRange);
    let huge = sized("a/huge", Bytes::gib(1 << 21), None);
    assert_eq!(backend.create(&huge).await.unwrap_err().kind(), Kind::OutOfRange);

    backend.create(&sized("a/source", Bytes::mib(64), None)).await.unwrap();
    let from = |id: &str, required, limit| VolumeSpec {
        source: Some(ContentSource::Volume(volume("a/source"))),
        ..sized(id, required, limit)
    };
    let same = backend.create(&from("a/same", Bytes::ZERO, None)).await.unwrap();
    assert_eq!(same.capacity, Bytes::mib(64));
    let more = backend.create(&from("a/more", Bytes::mib(100), None)).await.unwrap();
    assert_eq!(more.capacity, Bytes::mib(100));
    let less = backend.create(&from("a/less", Bytes::ZERO, Some(Bytes::mib(63)))).await;
    assert_eq!(less.unwrap_err().kind(), Kind::OutOfRange);
    assert_eq!(backend.ids().await, ["a/more", "a/odd", "a/same", "a/source", "a/tight"]);
}

#[tokio::test]
async fn growth_is_repeatable_and_never_shrinks() {
    let bench = Bench::default();
    let backend = bench.start().await;
    backend.create(&sized("a/v", Bytes::mib(8), None)).await.unwrap();
    assert_eq!(backend.grow("a/v", Bytes::mib(16)).await.unwrap(), Bytes::mib(16));
    assert_eq!(backend.grow("a/v", Bytes::mib(16)).await.unwrap(), Bytes::mib(16));
    assert_eq!(backend.grow("a/v", Bytes::mib(4)).await.unwrap(), Bytes::mib(16));
    assert_eq!(backend.get("a/v").await.unwrap().capacity, Bytes::mib(16));
    assert_eq!(backend.grow("a/none", Bytes::mib(4)).await.unwrap_err().kind(), Kind::NotFound);
    let expand = backend.expand().unwrap();
    let range = CapacityRange { required: Bytes::ZERO, limit: Some(Bytes::mib(8)) };
    let fault = expand.expand_volume(&volume("a/v"), range, &Default::default(), &Cx::new()).await;
    assert_eq!(fault.unwrap_err().kind(), Kind::OutOfRange);
    drop(backend);
    let backend = bench.start().await;
    assert_eq!(backend.get("a/v").await.unwrap().capacity, Bytes::mib(16));
}

#[tokio::test]
async fn deletion_is_repeatable_and_refuses_what_is_in_use() {
    let bench = Bench::default();
    let backend = bench.start().await;
    backend.delete("a/never-was").await.unwrap();
    backend.create(&spec("a/v")).await.unwrap();
    bench.knobs().user = Some("mounted at /mnt".to_owned());
    let fault = backend.delete("a/v").await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("/mnt"), "{fault}");
    bench.knobs().user = None;
    backend.delete("a/v").await.unwrap();
    backend.delete("a/v").await.unwrap();
    assert_eq!(backend.get("a/v").await.unwrap_err().kind(), Kind::NotFound);
    assert!(bench.state().is_empty());
}

#[tokio::test]
async fn what_a_deletion_could_not_remove_is_removed_by_its_repeat_or_the_next_start() {
    let bench = Bench::default();
    let backend = bench.start().await;
    for id in ["a/v", "a/w"] {
        backend.create(&spec(id)).await.unwrap();
        bench.knobs().failing_removals = 1;
        assert_eq!(backend.delete(id).await.unwrap_err().kind(), Kind::Internal);
        assert_eq!(backend.get(id).await.unwrap_err().kind(), Kind::NotFound);
        // The name is free at once.
        backend.create(&spec(id)).await.unwrap();
        assert_eq!(file_names(&bench.pool("a").join("deleting")).len(), 1);
        if id == "a/v" {
            backend.delete(id).await.unwrap();
            assert!(file_names(&bench.pool("a").join("deleting")).is_empty());
        }
    }
    drop(backend);
    let _backend = bench.start().await;
    settled(&bench).await;
    assert_eq!(bench.state().len(), 1);
}

#[tokio::test]
async fn nothing_outside_of_the_pool_can_be_named() {
    let bench = Bench::default();
    let backend = bench.start().await;
    std::fs::write(bench.dir.path().join("outside"), "untouched").unwrap();
    for name in ["../outside", "..", ".", "/etc/passwd", "a/../../outside", "x\u{2028}y", "ünï"] {
        let mut asked = spec("a/v");
        asked.name = name.parse().unwrap();
        asked.id = larder_model::VolumeId::new("a".parse().unwrap(), asked.name.native());
        let made = backend.create(&asked).await.unwrap();
        assert_eq!(made.name, name);
        assert!(bench.pool("a").join("volumes").join(made.id.native()).is_dir());
        backend.delete(made.id.as_str()).await.unwrap();
    }
    assert_eq!(file_names(bench.dir.path()).len(), 4, "a, b, tickets, outside");
    assert!(bench.state().is_empty());
}

#[tokio::test]
async fn unknown_parameters_are_refused_and_leave_nothing() {
    let bench = Bench::default();
    let backend = bench.start().await;
    let mut odd = spec("a/v");
    odd.parameters = Attributes::from([("collor".to_owned(), "red".to_owned())]);
    assert_eq!(backend.create(&odd).await.unwrap_err().kind(), Kind::Invalid);
    assert_eq!(backend.check_parameters(&odd.parameters).unwrap_err().kind(), Kind::Invalid);
    let capacity = backend.capacity().unwrap();
    let fault = capacity.capacity(&"a".parse().unwrap(), &odd.parameters).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Invalid);
    assert!(bench.state().is_empty());
}

#[tokio::test]
async fn the_node_finds_a_volume_and_its_absence() {
    let bench = Bench::default();
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    let request = |id: &str| ConnectRequest {
        id: volume(id),
        capability: spec("a/v").capabilities[0].clone(),
        readonly: false,
        context: Attributes::new(),
        publish_context: Attributes::new(),
        secrets: Default::default(),
    };
    let connect: &dyn Connect = &backend;
    let (source, attachment) = connect.connect(&request("a/v"), &Cx::new()).await.unwrap();
    let larder_model::backend::Source::Directory { path } = source else { panic!("{source:?}") };
    assert_eq!(path, bench.pool("a").join("volumes/v/data"));
    assert!(connect.is_connected(&volume("a/v"), &attachment).await.unwrap());
    let missing = connect.connect(&request("a/none"), &Cx::new()).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound);
    // Gone volumes are disconnected by what was noted, or not connected at all.
    connect.disconnect(&volume("a/none"), None, &Cx::new()).await.unwrap();
    connect.disconnect(&volume("a/none"), Some(&attachment), &Cx::new()).await.unwrap();
    let away = connect.disconnect(&volume("nowhere/v"), None, &Cx::new()).await.unwrap_err();
    assert_eq!(away.kind(), Kind::Unavailable);
    connect.disconnect(&volume("nowhere/v"), Some(&attachment), &Cx::new()).await.unwrap();
    assert_eq!(backend.allocated(&volume("a/v")).await.unwrap(), Bytes::new(3));
}

#[tokio::test]
async fn health_tells_of_lost_data_and_records() {
    let bench = Bench::default();
    let backend = bench.start().await;
    for id in ["a/fine", "a/lost", "a/broken"] {
        backend.create(&spec(id)).await.unwrap();
    }
    let volumes = bench.pool("a").join("volumes");
    std::fs::remove_dir_all(volumes.join("lost/data")).unwrap();
    std::fs::write(volumes.join("broken/record.json"), "{}").unwrap();
    drop(backend);
    let backend = bench.start().await;
    let health = backend.health().unwrap();
    assert_eq!(health.volume_health(&volume("a/fine")).await.unwrap(), []);
    let lost = health.volume_health(&volume("a/lost")).await.unwrap();
    assert_eq!(lost[0].reason, "DataMissing");
    let broken = health.volume_health(&volume("a/broken")).await.unwrap();
    assert_eq!(broken[0].reason, "RecordUnreadable");
    let none = health.volume_health(&volume("a/none")).await.unwrap_err();
    assert_eq!(none.kind(), Kind::NotFound);
    // Asked of all at once, in any order, in any pool: the same, each in its place.
    let ids = ["a/none", "a/lost", "b/other", "a/fine", "a/broken", "a/lost"].map(volume);
    let all = health.volumes_health(&ids).await;
    assert_eq!(all.len(), ids.len());
    for (id, found) in ids.iter().zip(all) {
        let alone = health.volume_health(id).await;
        assert_eq!(found.map_err(|f| f.to_string()), alone.map_err(|f| f.to_string()), "{id}");
    }
    assert_eq!(
        backend.node_health(&volume("a/lost"), None).await.unwrap()[0].reason,
        "DataMissing"
    );
}

#[tokio::test]
async fn many_at_once_are_each_made_once() {
    let bench = Bench::default();
    let backend = bench.start().await;
    let calls: Vec<_> = (0..64)
        .map(|n| {
            let backend = backend.clone();
            let asked = spec(&format!("a/v{}", n % 16));
            async move { backend.create(&asked).await }
        })
        .collect();
    let mut set = tokio::task::JoinSet::new();
    for call in calls {
        set.spawn(call);
    }
    // Equal calls at one time are joined by the engine; here the later one is told to ask again.
    for result in set.join_all().await {
        assert!(result.as_ref().is_ok_or_aborted(), "{result:?}");
    }
    assert_eq!(bench.state().len(), 16);
    let mut set = tokio::task::JoinSet::new();
    for n in 0..16 {
        let backend = backend.clone();
        set.spawn(async move { backend.delete(&format!("a/v{n}")).await });
    }
    for result in set.join_all().await {
        result.unwrap();
    }
    assert!(bench.state().is_empty());
}

trait OkOrAborted {
    fn is_ok_or_aborted(&self) -> bool;
}
impl<T> OkOrAborted for Result<T, &larder_model::Fault> {
    fn is_ok_or_aborted(&self) -> bool {
        self.as_ref().map_or_else(|fault| fault.kind() == Kind::Aborted, |_| true)
    }
}
