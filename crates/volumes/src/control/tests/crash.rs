//! Crashes: for each step of each operation, the process dies there, the next one starts, nothing
//! half-made can be seen, and the repeated call ends as one clean run does.

use super::*;
use futures::{FutureExt, future::BoxFuture};
use larder_model::cx::crash::CrashAt;

type Call = fn(ControlEngine) -> BoxFuture<'static, Result<()>>;

/// Volumes `a` and `b`, snapshot `s` of `a`, group `g` of both; `a` attached to node-1.
async fn prepared() -> (ControlEngine, MemoryBackend) {
    let (engine, backend) = engine().await;
    let id = make(&engine, "a").await.id;
    backend.write(&id, 1, 1);
    make(&engine, "b").await;
    engine.create_snapshot(snapshot("s", "default/a")).await.unwrap();
    engine.create_group(group("g", &["default/a", "default/b"])).await.unwrap();
    engine.attach_volume(attach_to("default/a", "node-1")).await.unwrap();
    (engine, backend)
}

async fn delete_group(engine: ControlEngine) -> Result<()> {
    let listed = engine.list_snapshots(ListSnapshots::default()).await?.snapshots;
    let members = listed.iter().filter(|s| s.group.is_some()).map(|s| s.id.to_string());
    let mut snapshot_ids: Vec<_> = members.collect();
    if snapshot_ids.is_empty() {
        // After a lost answer the caller still knows them; which ones does not matter any more.
        snapshot_ids.push("default/g-0".into());
    }
    let group_snapshot_id = "default/g".into();
    engine.delete_group(GroupMembers { group_snapshot_id, snapshot_ids }).await
}

fn operations() -> Vec<(&'static str, Call)> {
    macro_rules! call {
        (|$engine:ident| $call:expr) => {
            |$engine: ControlEngine| async move { $call.await.map(|_| ()) }.boxed()
        };
    }
    vec![
        ("create", call!(|e| e.create_volume(create("new")))),
        ("delete", call!(|e| delete(&e, "default/b"))),
        (
            "clone",
            call!(|e| e.create_volume(CreateVolume {
                source: Some(SourceId::Volume("default/a".into())),
                ..create("new")
            })),
        ),
        (
            "restore",
            call!(|e| e.create_volume(CreateVolume {
                source: Some(SourceId::Snapshot("default/s".into())),
                ..create("new")
            })),
        ),
        ("expand", call!(|e| e.expand_volume(expand("default/a", 4 << 20)))),
        ("modify", call!(|e| e.modify_volume(modify("default/a", "fast")))),
        ("snapshot", call!(|e| e.create_snapshot(snapshot("new", "default/a")))),
        ("delete snapshot", call!(|e| delete_snapshot(&e, "default/s"))),
        ("group", call!(|e| e.create_group(group("new", &["default/a", "default/b"])))),
        ("delete group", call!(|e| delete_group(e))),
        ("attach", call!(|e| e.attach_volume(attach_to("default/b", "node-2")))),
        ("detach", call!(|e| e.detach_volume(detach_from("default/a", "node-1")))),
    ]
}

#[tokio::test]
async fn an_operation_that_dies_at_any_step_is_completed_by_its_repeat() {
    for (what, call) in operations() {
        let (engine, backend) = prepared().await;
        let before = backend.inventory();
        call(engine.clone()).await.unwrap();
        let after = backend.inventory();
        assert_ne!(before, after, "{what} does nothing");

        let mut steps = 0;
        for n in 1.. {
            let (engine, backend) = prepared().await;
            let plan = CrashAt::step(n);
            engine.set_contexts({
                let plan = plan.clone();
                move || plan.cx()
            });
            let result = call(engine.clone()).await;
            if result.is_ok() {
                assert_eq!(backend.inventory(), after, "{what} without a crash");
                break;
            }
            let step = plan.steps().pop().unwrap_or_default();
            assert!(result.unwrap_err().is_simulated_crash(), "{what} at {step}");
            steps += 1;

            let (engine, backend) = over(backend.restarted()).await;
            let found = backend.inventory();
            assert!(
                found == before || found == after,
                "{what} died at {step:?} and left:\n{found}\ninstead of\n{before}\nor\n{after}"
            );
            call(engine).await.unwrap();
            assert_eq!(backend.inventory(), after, "{what} repeated after it died at {step:?}");
        }
        assert!(steps > 0, "{what} has no steps");
    }
}
