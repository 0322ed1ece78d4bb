//! Limits follow the volume's record while it is in use, and end with its device.

use crate::world::{On, World, block, kind, mount};
use larder_host::{DeviceId, Unmount};
use larder_model::{Cx, Kind, Limits};
use larder_volumes::control::InUse;
use rustix::io::Errno;

const FIRST: DeviceId = DeviceId { major: 7, minor: 0 };
const SLOW: Limits = Limits { max_write_bps: 1 << 20, ..Limits::NONE };
const FAST: Limits = Limits { max_read_iops: 900, ..Limits::NONE };

fn limited(world: &World) -> Vec<(DeviceId, Limits)> {
    world.fake.as_ref().unwrap().limited()
}

async fn staged(name: &str, limits: Limits) -> World {
    let world = World::new(On::Fake);
    world.volume(name);
    world.backend.write_limits(&world.id(name), limits);
    world.stage(name, mount()).await.unwrap();
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_from_staging_to_unstaging_and_follow_the_record() {
    let mut world = staged("a", SLOW).await;
    assert_eq!(limited(&world), [(FIRST, SLOW)]);
    let told = world.engine.limits("default/a").await.unwrap();
    assert_eq!((told.asked, told.device, told.held), (SLOW, Some(FIRST), SLOW));
    assert_eq!(told.fault, None);

    // Modified while it is in use.
    world.backend.write_limits(&world.id("a"), FAST);
    let told = world.engine.limits("default/a").await.unwrap();
    assert!(told.fault.unwrap().contains("maxWriteBps=1Mi"));
    world.engine.modified(&world.id("a"), &Cx::new()).await.unwrap();
    assert_eq!(limited(&world), [(FIRST, FAST)]);

    // A start makes good what somebody undid, and what was modified while nobody served the node.
    world.host.throttle.set(FIRST, SLOW).unwrap();
    world.restart();
    world.engine.recover(&Cx::new()).await.unwrap();
    assert_eq!(limited(&world), [(FIRST, FAST)]);
    world.backend.write_limits(&world.id("a"), Limits::NONE);
    world.restart();
    world.engine.recover(&Cx::new()).await.unwrap();
    assert_eq!(limited(&world), []);

    world.backend.write_limits(&world.id("a"), SLOW);
    world.engine.modified(&world.id("a"), &Cx::new()).await.unwrap();
    world.unstage("a").await.unwrap();
    world.assert_nothing_left();
    let told = world.engine.limits("default/a").await.unwrap();
    assert_eq!((told.asked, told.device, told.fault), (SLOW, None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_without_limits_takes_none_over_from_whoever_had_its_number() {
    let world = World::new(On::Fake);
    world.host.throttle.set(FIRST, SLOW).unwrap();
    world.volume("a");
    world.stage("a", mount()).await.unwrap();
    assert_eq!(limited(&world), []);
    world.unstage("a").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_device_that_went_by_itself_go_unless_another_has_its_number() {
    let world = staged("a", SLOW).await;
    world.host.mounts.unmount(&world.staging("a"), Unmount::Normal).unwrap();
    world.unstage("a").await.unwrap();
    world.assert_nothing_left();

    world.stage("a", mount()).await.unwrap();
    world.host.mounts.unmount(&world.staging("a"), Unmount::Normal).unwrap();
    world.volume("b");
    world.backend.write_limits(&world.id("b"), FAST);
    world.stage("b", mount()).await.unwrap();
    world.unstage("a").await.unwrap();
    assert_eq!(limited(&world), [(FIRST, FAST)], "they are of b");
    world.unstage("b").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_staged_with_another_number_leaves_no_limits_on_the_former() {
    let world = World::new(On::Fake);
    for name in ["a", "b"] {
        world.volume(name);
    }
    world.backend.write_limits(&world.id("a"), SLOW);
    world.stage("b", mount()).await.unwrap();
    world.stage("a", mount()).await.unwrap();
    let second = DeviceId { major: 7, minor: 1 };
    assert_eq!(limited(&world), [(second, SLOW)]);
    // Both go, and a comes back first.
    for name in ["a", "b"] {
        world.host.mounts.unmount(&world.staging(name), Unmount::Normal).unwrap();
    }
    world.stage("a", mount()).await.unwrap();
    assert_eq!(limited(&world), [(FIRST, SLOW)]);
    world.unstage("a").await.unwrap();
    world.unstage("b").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_could_not_be_unstaged_keeps_its_limits() {
    let world = staged("a", SLOW).await;
    let fake = world.fake.as_ref().unwrap();
    fake.set_busy(&world.staging("a"), true);
    assert_eq!(kind(world.unstage("a").await), Kind::Precondition);
    assert_eq!(limited(&world), [(FIRST, SLOW)]);
    fake.set_busy(&world.staging("a"), false);
    world.unstage("a").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_cannot_be_limited_is_used_and_that_is_told() {
    let world = World::new(On::Fake);
    world.volume("a");
    world.backend.write_limits(&world.id("a"), SLOW);
    let fake = world.fake.as_ref().unwrap();
    fake.fail_next("limit", Errno::IO);
    world.stage("a", mount()).await.unwrap();
    let told = world.engine.limits("default/a").await.unwrap();
    assert_eq!((told.asked, told.held), (SLOW, Limits::NONE));
    assert!(told.fault.unwrap().contains("7:0"));
    // Whoever modifies it is told at once.
    fake.fail_next("limit", Errno::IO);
    let fault = world.engine.modified(&world.id("a"), &Cx::new()).await.unwrap_err();
    assert!(fault.to_string().contains("default/a"), "{fault}");
    world.engine.modified(&world.id("a"), &Cx::new()).await.unwrap();
    assert_eq!(limited(&world), [(FIRST, SLOW)]);
    world.unstage("a").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_device_is_limited_too_and_not_after_the_records_were_wiped_and_it_is_unstaged() {
    let mut world = World::new(On::Fake);
    world.volume("raw");
    world.backend.write_limits(&world.id("raw"), SLOW);
    world.stage("raw", block()).await.unwrap();
    assert_eq!(limited(&world), [(FIRST, SLOW)]);
    std::fs::remove_dir_all(world.state_dir()).unwrap();
    world.restart();
    world.unstage("raw").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_have_no_device_to_limit() {
    let world = World::new(On::Fake);
    world.volume("dir-a");
    world.stage("dir-a", mount()).await.unwrap();
    world.engine.modified(&world.id("dir-a"), &Cx::new()).await.unwrap();
    assert_eq!(limited(&world), []);
    world.unstage("dir-a").await.unwrap();
    world.assert_nothing_left();
}
