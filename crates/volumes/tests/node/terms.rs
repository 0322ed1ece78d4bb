//! Repeated calls on equal and on other terms, and input that nobody should send.

use crate::world::{On, World, block, kind, mount, mount_as, reader, with_flags};
use larder_model::{AccessMode, Cx, Kind, VolumeCapability};
use larder_volumes::node::{PublishRequest, StageRequest};
use std::{fs, os::unix::fs::symlink};

#[tokio::test(flavor = "multi_thread")]
async fn equal_repeats_change_nothing_and_other_terms_are_a_conflict() {
    for on in [On::Fake, On::Real] {
        let world = World::new(on);
        world.volume("image");
        world.stage("image", with_flags(&["noatime"])).await.unwrap();
        let staged = world.snapshot();
        for _ in 0..3 {
            world.stage("image", with_flags(&["noatime"])).await.unwrap();
        }
        for other in [mount(), with_flags(&["noatime", "nosuid"]), reader(), block()] {
            assert_eq!(kind(world.stage("image", other).await), Kind::Conflict);
        }
        let mut context = world.stage_request("image", with_flags(&["noatime"]));
        context.context.insert("csi.storage.k8s.io/pod.name".to_owned(), "other".to_owned());
        world.engine.stage(context.clone(), &Cx::new()).await.unwrap();
        context.context.insert("fs".to_owned(), "xfs".to_owned());
        assert_eq!(kind(world.engine.stage(context, &Cx::new()).await), Kind::Conflict);
        assert_eq!(world.snapshot(), staged);

        world.publish("image", 1, with_flags(&["noatime"])).await.unwrap();
        let published = world.snapshot();
        for _ in 0..3 {
            world.publish("image", 1, with_flags(&["noatime"])).await.unwrap();
        }
        assert_eq!(kind(world.publish("image", 1, mount()).await), Kind::Conflict);
        assert_eq!(kind(world.publish("image", 2, block()).await), Kind::Precondition);
        assert_eq!(world.snapshot(), published);
        world.unpublish("image", 1).await.unwrap();
        world.unstage("image").await.unwrap();
        world.assert_nothing_left();
    }
}

/// Handed out raw before its first mount it could never be formatted afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_staged_only_in_the_way_it_was_made_for() {
    for on in [On::Fake, On::Real] {
        let world = World::new(on);
        for (name, right, wrong) in [
            ("only-mount", mount as fn() -> VolumeCapability, block as fn() -> VolumeCapability),
            ("only-block", block, mount),
        ] {
            world.volume(name);
            let before = world.snapshot();
            let fault = world.stage(name, wrong()).await.unwrap_err();
            assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
            assert!(fault.to_string().contains("it was made to be"), "{fault}");
            assert_eq!(world.snapshot(), before, "{name}");
            world.stage(name, right()).await.unwrap();
            world.publish(name, 1, right()).await.unwrap();
            world.unpublish(name, 1).await.unwrap();
            world.unstage(name).await.unwrap();
        }
        world.assert_nothing_left();
    }
}

/// The kernel lets whoever opens a device node write through a read-only mount of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_raw_device_is_published_read_only_only_where_the_device_itself_is() {
    use std::os::unix::fs::FileExt;
    let world = World::new(On::Real);
    world.volume("raw");
    let read_only = |how| PublishRequest { readonly: true, ..world.publish_request("raw", 1, how) };
    world.stage("raw", block()).await.unwrap();
    let refused = world.engine.publish(read_only(block()), &Cx::new()).await;
    assert_eq!(kind(refused), Kind::Precondition);
    let mode = AccessMode::SingleNodeReaderOnly;
    let reader = || VolumeCapability { mode, ..block() };
    let refused = world.engine.publish(read_only(reader()), &Cx::new()).await;
    assert_eq!(kind(refused), Kind::Precondition);
    assert!(!world.target("raw", 1).exists(), "a target of a refused call is left");
    world.unstage("raw").await.unwrap();

    world.stage("raw", reader()).await.unwrap();
    world.engine.publish(read_only(reader()), &Cx::new()).await.unwrap();
    let target = fs::File::options().write(true).open(world.target("raw", 1));
    assert!(target.is_err() || target.unwrap().write_all_at(&[1; 512], 0).is_err());
    world.unpublish("raw", 1).await.unwrap();
    world.unstage("raw").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn second_targets_follow_the_access_mode() {
    for (mode, allowed) in [
        (AccessMode::MultiNodeReaderOnly, true),
        (AccessMode::MultiNodeSingleWriter, true),
        (AccessMode::MultiNodeMultiWriter, true),
        (AccessMode::SingleNodeMultiWriter, true),
        (AccessMode::SingleNodeWriter, true),
        (AccessMode::SingleNodeSingleWriter, false),
        (AccessMode::SingleNodeReaderOnly, false),
    ] {
        let world = World::new(On::Fake);
        world.volume("dir-a");
        let how = || mount_as("", mode);
        world.stage("dir-a", how()).await.unwrap();
        world.publish("dir-a", 1, how()).await.unwrap();
        world.publish("dir-a", 1, how()).await.unwrap();
        let second = world.publish("dir-a", 2, how()).await;
        assert_eq!(second.is_ok(), allowed, "{mode}");
        if !allowed {
            assert_eq!(kind(second), Kind::Precondition, "{mode}");
            // A target that is no longer mounted is nobody's.
            let target = world.target("dir-a", 1);
            world.host.mounts.unmount(&target, larder_host::Unmount::Normal).unwrap();
            world.publish("dir-a", 2, how()).await.unwrap();
        }
        for n in [1, 2] {
            world.unpublish("dir-a", n).await.unwrap();
        }
        world.unstage("dir-a").await.unwrap();
        world.assert_nothing_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_staged_there_is_not_published() {
    let world = World::new(On::Real);
    for (name, how) in [("image", mount as fn() -> VolumeCapability), ("raw", block)] {
        world.volume(name);
        assert_eq!(kind(world.publish(name, 1, how()).await), Kind::Precondition);
        let mut nowhere = world.publish_request(name, 1, how());
        nowhere.staging_path = None;
        assert_eq!(kind(world.engine.publish(nowhere, &Cx::new()).await), Kind::Precondition);
        world.stage(name, how()).await.unwrap();
        let mut elsewhere = world.publish_request(name, 1, how());
        elsewhere.staging_path = Some(world.root.join("staging"));
        assert_eq!(kind(world.engine.publish(elsewhere, &Cx::new()).await), Kind::Precondition);
        assert!(!world.target(name, 1).exists());
        world.unstage(name).await.unwrap();
    }
    let unknown = world.publish_request("none", 1, mount());
    fs::create_dir_all(world.staging("none")).unwrap();
    assert!(matches!(
        kind(world.engine.publish(unknown, &Cx::new()).await),
        Kind::Precondition | Kind::NotFound
    ));
    assert_eq!(kind(world.stage("none", mount()).await), Kind::NotFound);
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_lead_elsewhere_are_refused_and_nothing_is_touched() {
    let world = World::new(On::Real);
    world.volume("image");
    for path in ["", "relative", "/", "/a/../b", "/x\0y"] {
        let mut stage = world.stage_request("image", mount());
        stage.staging_path = path.into();
        assert_eq!(kind(world.engine.stage(stage, &Cx::new()).await), Kind::Invalid, "{path:?}");
        let mut publish = world.publish_request("image", 1, mount());
        publish.target_path = path.into();
        let refused = world.engine.publish(publish, &Cx::new()).await;
        assert_eq!(kind(refused), Kind::Invalid, "{path:?}");
    }
    let outside = world.root.join("outside");
    fs::create_dir(&outside).unwrap();
    let link = world.root.join("staging/link");
    symlink(&outside, &link).unwrap();
    let file = world.root.join("staging/file");
    fs::write(&file, "").unwrap();
    for path in [&link, &file, &world.root.join("staging/absent")] {
        let stage =
            StageRequest { staging_path: path.clone(), ..world.stage_request("image", mount()) };
        assert_eq!(kind(world.engine.stage(stage, &Cx::new()).await), Kind::Precondition);
    }
    world.stage("image", mount()).await.unwrap();
    let (dir, parent) = (world.root.join("pods/image/full"), world.root.join("pods/image"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), "x").unwrap();
    symlink(&outside, parent.join("link")).unwrap();
    fs::write(parent.join("file"), "").unwrap();
    for name in ["full", "link", "file", "no/parent"] {
        let publish = PublishRequest {
            target_path: parent.join(name),
            ..world.publish_request("image", 1, mount())
        };
        let refused = world.engine.publish(publish, &Cx::new()).await;
        assert_eq!(kind(refused), Kind::Precondition, "{name}");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    world.unstage("image").await.unwrap();
    fs::remove_dir_all(&dir).unwrap();
    for path in [&link, &file, &parent.join("link"), &parent.join("file")] {
        fs::remove_file(path).unwrap();
    }
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_mount_in_the_way_is_named_and_left_alone() {
    let world = World::new(On::Real);
    world.volume("image");
    world.volume("net-other");
    // Somebody else's mount at the staging path.
    let foreign = |path: &std::path::Path| {
        let request = larder_host::MountRequest {
            fs_type: "tmpfs".to_owned(),
            source: "somebody".to_owned(),
            target: path.to_owned(),
            ..Default::default()
        };
        world.host.mounts.mount(&request).unwrap();
    };
    let gone = |path: &std::path::Path| {
        world.host.mounts.unmount(path, larder_host::Unmount::Normal).unwrap();
    };
    let staging = world.staging("image");
    foreign(&staging);
    let fault = world.stage("image", mount()).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    assert_eq!(kind(world.unstage("image").await), Kind::Precondition);
    assert!(world.loops().is_empty(), "a refused stage left its device");
    gone(&staging);
    world.stage("image", mount()).await.unwrap();

    let target = world.target("image", 1);
    fs::create_dir(&target).unwrap();
    foreign(&target);
    let fault = world.publish("image", 1, mount()).await.unwrap_err();
    assert!(fault.to_string().contains("tmpfs somebody"), "{fault}");
    let fault = world.unpublish("image", 1).await.unwrap_err();
    assert!(fault.to_string().contains("tmpfs somebody"), "{fault}");
    gone(&target);
    world.publish("image", 1, mount()).await.unwrap();
    world.unpublish("image", 1).await.unwrap();
    world.unstage("image").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_in_mount_flags_are_in_no_fault_and_no_record() {
    let world = World::new(On::Real);
    world.volume("image");
    let fault = world.stage("image", with_flags(&["password=hunter2"])).await.unwrap_err();
    assert!(!fault.to_string().contains("hunter2"), "{fault}");
    let fault = world.stage("image", with_flags(&["a,hunter2"])).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Invalid);
    assert!(!fault.to_string().contains("hunter2"), "{fault}");
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_fails_leaves_nothing_and_the_next_works() {
    let world = World::new(On::Fake);
    let kernel = world.fake.clone().unwrap();
    world.volume("image");
    for flags in [&["noatime,remount"][..], &["bind"]] {
        assert_eq!(kind(world.stage("image", with_flags(flags)).await), Kind::Invalid);
        world.assert_nothing_left();
    }
    // Whatever fails in the kernel: what was done is taken back.
    for (operation, errno) in [
        ("attach", rustix::io::Errno::NOSPC),
        ("probe", rustix::io::Errno::IO),
        ("make", rustix::io::Errno::IO),
        ("make_again", rustix::io::Errno::IO),
        ("mount", rustix::io::Errno::BUSY),
        ("check", rustix::io::Errno::IO),
        ("size", rustix::io::Errno::IO),
    ] {
        kernel.fail_next(operation, errno);
        let failed = world.stage("image", mount()).await;
        assert!(failed.is_err(), "{operation} was not called");
        world.assert_nothing_left();
    }
    world.stage("image", mount()).await.unwrap();
    for operation in ["bind"] {
        kernel.fail_next(operation, rustix::io::Errno::NOMEM);
        assert!(world.publish("image", 1, mount()).await.is_err());
        assert!(!world.target("image", 1).exists());
        assert_eq!(world.mounts().len(), 1);
    }
    world.unstage("image").await.unwrap();
    world.assert_nothing_left();
}
