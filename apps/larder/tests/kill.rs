//! A real SIGKILL of a real process at every step of every operation, on real mounts: the next call
//! mends everything, what there is then is what a run without a kill leaves, and in the end nothing is
//! left behind.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

mod support;

use larder_proto::csi;
use std::{collections::BTreeMap, time::Duration};
use support::{Server, Site, capability, create, leaks};
use tonic::{Code, Status};

const MIB: i64 = 1 << 20;
const SIZE: i64 = 512 * MIB;

/// A volume's life. The operation under test is one of these; all before it are done in peace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Create,
    Stage,
    Publish,
    Modify,
    Snapshot,
    Clone,
    Copy,
    Expand,
    NodeExpand,
    Unpublish,
    Unstage,
    DeleteClone,
    DeleteSnapshot,
    Delete,
}

const LIFE: [Step; 14] = [
    Step::Create,
    Step::Stage,
    Step::Publish,
    Step::Modify,
    Step::Snapshot,
    Step::Clone,
    Step::Copy,
    Step::Expand,
    Step::NodeExpand,
    Step::Unpublish,
    Step::Unstage,
    Step::DeleteClone,
    Step::DeleteSnapshot,
    Step::Delete,
];

struct Life<'a> {
    site: &'a Site,
    block: bool,
}

impl Life<'_> {
    fn staging(&self) -> String {
        self.site.path("staging").display().to_string()
    }
    fn target(&self) -> String {
        self.site.path("pods/target").display().to_string()
    }
    fn capability(&self) -> csi::VolumeCapability {
        capability(self.block, "")
    }

    fn limit(&self, limit: u64) -> BTreeMap<String, String> {
        let limits = [("maxReadBps".to_owned(), limit.to_string())];
        if self.site.backend == "loop" { limits.into() } else { BTreeMap::new() }
    }

    /// Does one step; calls are repeated while they say "not yet", as orchestrators do.
    async fn call(&self, server: &Server, step: Step) -> Result<(), Status> {
        let (mut controller, mut node) = (server.client.controller(), server.client.node());
        let volume_id = "default/a".to_owned();
        let context = self.context(server, &volume_id).await.unwrap_or_default();
        match step {
            Step::Create => {
                let request = csi::CreateVolumeRequest {
                    mutable_parameters: self.limit(1000),
                    ..create("a", SIZE, self.capability())
                };
                drop(controller.create_volume(request).await?);
            }
            Step::Modify => {
                let request = csi::ControllerModifyVolumeRequest {
                    volume_id,
                    mutable_parameters: self.limit(2000),
                    ..Default::default()
                };
                if self.site.backend == "loop" {
                    drop(controller.controller_modify_volume(request).await?);
                }
            }
            Step::Clone => {
                let snapshot_id = "default/s".to_owned();
                let source = csi::volume_content_source::SnapshotSource { snapshot_id };
                let source = csi::volume_content_source::Type::Snapshot(source);
                drop(controller.create_volume(self.create_from("b", source)).await?);
            }
            Step::Copy => {
                let source = csi::volume_content_source::VolumeSource { volume_id };
                let source = csi::volume_content_source::Type::Volume(source);
                drop(controller.create_volume(self.create_from("c", source)).await?);
            }
            Step::Snapshot => {
                let request = csi::CreateSnapshotRequest {
                    source_volume_id: volume_id,
                    name: "s".to_owned(),
                    ..Default::default()
                };
                drop(controller.create_snapshot(request).await?);
            }
            Step::Stage => {
                let request = csi::NodeStageVolumeRequest {
                    volume_id,
                    staging_target_path: self.staging(),
                    volume_capability: Some(self.capability()),
                    volume_context: context,
                    ..Default::default()
                };
                drop(node.node_stage_volume(request).await?);
            }
            Step::Publish => {
                let request = csi::NodePublishVolumeRequest {
                    volume_id,
                    staging_target_path: self.staging(),
                    target_path: self.target(),
                    volume_capability: Some(self.capability()),
                    volume_context: context,
                    ..Default::default()
                };
                drop(node.node_publish_volume(request).await?);
            }
            Step::Expand => {
                let request = csi::ControllerExpandVolumeRequest {
                    volume_id,
                    capacity_range: Some(csi::CapacityRange {
                        required_bytes: 2 * SIZE,
                        limit_bytes: 0,
                    }),
                    ..Default::default()
                };
                drop(controller.controller_expand_volume(request).await?);
            }
            Step::NodeExpand => {
                let request = csi::NodeExpandVolumeRequest {
                    volume_id,
                    volume_path: self.target(),
                    staging_target_path: self.staging(),
                    volume_capability: Some(self.capability()),
                    ..Default::default()
                };
                match node.node_expand_volume(request).await {
                    Err(status) if status.code() == Code::Unimplemented => {}
                    other => drop(other?),
                }
            }
            Step::Unpublish => {
                let request =
                    csi::NodeUnpublishVolumeRequest { volume_id, target_path: self.target() };
                drop(node.node_unpublish_volume(request).await?);
            }
            Step::Unstage => {
                let request = csi::NodeUnstageVolumeRequest {
                    volume_id,
                    staging_target_path: self.staging(),
                };
                drop(node.node_unstage_volume(request).await?);
            }
            Step::DeleteClone => {
                delete(server, "default/b").await?;
                delete(server, "default/c").await?;
            }
            Step::Delete => delete(server, "default/a").await?,
            Step::DeleteSnapshot => {
                let request = csi::DeleteSnapshotRequest {
                    snapshot_id: "default/s".to_owned(),
                    ..Default::default()
                };
                drop(controller.delete_snapshot(request).await?);
            }
        }
        Ok(())
    }

    fn create_from(
        &self,
        name: &str,
        source: csi::volume_content_source::Type,
    ) -> csi::CreateVolumeRequest {
        csi::CreateVolumeRequest {
            volume_content_source: Some(csi::VolumeContentSource { r#type: Some(source) }),
            ..create(name, SIZE, self.capability())
        }
    }

    /// Does all steps before `until`.
    async fn live(&self, server: &Server, until: Step) {
        for step in LIFE.into_iter().take_while(|s| *s < until) {
            self.call(server, step).await.unwrap_or_else(|e| panic!("before: {step:?}: {e}"));
            self.check(step);
        }
    }

    async fn context(&self, server: &Server, id: &str) -> Option<BTreeMap<String, String>> {
        let request = csi::ControllerGetVolumeRequest { volume_id: id.to_owned() };
        let found = server.client.controller().controller_get_volume(request).await.ok()?;
        Some(found.into_inner().volume?.volume_context)
    }

    /// The data that was written once must be there as long as the volume is.
    fn check(&self, done: Step) {
        let limited = match done {
            _ if self.site.backend != "loop" => &[][..],
            Step::Stage | Step::Publish => &[1000],
            done if done > Step::Publish && done < Step::Unstage => &[2000],
            _ => &[],
        };
        assert_eq!(self.site.read_limits(), limited, "limits after {done:?}");
        let published = done >= Step::Publish && done < Step::Unpublish;
        if !published {
            return;
        }
        let target = self.site.path("pods/target");
        if self.block {
            use std::os::unix::fs::FileTypeExt;
            assert!(std::fs::metadata(&target).unwrap().file_type().is_block_device());
            return;
        }
        let file = target.join("data");
        if done == Step::Publish && !file.exists() {
            std::fs::write(&file, "precious").unwrap();
            std::fs::File::open(&file).unwrap().sync_all().unwrap();
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        let mounts = larder_host::Host::real().mounts.mounts_at(&target).unwrap();
        assert_eq!(mounts.len(), 1, "stacked mounts after {done:?}");
    }
}

async fn delete(server: &Server, id: &str) -> Result<(), Status> {
    let request = csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
    server.client.controller().delete_volume(request).await.map(|_| ())
}

/// Kills the server at each step of `under_test` in turn.
async fn sweep(backend: &'static str, fs: &str, block: bool, under_test: Step) {
    let site = Site::new(backend, fs);
    site.limit_in_files();
    std::fs::create_dir_all(site.path("staging")).unwrap();
    std::fs::create_dir_all(site.path("pods")).unwrap();
    let life = Life { site: &site, block };
    // Without a kill.
    let mut server = site.server();
    assert!(server.ready().await);
    life.live(&server, under_test).await;
    life.call(&server, under_test).await.unwrap();
    let wanted = there_is(&server).await;
    for step in LIFE.into_iter().skip_while(|s| *s <= under_test) {
        life.call(&server, step).await.unwrap_or_else(|e| panic!("without a kill: {step:?}: {e}"));
    }
    assert!(server.stop().success());

    let mut crashes = 0;
    for n in 1.. {
        assert!(n < 200, "{under_test:?} has no end");
        let mut server = site.server();
        assert!(server.ready().await);
        life.live(&server, under_test).await;
        server.kill();

        let mut doomed = site.server_that_crashes_at(n);
        let crashed = !doomed.ready().await || life.call(&doomed, under_test).await.is_err();
        if crashed {
            crashes += 1;
            wait_for_end(&mut doomed).await;
        }
        drop(doomed);

        let mut server = site.server();
        assert!(server.ready().await);
        for step in LIFE.into_iter().skip_while(|s| *s < under_test) {
            let done = life.call(&server, step).await;
            done.unwrap_or_else(|e| {
                panic!("{under_test:?} was killed at step {n}; then {step:?}: {e}")
            });
            life.check(step);
            if step == under_test {
                assert_eq!(
                    there_is(&server).await,
                    wanted,
                    "{under_test:?} was killed at step {n}"
                );
            }
        }
        assert!(server.stop().success());
        let left = leaks::find(site.dir.path(), site.pool.path());
        assert!(left.is_empty(), "{under_test:?} was killed at step {n}; left behind: {left:#?}");
        assert!(site.read_limits().is_empty(), "{under_test:?} was killed at step {n}");
        if !crashed {
            break;
        }
    }
    assert!(crashes > 0, "{under_test:?} was never killed: the program lacks its crash points");
}

/// All volumes and snapshots, but for when they were made.
async fn there_is(server: &Server) -> Vec<String> {
    let mut controller = server.client.controller();
    let volumes = controller.list_volumes(csi::ListVolumesRequest::default()).await.unwrap();
    let volumes = volumes.into_inner().entries.into_iter().map(|entry| entry.volume.unwrap());
    let mut all: Vec<_> = volumes.map(|volume| format!("{volume:?}")).collect();
    let snapshots = controller.list_snapshots(csi::ListSnapshotsRequest::default()).await.unwrap();
    for entry in snapshots.into_inner().entries {
        let snapshot = csi::Snapshot { creation_time: None, ..entry.snapshot.unwrap() };
        all.push(format!("{snapshot:?}"));
    }
    all.sort();
    all
}

async fn wait_for_end(server: &mut Server) {
    for _ in 0..200 {
        if server.has_ended() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the call failed, but the server was not killed");
}

macro_rules! sweeps {
    ($($name:ident: $backend:literal on $fs:literal, $block:literal, $step:ident;)*) => {
        $(#[tokio::test]
        async fn $name() {
            sweep($backend, $fs, $block, Step::$step).await;
        })*
    };
}

sweeps! {
    a_loop_volume_survives_kills_in_create: "loop" on "xfs", false, Create;
    a_loop_volume_survives_kills_in_stage: "loop" on "xfs", false, Stage;
    a_loop_volume_survives_kills_in_publish: "loop" on "xfs", false, Publish;
    a_loop_volume_survives_kills_in_modify: "loop" on "xfs", false, Modify;
    a_block_volume_survives_kills_in_modify: "loop" on "xfs", true, Modify;
    a_loop_volume_survives_kills_in_snapshot: "loop" on "xfs", false, Snapshot;
    a_loop_volume_survives_kills_in_clone_by_copy: "loop" on "ext4", false, Clone;
    a_loop_volume_survives_kills_in_clone: "loop" on "btrfs", false, Clone;
    a_loop_volume_survives_kills_in_copy: "loop" on "xfs", false, Copy;
    a_loop_volume_survives_kills_in_expand: "loop" on "xfs", false, Expand;
    a_loop_volume_survives_kills_in_node_expand: "loop" on "xfs", false, NodeExpand;
    a_loop_volume_survives_kills_in_unpublish: "loop" on "xfs", false, Unpublish;
    a_loop_volume_survives_kills_in_unstage: "loop" on "xfs", false, Unstage;
    a_loop_volume_survives_kills_in_delete_snapshot: "loop" on "xfs", false, DeleteSnapshot;
    a_loop_volume_survives_kills_in_delete: "loop" on "xfs", false, Delete;
    a_block_volume_survives_kills_in_create: "loop" on "xfs", true, Create;
    a_block_volume_survives_kills_in_snapshot: "loop" on "xfs", true, Snapshot;
    a_block_volume_survives_kills_in_copy: "loop" on "btrfs", true, Copy;
    a_block_volume_survives_kills_in_expand: "loop" on "xfs", true, Expand;
    a_block_volume_survives_kills_in_node_expand: "loop" on "xfs", true, NodeExpand;
    a_block_volume_survives_kills_in_delete: "loop" on "xfs", true, Delete;
    a_block_volume_survives_kills_in_stage: "loop" on "xfs", true, Stage;
    a_block_volume_survives_kills_in_publish: "loop" on "xfs", true, Publish;
    a_block_volume_survives_kills_in_unpublish: "loop" on "xfs", true, Unpublish;
    a_block_volume_survives_kills_in_unstage: "loop" on "xfs", true, Unstage;
    a_dir_volume_survives_kills_in_create: "dir" on "btrfs", false, Create;
    a_dir_volume_survives_kills_in_stage: "dir" on "xfs", false, Stage;
    a_dir_volume_survives_kills_in_publish: "dir" on "xfs", false, Publish;
    a_dir_volume_survives_kills_in_snapshot: "dir" on "btrfs", false, Snapshot;
    a_dir_volume_survives_kills_in_clone: "dir" on "xfs", false, Clone;
    a_dir_volume_survives_kills_in_copy: "dir" on "btrfs", false, Copy;
    a_dir_volume_survives_kills_in_expand: "dir" on "btrfs", false, Expand;
    a_dir_volume_survives_kills_in_unpublish: "dir" on "xfs", false, Unpublish;
    a_dir_volume_survives_kills_in_unstage: "dir" on "xfs", false, Unstage;
    a_dir_volume_survives_kills_in_delete_snapshot: "dir" on "btrfs", false, DeleteSnapshot;
    a_dir_volume_survives_kills_in_delete: "dir" on "xfs", false, Delete;
}
