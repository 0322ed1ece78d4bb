//! What operators of other drivers suffer from, with the real program (docs/pains.md).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

mod support;

use larder_host::{Host, mounts::Unmount};
use larder_lives::{Book, Caller, Use, Volume, World};
use larder_proto::csi;
use rstest::rstest;
use std::{fs, path::Path, time::Duration};
use support::{Server, Site, leaks};

const MIB: i64 = 1 << 20;

/// A driver, its callers, and one volume.
struct Ground {
    // Before the site, which unmounts, goes.
    server: Server,
    world: World,
    volume: Volume,
    site: Site,
}

impl Ground {
    async fn new(backend: &'static str) -> Self {
        let site = Site::new(backend, "xfs");
        let mut server = site.server();
        assert!(server.ready().await);
        let images = backend == "loop";
        let world = World {
            caller: Caller::new(site.endpoint().path(), Duration::from_secs(60)).unwrap(),
            book: Book::default(),
            folder: site.path("node"),
            images,
            trash: false,
            grows_ext4: false,
            seed: 0,
        };
        let usage = if images { Use::Ext4 } else { Use::Folder };
        let volume = world.volume("v", usage, 64 * MIB);
        Self { server, world, volume, site }
    }

    async fn create(&self) {
        let Volume { name, bytes, usage, .. } = &self.volume;
        self.world.caller.create(name, *bytes, *usage, None).await.unwrap();
    }

    async fn put_to_use(&self) {
        self.world.put_to_use(&self.volume).await.unwrap();
    }

    /// Killed, and there again.
    async fn dies(&mut self) {
        self.server.kill();
        self.server = self.site.server();
        assert!(self.server.ready().await);
    }

    fn mounts(&self) -> usize {
        let table = Host::real().mounts.table().unwrap();
        table.iter().filter(|mount| mount.target.starts_with(&self.world.folder)).count()
    }

    async fn end(mut self) {
        self.world.take_back(&self.volume).await.unwrap();
        self.world.caller.remove_volume(&self.volume.name).await.unwrap();
        self.assert_clean();
    }

    fn assert_clean(&mut self) {
        assert!(self.server.stop().success());
        let left = leaks::find(self.site.dir.path(), self.site.pool.path());
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

fn loop_devices(site: &Site) -> usize {
    let on = |info: &larder_host::loops::LoopInfo| info.backing().device == site.disk();
    Host::real().loops.list().unwrap().iter().filter(|info| on(info)).count()
}

#[rstest]
#[tokio::test]
async fn a_pod_gets_its_volume_and_not_the_disk_of_the_node_when_a_mount_was_lost(
    #[values("loop", "dir")] backend: &'static str,
) {
    let ground = Ground::new(backend).await;
    ground.create().await;
    ground.put_to_use().await;
    let Volume { staging, target, .. } = &ground.volume;
    fs::write(target.join("data"), "precious").unwrap();
    // Somebody tidies up; now both are folders of the node's disk.
    for path in [target, staging] {
        Host::real().mounts.unmount(path, Unmount::Normal).unwrap();
    }
    ground.put_to_use().await;
    assert_eq!(fs::read(target.join("data")).unwrap(), b"precious");
    Host::real().mounts.unmount(target, Unmount::Normal).unwrap();
    assert!(fs::read_dir(target).unwrap().next().is_none(), "written to the node's disk");
    ground.end().await;
}

#[rstest]
#[tokio::test]
async fn mounts_do_not_multiply_with_restarts_and_repeated_calls(
    #[values("loop", "dir")] backend: &'static str,
) {
    let mut ground = Ground::new(backend).await;
    ground.create().await;
    ground.put_to_use().await;
    let once = ground.mounts();
    for _ in 0..5 {
        ground.dies().await;
        for _ in 0..5 {
            ground.put_to_use().await;
        }
        assert_eq!(ground.mounts(), once);
    }
    ground.end().await;
}

#[tokio::test]
async fn loop_devices_are_not_leaked_by_volumes_that_come_and_go_and_a_driver_that_dies() {
    let mut ground = Ground::new("loop").await;
    ground.create().await;
    for round in 0..6 {
        ground.put_to_use().await;
        assert_eq!(loop_devices(&ground.site), 1);
        if round % 2 == 0 {
            ground.dies().await;
        }
        ground.world.take_back(&ground.volume).await.unwrap();
        assert_eq!(loop_devices(&ground.site), 0, "round {round}");
    }
    ground.end().await;
}

/// Neither a limit that is announced and wrong, nor one that is met unannounced: a kernel makes eight
/// loop devices at its start, and more when they are asked for.
#[tokio::test]
async fn no_limit_of_attachments_is_announced_and_none_is_met() {
    let mut ground = Ground::new("loop").await;
    let info = ground.server.client.node().node_get_info(csi::NodeGetInfoRequest {}).await.unwrap();
    assert_eq!(info.into_inner().max_volumes_per_node, 0);
    let volumes: Vec<_> =
        (0..24).map(|n| ground.world.volume(&format!("v{n}"), Use::Block, MIB)).collect();
    for volume in &volumes {
        let Volume { name, bytes, usage, .. } = volume;
        ground.world.caller.create(name, *bytes, *usage, None).await.unwrap();
        ground.world.put_to_use(volume).await.unwrap();
    }
    assert_eq!(loop_devices(&ground.site), volumes.len());
    for volume in &volumes {
        ground.world.take_back(volume).await.unwrap();
        ground.world.caller.remove_volume(&volume.name).await.unwrap();
    }
    ground.assert_clean();
}

/// Not the answer of the creation is what deletion works with, but the name.
#[rstest]
#[tokio::test]
async fn a_volume_whose_claim_is_deleted_while_it_is_made_leaks_nothing(
    #[values("loop", "dir")] backend: &'static str,
    #[values(0, 1, 5, 20)] millis: u64,
) {
    let mut ground = Ground::new(backend).await;
    let creation = ground.create();
    // The caller gives up, with the call anywhere.
    let answered = tokio::time::timeout(Duration::from_millis(millis), creation).await;
    ground.world.caller.remove_volume("v").await.unwrap();
    // What was still under way when the deletion was answered was made after it.
    if answered.is_err() {
        tokio::time::sleep(Duration::from_millis(200)).await;
        ground.world.caller.remove_volume("v").await.unwrap();
    }
    assert_eq!(ground.world.caller.volumes().await.unwrap(), [""; 0]);
    ground.assert_clean();
}

#[test]
fn every_test_that_the_page_of_pains_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = fs::read_to_string(root.join("docs/pains.md")).unwrap();
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() >= 20, "{}", rows.len());
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert!(cells.len() == 4 && cells.iter().all(|cell| !cell.is_empty()), "{row}");
        let named: Vec<&str> = cells[3].split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test: {row}");
        for test in named {
            let (file, name) = test.split_once("::").unwrap_or_else(|| panic!("{test}"));
            let source = fs::read_to_string(root.join(file));
            let source = source.unwrap_or_else(|e| panic!("{test}: {e}"));
            let at = source.find(&format!("fn {name}("));
            let before = &source[..at.unwrap_or_else(|| panic!("{test} does not exist"))];
            let attribute = before.rfind("#[").map_or("", |from| &before[from..]);
            let is_test = ["#[test]", "#[tokio::test"].iter().any(|is| attribute.starts_with(is));
            assert!(is_test, "{test} is no test: {attribute}");
        }
    }
}
