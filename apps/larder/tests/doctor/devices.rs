//! Loop devices.

use crate::{doctor, found_and_mended, support::Site, text, told};
use larder_host::{Host, LoopInfo, loops::LoopRequest};
use std::path::Path;

/// What losetup does.
fn losetup(image: &Path) -> u32 {
    let request = LoopRequest {
        image: image.to_owned(),
        read_only: false,
        autoclear: false,
        direct_io: false,
        sector_size: 512,
    };
    Host::real().loops.attach(&request).unwrap().number
}

fn device(number: u32) -> Option<LoopInfo> {
    Host::real().loops.info(number).unwrap()
}

/// How many devices an image has.
fn devices(image: &Path) -> usize {
    Host::real().loops.find(image).unwrap().len()
}

#[rstest::rstest]
#[case::alone(false)]
#[case::served(true)]
#[tokio::test]
async fn a_device_that_nobody_has_is_found_and_detached_and_others_are_left(#[case] served: bool) {
    let site = Site::new("loop", "xfs");
    for name in ["left", "open", "twice"] {
        site.ok(&["volume", "create", name, "--size", "16Mi", "--block"]);
    }
    site.ok(&["snapshot", "create", "left@s"]);
    let raw = site.path("raw");
    site.ok(&["volume", "mount", "twice", text(&raw), "--block"]);
    let mut server = served.then(|| site.server());
    if let Some(server) = &mut server {
        assert!(server.ready().await);
    }
    let volumes = site.pool.path().join("volumes");
    let image = volumes.join("left/image");
    std::fs::write(&image, vec![7; 16 << 20]).unwrap();
    losetup(&image);
    let open = losetup(&volumes.join("open/image"));
    // A second device over what a workload has: two caches over one image.
    losetup(&volumes.join("twice/image"));
    let cut = site.pool.path().join("snapshots/left.s/image");
    losetup(&cut);
    let holder = std::fs::File::open(device(open).unwrap().path).unwrap();

    found_and_mended(
        &site,
        &[
            ("loop-device-unused", &image, true),
            ("loop-device-unused", &volumes.join("twice/image"), true),
            ("loop-device-unused", &cut, true),
        ],
    );
    assert_eq!((devices(&image), devices(&cut)), (0, 0));
    assert_eq!(devices(&volumes.join("twice/image")), 1, "the workload's own stays");
    assert_eq!(devices(&volumes.join("open/image")), 1, "somebody has it open");
    assert_eq!(std::fs::read(&image).unwrap(), vec![7; 16 << 20]);
    drop(holder);
    found_and_mended(&site, &[("loop-device-unused", &volumes.join("open/image"), true)]);
    drop(server);
    let _ = std::fs::remove_file(site.endpoint().path());
    site.ok(&["volume", "unmount", "twice"]);
    for name in ["left", "open", "twice"] {
        site.ok(&["volume", "rm", name]);
    }
}

#[test]
fn a_device_that_is_all_that_is_left_of_the_data_is_never_detached() {
    let site = Site::new("loop", "xfs");
    site.ok(&["volume", "create", "a", "--size", "16Mi", "--block"]);
    let image = site.pool.path().join("volumes/a/image");
    std::fs::write(&image, vec![7; 16 << 20]).unwrap();
    let number = losetup(&image);
    std::fs::remove_dir_all(site.pool.path().join("volumes/a")).unwrap();
    let report = doctor(&site, &[]);
    assert_eq!(report["findings"][0]["severity"], "critical", "{report:#}");
    assert_eq!(report["findings"][0]["volume"], "default/a");
    found_and_mended(&site, &[("image-deleted-under-device", &image, false)]);
    let info = device(number).unwrap();
    assert_eq!(std::fs::read(&info.path).unwrap(), vec![7; 16 << 20]);

    // Another file in its place makes it no better.
    site.ok(&["volume", "create", "a", "--size", "16Mi", "--block"]);
    found_and_mended(&site, &[("image-deleted-under-device", &image, false)]);
    Host::real().loops.detach(number, info.backing()).unwrap();
    assert_eq!(told(&doctor(&site, &[])), []);
}

#[test]
fn a_device_over_a_volume_that_was_deleted_through_larder_is_detached() {
    let site = Site::new("loop", "xfs");
    site.ok(&["volume", "create", "a", "--size", "16Mi", "--block"]);
    let pool = site.pool.path();
    let info = device(losetup(&pool.join("volumes/a/image"))).unwrap();
    // As a deletion does it, killed before and after the removal.
    let grave = pool.join("deleting/volume-a.0123456789ab");
    std::fs::rename(pool.join("volumes/a"), &grave).unwrap();
    std::fs::remove_dir_all(&grave).unwrap();
    found_and_mended(&site, &[("loop-device-of-deleted-volume", &grave.join("image"), true)]);
    let left = device(info.number).filter(|now| now.backing() == info.backing());
    assert_eq!(left, None);
}

#[test]
fn limits_of_a_device_that_is_gone_are_found_and_taken_away() {
    let site = Site::new("loop", "xfs");
    site.ok(&["pool", "init"]);
    site.limit_in_files();
    // A number that no machine has.
    let file = site.path("cgroup/blkio.throttle.read_bps_device");
    std::fs::write(file, "7:1048575 1000\n").unwrap();
    assert_eq!(site.read_limits(), [1000]);
    found_and_mended(&site, &[("limit-left", Path::new("/sys/dev/block/7:1048575"), true)]);
    assert!(site.read_limits().is_empty());
}
