//! Inline volumes: they come and go with their pod.

use crate::world::{On, World, block, kind, mount};
use larder_model::{Cx, Kind, Result, cx::crash::CrashAt};
use larder_volumes::node::{PublishRequest, UnpublishRequest};
use std::fs;

/// As kubelet makes it.
const ID: &str = "csi-6f1ed002ab5595859014ebf0951522d9aa3f0a8b3c1c7d0e5a1b2c3d4e5f6a7b";

fn request(world: &World) -> PublishRequest {
    fs::create_dir_all(world.root.join("pods/inline")).unwrap();
    let mut request = world.publish_request("inline", 1, mount());
    request.volume = ID.to_owned();
    request.staging_path = None;
    for (key, value) in [("csi.storage.k8s.io/ephemeral", "true"), ("size", "16Mi"), ("fs", "ext4")]
    {
        request.context.insert(key.to_owned(), value.to_owned());
    }
    request
}

async fn publish(world: &World, cx: &Cx) -> Result<()> {
    world.engine.publish(request(world), cx).await
}

async fn unpublish(world: &World, cx: &Cx) -> Result<()> {
    let target_path = world.target("inline", 1);
    world.engine.unpublish(UnpublishRequest { volume: ID.to_owned(), target_path }, cx).await
}

fn images(world: &World) -> Vec<u64> {
    let entries = fs::read_dir(world.root.join("pool")).unwrap().map(|e| e.unwrap().path());
    let images = entries.filter(|path| path.extension().is_some_and(|e| e == "img"));
    images.map(|path| path.metadata().unwrap().len()).collect()
}

fn assert_gone(world: &World) {
    world.assert_nothing_left();
    assert_eq!(fs::read_dir(world.root.join("pool")).unwrap().count(), 0, "a volume is left");
    let private = world.state_dir().join("inline");
    let left = fs::read_dir(private).map_or(0, Iterator::count);
    assert_eq!(left, 0, "a private staging path is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_made_for_its_pod_and_deleted_with_it() {
    for on in [On::Fake, On::Real] {
        let world = World::new(on);
        for _ in 0..2 {
            publish(&world, &Cx::new()).await.unwrap();
            publish(&world, &Cx::new()).await.unwrap();
            assert_eq!(images(&world), [16 << 20]);
            assert!(world.host.mounts.is_mount_point(&world.target("inline", 1)).unwrap());
            unpublish(&world, &Cx::new()).await.unwrap();
            unpublish(&world, &Cx::new()).await.unwrap();
            assert_gone(&world);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_step_leaks_no_volume() {
    for on in [On::Fake, On::Real] {
        for ending in [false, true] {
            let mut n = 0;
            loop {
                n += 1;
                // The kubelet of this pod repeats its call, or gives up and unpublishes.
                let mut ended = false;
                for repeats in [true, false] {
                    let mut world = World::new(on);
                    if ending {
                        publish(&world, &Cx::new()).await.unwrap();
                    }
                    let plan = CrashAt::step(n);
                    let cut = if ending {
                        unpublish(&world, &plan.cx()).await
                    } else {
                        publish(&world, &plan.cx()).await
                    };
                    match cut {
                        Ok(()) => ended = true,
                        Err(fault) => assert!(fault.is_simulated_crash(), "step {n}: {fault}"),
                    }
                    world.restart();
                    if repeats {
                        let told = world.engine.recover(&Cx::new()).await.unwrap();
                        assert_eq!(told.left, Vec::<String>::new(), "step {n}");
                        publish(&world, &Cx::new()).await.unwrap();
                        assert_eq!(images(&world).len(), 1, "step {n}");
                    }
                    let ended_well = unpublish(&world, &Cx::new()).await;
                    ended_well.unwrap_or_else(|fault| {
                        panic!("{on:?} {ending} {repeats} after {:?}: {fault}", plan.steps())
                    });
                    assert_gone(&world);
                }
                if ended {
                    break;
                }
            }
            assert!(n > 6, "there are only {n} steps");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_records_it_is_found_by_its_name_and_deleted() {
    for on in [On::Fake, On::Real] {
        let mut world = World::new(on);
        publish(&world, &Cx::new()).await.unwrap();
        // The mounts of its private staging path are wiped with the records, as a container's are.
        for path in fs::read_dir(world.state_dir().join("inline")).unwrap() {
            let path = path.unwrap().path();
            world.host.mounts.unmount(&path, larder_host::Unmount::Normal).unwrap();
        }
        fs::remove_dir_all(world.state_dir()).unwrap();
        world.restart();
        unpublish(&world, &Cx::new()).await.unwrap();
        assert_gone(&world);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_it_is_kept_for_its_pod_and_deleted_without_one() {
    let mut world = World::new(On::Fake);
    publish(&world, &Cx::new()).await.unwrap();
    world.reboot();
    let told = world.engine.recover(&Cx::new()).await.unwrap();
    assert!(told.left.is_empty() && images(&world).len() == 1, "{told:?}");
    publish(&world, &Cx::new()).await.unwrap();
    world.reboot();
    fs::remove_dir_all(world.root.join("pods/inline")).unwrap();
    let told = world.engine.recover(&Cx::new()).await.unwrap();
    assert!(told.left.is_empty(), "{told:?}");
    assert_gone(&world);
}

/// A pod may write any id, also one that leads to a volume which is not its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_persistent_volume_of_its_id_is_neither_deleted_nor_disturbed() {
    for on in [On::Fake, On::Real] {
        for name in ["data", "raw"] {
            let mut n = 0;
            loop {
                n += 1;
                let mut world = World::new(on);
                world.volume(name);
                if name == "raw" {
                    world.stage(name, block()).await.unwrap();
                }
                let (images, loops) = (images(&world), world.loops());
                let mut request = request(&world);
                name.clone_into(&mut request.volume);
                let plan = CrashAt::step(n);
                let fault = world.engine.publish(request.clone(), &plan.cx()).await.unwrap_err();
                let cut = fault.is_simulated_crash();
                assert!(cut || fault.kind() == Kind::Conflict, "step {n}: {fault}");
                world.restart();
                let told = world.engine.recover(&Cx::new()).await.unwrap();
                assert_eq!(told.left, Vec::<String>::new(), "step {n}");
                let target_path = request.target_path;
                let unpublish = UnpublishRequest { volume: name.to_owned(), target_path };
                world.engine.unpublish(unpublish, &Cx::new()).await.unwrap();
                assert_eq!(self::images(&world), images, "step {n}: the volume is gone");
                assert_eq!(world.loops(), loops, "step {n}: its device is gone");
                assert!(!world.records().contains_key(name), "step {n}: the record is left");
                if !cut {
                    break;
                }
            }
            assert!(n > 2, "there are only {n} steps");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_an_inline_volume_is_refused_and_nothing_is_left() {
    let world = World::new(On::Fake);
    let mut wrong = request(&world);
    wrong.capability = block();
    assert_eq!(kind(world.engine.publish(wrong, &Cx::new()).await), Kind::Invalid);
    for (key, value, expected) in [
        ("size", "big", Kind::Invalid),
        ("pool", "../etc", Kind::Invalid),
        ("colour", "red", Kind::Invalid),
        ("mkfsOptions", "-d etc", Kind::Invalid),
    ] {
        let mut wrong = request(&world);
        wrong.context.insert(key.to_owned(), value.to_owned());
        assert_eq!(kind(world.engine.publish(wrong, &Cx::new()).await), expected, "{key}");
        assert_gone(&world);
    }
    let world = World::new(On::Fake).with_facts(|facts| facts.ephemeral = false);
    assert_eq!(kind(publish(&world, &Cx::new()).await), Kind::Precondition);
    assert_gone(&world);
}
