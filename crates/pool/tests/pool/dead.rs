//! A network file system whose server is dead, as it looks from here.

use larder_host::{Host, mounts::MountRequest};
use std::{fs::File, os::fd::AsRawFd, path::Path};

/// Mounts FUSE without anybody who serves it. Whoever asks it anything hangs until what is returned is
/// dropped.
pub(crate) fn mount_dead(target: &Path) -> File {
    std::fs::create_dir_all(target).unwrap();
    let server = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let fd = format!("fd={}", server.as_raw_fd());
    let options = [&fd, "rootmode=40000", "user_id=0", "group_id=0"];
    let request = MountRequest {
        fs_type: "fuse".to_owned(),
        source: "dead".to_owned(),
        target: target.to_owned(),
        options: options.map(str::to_owned).to_vec(),
        read_only: false,
    };
    Host::real().mounts.mount(&request).unwrap();
    server
}
