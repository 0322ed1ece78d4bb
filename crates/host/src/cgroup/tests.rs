//! On files that look like a cgroup's; `tests/cgroup.rs` has the kernel's.

use super::*;
use std::fs;

#[test]
fn limits_of_version_1_are_written_into_every_cgroup_and_cleared_from_all() {
    let dir = tempfile::tempdir().unwrap();
    let pods = dir.path().join("kubepods");
    let container = pods.join("pod/container");
    fs::create_dir_all(&container).unwrap();
    for path in [&pods, &pods.join("pod"), &container] {
        for kind in ["read_bps", "write_bps", "read_iops", "write_iops"] {
            fs::write(path.join(format!("blkio.throttle.{kind}_device")), "").unwrap();
        }
    }
    let throttle = RealThrottle::new(Some(pods.clone()));
    let device = DeviceId { major: 7, minor: 5 };
    let limits = Limits { max_write_bps: 5, max_read_iops: 6, ..Limits::NONE };
    throttle.set(device, limits).unwrap();
    assert_eq!(throttle.all().unwrap(), [(device, limits)]);
    let leaf = fs::read_to_string(container.join("blkio.throttle.write_bps_device")).unwrap();
    assert_eq!(leaf, "7:5 5");
    throttle.set(device, Limits::NONE).unwrap();
    assert_eq!(throttle.all().unwrap(), []);
    let leaf = fs::read_to_string(container.join("blkio.throttle.write_bps_device")).unwrap();
    assert_eq!(leaf, "7:5 0");
    let place = throttle.place().unwrap();
    assert_eq!(place.path, pods);
    assert!(place.caveats[0].contains("version 1"), "{place:?}");
}

#[test]
fn the_io_controller_is_turned_on_where_it_is_off_and_what_refuses_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let pods = dir.path().join("kubepods.slice");
    fs::create_dir(&pods).unwrap();
    for (file, text) in [
        ("cgroup.subtree_control", "cpu"),
        ("kubepods.slice/cgroup.controllers", "cpu io"),
        ("kubepods.slice/cgroup.type", "domain"),
    ] {
        fs::write(dir.path().join(file), text).unwrap();
    }
    let throttle = RealThrottle::new(Some(pods));
    let device = DeviceId { major: 7, minor: 5 };
    throttle.set(device, Limits::NONE).unwrap();
    let limits = Limits { max_read_bps: 5, ..Limits::NONE };
    // No kernel makes the file appear here.
    let fault = throttle.set(device, limits).unwrap_err();
    assert_eq!(fault.kind(), larder_model::Kind::Precondition);
    let control = fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap();
    assert_eq!(control, "+io");
    let caveats = throttle.place().unwrap().caveats;
    assert!(caveats[0].contains("memory controller"), "{caveats:?}");
}
