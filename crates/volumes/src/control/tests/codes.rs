//! The whole code space: for every kind that a backend can answer, what the engine gives.

use super::*;
use futures::{FutureExt, StreamExt, future::BoxFuture};

/// Every kind. The match makes a new one an error here.
fn kinds() -> Vec<Kind> {
    use Kind as K;
    let all = vec![
        K::Invalid,
        K::NotFound,
        K::Conflict,
        K::Aborted,
        K::Precondition,
        K::OutOfRange,
        K::Exhausted,
        K::Denied,
        K::Unauthenticated,
        K::Unavailable,
        K::Deadline,
        K::Unsupported,
        K::Corrupt,
        K::Internal,
    ];
    for kind in &all {
        match kind {
            K::Invalid | K::NotFound | K::Conflict | K::Aborted | K::Precondition => {}
            K::OutOfRange | K::Exhausted | K::Denied | K::Unauthenticated => {}
            K::Unavailable | K::Deadline | K::Unsupported | K::Corrupt | K::Internal => {}
        }
    }
    all
}

/// What the engine makes of a kind: None is success.
type Expected = fn(Kind) -> Option<Kind>;

/// Passed on as it is.
const PASSES: Expected = Some;
/// Absence is what was wanted, or is the beginning of a creation.
const ABSENT_IS_FINE: Expected = |kind| (kind != Kind::NotFound).then_some(kind);
/// What follows asks the same storage: it says itself that it cannot be reached, or makes it a pool.
const BEGINS: Expected =
    |kind| (!matches!(kind, Kind::NotFound | Kind::Unavailable)).then_some(kind);
/// Does not hide the rest.
const NEVER_FAILS: Expected = |_| None;
/// Whatever is wrong, CSI has one code for it.
const ONE_CODE: Expected = |_| Some(Kind::Precondition);

type Call = fn(ControlEngine) -> BoxFuture<'static, Result<()>>;

macro_rules! call {
    (|$engine:ident| $call:expr) => {
        |$engine: ControlEngine| async move { $call.await.map(|_| ()) }.boxed()
    };
}

/// Call, backend method that fails in it, what comes of it.
fn table() -> Vec<(&'static str, Call, &'static str, Expected)> {
    vec![
        ("create", call!(|e| e.create_volume(create("new"))), "get_volume", BEGINS),
        ("create", call!(|e| e.create_volume(create("new"))), "ensure_volume", PASSES),
        (
            "restore",
            call!(|e| e.create_volume(CreateVolume {
                source: Some(SourceId::Snapshot("default/s".into())),
                ..create("new")
            })),
            "get_snapshot",
            PASSES,
        ),
        ("delete", call!(|e| delete(&e, "default/a")), "delete_volume", ABSENT_IS_FINE),
        ("delete", call!(|e| delete(&e, "default/a")), "attached_nodes", ABSENT_IS_FINE),
        (
            "validate",
            call!(|e| e.validate_volume(ValidateVolume {
                volume_id: "default/a".into(),
                capabilities: vec![block()],
                ..ValidateVolume::default()
            })),
            "get_volume",
            PASSES,
        ),
        ("get", call!(|e| e.get_volume("default/a")), "get_volume", PASSES),
        ("get", call!(|e| e.get_volume("default/a")), "attached_nodes", PASSES),
        ("list", call!(|e| e.list_volumes(Paging::default())), "list_volumes", PASSES),
        ("list", call!(|e| e.list_volumes(Paging::default())), "attached_nodes", ABSENT_IS_FINE),
        ("capacity", call!(|e| e.capacity(QueryCapacity::default())), "capacity", PASSES),
        ("expand", call!(|e| e.expand_volume(expand("default/a", 2 << 20))), "get_volume", PASSES),
        (
            "expand",
            call!(|e| e.expand_volume(expand("default/a", 2 << 20))),
            "expand_volume",
            PASSES,
        ),
        ("modify", call!(|e| e.modify_volume(modify("default/a", "x"))), "get_volume", PASSES),
        ("modify", call!(|e| e.modify_volume(modify("default/a", "x"))), "modify_volume", PASSES),
        (
            "attach",
            call!(|e| e.attach_volume(attach_to("default/a", "node-1"))),
            "get_volume",
            PASSES,
        ),
        (
            "attach",
            call!(|e| e.attach_volume(attach_to("default/a", "node-1"))),
            "attach_volume",
            PASSES,
        ),
        (
            "detach",
            call!(|e| e.detach_volume(detach_from("default/a", "node-1"))),
            "detach_volume",
            ABSENT_IS_FINE,
        ),
        (
            "snapshot",
            call!(|e| e.create_snapshot(snapshot("new", "default/a"))),
            "get_snapshot",
            ABSENT_IS_FINE,
        ),
        (
            "snapshot",
            call!(|e| e.create_snapshot(snapshot("new", "default/a"))),
            "get_volume",
            PASSES,
        ),
        (
            "snapshot",
            call!(|e| e.create_snapshot(snapshot("new", "default/a"))),
            "ensure_snapshot",
            PASSES,
        ),
        (
            "delete snapshot",
            call!(|e| delete_snapshot(&e, "default/s")),
            "get_snapshot",
            ABSENT_IS_FINE,
        ),
        (
            "delete snapshot",
            call!(|e| delete_snapshot(&e, "default/s")),
            "delete_snapshot",
            ABSENT_IS_FINE,
        ),
        ("get snapshot", call!(|e| e.get_snapshot("default/s")), "get_snapshot", PASSES),
        (
            "list snapshots",
            call!(|e| e.list_snapshots(ListSnapshots::default())),
            "list_snapshots",
            PASSES,
        ),
        (
            "list one snapshot",
            call!(|e| e.list_snapshots(ListSnapshots {
                snapshot_id: "default/s".into(),
                ..ListSnapshots::default()
            })),
            "get_snapshot",
            ABSENT_IS_FINE,
        ),
        (
            "group",
            call!(|e| e.create_group(group("new", &["default/a"]))),
            "get_group",
            ABSENT_IS_FINE,
        ),
        ("group", call!(|e| e.create_group(group("new", &["default/a"]))), "get_volume", PASSES),
        ("group", call!(|e| e.create_group(group("new", &["default/a"]))), "ensure_group", PASSES),
        (
            "delete group",
            call!(|e| async move {
                let made = e.create_group(group("g", &["default/a"])).await?;
                let snapshot_ids = made.snapshots.iter().map(|s| s.id.to_string()).collect();
                let id = made.id.to_string();
                e.delete_group(GroupMembers { group_snapshot_id: id, snapshot_ids }).await
            }),
            "delete_group",
            ABSENT_IS_FINE,
        ),
        (
            "get group",
            call!(|e| e.get_group(GroupMembers {
                group_snapshot_id: "default/g".into(),
                snapshot_ids: vec!["default/s".into()],
            })),
            "get_group",
            PASSES,
        ),
        (
            "blocks",
            call!(|e| e
                .blocks(QueryBlocks { snapshot_id: "default/s".into(), ..QueryBlocks::default() })),
            "extents",
            PASSES,
        ),
        (
            "changed blocks",
            call!(|e| e.blocks(QueryBlocks {
                base_snapshot_id: Some("default/s".into()),
                snapshot_id: "default/s".into(),
                ..QueryBlocks::default()
            })),
            "get_snapshot",
            PASSES,
        ),
        (
            "blocks, second page",
            call!(|e| async move {
                let query = QueryBlocks {
                    snapshot_id: "default/s".into(),
                    max_results: 1,
                    ..QueryBlocks::default()
                };
                let mut stream = e.blocks(query).await?;
                while let Some(page) = stream.next().await {
                    page?;
                }
                Ok(())
            }),
            "extents",
            PASSES,
        ),
        ("health", call!(|e| e.volume_health("default/a")), "volume_health", PASSES),
        ("list health", call!(|e| e.list_volume_health(Paging::default())), "list_volumes", PASSES),
        (
            "list health",
            call!(|e| e.list_volume_health(Paging::default())),
            "volume_health",
            NEVER_FAILS,
        ),
        ("probe", call!(|e| async move { e.probe().await }), "probe", ONE_CODE),
    ]
}

/// Volume `a` with data, and its snapshot `s`.
async fn prepared() -> (ControlEngine, MemoryBackend) {
    let (engine, backend) = engine().await;
    let id = make(&engine, "a").await.id;
    backend.write(&id, 1, 1);
    backend.write(&id, 3, 3);
    engine.create_snapshot(snapshot("s", "default/a")).await.unwrap();
    (engine, backend)
}

#[tokio::test]
async fn every_kind_of_every_backend_method_has_one_outcome() {
    for (what, call, method, expected) in table() {
        for kind in kinds() {
            let (engine, backend) = prepared().await;
            backend.inject(method, Inject::Fail(Fault::new(kind, "do what the test forbids")));
            let got = call(engine.clone()).await.err().map(|f| f.kind());
            assert_eq!(got, expected(kind), "{what}: {method} answers {kind:?}");
            assert!(backend.calls(method) > 0, "{what} never calls {method}");
            assert!(engine.claims().running().is_empty(), "{what}: a claim is left");
        }
    }
}

#[tokio::test]
async fn a_fault_keeps_its_text_cause_and_hint() {
    let (engine, backend) = prepared().await;
    let cause = std::io::Error::other("disk on fire");
    let fault = Fault::internal("write the record").because(cause).hint("call the fire brigade");
    backend.inject("ensure_volume", Inject::Fail(fault.clone()));
    let got = engine.create_volume(create("new")).await.unwrap_err();
    assert_eq!(got.to_string(), fault.to_string());
}

#[tokio::test]
async fn a_panic_in_the_backend_ends_one_call_and_nothing_else() {
    let (engine, backend) = prepared().await;
    for (method, result) in [("ensure_volume", create("new")), ("get_volume", create("newer"))] {
        backend.inject(method, Inject::Panic);
        assert_eq!(kind(engine.create_volume(result.clone()).await), Kind::Internal);
        engine.create_volume(result).await.unwrap();
    }
    backend.inject("delete_volume", Inject::Panic);
    assert_eq!(kind(delete(&engine, "default/a").await), Kind::Internal);
    delete(&engine, "default/a").await.unwrap();
}

#[tokio::test]
async fn after_any_fault_the_same_call_succeeds() {
    for (what, call, method, _) in table() {
        let (engine, backend) = prepared().await;
        for lost in [false, true] {
            let fault = Fault::new(Kind::Deadline, "answer in time");
            let inject = if lost { Inject::LoseAnswer } else { Inject::Fail };
            backend.inject(method, inject(fault));
            let _ = call(engine.clone()).await;
            let again = call(engine.clone()).await.err().map(|f| f.to_string());
            // This group does not exist, and is refused for that only.
            let again = again.filter(|_| what != "get group");
            assert_eq!(again, None, "{what} after {method} failed (answer lost: {lost})");
        }
    }
}
