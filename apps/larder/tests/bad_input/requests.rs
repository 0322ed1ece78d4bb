//! Names, ids, sizes and capabilities that cannot be, on both backends.

use super::*;
use larder_proto::csi::volume_capability::access_mode::Mode;
use rstest::rstest;

/// Names are anybody's: whatever they are, they stay inside the pool or are refused.
#[rstest]
#[tokio::test]
async fn names_never_lead_out_of_the_pool(#[values("dir", "loop")] backend: &'static str) {
    let ground = Ground::of(backend, "xfs").await;
    let before = outside(&ground);
    let long = "n".repeat(128);
    let longer = "n".repeat(5000);
    let names = [
        ("", false),
        (longer.as_str(), false),
        ("nul\0", false),
        (long.as_str(), true),
        ("../up", true),
        ("/etc/passwd", true),
        ("..", true),
        (".", true),
        ("a/../../b", true),
        ("new\nline", true),
        ("ünï©ode ␀", true),
        ("-rf", true),
    ];
    for (name, may_be) in names {
        let request = create(name, SIZE, capability(backend == "loop", ""));
        match ground.server.client.controller().create_volume(request).await {
            Ok(made) => {
                assert!(may_be, "{name:?} was accepted");
                let id = made.into_inner().volume.unwrap().volume_id;
                let native = id.strip_prefix("default/").unwrap();
                let is_plain = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-');
                assert!(native.len() <= 63 && native.chars().all(is_plain), "{name:?}: {id}");
                assert!(ground.site.pool.path().join("volumes").join(native).is_dir(), "{id}");
                ground.delete(&id).await.unwrap();
            }
            Err(status) => {
                assert_eq!(status.code(), Code::InvalidArgument, "{name:?}: {status}");
            }
        }
        assert_eq!(outside(&ground), before, "{name:?}");
    }
}

/// Everything of the site but what the server keeps for itself.
fn outside(ground: &Ground) -> Vec<PathBuf> {
    let mut seen = paths(ground.site.dir.path());
    let volumes = ground.site.pool.path().to_owned();
    let own = [ground.site.path("state"), ground.site.path("run"), volumes.join(".larder")];
    seen.retain(|path| !own.iter().any(|own| path.starts_with(own)));
    seen
}

#[rstest]
#[tokio::test]
async fn ids_that_cannot_be_ours_are_gone_for_deletion_and_not_found_otherwise(
    #[values("dir", "loop")] backend: &'static str,
) {
    let ground = Ground::of(backend, "xfs").await;
    let long = format!("default/{}", "x".repeat(5000));
    let ids = [
        "..",
        "default/..",
        "default/../../etc",
        "/etc",
        "default//x",
        "default/UPPER",
        "default/new\nline",
        "default/nul\0",
        "default",
        long.as_str(),
    ];
    for id in ids {
        let is_no_id = id.len() > 128 || id.chars().any(char::is_control);
        match ground.delete(id).await {
            Ok(()) => {}
            Err(status) if is_no_id => assert_eq!(status.code(), Code::InvalidArgument),
            Err(status) => panic!("delete {id:.40?}: {status}"),
        }
        let at = ground.text("staging");
        let codes = [Code::NotFound, Code::InvalidArgument];
        refused(ground.stage(id, &at, capability(false, "")).await, &codes, &[]);
        refused(
            ground.publish(id, &ground.text("pods/x"), capability(false, "")).await,
            &codes,
            &[],
        );
        let request = csi::ControllerGetVolumeRequest { volume_id: id.to_owned() };
        let found = ground.server.client.controller().controller_get_volume(request).await;
        refused(found, &codes, &[]);
    }
    // A pool that this driver does not have may be another node's: never "gone".
    let elsewhere = ground.delete("elsewhere/x").await;
    refused(elsewhere, &[Code::Unavailable], &["elsewhere"]);
    assert!(!ground.site.path("pods/x").exists());
}

#[rstest]
#[tokio::test]
async fn sizes_that_cannot_be_are_refused_before_anything_is_made(
    #[values("dir", "loop")] backend: &'static str,
) {
    let ground = Ground::of(backend, "xfs").await;
    let invalid = [Code::InvalidArgument, Code::OutOfRange];
    let room = [Code::OutOfRange, Code::ResourceExhausted];
    let sizes: [(i64, i64, &[Code]); 7] = [
        (0, 0, &invalid),
        (-1, 0, &invalid),
        (0, -1, &invalid),
        (i64::MIN, i64::MAX, &invalid),
        (2 << 30, 1 << 30, &invalid),
        (i64::MAX, 0, &room),
        (1 << 60, 1 << 61, &room),
    ];
    for (required_bytes, limit_bytes, codes) in sizes {
        let range = csi::CapacityRange { required_bytes, limit_bytes };
        let request = csi::CreateVolumeRequest {
            capacity_range: Some(range),
            ..create("sized", 0, capability(false, ""))
        };
        let made = ground.server.client.controller().create_volume(request).await;
        if let Ok(made) = &made
            && codes == room
        {
            // Without quota a directory's size is a wish, and a sparse image is a promise that only
            // the pool's `overprovision` limits.
            let volume = made.get_ref().volume.clone().unwrap();
            let context = &volume.volume_context;
            let (key, value) =
                if backend == "dir" { ("enforced", "false") } else { ("allocation", "sparse") };
            assert_eq!(context[key], value);
            ground.delete(&volume.volume_id).await.unwrap();
            continue;
        }
        refused(made, codes, &[]);
        let left = std::fs::read_dir(ground.site.pool.path().join("volumes")).unwrap().count();
        assert_eq!(left, 0, "{required_bytes} to {limit_bytes}");
    }
    // No size at all is the backend's own choice.
    let request = csi::CreateVolumeRequest {
        capacity_range: None,
        ..create("unsized", 0, capability(false, ""))
    };
    ground.server.client.controller().create_volume(request).await.unwrap();
}

#[tokio::test]
async fn capabilities_that_contradict_each_other_or_nobody_knows_are_refused() {
    let ground = Ground::of("loop", "xfs").await;
    let mode = |mode: i32| csi::VolumeCapability {
        access_mode: Some(csi::volume_capability::AccessMode { mode }),
        ..capability(false, "")
    };
    let with_fs = |fs: &str| csi::VolumeCapability::mounted(fs, &[], Mode::SingleNodeWriter);
    let asked: [(&str, Vec<csi::VolumeCapability>); 6] = [
        ("none", Vec::new()),
        ("unknown mode", vec![mode(0)]),
        ("mode of the future", vec![mode(99)]),
        ("unknown file system", vec![with_fs("ntfs")]),
        ("a path for a file system", vec![with_fs("../ext4")]),
        ("two file systems", vec![with_fs("ext4"), with_fs("xfs")]),
    ];
    for (what, volume_capabilities) in asked {
        let request =
            csi::CreateVolumeRequest { volume_capabilities, ..create("c", SIZE, mode(7)) };
        let made = ground.server.client.controller().create_volume(request).await;
        let status = made.map(|made| panic!("{what}: {made:?}")).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status}");
    }
    let volume = ground.make("v", false).await;
    for (flags, group) in [
        (&["nosuchoption=1"][..], ""),
        (&["ro\0"][..], ""),
        (&["bind"][..], ""),
        (&["loop=/dev/loop9"][..], ""),
        (&[][..], "-1"),
        (&[][..], "root; rm -rf /"),
        (&[][..], "99999999999999"),
    ] {
        let mut asked = csi::VolumeCapability::mounted("", flags, Mode::SingleNodeWriter);
        if let Some(csi::volume_capability::AccessType::Mount(mount)) = &mut asked.access_type {
            mount.volume_mount_group = group.to_owned();
        }
        let answer = ground.stage(&volume.volume_id, &ground.text("staging"), asked).await;
        let codes = [Code::InvalidArgument, Code::FailedPrecondition];
        let status = answer.map(|()| panic!("{flags:?} {group:?}")).unwrap_err();
        assert!(codes.contains(&status.code()), "{flags:?} {group:?}: {status}");
    }
    // Nothing of all that is in the way of the right call.
    ground.stage(&volume.volume_id, &ground.text("staging"), capability(false, "")).await.unwrap();
    ground.unstage(&volume.volume_id).await.unwrap();
}

#[tokio::test]
async fn parameters_nobody_knows_are_refused_by_name() {
    let ground = Ground::of("loop", "xfs").await;
    let ask = async |key: &str, value: &str| {
        let request = csi::CreateVolumeRequest {
            parameters: [(key.to_owned(), value.to_owned())].into(),
            ..create("p", SIZE, capability(false, ""))
        };
        ground.server.client.controller().create_volume(request).await.map(drop)
    };
    refused(ask("sizeLimit", "1").await, &[Code::InvalidArgument], &["sizeLimit"]);
    refused(ask("Pool", "default").await, &[Code::InvalidArgument], &["Pool"]);
    refused(ask("allocation", "thick").await, &[Code::InvalidArgument], &["allocation", "thick"]);
    refused(ask("mkfsOptions", "-F /dev/sda").await, &[Code::InvalidArgument], &["mkfsOptions"]);
    ask("csi.storage.k8s.io/pv/name", "pvc-1").await.unwrap();
}
