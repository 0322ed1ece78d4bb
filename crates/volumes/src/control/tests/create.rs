//! CreateVolume.

use super::*;

fn from_snapshot(name: &str, id: &str) -> CreateVolume {
    CreateVolume { source: Some(SourceId::Snapshot(id.into())), ..create(name) }
}
fn from_volume(name: &str, id: &str) -> CreateVolume {
    CreateVolume { source: Some(SourceId::Volume(id.into())), ..create(name) }
}
fn with(name: &str, parameters: &[(&str, &str)]) -> CreateVolume {
    CreateVolume { parameters: map(parameters), ..create(name) }
}
fn capable(name: &str, capabilities: Vec<VolumeCapability>) -> CreateVolume {
    CreateVolume { capabilities, ..create(name) }
}

#[tokio::test]
async fn a_repeated_create_returns_the_same_volume() {
    let (engine, _) = engine().await;
    let first = make(&engine, "pvc-1").await;
    assert_eq!(first.id.as_str(), "default/pvc-1");
    assert_eq!(first.capacity, Bytes::mib(1));
    assert_eq!(first.topology, [at("node-1")]);
    assert_eq!(make(&engine, "pvc-1").await, first);
}

#[tokio::test]
async fn a_lost_answer_is_given_again() {
    let (engine, backend) = engine().await;
    let lost = Fault::new(Kind::Deadline, "answer in time");
    backend.inject("ensure_volume", Inject::LoseAnswer(lost));
    assert_eq!(kind(engine.create_volume(create("a")).await), Kind::Deadline);
    assert_eq!(make(&engine, "a").await.id.as_str(), "default/a");
}

#[tokio::test]
async fn a_name_that_exists_with_other_properties_is_a_conflict() {
    let (engine, backend) = engine().await;
    make(&engine, "origin").await;
    make(&engine, "a").await;
    for (other, why) in [
        (CreateVolume { capacity: range(2 << 20, 0), ..create("a") }, "with the size 1Mi"),
        (CreateVolume { capacity: range(0, 4096 * 256 - 1), ..create("a") }, "least possible"),
        (from_volume("a", "default/origin"), "is not a copy"),
        (CreateVolume { ephemeral: true, ..create("a") }, "lifetime"),
        (with("a", &[("pool", "other")]), "the name is taken by volume default/a"),
        (with("a", &[("fs", "xfs")]), "it differs"),
        (capable("a", vec![block()]), "it differs"),
    ] {
        let fault = engine.create_volume(other).await.unwrap_err();
        let size = why == "least possible";
        let expected = if size { Kind::OutOfRange } else { Kind::Conflict };
        assert_eq!(fault.kind(), expected, "{fault}");
        assert!(fault.to_string().contains(why), "{fault} does not say {why:?}");
    }
    backend.edit(&volume_id("default/a"), |v| v.topology = vec![at("node-2")]);
    let requisite = vec![at("node-1")];
    let topology = Some(TopologyRequirement { requisite, preferred: Vec::new() });
    let fault = engine.create_volume(CreateVolume { topology, ..create("a") }).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Conflict, "{fault}");
}

#[tokio::test]
async fn two_names_with_one_native_form_are_told_apart() {
    let (engine, _) = engine().await;
    let odd: larder_model::RequestedName = "Data Base".parse().unwrap();
    make(&engine, odd.as_str()).await;
    let fault = engine.create_volume(create(odd.native().as_str())).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Conflict);
    assert!(fault.to_string().contains("\"Data Base\""), "{fault}");
    make(&engine, odd.as_str()).await;
}

#[tokio::test]
async fn what_an_administrator_put_there_is_never_adopted() {
    let (engine, backend) = engine().await;
    backend.add_static(&volume_id("default/a"), Bytes::mib(1));
    let fault = engine.create_volume(create("a")).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Conflict);
    assert!(fault.to_string().contains("not created by this driver"), "{fault}");
    // In another pool it is nobody's name.
    engine.create_volume(with("a", &[("pool", "other")])).await.unwrap();
}

#[tokio::test]
async fn a_lost_pool_does_not_stop_creation_in_the_others() {
    let (engine, backend) = engine().await;
    backend.lose_pool("other", true);
    make(&engine, "a").await;
    backend.lose_pool("default", true);
    assert_eq!(kind(engine.create_volume(create("a")).await), Kind::Unavailable);
    assert_eq!(kind(engine.create_volume(create("b")).await), Kind::Unavailable);
}

#[tokio::test]
async fn names_are_refused_that_csi_forbids() {
    let (engine, backend) = engine().await;
    for bad in ["", "a\0b", "a\nb", "\u{7f}", &"x".repeat(129)] {
        assert_eq!(kind(engine.create_volume(create(bad)).await), Kind::Invalid, "{bad:?}");
    }
    for fine in ["../../etc/passwd", "/", "..", "Größe 1", &"x".repeat(128)] {
        let id = make(&engine, fine).await.id;
        assert!(id.as_str().len() <= 128, "{id}");
        assert!(id.as_str().starts_with("default/") && !id.native().as_str().contains(".."));
    }
    assert_eq!(backend.calls("ensure_volume"), 5);
}

#[tokio::test]
async fn capabilities_that_no_volume_has_are_refused_and_nothing_is_done() {
    let mut settings = Memory::default();
    settings.facts.access_modes = AccessMode::SINGLE_NODE.to_vec();
    settings.facts.mount_group = false;
    let (engine, backend) = engine_of(settings).await;
    let grouped = MountAccess { group: Some(7), ..MountAccess::default() };
    let flags = |flags: Vec<String>| {
        let access = AccessType::Mount(MountAccess { flags, ..MountAccess::default() });
        VolumeCapability { access, mode: AccessMode::SingleNodeWriter }
    };
    for (bad, why) in [
        (vec![], "at least one"),
        (vec![mount(AccessMode::MultiNodeMultiWriter)], "MULTI_NODE_MULTI_WRITER"),
        (
            vec![mount(AccessMode::SingleNodeWriter), mount(AccessMode::MultiNodeReaderOnly)],
            "this driver supports SINGLE_NODE_WRITER, ",
        ),
        (vec![mount_as("ntfs")], "\"ntfs\""),
        (vec![mount_as("ext4"), mount_as("xfs")], "ext4"),
        (
            vec![VolumeCapability {
                access: AccessType::Mount(grouped),
                mode: AccessMode::SingleNodeWriter,
            }],
            "VOLUME_MOUNT_GROUP",
        ),
        (vec![flags(vec!["password=hunter2".repeat(400)])], "4096 bytes"),
        (vec![flags(vec!["ro\nhunter2".into()])], "line break"),
    ] {
        let fault = engine.create_volume(capable("a", bad)).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Invalid, "{fault}");
        let text = fault.to_string();
        assert!(text.contains(why) && !text.contains("hunter2"), "{text}");
    }
    assert_eq!(backend.calls("get_volume"), 0);
}

#[tokio::test]
async fn block_and_mount_are_accepted_as_the_storage_can() {
    let (engine, _) = engine().await;
    let both = vec![block(), mount(AccessMode::SingleNodeWriter)];
    engine.create_volume(capable("both", both.clone())).await.unwrap();
    let mut settings = Memory::default();
    settings.facts.block = false;
    let (mount_only, _) = engine_of(settings).await;
    for bad in [vec![block()], both.clone()] {
        assert_eq!(kind(mount_only.create_volume(capable("a", bad)).await), Kind::Invalid);
    }
    let mut settings = Memory::default();
    settings.facts.mount = false;
    let (block_only, _) = engine_of(settings).await;
    for bad in [vec![mount(AccessMode::SingleNodeWriter)], both] {
        assert_eq!(kind(block_only.create_volume(capable("a", bad)).await), Kind::Invalid);
    }
    block_only.create_volume(capable("a", vec![block()])).await.unwrap();
}

#[tokio::test]
async fn the_file_system_is_asked_for_once() {
    let (engine, _) = engine().await;
    let both = |name: &str, parameter: &str, capability: &str| CreateVolume {
        parameters: map(&[("fs", parameter)]),
        capabilities: vec![mount_as(capability)],
        ..create(name)
    };
    engine.create_volume(both("same", "xfs", "xfs")).await.unwrap();
    engine.create_volume(both("parameter", "xfs", "")).await.unwrap();
    assert_eq!(kind(engine.create_volume(both("a", "xfs", "ext4")).await), Kind::Invalid);
    assert_eq!(kind(engine.create_volume(both("a", "ntfs", "")).await), Kind::Invalid);

    let mut settings = Memory::default();
    settings.facts.file_systems = vec![FsType::Ext4];
    let (ext4, _) = engine_of(settings.clone()).await;
    let fault = ext4.create_volume(capable("a", vec![mount_as("xfs")])).await.unwrap_err();
    assert!(fault.to_string().contains("this driver makes ext4"), "{fault}");

    settings.facts.file_systems = Vec::new();
    let (none, _) = engine_of(settings).await;
    // What provisioners fill in for every driver is not held against volumes that are directories.
    none.create_volume(capable("default-fstype", vec![mount_as("ext4")])).await.unwrap();
    let fault = none.create_volume(capable("a", vec![mount_as("ntfs")])).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Invalid);
    assert!(fault.to_string().contains("no file system of their own"), "{fault}");
}

#[tokio::test]
async fn reserved_parameters_are_tolerated_and_unknown_ones_refused_by_name() {
    let (engine, backend) = engine().await;
    let reserved = ("csi.storage.k8s.io/pvc/name", "claim");
    engine.create_volume(with("a", &[reserved, ("tier", "x")])).await.unwrap();
    assert!(!backend.inventory().contains("claim"), "reserved keys are not the backend's");
    let fault = engine.create_volume(with("b", &[("fsTyp", "xfs")])).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Invalid);
    assert!(fault.to_string().contains("\"fsTyp\""), "{fault}");
    let large = "x".repeat(4096);
    let fault = engine.create_volume(with("b", &[("tier", &large)])).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Invalid);
}

#[tokio::test]
async fn the_pool_is_chosen_by_parameter_by_source_or_by_default() {
    let (engine, _) = engine().await;
    let id = |v: Volume| v.id.to_string();
    assert_eq!(id(make(&engine, "a").await), "default/a");
    let b = engine.create_volume(with("b", &[("pool", "other")])).await.unwrap();
    assert_eq!(id(b), "other/b");
    let c = engine.create_volume(from_volume("c", "other/b")).await.unwrap();
    assert_eq!(id(c), "other/c");
    let to_default =
        CreateVolume { parameters: map(&[("pool", "default")]), ..from_volume("d", "other/b") };
    assert_eq!(id(engine.create_volume(to_default).await.unwrap()), "default/d");
    for bad in ["nowhere", "", "../other", "default/"] {
        let fault = engine.create_volume(with("e", &[("pool", bad)])).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Invalid, "{bad:?}");
        assert!(fault.to_string().contains("configured are default, other"), "{fault}");
    }
    let pools = ["one", "two"].map(|p| p.parse().unwrap()).to_vec();
    let (several, _) = engine_of(Memory { pools, ..Memory::default() }).await;
    let fault = several.create_volume(create("a")).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Invalid);
    assert!(fault.to_string().contains("set parameter pool to one of one, two"), "{fault}");
}

#[tokio::test]
async fn mutable_parameters_need_modification_and_never_move_a_volume() {
    let request = |key: &str| CreateVolume {
        parameters: map(&[("tier", "slow")]),
        mutable_parameters: map(&[(key, "fast")]),
        ..create("a")
    };
    let (engine, backend) = engine().await;
    assert_eq!(kind(engine.create_volume(request("pool")).await), Kind::Invalid);
    assert_eq!(kind(engine.create_volume(request("speed")).await), Kind::Invalid);
    engine.create_volume(request("tier")).await.unwrap();
    assert!(backend.inventory().contains("\"fast\""), "{}", backend.inventory());

    let abilities = Abilities { modify: false, ..Abilities::ALL };
    let (fixed, _) = engine_of(Memory { abilities, ..Memory::default() }).await;
    let fault = fixed.create_volume(request("tier")).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Invalid);
    assert!(fault.to_string().contains("MODIFY_VOLUME"), "{fault}");
    let reserved = request("csi.storage.k8s.io/pvc/name");
    fixed.create_volume(reserved).await.unwrap();
}

#[tokio::test]
async fn sizes_follow_the_range_and_the_least_size() {
    let (engine, _) = engine().await;
    let size = async |name: &str, required, limit| {
        let request = CreateVolume { capacity: range(required, limit), ..create(name) };
        engine.create_volume(request).await.map(|v| v.capacity)
    };
    assert_eq!(size("unset", 0, 0).await.unwrap(), Bytes::gib(1));
    assert_eq!(size("small", 1, 0).await.unwrap(), Bytes::mib(1));
    assert_eq!(size("exact", 2 << 20, 2 << 20).await.unwrap(), Bytes::mib(2));
    assert_eq!(size("limited", 0, 3 << 20).await.unwrap(), Bytes::mib(3));
    assert_eq!(kind(size("a", 1, 4096).await), Kind::OutOfRange);
    assert_eq!(kind(size("a", (1 << 20) + 1, (1 << 20) + 2).await), Kind::OutOfRange);
    assert_eq!(kind(size("a", i64::MAX, 0).await), Kind::OutOfRange);
    assert_eq!(kind(size("a", 2 << 40, 0).await), Kind::Exhausted);
}

#[tokio::test]
async fn a_copy_names_its_source_and_shows_its_data() {
    let (engine, backend) = engine().await;
    let origin = make(&engine, "origin").await;
    backend.write(&origin.id, 3, 33);
    engine.create_snapshot(snapshot("s", "default/origin")).await.unwrap();
    backend.write(&origin.id, 3, 44);
    let restored = engine.create_volume(from_snapshot("r", "default/s")).await.unwrap();
    assert_eq!(restored.source.as_ref().unwrap().to_string(), "snapshot default/s");
    assert_eq!(backend.read(&restored.id).unwrap()[&3], 33);
    let clone = engine.create_volume(from_volume("c", "default/origin")).await.unwrap();
    assert_eq!(clone.source.as_ref().unwrap().to_string(), "volume default/origin");
    assert_eq!(backend.read(&clone.id).unwrap()[&3], 44);
}

#[tokio::test]
async fn a_copy_is_at_least_as_large_as_its_source() {
    let (engine, _) = engine().await;
    let big = CreateVolume { capacity: range(8 << 20, 0), ..create("big") };
    engine.create_volume(big).await.unwrap();
    engine.create_snapshot(snapshot("s", "default/big")).await.unwrap();
    for source in [SourceId::Snapshot("default/s".into()), SourceId::Volume("default/big".into())] {
        let sized = |name: &str, required, limit| CreateVolume {
            capacity: range(required, limit),
            source: Some(source.clone()),
            ..create(name)
        };
        let letter = if matches!(source, SourceId::Volume(_)) { 'v' } else { 's' };
        for (required, limit) in [(1 << 20, 0), (0, 4 << 20), ((8 << 20) - 1, 0)] {
            let fault = engine.create_volume(sized("a", required, limit)).await.unwrap_err();
            assert_eq!(fault.kind(), Kind::OutOfRange, "{fault}");
            assert!(fault.to_string().contains("needs at least 8Mi"), "{fault}");
        }
        let same = engine.create_volume(sized(&format!("{letter}1"), 0, 0)).await.unwrap();
        assert_eq!(same.capacity, Bytes::mib(8));
        let grown = engine.create_volume(sized(&format!("{letter}2"), 9 << 20, 0)).await.unwrap();
        assert_eq!(grown.capacity, Bytes::mib(9));
    }
}

#[tokio::test]
async fn sources_that_are_not_there_or_not_possible_are_told_apart() {
    let (engine, backend) = engine().await;
    let result = async |request: CreateVolume| engine.create_volume(request).await.map(|v| v.id);
    assert_eq!(kind(result(from_snapshot("a", "default/none")).await), Kind::NotFound);
    assert_eq!(kind(result(from_volume("a", "default/none")).await), Kind::NotFound);
    assert_eq!(kind(result(from_snapshot("a", "what?")).await), Kind::NotFound);
    assert_eq!(kind(result(from_volume("a", "../../etc")).await), Kind::NotFound);
    assert_eq!(kind(result(from_volume("a", "")).await), Kind::Invalid);
    assert_eq!(kind(result(from_snapshot("a", "elsewhere/s")).await), Kind::Unavailable);
    assert_eq!(backend.calls("ensure_volume"), 0);

    make(&engine, "origin").await;
    engine.create_snapshot(snapshot("s", "default/origin")).await.unwrap();
    backend.set_ready(&snapshot_id("default/s"), false);
    assert_eq!(kind(result(from_snapshot("a", "default/s")).await), Kind::Unavailable);
    backend.set_ready(&snapshot_id("default/s"), true);
    result(from_snapshot("a", "default/s")).await.unwrap();

    let abilities = Abilities { snapshots: false, clones: false, ..Abilities::ALL };
    let (plain, _) = engine_of(Memory { abilities, ..Memory::default() }).await;
    make(&plain, "origin").await;
    let snapshot = plain.create_volume(from_snapshot("a", "default/s")).await;
    assert_eq!(kind(snapshot), Kind::Invalid);
    let clone = plain.create_volume(from_volume("a", "default/origin")).await;
    assert_eq!(kind(clone), Kind::Invalid);
}

#[tokio::test]
async fn a_repeated_copy_is_found_when_its_source_is_gone() {
    let (engine, _) = engine().await;
    make(&engine, "origin").await;
    engine.create_snapshot(snapshot("s", "default/origin")).await.unwrap();
    let first = engine.create_volume(from_snapshot("a", "default/s")).await.unwrap();
    delete_snapshot(&engine, "default/s").await.unwrap();
    delete(&engine, "default/origin").await.unwrap();
    assert_eq!(engine.create_volume(from_snapshot("a", "default/s")).await.unwrap(), first);
    assert_eq!(kind(engine.create_volume(create("a")).await), Kind::Conflict);
}

#[tokio::test]
async fn topology_is_met_here_or_there_is_no_room() {
    let (engine, _) = engine().await;
    let places = |nodes: &[&str]| nodes.iter().map(|n| at(n)).collect::<Vec<_>>();
    let result = async |name: &str, requisite: &[&str], preferred: &[&str]| {
        let (requisite, preferred) = (places(requisite), places(preferred));
        let topology = Some(TopologyRequirement { requisite, preferred });
        engine.create_volume(CreateVolume { topology, ..create(name) }).await
    };
    for (n, (requisite, preferred)) in [
        (&["node-1"][..], &[][..]),
        (&["node-2", "node-1"], &["node-2"]),
        (&[], &["node-1"]),
        (&[], &["node-9"]),
    ]
    .into_iter()
    .enumerate()
    {
        let volume = result(&format!("v{n}"), requisite, preferred).await.unwrap();
        assert_eq!(volume.topology, places(&["node-1"]));
    }
    let fault = result("a", &["node-2"], &["node-2"]).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Exhausted);
    assert!(fault.to_string().contains("node-1"), "{fault}");
    assert_eq!(kind(result("a", &[], &[]).await), Kind::Invalid);
    assert_eq!(kind(result("a", &["node-1"], &["node-2"]).await), Kind::Invalid);

    // Keys compare without case.
    let upper = Segments::one(NODE_TOPOLOGY_KEY.to_uppercase(), "node-1");
    let topology = TopologyRequirement { requisite: vec![upper], preferred: places(&["node-1"]) };
    let request = CreateVolume { topology: Some(topology), ..create("upper") };
    engine.create_volume(request).await.unwrap();

    let mut settings = Memory::default();
    settings.facts.scope = larder_model::volume::Scope::Everywhere;
    let (everywhere, _) = engine_of(settings).await;
    let topology = TopologyRequirement { requisite: places(&["node-2"]), preferred: Vec::new() };
    let request = CreateVolume { topology: Some(topology), ..create("a") };
    assert_eq!(everywhere.create_volume(request).await.unwrap().topology, []);
}

#[tokio::test]
async fn inline_volumes_need_storage_that_has_them() {
    let (engine, _) = engine().await;
    let inline = CreateVolume { ephemeral: true, ..create("a") };
    assert!(engine.create_volume(inline.clone()).await.unwrap().ephemeral);
    assert_eq!(kind(engine.create_volume(create("a")).await), Kind::Conflict);
    let mut settings = Memory::default();
    settings.facts.ephemeral = false;
    let (none, _) = engine_of(settings).await;
    assert_eq!(kind(none.create_volume(inline).await), Kind::Invalid);
}

#[tokio::test]
async fn without_room_nothing_is_left_behind() {
    let (engine, backend) =
        engine_of(Memory { pool_size: Bytes::mib(4), ..Default::default() }).await;
    let large = CreateVolume { capacity: range(8 << 20, 0), ..create("large") };
    let empty = backend.inventory();
    assert_eq!(kind(engine.create_volume(large).await), Kind::Exhausted);
    assert_eq!(backend.inventory(), empty);
}

#[tokio::test(start_paused = true)]
async fn pools_that_are_silent_or_not_yet_any_keep_no_volume_from_being_made() {
    let pools = ["default", "other", "third"].map(|p| p.parse().unwrap()).to_vec();
    let (engine, backend) = engine_of(Memory { pools, ..Memory::default() }).await;
    let at = |name: &str| with(name, &[("pool", "default")]);
    // Nothing can be asked of what the first volume makes a pool.
    let absent = Fault::unavailable("find it: it is no pool yet");
    backend.inject("get_volume", Inject::Fail(absent.clone()));
    engine.create_volume(at("a")).await.unwrap();
    // A copy is compared first: without an answer it is not known whether it exists.
    backend.inject("get_volume", Inject::Fail(absent));
    assert_eq!(kind(engine.create_volume(from_volume("b", "default/a")).await), Kind::Unavailable);
    // The others are asked at once, and not waited for.
    backend.inject("get_volume", Inject::Sleep(Duration::ZERO));
    for _ in 0..2 {
        backend.inject("get_volume", Inject::Sleep(Duration::from_secs(20)));
    }
    let began = tokio::time::Instant::now();
    engine.create_volume(at("c")).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
}
