//! Pools and sockets as a whole.

use crate::{
    doctor, everything, expected, found_and_mended,
    support::{Server, Site},
    told,
};
use larder_host::{
    Host,
    sockets::{self, SocketFile},
};
use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}
fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}
fn configure(site: &Site, pool: &str) {
    let (state, endpoint) = (site.path("state"), site.endpoint());
    let yaml = format!(
        "node: n1\nstateDir: {}\ndrivers:\n- name: {}\n  backend: {}\n  endpoint: {endpoint}\n  pools:\n    \
         default: {{ path: {}{pool} }}\n",
        state.display(),
        site.driver,
        site.backend,
        site.pool.path().display(),
    );
    std::fs::write(site.config(), yaml).unwrap();
}

#[test]
fn a_pool_that_is_away_without_identity_or_another_backends_is_told_and_nothing_is_made_there() {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "a"]);
    let pool = site.pool.path().to_owned();
    let before = everything(&pool);
    configure(&site, ", mount: required");
    found_and_mended(&site, &[("pool-away", &pool, false)]);
    configure(&site, "");
    assert_eq!(told(&doctor(&site, &[])), []);
    let identity = pool.join("larder-pool.json");
    let text = std::fs::read_to_string(&identity).unwrap();
    std::fs::write(&identity, text.replace("\"dir\"", "\"loop\"")).unwrap();
    found_and_mended(&site, &[("pool-of-another-backend", &pool, false)]);
    std::fs::remove_file(&identity).unwrap();
    found_and_mended(&site, &[("pool-away", &pool, false)]);
    std::fs::write(&identity, text).unwrap();
    assert!(everything(&pool) == before);
    std::fs::rename(&pool, site.path("disk/mnt/elsewhere")).unwrap();
    let report = doctor(&site, &["--fix", "--yes"]);
    assert_eq!(report["findings"][0]["severity"], "critical");
    assert!(!pool.exists());
}

#[test]
fn a_pool_that_is_read_only_or_near_full_is_told() {
    let site = Site::new("loop", "ext4");
    site.ok(&["volume", "create", "a", "--size", "320Mi"]);
    let pool = site.pool.path().to_owned();
    // By the bytes that are really taken, and by inodes.
    let file = std::fs::File::create(pool.join("../fill")).unwrap();
    let usage = Host::real().filesystems.usage(&pool).unwrap();
    let fill = usage.available.get() * 95 / 100;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, fill).unwrap();
    found_and_mended(&site, &[("pool-near-full", &pool, false)]);
    assert_eq!(told(&doctor(&site, &["--near-full", "99"])), []);
    drop(file);
    std::fs::remove_file(pool.join("../fill")).unwrap();
    assert_eq!(told(&doctor(&site, &[])), []);

    configure(&site, ", reserve: 100Gi");
    let report = doctor(&site, &[]);
    assert_eq!(report["findings"][0]["kind"], "pool-near-full");
    assert_eq!(report["findings"][0]["severity"], "critical");
    configure(&site, "");

    let host = Host::real();
    host.mounts.remount(&site.path("disk/mnt"), true, &[]).unwrap();
    found_and_mended(&site, &[("pool-read-only", &pool, false)]);
    host.mounts.remount(&site.path("disk/mnt"), false, &[]).unwrap();
    assert_eq!(told(&doctor(&site, &[])), []);
}

#[tokio::test]
async fn permissions_that_are_too_wide_are_taken_away_and_no_others() {
    let site = Site::new("loop", "xfs");
    site.ok(&["volume", "create", "a", "--size", "320Mi"]);
    let pool = site.pool.path().to_owned();
    let records = site.path("state").join(&site.driver);
    let socket = site.endpoint().path().to_owned();
    let mut server = site.server();
    assert!(server.ready().await);
    let (volumes, image) = (pool.join("volumes"), pool.join("volumes/a/image"));
    set_mode(&pool, 0o775);
    set_mode(&volumes, 0o755);
    set_mode(&image, 0o644);
    set_mode(&records, 0o750);
    set_mode(&socket, 0o666);
    // For everybody to read is an administrator's choice there.
    set_mode(&pool.join("static"), 0o755);
    let places = [&pool, &volumes, &image, &records, &socket];
    found_and_mended(&site, &places.map(|place| ("permissions", place.as_path(), true)));
    assert_eq!((mode(&pool), mode(&volumes), mode(&image)), (0o755, 0o700, 0o600));
    assert_eq!((mode(&records), mode(&socket), mode(&pool.join("static"))), (0o700, 0o600, 0o755));
    assert_eq!(server.stop().code(), Some(0));

    std::os::unix::fs::chown(&volumes, Some(12345), None).unwrap();
    found_and_mended(&site, &[("permissions", &volumes, false)]);
}

#[tokio::test]
async fn a_socket_that_a_killed_server_left_is_removed_and_nothing_else_in_its_place() {
    let site = Site::new("dir", "xfs");
    let mut server = site.server();
    assert!(server.ready().await);
    server.kill();
    let socket = site.endpoint().path().to_owned();
    assert_eq!(sockets::look(&socket).unwrap(), SocketFile::Dead);
    found_and_mended(&site, &[("socket-stale", &socket, true)]);
    std::fs::write(&socket, "precious").unwrap();
    found_and_mended(&site, &[("socket-path-taken", &socket, false)]);
    assert_eq!(std::fs::read(&socket).unwrap(), b"precious");
}

#[test]
fn a_pool_without_inodes_is_told_although_it_has_room() {
    let site = Site::sized("dir", "ext4", larder_model::Bytes::mib(64));
    site.ok(&["volume", "create", "a"]);
    let pool = site.pool.path().to_owned();
    let usage = Host::real().filesystems.usage(&pool).unwrap();
    let many = site.path("disk/mnt/many");
    std::fs::create_dir(&many).unwrap();
    for n in 0..usage.inodes_free - usage.inodes / 20 {
        std::fs::File::create(many.join(n.to_string())).unwrap();
    }
    found_and_mended(&site, &[("pool-few-inodes", &pool, false)]);
    std::fs::remove_dir_all(&many).unwrap();
    assert_eq!(told(&doctor(&site, &[])), []);
}

#[test]
fn a_pool_whose_server_is_dead_is_told_and_the_others_are_looked_at() {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "a"]);
    let pool = site.pool.path().to_owned();
    let other = site.path("disk/mnt/other");
    let yaml = std::fs::read_to_string(site.config()).unwrap();
    let (head, _) = yaml.split_once("pools:").unwrap();
    let yaml = format!(
        "{head}pools:\n    default: {{ path: {}, shared: true }}\n    other: {{ path: {}, create: true, shared: true }}\n",
        pool.display(),
        other.display(),
    );
    std::fs::write(site.config(), yaml).unwrap();
    site.ok(&["volume", "create", "b", "--pool", "other"]);
    assert_eq!(told(&doctor(&site, &[])), []);
    let identity = other.join("larder-pool.json");
    let text = std::fs::read_to_string(&identity).unwrap();
    std::fs::write(&identity, text.replace("\"dir\"", "\"loop\"")).unwrap();
    let server = crate::dead::mount_dead(&pool);
    // Since when it is silent is told, and each command finds out anew.
    let both = [("pool-silent", pool.as_path(), false), ("pool-of-another-backend", &other, false)];
    let report = doctor(&site, &["--fix", "--yes"]);
    assert_eq!(told(&report), expected(&both), "{report:#}");
    assert_eq!(report["findings"][0]["severity"], "critical");
    drop(server);
    Host::real().mounts.unmount(&pool, larder_host::mounts::Unmount::Lazy).unwrap();
    std::fs::write(&identity, text).unwrap();
    assert_eq!(told(&doctor(&site, &[])), []);
    site.ok(&["volume", "rm", "a"]);
}

#[tokio::test]
async fn a_driver_that_waits_before_it_serves_is_told_with_what_it_waits_for() {
    let site = Site::new("dir", "xfs");
    // Another process has its records; where it listens is not known to this configuration.
    let mut first = site.server();
    assert!(first.ready().await);
    let second: larder_csi::Endpoint =
        site.path("run/second.sock").to_str().unwrap().parse().unwrap();
    site.configure(&site.config(), &second);
    let mut waiting = Server::start(&site.config(), &second, &[]);
    let end = Instant::now() + Duration::from_secs(60);
    while told(&doctor(&site, &[])).is_empty() {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    found_and_mended(&site, &[("driver-not-ready", Path::new(second.path()), false)]);
    assert!(first.stop().success());
    assert!(waiting.ready().await);
    assert_eq!(told(&doctor(&site, &[])), []);
}
