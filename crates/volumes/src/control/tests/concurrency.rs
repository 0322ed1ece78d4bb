//! Calls that meet.

use super::*;
use tokio::sync::Semaphore;

/// The next call of `method` waits until the returned gate gets a permit.
fn hold(backend: &MemoryBackend, method: &'static str) -> Arc<Semaphore> {
    let gate = Arc::new(Semaphore::new(0));
    backend.inject(method, Inject::Hold(gate.clone()));
    gate
}

#[tokio::test]
async fn equal_creates_join_and_only_secrets_may_differ() {
    let (engine, backend) = engine().await;
    let gate = hold(&backend, "ensure_volume");
    let call = |password: &str| {
        let secrets = Secrets::new([("password".to_owned(), password.to_owned())]);
        let (engine, request) = (engine.clone(), CreateVolume { secrets, ..create("a") });
        spawn(async move { engine.create_volume(request).await })
    };
    let calls = [call("old"), call("new"), call("old")];
    settle().await;
    let other = CreateVolume { capacity: range(2 << 20, 0), ..create("a") };
    let fault = engine.create_volume(other).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Aborted);
    gate.add_permits(1);
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().id.as_str(), "default/a");
    }
    assert_eq!(backend.calls("ensure_volume"), 1);
}

#[tokio::test]
async fn a_call_on_a_busy_volume_is_told_who_works_on_it_since_when_and_where() {
    let (engine, backend) = engine().await;
    make(&engine, "a").await;
    let gate = hold(&backend, "expand_volume");
    let call = spawn({
        let engine = engine.clone();
        async move { engine.expand_volume(expand("default/a", 2 << 20)).await }
    });
    settle().await;
    let texts = [
        delete(&engine, "default/a").await.unwrap_err(),
        engine.create_volume(create("a")).await.unwrap_err(),
        engine.modify_volume(modify("default/a", "x")).await.unwrap_err(),
        engine.attach_volume(attach_to("default/a", "node-1")).await.unwrap_err(),
        engine.detach_volume(detach_from("default/a", "node-1")).await.unwrap_err(),
        engine.expand_volume(expand("default/a", 3 << 20)).await.unwrap_err(),
        engine.create_snapshot(snapshot("s", "default/a")).await.unwrap_err(),
        engine.create_group(group("g", &["default/a"])).await.unwrap_err(),
    ];
    for fault in texts {
        let text = fault.to_string();
        assert_eq!(fault.kind(), Kind::Aborted, "{text}");
        assert!(text.contains("volume default/a is held by expand volume default/a"), "{text}");
        assert!(text.contains("running for ") && text.contains("\"look at the volume\""), "{text}");
    }
    // Reading is not working on it.
    engine.get_volume("default/a").await.unwrap();
    gate.add_permits(1);
    call.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_name_is_made_in_one_pool_at_a_time() {
    let (engine, backend) = engine().await;
    let gate = hold(&backend, "ensure_volume");
    let call = spawn({
        let engine = engine.clone();
        async move { engine.create_volume(create("a")).await }
    });
    settle().await;
    let elsewhere = || CreateVolume { parameters: map(&[("pool", "other")]), ..create("a") };
    assert_eq!(kind(engine.create_volume(elsewhere()).await), Kind::Aborted);
    gate.add_permits(1);
    call.await.unwrap().unwrap();
    assert_eq!(kind(engine.create_volume(elsewhere()).await), Kind::Conflict);
}

#[tokio::test]
async fn several_copies_of_one_source_are_made_at_a_time_and_keep_it_alive() {
    let (engine, backend) = engine().await;
    make(&engine, "origin").await;
    engine.create_snapshot(snapshot("s", "default/origin")).await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    for method in ["ensure_volume", "ensure_volume", "ensure_snapshot"] {
        backend.inject(method, Inject::Hold(gate.clone()));
    }
    let copy = |name: &str, source: SourceId| {
        let request = CreateVolume { source: Some(source), ..create(name) };
        let engine = engine.clone();
        spawn(async move { engine.create_volume(request).await.map(|_| ()) })
    };
    let calls = [
        copy("clone", SourceId::Volume("default/origin".into())),
        copy("restored", SourceId::Snapshot("default/s".into())),
        spawn({
            let engine = engine.clone();
            async move { engine.create_snapshot(snapshot("t", "default/origin")).await.map(|_| ()) }
        }),
    ];
    settle().await;
    assert_eq!(engine.claims().running().len(), 3);
    assert_eq!(kind(delete(&engine, "default/origin").await), Kind::Aborted);
    assert_eq!(kind(delete_snapshot(&engine, "default/s").await), Kind::Aborted);
    gate.add_permits(3);
    for call in calls {
        call.await.unwrap().unwrap();
    }
    delete(&engine, "default/origin").await.unwrap();
    delete_snapshot(&engine, "default/s").await.unwrap();
}

#[tokio::test]
async fn a_caller_that_gives_up_stops_nothing() {
    let (engine, backend) = engine().await;
    let gate = hold(&backend, "ensure_volume");
    let call = spawn({
        let engine = engine.clone();
        async move { engine.create_volume(create("a")).await }
    });
    settle().await;
    call.abort();
    assert!(call.await.is_err());
    gate.add_permits(1);
    settle().await;
    assert!(engine.claims().running().is_empty());
    engine.get_volume("default/a").await.unwrap();
}

#[tokio::test]
async fn members_of_a_group_are_held_while_it_is_deleted() {
    let (engine, backend) = engine().await;
    make(&engine, "a").await;
    let made = engine.create_group(group("g", &["default/a"])).await.unwrap();
    let member = made.snapshots[0].id.to_string();
    let gate = hold(&backend, "delete_group");
    let call = spawn({
        let (engine, snapshot_ids) = (engine.clone(), vec![member.clone()]);
        async move {
            let group_snapshot_id = "default/g".into();
            engine.delete_group(GroupMembers { group_snapshot_id, snapshot_ids }).await
        }
    });
    settle().await;
    assert_eq!(kind(delete_snapshot(&engine, &member).await), Kind::Aborted);
    gate.add_permits(1);
    call.await.unwrap().unwrap();
}

/// Many callers over few names; the backend panics when two mutating calls meet.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_load_no_two_mutations_meet_and_the_end_is_clean() {
    let (engine, backend) = engine().await;
    let callers: Vec<_> = (0..24u64)
        .map(|caller| {
            let engine = engine.clone();
            spawn(async move {
                let mut state = caller.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                let mut next = move |n: u64| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state % n
                };
                for _ in 0..60 {
                    let name = format!("v{}", next(3));
                    let id = format!("default/{name}");
                    let shot = format!("s{}", next(2));
                    let result = match next(6) {
                        0 | 1 => engine.create_volume(create(&name)).await.map(|_| ()),
                        2 => delete(&engine, &id).await,
                        3 => engine.create_snapshot(snapshot(&shot, &id)).await.map(|_| ()),
                        4 => delete_snapshot(&engine, &format!("default/{shot}")).await,
                        _ => engine.expand_volume(expand(&id, 2 << 20)).await.map(|_| ()),
                    };
                    if let Err(fault) = result {
                        let fine = [Kind::Aborted, Kind::NotFound, Kind::Conflict];
                        assert!(fine.contains(&fault.kind()), "{fault:?}");
                    }
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    for n in 0..3 {
        delete(&engine, &format!("default/v{n}")).await.unwrap();
        delete_snapshot(&engine, &format!("default/s{n}")).await.unwrap();
    }
    assert_eq!(backend.inventory(), "");
    assert!(engine.claims().running().is_empty());
}
