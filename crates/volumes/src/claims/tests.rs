//! Claims under repeats, conflicts, panics, cancellation and load.

use super::*;
use crate::testing::{settle, spawn};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use tokio::sync::Semaphore;

fn handle(text: &str) -> Handle {
    text.parse().unwrap()
}
fn volume(text: &str) -> Key {
    Key::Volume(handle(text))
}
fn op(name: &'static str, argument: u32) -> Operation {
    Operation::new(name, Fingerprint::of(&argument))
}

#[tokio::test]
async fn an_equal_repeat_joins_and_a_different_call_is_aborted_naming_the_holder() {
    let claims = Claims::new();
    let gate = Arc::new(Semaphore::new(0));
    let runs = Arc::new(AtomicU32::new(0));
    let call = || {
        let (claims, gate, runs, cx) = (claims.clone(), gate.clone(), runs.clone(), Cx::new());
        async move {
            let work = {
                let cx = cx.clone();
                async move {
                    cx.step("copy the data")?;
                    cx.expect(200);
                    cx.advance(50);
                    let _open = gate.acquire().await;
                    Ok(runs.fetch_add(1, Ordering::SeqCst) + 7)
                }
            };
            claims.run(op("create volume", 1).exclusive(volume("default/a")), &cx, work).await
        }
    };
    let (first, second) = (spawn(call()), spawn(call()));
    settle().await;

    let delete = op("delete volume", 1).exclusive(volume("default/a"));
    let fault = claims.run(delete, &Cx::new(), async { Ok(()) }).await.unwrap_err();
    assert_eq!(fault.kind(), larder_model::Kind::Aborted);
    let text = fault.to_string();
    assert!(
        text.starts_with("delete volume default/a: volume default/a is held by create volume default/a, running for "),
        "{text}"
    );
    assert!(text.contains("now at \"copy the data\" (50 of 200, 25%)"), "{text}");
    let running = claims.running();
    assert_eq!(running.len(), 1);
    assert_eq!((running[0].operation, running[0].object.as_str()), ("create volume", "default/a"));
    assert_eq!((running[0].step, running[0].done, running[0].total), ("copy the data", 50, 200));

    gate.add_permits(9);
    assert_eq!(first.await.unwrap().unwrap(), 7);
    assert_eq!(second.await.unwrap().unwrap(), 7);
    assert_eq!(runs.load(Ordering::SeqCst), 1, "the repeat ran the work again");
    assert!(claims.running().is_empty());
}

#[tokio::test]
async fn the_same_operation_with_other_arguments_is_aborted() {
    let claims = Claims::new();
    let create = |n| op("create volume", n).exclusive(volume("default/a"));
    let holder = spawn({
        let claims = claims.clone();
        async move { claims.run(create(1), &Cx::new(), std::future::pending::<Result<()>>()).await }
    });
    settle().await;
    let fault = claims.run(create(2), &Cx::new(), async { Ok(()) }).await.unwrap_err();
    assert_eq!(fault.kind(), larder_model::Kind::Aborted);
    holder.abort();
}

#[tokio::test]
async fn only_the_same_keys_and_the_same_kind_of_answer_join() {
    let claims = Claims::new();
    let holder = spawn({
        let claims = claims.clone();
        async move {
            let copy = op("copy", 1).shared(volume("default/a")).exclusive(volume("default/b"));
            claims.run(copy, &Cx::new(), std::future::pending::<Result<u32>>()).await
        }
    });
    settle().await;
    // It shares a key with the one that runs, and is another one.
    let other = op("copy", 1).shared(volume("default/a")).exclusive(volume("default/c"));
    let cx = Cx::new();
    let runs = claims.run(other, &cx, async { Ok(5u32) });
    let ran = tokio::time::timeout(Duration::from_secs(10), runs).await;
    assert_eq!(ran.expect("it joined another operation").unwrap(), 5);
    let same = || op("copy", 1).shared(volume("default/a")).exclusive(volume("default/b"));
    let refused = claims.run(same(), &cx, async { Ok("text") });
    let refused = tokio::time::timeout(Duration::from_secs(10), refused).await;
    let fault = refused.expect("it joined one with another answer").unwrap_err();
    assert_eq!(fault.kind(), larder_model::Kind::Aborted);
    let joins = claims.run(same(), &cx, async { Ok(6u32) });
    assert!(tokio::time::timeout(Duration::from_millis(20), joins).await.is_err());
    holder.abort();
}

#[tokio::test]
async fn work_goes_on_when_its_caller_gives_up_and_the_repeat_gets_its_answer() {
    let claims = Claims::new();
    let gate = Arc::new(Semaphore::new(0));
    let runs = Arc::new(AtomicU32::new(0));
    let work = || {
        let (gate, runs) = (gate.clone(), runs.clone());
        async move {
            let _open = gate.acquire().await;
            Ok(runs.fetch_add(1, Ordering::SeqCst))
        }
    };
    let create = || op("create volume", 1).exclusive(volume("default/a"));
    let first = spawn({
        let (claims, work) = (claims.clone(), work());
        async move { claims.run(create(), &Cx::new(), work).await }
    });
    settle().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(claims.running().len(), 1, "the work was stopped with its caller");
    let second = spawn({
        let (claims, work) = (claims.clone(), work());
        async move { claims.run(create(), &Cx::new(), work).await }
    });
    settle().await;
    gate.add_permits(9);
    assert_eq!(second.await.unwrap().unwrap(), 0);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn joiners_get_the_fault_of_the_operation() {
    let claims = Claims::new();
    let gate = Arc::new(Semaphore::new(0));
    let calls = (0..3).map(|_| {
        let (claims, gate) = (claims.clone(), gate.clone());
        spawn(async move {
            let work = async move {
                let _open = gate.acquire().await;
                Err::<(), _>(Fault::new(larder_model::Kind::Exhausted, "find space").hint("buy"))
            };
            claims.run(op("x", 1).exclusive(volume("default/a")), &Cx::new(), work).await
        })
    });
    let calls: Vec<_> = calls.collect();
    settle().await;
    gate.add_permits(9);
    for call in calls {
        let fault = call.await.unwrap().unwrap_err();
        assert_eq!(fault.kind(), larder_model::Kind::Exhausted);
        assert_eq!(fault.to_string(), "find space (hint: buy)");
    }
}

#[tokio::test]
async fn a_panic_frees_the_keys_and_tells_everybody() {
    let claims = Claims::new();
    let gate = Arc::new(Semaphore::new(0));
    let call = || {
        let (claims, gate) = (claims.clone(), gate.clone());
        async move {
            let work = async move {
                let _open = gate.acquire().await;
                if true {
                    panic!("boom with a secret");
                }
                Ok(())
            };
            claims.run(op("x", 1).exclusive(volume("default/a")), &Cx::new(), work).await
        }
    };
    let (first, second) = (spawn(call()), spawn(call()));
    settle().await;
    gate.add_permits(9);
    for call in [first, second] {
        let fault = call.await.unwrap().unwrap_err();
        assert_eq!(fault.kind(), larder_model::Kind::Internal);
        assert!(fault.to_string().contains("x default/a: the operation panicked"), "{fault}");
        assert!(!fault.to_string().contains("secret"), "{fault}");
    }
    let again = op("y", 2).exclusive(volume("default/a"));
    assert_eq!(claims.run(again, &Cx::new(), async { Ok(5) }).await.unwrap(), 5);
}

#[tokio::test]
async fn shared_claims_stand_together_and_exclude_an_exclusive_one() {
    let claims = Claims::new();
    let gate = Arc::new(Semaphore::new(0));
    let snapshot = |n: u32| {
        let (claims, gate) = (claims.clone(), gate.clone());
        spawn(async move {
            let operation = op("create snapshot", n)
                .exclusive(Key::Snapshot(handle(&format!("default/s{n}"))))
                .shared(volume("default/a"));
            let work = async move {
                let _open = gate.acquire().await;
                Ok(n)
            };
            claims.run(operation, &Cx::new(), work).await
        })
    };
    let (one, two) = (snapshot(1), snapshot(2));
    settle().await;
    assert_eq!(claims.running().len(), 2);
    let delete = || op("delete volume", 0).exclusive(volume("default/a"));
    let fault = claims.run(delete(), &Cx::new(), async { Ok(()) }).await.unwrap_err();
    assert!(fault.to_string().contains("held by create snapshot default/s1"), "{fault}");
    gate.add_permits(9);
    assert_eq!((one.await.unwrap().unwrap(), two.await.unwrap().unwrap()), (1, 2));
    claims.run(delete(), &Cx::new(), async { Ok(()) }).await.unwrap();
}

#[tokio::test]
async fn a_refused_operation_holds_nothing() {
    let claims = Claims::new();
    let holder = spawn({
        let claims = claims.clone();
        async move {
            let b = op("x", 1).exclusive(volume("default/b"));
            claims.run(b, &Cx::new(), std::future::pending::<Result<()>>()).await
        }
    });
    settle().await;
    let both = op("y", 1).exclusive(volume("default/a")).exclusive(volume("default/b"));
    claims.run(both, &Cx::new(), async { Ok(()) }).await.unwrap_err();
    let a = op("z", 1).exclusive(volume("default/a"));
    claims.run(a, &Cx::new(), async { Ok(()) }).await.unwrap();
    holder.abort();
}

#[tokio::test]
async fn a_key_claimed_both_ways_is_held_alone() {
    let claims = Claims::new();
    let holder = spawn({
        let claims = claims.clone();
        async move {
            let a = op("clone", 1).exclusive(volume("default/a")).shared(volume("default/a"));
            claims.run(a, &Cx::new(), std::future::pending::<Result<()>>()).await
        }
    });
    settle().await;
    let reader = op("read", 1).shared(volume("default/a"));
    claims.run(reader, &Cx::new(), async { Ok(()) }).await.unwrap_err();
    holder.abort();
}

#[tokio::test]
async fn the_keys_are_free_when_the_answer_arrives() {
    let claims = Claims::new();
    for n in 0..200 {
        let a = op("x", n).exclusive(volume("default/a"));
        claims.run(a, &Cx::new(), async { Ok(()) }).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn draining_refuses_new_work_waits_for_the_running_and_names_the_busy() {
    let claims = Claims::new();
    let call = |seconds: u64, key: &'static str| {
        let claims = claims.clone();
        spawn(async move {
            let work = async move {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                Ok(seconds)
            };
            claims.run(op("delete volume", 1).exclusive(volume(key)), &Cx::new(), work).await
        })
    };
    let (quick, slow) = (call(5, "default/quick"), call(50, "default/slow"));
    settle().await;
    let busy = claims.drain(Duration::from_secs(10)).await;
    assert_eq!(busy.len(), 1);
    assert_eq!((busy[0].operation, busy[0].object.as_str()), ("delete volume", "default/slow"));
    assert_eq!(quick.await.unwrap().unwrap(), 5);

    let other = op("delete volume", 1).exclusive(volume("default/other"));
    let fault = claims.run(other, &Cx::new(), async { Ok(()) }).await.unwrap_err();
    assert_eq!(fault.kind(), larder_model::Kind::Unavailable);
    let joined = call(50, "default/slow");
    assert_eq!(claims.drain(Duration::from_secs(100)).await, []);
    assert_eq!((slow.await.unwrap().unwrap(), joined.await.unwrap().unwrap()), (50, 50));
}

#[tokio::test(start_paused = true)]
async fn while_draining_running_work_may_begin_what_it_consists_of() {
    let claims = Claims::new();
    let call = spawn({
        let claims = claims.clone();
        async move {
            let inner = claims.clone();
            let work = async move {
                tokio::time::sleep(Duration::from_secs(5)).await;
                let create = op("create volume", 1).exclusive(volume("default/a"));
                inner.run(create, &Cx::new(), async { Ok(7) }).await
            };
            let publish = op("publish volume", 1).exclusive(Key::Node(handle("default/a")));
            claims.run(publish, &Cx::new(), work).await
        }
    });
    settle().await;
    assert_eq!(claims.drain(Duration::from_secs(10)).await, []);
    assert_eq!(call.await.unwrap().unwrap(), 7);
    let create = op("create volume", 2).exclusive(volume("default/a"));
    let fault = claims.run(create, &Cx::new(), async { Ok(7) }).await.unwrap_err();
    assert_eq!(fault.kind(), larder_model::Kind::Unavailable);
}

#[test]
fn when_the_runtime_ends_nobody_waits_for_ever_and_nothing_stays_claimed() {
    let claims = Claims::new();
    let create = || op("create volume", 1).exclusive(volume("default/a"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let cx = Cx::new();
        let call = claims.run(create(), &cx, std::future::pending::<Result<()>>());
        let waited = tokio::time::timeout(Duration::from_millis(50), call).await;
        assert!(waited.is_err());
        assert_eq!(claims.running().len(), 1);
    });
    drop(runtime);
    assert!(claims.running().is_empty());
}

/// Many tasks over few keys, with panics, faults and callers that give up: exclusive work is alone
/// on its keys, shared work never beside exclusive, every caller gets an answer, nothing leaks.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_load_claims_exclude_each_other_and_none_is_left() {
    const KEYS: usize = 4;
    struct Seat {
        writers: AtomicUsize,
        readers: AtomicUsize,
    }
    let seats: Arc<Vec<Seat>> = Arc::new(
        (0..KEYS)
            .map(|_| Seat { writers: AtomicUsize::new(0), readers: AtomicUsize::new(0) })
            .collect(),
    );
    let claims = Claims::new();
    let (ran, refused) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let tasks: Vec<_> = (0..64u64)
        .map(|task| {
            let (claims, seats) = (claims.clone(), seats.clone());
            let (ran, refused) = (ran.clone(), refused.clone());
            spawn(async move {
                // A small generator, so that a failing run can be repeated.
                let mut state = task.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                let mut next = move |n: u64| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    usize::try_from(state % n).unwrap()
                };
                for round in 0..150u32 {
                    let (a, b) = (next(KEYS as u64), next(KEYS as u64));
                    let (shared, panics, gives_up) = (next(3) == 0, next(20) == 0, next(4) == 0);
                    let naps = next(6);
                    let key = |n: usize| volume(&format!("default/v{n}"));
                    // Few distinct fingerprints, so that joining happens too.
                    let mut operation = op("work", round % 3 + if panics { 10 } else { 0 });
                    operation = operation.exclusive(key(a));
                    if shared && a != b {
                        operation = operation.shared(key(b));
                    }
                    let work = {
                        let (seats, ran) = (seats.clone(), ran.clone());
                        async move {
                            let reads = (shared && a != b).then_some(b);
                            assert_eq!(seats[a].writers.fetch_add(1, Ordering::SeqCst), 0);
                            assert_eq!(seats[a].readers.load(Ordering::SeqCst), 0);
                            if let Some(b) = reads {
                                seats[b].readers.fetch_add(1, Ordering::SeqCst);
                                assert_eq!(seats[b].writers.load(Ordering::SeqCst), 0);
                            }
                            for _ in 0..naps {
                                tokio::task::yield_now().await;
                            }
                            if let Some(b) = reads {
                                seats[b].readers.fetch_sub(1, Ordering::SeqCst);
                            }
                            seats[a].writers.fetch_sub(1, Ordering::SeqCst);
                            ran.fetch_add(1, Ordering::SeqCst);
                            assert!(!panics, "on purpose");
                            Ok(())
                        }
                    };
                    let cx = Cx::new();
                    let call = claims.run(operation, &cx, work);
                    if gives_up {
                        let _ = tokio::time::timeout(Duration::from_micros(50), call).await;
                        continue;
                    }
                    match call.await {
                        Ok(()) => assert!(!panics),
                        Err(fault) if fault.kind() == larder_model::Kind::Aborted => {
                            refused.fetch_add(1, Ordering::SeqCst);
                            tokio::task::yield_now().await;
                        }
                        Err(fault) => {
                            assert_eq!(fault.kind(), larder_model::Kind::Internal, "{fault}");
                            assert!(panics, "work broke an invariant");
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(claims.drain(Duration::from_secs(30)).await, []);
    assert!(claims.running().is_empty());
    assert!(claims.shared.table().held.is_empty(), "a key is still held");
    assert!(ran.load(Ordering::SeqCst) > 0 && refused.load(Ordering::SeqCst) > 0);
}
