//! Every row of CSI's error tables that concerns the controller, proven.
//!
//! The table stands beside this file. A row without a proof fails, and so does a proof whose
//! outcome is not the row's code.

use super::*;

const TABLE: &str = include_str!("csi-errors.tsv");

/// The name of the gRPC code of a kind; None is OK.
fn code(outcome: Option<Kind>) -> &'static str {
    match outcome {
        None => "OK",
        Some(Kind::Invalid) => "INVALID_ARGUMENT",
        Some(Kind::NotFound) => "NOT_FOUND",
        Some(Kind::Conflict) => "ALREADY_EXISTS",
        Some(Kind::Aborted) => "ABORTED",
        Some(Kind::Precondition) => "FAILED_PRECONDITION",
        Some(Kind::OutOfRange) => "OUT_OF_RANGE",
        Some(Kind::Exhausted) => "RESOURCE_EXHAUSTED",
        Some(Kind::Denied) => "PERMISSION_DENIED",
        Some(Kind::Unauthenticated) => "UNAUTHENTICATED",
        Some(Kind::Unavailable) => "UNAVAILABLE",
        Some(Kind::Deadline) => "DEADLINE_EXCEEDED",
        Some(Kind::Unsupported) => "UNIMPLEMENTED",
        Some(Kind::Corrupt) => "DATA_LOSS",
        Some(Kind::Internal) => "INTERNAL",
    }
}

fn outcome<T>(result: Result<T>) -> Option<Kind> {
    result.err().map(|f| f.kind())
}

/// A world with volumes `a` and `b`, snapshots `s` of `a` and `t` of `b`, and group `g` of both.
struct World {
    engine: ControlEngine,
    backend: MemoryBackend,
    members: GroupMembers,
}

async fn world() -> World {
    let mut settings = Memory { pool_size: Bytes::mib(64), ..Memory::default() };
    settings.facts.access_modes = AccessMode::SINGLE_NODE.to_vec();
    settings.facts.online_expansion = false;
    let (engine, backend) = engine_of(settings).await;
    make(&engine, "a").await;
    make(&engine, "b").await;
    engine.create_snapshot(snapshot("s", "default/a")).await.unwrap();
    engine.create_snapshot(snapshot("t", "default/b")).await.unwrap();
    let made = engine.create_group(group("g", &["default/a", "default/b"])).await.unwrap();
    let snapshot_ids = made.snapshots.iter().map(|s| s.id.to_string()).collect();
    let members = GroupMembers { group_snapshot_id: made.id.to_string(), snapshot_ids };
    World { engine, backend, members }
}

impl World {
    fn fail(&self, method: &'static str, kind: Kind) {
        self.backend.inject(method, Inject::Fail(Fault::new(kind, "do it")));
    }
    async fn create(&self, request: CreateVolume) -> Option<Kind> {
        outcome(self.engine.create_volume(request).await)
    }
    /// A call on volume `a` while it is being expanded.
    async fn while_busy(&self) -> Option<Kind> {
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        self.backend.inject("expand_volume", Inject::Hold(gate.clone()));
        let call = spawn({
            let engine = self.engine.clone();
            async move { engine.expand_volume(expand("default/a", 2 << 20)).await }
        });
        settle().await;
        let got = outcome(delete(&self.engine, "default/a").await);
        gate.add_permits(1);
        call.await.unwrap().unwrap();
        got
    }
    async fn while_snapshot_is_busy(&self, again: bool) -> Option<Kind> {
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        self.backend.inject("delete_snapshot", Inject::Hold(gate.clone()));
        let call = spawn({
            let engine = self.engine.clone();
            async move { delete_snapshot(&engine, "default/s").await }
        });
        settle().await;
        let got = if again {
            outcome(self.engine.create_snapshot(snapshot("s", "default/a")).await)
        } else {
            let request = CreateVolume {
                source: Some(SourceId::Snapshot("default/s".into())),
                ..create("x")
            };
            self.create(request).await
        };
        gate.add_permits(1);
        call.await.unwrap().unwrap();
        got
    }
    fn blocks(&self, base: Option<&str>, snapshot: &str, starting_offset: i64) -> QueryBlocks {
        QueryBlocks {
            base_snapshot_id: base.map(str::to_owned),
            snapshot_id: snapshot.into(),
            starting_offset,
            max_results: 0,
        }
    }
}

/// Brings about the condition of a row; `None` for a row that nobody has proven.
#[allow(clippy::too_many_lines, reason = "one line or two per row of the table")]
async fn bring_about(rpc: &str, condition: &str) -> Option<Option<Kind>> {
    let w = world().await;
    let e = &w.engine;
    let is = |start: &str| condition.starts_with(start);
    Some(match rpc {
        "*" if is("required field absent") => w.create(create("")).await,
        "*" if is("field value not allowed") => {
            let capabilities = vec![mount(AccessMode::MultiNodeMultiWriter)];
            w.create(CreateVolume { capabilities, ..create("x") }).await
        }
        "*" if is("identity derived from secrets") => {
            w.fail("ensure_volume", Kind::Denied);
            w.create(create("x")).await
        }
        "*" if is("another operation is in flight") => w.while_busy().await,
        "*" if is("rpc not implemented") => {
            let settings = Memory { abilities: Abilities::NONE, ..Memory::default() };
            let (engine, _) = engine_of(settings).await;
            outcome(engine.list_volumes(Paging::default()).await)
        }
        "*" if is("secrets missing") => {
            w.fail("delete_volume", Kind::Unauthenticated);
            outcome(delete(e, "default/a").await)
        }
        "Probe" if is("plugin unhealthy") => {
            w.fail("probe", Kind::Internal);
            outcome(e.probe().await)
        }
        "Probe" if is("a needed dependency") => {
            w.fail("probe", Kind::Precondition);
            outcome(e.probe().await)
        }
        "CreateVolume" if is("content source kind unsupported") => {
            let abilities = Abilities { clones: false, ..Abilities::ALL };
            let (engine, _) = engine_of(Memory { abilities, ..Memory::default() }).await;
            let source = Some(SourceId::Volume("default/a".into()));
            outcome(engine.create_volume(CreateVolume { source, ..create("x") }).await)
        }
        "CreateVolume" if is("content source (snapshot or volume) not found") => {
            let source = Some(SourceId::Snapshot("default/none".into()));
            w.create(CreateVolume { source, ..create("x") }).await
        }
        "CreateVolume" if is("name taken") => {
            w.create(CreateVolume { capacity: range(2 << 20, 0), ..create("a") }).await
        }
        "CreateVolume" if is("topology valid but no room") => {
            let requisite = vec![at("node-2")];
            let topology = Some(TopologyRequirement { requisite, preferred: Vec::new() });
            let elsewhere = w.create(CreateVolume { topology, ..create("x") }).await;
            let full = w.create(CreateVolume { capacity: range(1 << 30, 0), ..create("x") }).await;
            assert_eq!(elsewhere, full);
            full
        }
        "CreateVolume" if is("capacity_range not satisfiable") => {
            let tiny = w.create(CreateVolume { capacity: range(1, 2), ..create("x") }).await;
            let source = Some(SourceId::Volume("default/a".into()));
            let capacity = range(4096, 0);
            let small = w.create(CreateVolume { source, capacity, ..create("x") }).await;
            assert_eq!(tiny, small);
            small
        }
        "DeleteVolume" if is("volume in use") => {
            w.backend.set_in_use("default/a", true);
            outcome(delete(e, "default/a").await)
        }
        "DeleteVolume" if is("volume unknown") => outcome(delete(e, "default/none").await),
        "ControllerPublishVolume" if is("volume not found") => {
            outcome(e.attach_volume(attach_to("default/none", "node-1")).await)
        }
        "ControllerPublishVolume" if is("node_id not found") => {
            outcome(e.attach_volume(attach_to("default/a", "moon")).await)
        }
        "ControllerPublishVolume" if is("already published to this node") => {
            e.attach_volume(attach_to("default/a", "node-1")).await.unwrap();
            let other = AttachVolume { readonly: true, ..attach_to("default/a", "node-1") };
            outcome(e.attach_volume(other).await)
        }
        "ControllerPublishVolume" if is("single-node volume already published") => {
            e.attach_volume(attach_to("default/a", "node-1")).await.unwrap();
            let fault = e.attach_volume(attach_to("default/a", "node-2")).await.unwrap_err();
            assert!(fault.to_string().contains("node-1"), "{fault} does not name the node");
            Some(fault.kind())
        }
        "ControllerPublishVolume" if is("node attach limit") => {
            w.fail("attach_volume", Kind::Exhausted);
            outcome(e.attach_volume(attach_to("default/a", "node-1")).await)
        }
        "ControllerUnpublishVolume" if is("not attached there") => {
            outcome(e.detach_volume(detach_from("default/a", "node-1")).await)
        }
        "ValidateVolumeCapabilities" => {
            let (id, mode) = match condition {
                "volume not found" => ("default/none", AccessMode::SingleNodeWriter),
                "some capability unsupported" => ("default/a", AccessMode::MultiNodeMultiWriter),
                _ => return None,
            };
            let request = ValidateVolume {
                volume_id: id.into(),
                capabilities: vec![mount(mode)],
                ..ValidateVolume::default()
            };
            let answer = e.validate_volume(request).await;
            assert!(!matches!(answer, Ok(Validated::Confirmed)));
            outcome(answer)
        }
        "ListVolumes" if is("starting_token invalid") => {
            let paging = Paging { max_entries: 0, starting_token: "nonsense".into() };
            outcome(e.list_volumes(paging).await)
        }
        "ControllerGetVolume" if is("volume not found") => {
            outcome(e.get_volume("default/none").await)
        }
        "ControllerModifyVolume" if is("mutable parameter keys") => {
            let mutable_parameters = map(&[("speed", "9"), ("tier", "x")]);
            let before = w.backend.inventory();
            let request = ModifyVolume { mutable_parameters, ..modify("default/a", "") };
            let got = outcome(e.modify_volume(request).await);
            assert_eq!(w.backend.inventory(), before, "something was applied");
            got
        }
        "ControllerModifyVolume" if is("volume not found") => {
            outcome(e.modify_volume(modify("default/none", "x")).await)
        }
        "CreateSnapshot" if is("name taken") => {
            outcome(e.create_snapshot(snapshot("s", "default/b")).await)
        }
        "CreateSnapshot" if is("operation pending") => w.while_snapshot_is_busy(true).await,
        "CreateSnapshot" if is("no space") => {
            w.fail("ensure_snapshot", Kind::Exhausted);
            outcome(e.create_snapshot(snapshot("x", "default/a")).await)
        }
        "DeleteSnapshot" if is("snapshot belongs to a group") => {
            outcome(delete_snapshot(e, &w.members.snapshot_ids[0]).await)
        }
        "DeleteSnapshot" if is("snapshot in use") => {
            w.backend.set_in_use("default/s", true);
            outcome(delete_snapshot(e, "default/s").await)
        }
        "DeleteSnapshot" if is("operation pending") => {
            let gate = Arc::new(tokio::sync::Semaphore::new(0));
            w.backend.inject("ensure_snapshot", Inject::Hold(gate.clone()));
            let call = spawn({
                let engine = e.clone();
                async move { engine.create_snapshot(snapshot("s", "default/a")).await }
            });
            settle().await;
            let got = outcome(delete_snapshot(e, "default/s").await);
            gate.add_permits(1);
            call.await.unwrap().unwrap();
            assert_eq!(w.while_snapshot_is_busy(false).await, got);
            got
        }
        "DeleteSnapshot" if is("snapshot unknown") => {
            outcome(delete_snapshot(e, "default/none").await)
        }
        "ListSnapshots" if is("starting_token invalid") => {
            let paging = Paging { max_entries: 0, starting_token: "nonsense".into() };
            outcome(e.list_snapshots(ListSnapshots { paging, ..Default::default() }).await)
        }
        "ListSnapshots" if is("filter snapshot_id/source_volume_id") => {
            for (source, id) in [("default/none", ""), ("", "default/none")] {
                let request = ListSnapshots {
                    source_volume_id: source.into(),
                    snapshot_id: id.into(),
                    ..ListSnapshots::default()
                };
                assert!(e.list_snapshots(request).await.unwrap().snapshots.is_empty());
            }
            None
        }
        "GetSnapshot" if is("snapshot not found") => outcome(e.get_snapshot("default/none").await),
        "ControllerExpandVolume" if is("capability not supported") => {
            let capability = Some(mount_as("ntfs"));
            outcome(e.expand_volume(ExpandVolume { capability, ..expand("default/a", 1) }).await)
        }
        "ControllerExpandVolume" if is("volume not found") => {
            outcome(e.expand_volume(expand("default/none", 1)).await)
        }
        "ControllerExpandVolume" if is("published on a node") => {
            e.attach_volume(attach_to("default/a", "node-1")).await.unwrap();
            outcome(e.expand_volume(expand("default/a", 2 << 20)).await)
        }
        "ControllerExpandVolume" if is("capacity_range not allowed") => {
            let capacity = range(0, 4096);
            outcome(e.expand_volume(ExpandVolume { capacity, ..expand("default/a", 1) }).await)
        }
        "ControllerExpandVolume" if is("already at least") => {
            outcome(e.expand_volume(expand("default/a", 1)).await)
        }
        "CreateVolumeGroupSnapshot" if is("name taken") => {
            outcome(e.create_group(group("g", &["default/a"])).await)
        }
        "CreateVolumeGroupSnapshot" if is("volumes cannot be snapshotted together") => {
            let parameters = map(&[("pool", "other")]);
            e.create_volume(CreateVolume { parameters, ..create("c") }).await.unwrap();
            outcome(e.create_group(group("h", &["default/a", "other/c"])).await)
        }
        "CreateVolumeGroupSnapshot" if is("no space") => {
            w.fail("ensure_group", Kind::Exhausted);
            outcome(e.create_group(group("h", &["default/a"])).await)
        }
        "DeleteVolumeGroupSnapshot" if is("snapshot_ids do not match") => {
            let snapshot_ids = vec!["default/s".into()];
            outcome(e.delete_group(GroupMembers { snapshot_ids, ..w.members.clone() }).await)
        }
        "DeleteVolumeGroupSnapshot" if is("group snapshot in use") => {
            w.backend.set_in_use("default/g", true);
            outcome(e.delete_group(w.members.clone()).await)
        }
        "DeleteVolumeGroupSnapshot" if is("group snapshot unknown") => {
            let group_snapshot_id = "default/none".into();
            outcome(e.delete_group(GroupMembers { group_snapshot_id, ..w.members.clone() }).await)
        }
        "GetVolumeGroupSnapshot" if is("snapshot_ids do not match") => {
            let snapshot_ids = vec!["default/s".into()];
            outcome(e.get_group(GroupMembers { snapshot_ids, ..w.members.clone() }).await)
        }
        "GetVolumeGroupSnapshot" if is("group snapshot not found") => {
            let group_snapshot_id = "default/none".into();
            outcome(e.get_group(GroupMembers { group_snapshot_id, ..w.members.clone() }).await)
        }
        "GetMetadataAllocated" => {
            let query = match condition {
                c if c.starts_with("argument missing") => w.blocks(None, "", 0),
                c if c.starts_with("snapshot_id unknown") => w.blocks(None, "default/none", 0),
                c if c.starts_with("starting_offset") => w.blocks(None, "default/s", -1),
                _ => return None,
            };
            outcome(e.blocks(query).await)
        }
        "GetMetadataDelta" => {
            let base = Some("default/s");
            let query = match condition {
                c if c.starts_with("argument missing") => w.blocks(base, "default/t", 0),
                c if c.starts_with("base_snapshot_id") => w.blocks(base, "default/none", 0),
                c if c.starts_with("changed block tracking") => {
                    w.fail("extents", Kind::Precondition);
                    w.blocks(base, "default/s", 0)
                }
                c if c.starts_with("starting_offset") => w.blocks(base, "default/s", 1 << 40),
                _ => return None,
            };
            outcome(e.blocks(query).await)
        }
        _ => return None,
    })
}

/// ControllerUnpublishVolume answers NOT_FOUND only when it cannot be told whether the volume is
/// detached. A backend with attachment keeps the list of what is attached, so it always can: what
/// is not on the list is detached. While the list cannot be read, the answer is UNAVAILABLE.
fn never_arises(rpc: &str, wanted: &str) -> bool {
    rpc == "ControllerUnpublishVolume" && wanted == "NOT_FOUND"
}

#[tokio::test]
async fn unknown_volumes_and_nodes_are_provably_detached_or_unavailable() {
    let w = world().await;
    for (volume, node) in [("default/none", "node-1"), ("default/a", "moon")] {
        assert_eq!(outcome(w.engine.detach_volume(detach_from(volume, node)).await), None);
        w.backend.lose_pool("default", true);
        let unproven = outcome(w.engine.detach_volume(detach_from(volume, node)).await);
        assert_eq!(unproven, Some(Kind::Unavailable));
        w.backend.lose_pool("default", false);
    }
}

#[tokio::test]
async fn every_row_of_the_error_table_is_true() {
    let rows = TABLE.lines().filter(|l| !l.starts_with('#')).skip(1);
    let rows: Vec<Vec<&str>> = rows.map(|l| l.split('\t').collect()).collect();
    let mut proven = 0;
    for row in &rows {
        let [rpc, condition, wanted, _, _] = row[..] else { panic!("{row:?}") };
        // The node engine's rows are proven with the node engine.
        if rpc.starts_with("Node") || never_arises(rpc, wanted) {
            continue;
        }
        let got = bring_about(rpc, condition).await;
        let got = got.unwrap_or_else(|| panic!("nobody has proven: {rpc}: {condition}"));
        assert_eq!(code(got), wanted, "{rpc}: {condition}");
        proven += 1;
    }
    assert!(proven > 50, "the table was not read: {proven} rows");
}
