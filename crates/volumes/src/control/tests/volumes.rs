//! Delete, validate, get, capacity, expand, modify.

use super::*;

#[tokio::test]
async fn deleting_is_repeatable_and_absent_volumes_are_deleted_already() {
    let (engine, backend) = engine().await;
    make(&engine, "a").await;
    delete(&engine, "default/a").await.unwrap();
    delete(&engine, "default/a").await.unwrap();
    for absent in ["default/never", "what?", "../../etc/passwd", "default/UP", "a/b/c"] {
        delete(&engine, absent).await.unwrap();
    }
    assert_eq!(backend.inventory(), "");
    assert_eq!(kind(delete(&engine, "").await), Kind::Invalid);
}

#[tokio::test]
async fn a_volume_in_a_pool_that_is_not_there_is_never_taken_for_deleted() {
    let (engine, backend) = engine().await;
    make(&engine, "a").await;
    backend.lose_pool("default", true);
    assert_eq!(kind(delete(&engine, "default/a").await), Kind::Unavailable);
    assert_eq!(kind(engine.get_volume("default/a").await), Kind::Unavailable);
    let fault = delete(&engine, "unconfigured/a").await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Unavailable);
    assert!(fault.to_string().contains("pool unconfigured is not configured here"), "{fault}");
    backend.lose_pool("default", false);
    delete(&engine, "default/a").await.unwrap();
}

#[tokio::test]
async fn snapshots_outlive_their_volume() {
    let (engine, _) = engine().await;
    make(&engine, "a").await;
    engine.create_snapshot(snapshot("s", "default/a")).await.unwrap();
    delete(&engine, "default/a").await.unwrap();
    assert_eq!(engine.get_snapshot("default/s").await.unwrap().source.as_str(), "default/a");
}

#[tokio::test]
async fn volumes_in_use_and_static_ones_are_not_deleted() {
    let (engine, backend) = engine().await;
    make(&engine, "a").await;
    engine.attach_volume(attach_to("default/a", "node-1")).await.unwrap();
    let fault = delete(&engine, "default/a").await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("in use at node node-1"), "{fault}");
    engine.detach_volume(detach_from("default/a", "node-1")).await.unwrap();
    backend.set_in_use("default/a", true);
    assert_eq!(kind(delete(&engine, "default/a").await), Kind::Precondition);
    backend.set_in_use("default/a", false);
    delete(&engine, "default/a").await.unwrap();

    backend.add_static(&volume_id("default/static"), Bytes::mib(1));
    assert_eq!(kind(delete(&engine, "default/static").await), Kind::Precondition);
    engine.get_volume("default/static").await.unwrap();
}

/// Stands for the node engine of the same process.
struct Mounted(std::sync::Mutex<Result<Vec<PathBuf>>>);

#[async_trait]
impl InUse for Mounted {
    async fn in_use(&self, _: &VolumeId) -> Result<Vec<PathBuf>> {
        self.0.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn a_volume_that_is_mounted_here_is_neither_deleted_nor_grown_offline() {
    let mut settings = Memory::default();
    settings.facts.online_expansion = false;
    let backend = settings.build();
    let mounted = Arc::new(Mounted(std::sync::Mutex::new(Ok(Vec::new()))));
    let engine =
        ControlEngine::new(Arc::new(backend.clone()), Claims::new(), Some(mounted.clone()));
    engine.start().await.unwrap();
    make(&engine, "a").await;

    *mounted.0.lock().unwrap() = Ok(vec!["/var/lib/kubelet/stage".into()]);
    let fault = delete(&engine, "default/a").await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("/var/lib/kubelet/stage"), "{fault}");
    let fault = engine.expand_volume(expand("default/a", 2 << 20)).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("/var/lib/kubelet/stage"), "{fault}");
    // Large enough already: nothing has to grow.
    engine.expand_volume(expand("default/a", 1 << 20)).await.unwrap();

    *mounted.0.lock().unwrap() = Err(Fault::unavailable("read the mount table"));
    assert_eq!(kind(delete(&engine, "default/a").await), Kind::Unavailable);
    *mounted.0.lock().unwrap() = Ok(Vec::new());
    let grown = engine.expand_volume(expand("default/a", 2 << 20)).await.unwrap();
    assert_eq!(grown.capacity, Bytes::mib(2));
    delete(&engine, "default/a").await.unwrap();
}

#[tokio::test]
async fn a_volume_is_shown_with_the_nodes_it_is_attached_to() {
    let (engine, _) = engine().await;
    let volume = make(&engine, "a").await;
    assert_eq!(
        engine.get_volume("default/a").await.unwrap(),
        VolumeEntry { volume: volume.clone(), published_nodes: Vec::new() }
    );
    engine.attach_volume(attach_to("default/a", "node-1")).await.unwrap();
    assert_eq!(engine.get_volume("default/a").await.unwrap().published_nodes, ["node-1"]);
    assert_eq!(kind(engine.get_volume("default/none").await), Kind::NotFound);
    assert_eq!(kind(engine.get_volume("what?").await), Kind::NotFound);
    assert_eq!(kind(engine.get_volume("").await), Kind::Invalid);
}

#[tokio::test]
async fn validation_confirms_or_says_what_does_not_hold() {
    let mut settings = Memory::default();
    settings.facts.access_modes = AccessMode::SINGLE_NODE.to_vec();
    let (engine, _) = engine_of(settings).await;
    make(&engine, "a").await;
    let ask = || ValidateVolume {
        volume_id: "default/a".into(),
        capabilities: vec![mount(AccessMode::SingleNodeWriter)],
        ..ValidateVolume::default()
    };
    let fine = ValidateVolume {
        context: map(&[
            ("medium", "memory"),
            ("storage.kubernetes.io/csiProvisionerIdentity", "x"),
        ]),
        parameters: map(&[("pool", "default"), ("tier", "x"), ("csi.storage.k8s.io/x", "y")]),
        mutable_parameters: map(&[("tier", "y")]),
        ..ask()
    };
    assert_eq!(engine.validate_volume(ask()).await.unwrap(), Validated::Confirmed);
    assert_eq!(engine.validate_volume(fine).await.unwrap(), Validated::Confirmed);
    let many = vec![mount(AccessMode::MultiNodeMultiWriter)];
    for (bad, why) in [
        (ValidateVolume { capabilities: many, ..ask() }, "MULTI_NODE_MULTI_WRITER"),
        (ValidateVolume { capabilities: vec![mount_as("ntfs")], ..ask() }, "ntfs"),
        (ValidateVolume { context: map(&[("medium", "tape")]), ..ask() }, "medium"),
        (ValidateVolume { parameters: map(&[("pool", "other")]), ..ask() }, "pool"),
        (ValidateVolume { parameters: map(&[("speed", "9")]), ..ask() }, "speed"),
        (ValidateVolume { mutable_parameters: map(&[("speed", "9")]), ..ask() }, "speed"),
        (ValidateVolume { mutable_parameters: map(&[("pool", "other")]), ..ask() }, "pool"),
    ] {
        match engine.validate_volume(bad).await.unwrap() {
            Validated::Refused(text) => assert!(text.contains(why), "{text}"),
            Validated::Confirmed => panic!("{why} was confirmed"),
        }
    }
    let none = ValidateVolume { volume_id: "default/none".into(), ..ask() };
    assert_eq!(kind(engine.validate_volume(none).await), Kind::NotFound);
    let foreign = ValidateVolume { volume_id: "what?".into(), ..ask() };
    assert_eq!(kind(engine.validate_volume(foreign).await), Kind::NotFound);
    let unnamed = ValidateVolume { volume_id: String::new(), ..ask() };
    assert_eq!(kind(engine.validate_volume(unnamed).await), Kind::Invalid);
    let nothing = ValidateVolume { capabilities: Vec::new(), ..ask() };
    assert_eq!(kind(engine.validate_volume(nothing).await), Kind::Invalid);
}

#[tokio::test]
async fn a_volume_is_confirmed_only_for_what_it_was_made_for() {
    let (engine, _) = engine_of(Memory::default()).await;
    let writer = || mount(AccessMode::SingleNodeWriter);
    for (name, capabilities) in [
        ("mounted", vec![mount_as("xfs")]),
        ("raw", vec![block()]),
        ("either", vec![mount_as("xfs"), block()]),
    ] {
        let parameters = map(&[("fs", "xfs")]);
        let request = CreateVolume { capabilities, parameters, ..create(name) };
        engine.create_volume(request).await.unwrap();
    }
    for (name, capability, refused) in [
        ("mounted", writer(), None),
        ("mounted", mount_as("xfs"), None),
        ("mounted", mount_as("ext4"), Some("it has xfs")),
        ("mounted", block(), Some("made to be mounted")),
        ("raw", block(), None),
        ("raw", writer(), Some("made to be a raw block device")),
        ("either", block(), None),
        ("either", writer(), None),
        ("either", mount_as("btrfs"), Some("it has xfs")),
    ] {
        let ask = ValidateVolume {
            volume_id: format!("default/{name}"),
            capabilities: vec![capability],
            ..ValidateVolume::default()
        };
        match (engine.validate_volume(ask).await.unwrap(), refused) {
            (Validated::Confirmed, None) => {}
            (Validated::Refused(text), Some(why)) => assert!(text.contains(why), "{text}"),
            (other, _) => panic!("{name}: {other:?}"),
        }
    }
    let other = ValidateVolume {
        volume_id: "default/mounted".into(),
        capabilities: vec![writer()],
        parameters: map(&[("fs", "ext4")]),
        ..ValidateVolume::default()
    };
    assert!(matches!(engine.validate_volume(other).await.unwrap(), Validated::Refused(_)));
}

#[tokio::test]
async fn capacity_is_what_can_still_be_made_there() {
    let mut settings = Memory { pool_size: Bytes::mib(10), ..Memory::default() };
    settings.facts.access_modes = AccessMode::SINGLE_NODE.to_vec();
    let (engine, _) = engine_of(settings).await;
    make(&engine, "a").await;
    let query = QueryCapacity::default;
    let free = async |q| engine.capacity(q).await.map(|c| c.available);
    assert_eq!(free(query()).await.unwrap(), Bytes::mib(9));
    let other = QueryCapacity { parameters: map(&[("pool", "other")]), ..query() };
    assert_eq!(free(other).await.unwrap(), Bytes::mib(10));
    let least = engine.capacity(query()).await.unwrap().smallest;
    assert_eq!(least, Some(Bytes::mib(1)));

    let here = QueryCapacity { topology: Some(at("node-1")), ..query() };
    assert_eq!(free(here).await.unwrap(), Bytes::mib(9));
    let elsewhere = QueryCapacity { topology: Some(at("node-2")), ..query() };
    assert_eq!(free(elsewhere).await.unwrap(), Bytes::ZERO);
    let impossible = vec![mount(AccessMode::MultiNodeMultiWriter)];
    let impossible = QueryCapacity { capabilities: impossible, ..query() };
    assert_eq!(free(impossible).await.unwrap(), Bytes::ZERO);

    let raw = map(&[("csi.storage.k8s.io/fstype", "xfs"), ("fs", "xfs")]);
    free(QueryCapacity { parameters: raw, ..query() }).await.unwrap();
    for bad in [("speed", "9"), ("pool", "nowhere")] {
        let bad = QueryCapacity { parameters: map(&[bad]), ..query() };
        assert_eq!(kind(free(bad).await), Kind::Invalid);
    }
}

#[tokio::test]
async fn growing_is_repeatable_and_never_shrinks() {
    let (engine, _) = engine().await;
    make(&engine, "a").await;
    let grown = engine.expand_volume(expand("default/a", (2 << 20) + 1)).await.unwrap();
    assert_eq!(grown.capacity.get(), (2 << 20) + 4096);
    assert!(grown.node_expansion_required);
    assert_eq!(engine.expand_volume(expand("default/a", 2 << 20)).await.unwrap(), grown);

    let ask = |required, limit| ExpandVolume {
        volume_id: "default/a".into(),
        capacity: range(required, limit),
        ..ExpandVolume::default()
    };
    assert_eq!(kind(engine.expand_volume(ask(0, 1 << 20)).await), Kind::OutOfRange);
    assert_eq!(kind(engine.expand_volume(ask(1, 1 << 20)).await), Kind::OutOfRange);
    let between = ask((4 << 20) + 1, (4 << 20) + 2);
    assert_eq!(kind(engine.expand_volume(between).await), Kind::OutOfRange);
    assert_eq!(kind(engine.expand_volume(ask(i64::MAX, 0)).await), Kind::OutOfRange);
    assert_eq!(kind(engine.expand_volume(ask(4 << 40, 0)).await), Kind::Exhausted);
    assert_eq!(engine.expand_volume(ask(0, 1 << 30)).await.unwrap(), grown);
    assert_eq!(engine.get_volume("default/a").await.unwrap().volume.capacity, grown.capacity);
}

#[tokio::test]
async fn growth_is_refused_for_what_is_not_there_or_not_possible() {
    let (engine, _) = engine().await;
    make(&engine, "a").await;
    assert_eq!(kind(engine.expand_volume(expand("default/none", 1)).await), Kind::NotFound);
    assert_eq!(kind(engine.expand_volume(expand("what?", 1)).await), Kind::NotFound);
    assert_eq!(kind(engine.expand_volume(expand("", 1)).await), Kind::Invalid);
    assert_eq!(kind(engine.expand_volume(expand("gone/a", 1)).await), Kind::Unavailable);
    let unsized_ = ExpandVolume { capacity: CapacityRange::default(), ..expand("default/a", 1) };
    assert_eq!(kind(engine.expand_volume(unsized_).await), Kind::Invalid);
    let odd = ExpandVolume { capability: Some(mount_as("ntfs")), ..expand("default/a", 1) };
    assert_eq!(kind(engine.expand_volume(odd).await), Kind::Invalid);
    let capability = Some(mount_as("xfs"));
    let fine = ExpandVolume { capability, ..expand("default/a", 2 << 20) };
    engine.expand_volume(fine).await.unwrap();
}

#[tokio::test]
async fn only_storage_that_cannot_grow_online_wants_the_volume_unpublished() {
    for (online, expected) in [(true, None), (false, Some(Kind::Precondition))] {
        let mut settings = Memory::default();
        settings.facts.online_expansion = online;
        let (engine, _) = engine_of(settings).await;
        make(&engine, "a").await;
        engine.attach_volume(attach_to("default/a", "node-1")).await.unwrap();
        let result = engine.expand_volume(expand("default/a", 2 << 20)).await;
        assert_eq!(result.err().map(|f| f.kind()), expected);
    }
}

#[tokio::test]
async fn a_static_volume_of_an_odd_size_is_large_enough_as_it_is() {
    let (engine, backend) = engine().await;
    backend.add_static(&volume_id("default/odd"), Bytes::new((1 << 20) + 5));
    let exact = (1 << 20) + 5;
    let request = ExpandVolume { capacity: range(exact, exact), ..expand("default/odd", 1) };
    let answer = engine.expand_volume(request).await.unwrap();
    assert_eq!(answer.capacity.get(), (1 << 20) + 5);
}

#[tokio::test]
async fn modification_touches_the_keys_that_are_present_and_nothing_else() {
    let (engine, backend) = engine().await;
    make(&engine, "a").await;
    engine.modify_volume(modify("default/a", "fast")).await.unwrap();
    engine.modify_volume(modify("default/a", "fast")).await.unwrap();
    assert!(backend.inventory().contains("\"fast\""));
    let before = backend.inventory();
    let with = |pairs: &[(&str, &str)]| ModifyVolume {
        mutable_parameters: map(pairs),
        ..modify("default/a", "")
    };
    for bad in [&[("tier", "slow"), ("speed", "9")][..], &[("pool", "other")], &[]] {
        assert_eq!(kind(engine.modify_volume(with(bad)).await), Kind::Invalid, "{bad:?}");
        assert_eq!(backend.inventory(), before, "a refused modification changed something");
    }
    engine.modify_volume(with(&[("csi.storage.k8s.io/pvc/name", "x")])).await.unwrap();
    assert_eq!(backend.inventory(), before);
    assert_eq!(kind(engine.modify_volume(modify("default/none", "x")).await), Kind::NotFound);
    assert_eq!(kind(engine.modify_volume(modify("what?", "x")).await), Kind::NotFound);
    assert_eq!(kind(engine.modify_volume(modify("", "x")).await), Kind::Invalid);
}
