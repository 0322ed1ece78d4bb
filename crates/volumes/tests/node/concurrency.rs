//! Many callers at once: equal calls join, different ones are told who works, volumes do not wait
//! for each other.

use crate::world::{On, World, mount};
use larder_model::{Cx, Kind};
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn equal_calls_join_and_end_the_same() {
    for on in [On::Fake, On::Real] {
        let world = World::new(on);
        world.volume("image");
        let stages = (0..16).map(|_| world.stage("image", mount()));
        for done in futures::future::join_all(stages).await {
            done.unwrap();
        }
        let publishes = (0..16).map(|_| world.publish("image", 1, mount()));
        for done in futures::future::join_all(publishes).await {
            done.unwrap();
        }
        assert_eq!(world.mounts().len(), 2, "{:?}", world.mounts());
        assert_eq!(world.loops().len(), 1);
        for done in futures::future::join_all((0..16).map(|_| world.unpublish("image", 1))).await {
            done.unwrap();
        }
        for done in futures::future::join_all((0..16).map(|_| world.unstage("image"))).await {
            done.unwrap();
        }
        world.assert_nothing_left();
    }
}

/// To a newcomer a staging that is under way looks like one that was cut: it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_successor_leaves_the_records_alone_until_its_predecessor_has_stopped() {
    let world = World::new(On::Fake);
    world.volume("image");
    world.engine.recover(&Cx::new()).await.unwrap();
    // Cut in its middle is what a staging looks like while it is under way.
    let plan = larder_model::cx::crash::CrashAt::step(6);
    assert!(world.stage_with("image", mount(), &plan.cx()).await.unwrap_err().is_simulated_crash());
    let before = world.records();
    assert!(before["default/image"].contains("staging"), "{before:?}");

    let next = world.successor();
    let patience = std::time::Duration::from_millis(300);
    assert!(tokio::time::timeout(patience, next.recover(&Cx::new())).await.is_err());
    assert_eq!(world.records(), before);
    // Again is no harm, for its holder.
    world.engine.stop();
    let told = next.recover(&Cx::new()).await.unwrap();
    assert_eq!((told.mended.len(), told.left.len()), (1, 0), "{told:?}");
    next.recover(&Cx::new()).await.unwrap();
    assert_eq!(world.records(), Default::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn different_calls_for_one_volume_are_aborted_and_all_end_well_in_the_end() {
    for on in [On::Fake, On::Real] {
        let world = Arc::new(World::new(on));
        world.volume("image");
        world.stage("image", mount()).await.unwrap();
        // Callers back off and repeat, as kubelet does.
        let patient = |n: u32, publish: bool| {
            let world = world.clone();
            async move {
                let mut aborted = 0;
                loop {
                    let done = if publish {
                        world.publish("image", n, mount()).await
                    } else {
                        world.unpublish("image", n).await
                    };
                    match done {
                        Ok(()) => return aborted,
                        Err(fault) => assert_eq!(fault.kind(), Kind::Aborted, "{fault}"),
                    }
                    aborted += 1;
                    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                }
            }
        };
        let aborted = futures::future::join_all((0..8).map(|n| patient(n, true))).await;
        assert!(aborted.iter().sum::<u32>() > 0, "nobody ever met another");
        assert_eq!(world.mounts().len(), 9);
        futures::future::join_all((0..8).map(|n| patient(n, false))).await;
        world.unstage("image").await.unwrap();
        world.assert_nothing_left();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn volumes_do_not_wait_for_each_other() {
    let world = World::new(On::Real);
    let names: Vec<String> = (0..16).map(|n| format!("dir-{n}")).collect();
    for name in &names {
        world.volume(name);
    }
    let all = |done: Vec<larder_model::Result<()>>| done.into_iter().for_each(|d| d.unwrap());
    use futures::future::join_all;
    all(join_all(names.iter().map(|name| world.stage(name, mount()))).await);
    for round in 0..4 {
        all(join_all(names.iter().map(|name| world.publish(name, round, mount()))).await);
    }
    assert_eq!(world.mounts().len(), 16 * 5);
    for round in 0..4 {
        all(join_all(names.iter().map(|name| world.unpublish(name, round))).await);
    }
    all(join_all(names.iter().map(|name| world.unstage(name))).await);
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_gives_up_does_not_stop_the_call() {
    let world = World::new(On::Real);
    world.volume("image");
    let cx = Cx::new();
    let call = world.stage_with("image", mount(), &cx);
    let gone = tokio::time::timeout(std::time::Duration::from_millis(5), call);
    assert!(gone.await.is_err(), "it was too quick to be given up");
    // The repeat joins the running one, or finds it done.
    world.stage("image", mount()).await.unwrap();
    assert_eq!(world.mounts().len(), 1);
    world.unstage("image").await.unwrap();
    world.assert_nothing_left();
}
