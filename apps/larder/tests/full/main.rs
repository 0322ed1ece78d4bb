//! Full disks, to the byte: of a pool, and of the node's records. Whatever finds no room says so,
//! leaves nothing half-made, and works when there is room; what gives room back always works.
//!
//! Real file systems are filled but for so many pages (or inodes), from none to as many as the operation
//! takes: so it fails at one of its writes after the other. `larder-pool` does the same with every
//! page of a tmpfs, and a fake medium. [`failures`] has each single write, fsync and rename fail.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

mod failures;
#[path = "../../../../crates/pool/tests/pool/filler.rs"]
mod filler;
mod node;
mod pool;
#[path = "../support/mod.rs"]
mod support;

use anyhow::Result;
use filler::Filler;
use larder_lives::{Book, Caller, Use, Volume, World};
use std::{path::Path, time::Duration};
use support::{Server, Site};
use tonic::{Code, Status};

const MIB: i64 = 1 << 20;
/// So much room an operation never needs, in pages.
const PLENTY: u64 = 1 << 13;

/// What is done on a full disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Create,
    Clone,
    Restore,
    Cut,
    Group,
    Grow,
    Modify,
    Stage,
    Publish,
    // What gives room back, or leads there.
    RestoreTrash,
    Unpublish,
    Unstage,
    DeleteVolume,
    DeleteSnapshot,
    DeleteGroup,
    EmptyTrash,
}

/// A served pool with something of everything in it.
struct Ground {
    // Before the site, which unmounts, goes.
    server: Server,
    world: World,
    /// Staged and published, with a file in it.
    used: Volume,
    /// Never staged.
    idle: Volume,
    site: Site,
}

impl Ground {
    async fn new(site: Site, trash: bool) -> Self {
        Self::with(site, trash, &[]).await
    }

    async fn with(site: Site, trash: bool, env: &[(&str, &str)]) -> Self {
        if trash {
            let config = std::fs::read_to_string(site.config()).unwrap();
            let config = config.replace("create: true", "create: true, trash: 24h");
            std::fs::write(site.config(), config).unwrap();
        }
        let mut server = Server::start(&site.config(), &site.endpoint(), env);
        assert!(server.ready().await);
        let images = site.backend == "loop";
        let world = World {
            // Nothing is repeated: the first answer is looked at.
            caller: Caller::new(site.endpoint().path(), Duration::ZERO).unwrap(),
            book: Book::default(),
            folder: site.path("node"),
            images,
            trash,
            grows_ext4: false,
            seed: 0,
        };
        let usage = if images { Use::Ext4 } else { Use::Folder };
        let used = world.volume("used", usage, 16 * MIB);
        let idle = world.volume("idle", usage, 16 * MIB);
        Self { server, world, used, idle, site }
    }

    async fn prepare(&self) {
        let (caller, used, idle) = (&self.world.caller, &self.used, &self.idle);
        caller.create("used", used.bytes, used.usage, None).await.unwrap();
        caller.create("idle", idle.bytes, idle.usage, None).await.unwrap();
        caller.create("gone", idle.bytes, idle.usage, None).await.unwrap();
        self.world.put_to_use(used).await.unwrap();
        std::fs::create_dir_all(&idle.staging).unwrap();
        let file = used.target.join("file");
        std::fs::write(&file, "precious").unwrap();
        std::fs::File::open(&file).unwrap().sync_all().unwrap();
        caller.cut("snap", "used").await.unwrap();
        if self.world.images {
            caller.group("group", &["used"]).await.unwrap();
        }
        caller.remove_volume("gone").await.unwrap();
    }

    /// Takes everything away again.
    async fn clear(&self) {
        let caller = &self.world.caller;
        let second = self.world.folder.join("pods/second");
        caller.unpublish("used", &second).await.unwrap();
        for volume in [&self.used, &self.idle] {
            self.world.take_back(volume).await.unwrap();
        }
        for volume in caller.volumes().await.unwrap() {
            caller.remove_volume(&volume).await.unwrap();
        }
        for (snapshot, group) in caller.snapshots().await.unwrap() {
            match group.as_str() {
                "" => caller.remove_snapshot(&snapshot).await.unwrap(),
                group => caller.remove_group(group, &[snapshot]).await.unwrap(),
            }
        }
        for (_, id) in caller.trash().await.unwrap() {
            caller.drop_trash(&id).await.unwrap();
        }
    }

    async fn call(&self, call: Call) -> Result<()> {
        let (caller, used, idle) = (&self.world.caller, &self.used, &self.idle);
        let copy =
            |from, snapshot| caller.create("new", idle.bytes, idle.usage, Some((from, snapshot)));
        match call {
            Call::Create => caller.create("new", idle.bytes, idle.usage, None).await,
            Call::Clone => copy("used", false).await,
            Call::Restore => copy("snap", true).await,
            Call::Cut => caller.cut("new", "used").await,
            Call::Group => caller.group("new", &["used"]).await.map(drop),
            Call::Grow => caller.expand("idle", 4 * idle.bytes).await.map(drop),
            Call::Modify => caller.modify("idle", 1 << 20).await,
            Call::Stage => caller.stage("idle", idle.usage, &idle.staging).await,
            Call::Publish => {
                let second = self.world.folder.join("pods/second");
                caller.publish("used", used.usage, &used.staging, &second).await
            }
            Call::RestoreTrash => {
                let trash = caller.trash().await?;
                // Where an attempt succeeded there is nothing left to do.
                let Some((_, id)) = trash.iter().find(|(name, _)| name == "gone") else {
                    return Ok(());
                };
                Ok(caller.restore(id).await?)
            }
            Call::Unpublish => caller.unpublish("used", &used.target).await,
            Call::Unstage => {
                caller.unpublish("used", &used.target).await?;
                caller.unstage("used", &used.staging).await
            }
            Call::DeleteVolume => caller.remove_volume("idle").await,
            Call::DeleteSnapshot => caller.remove_snapshot("snap").await,
            Call::DeleteGroup => {
                let snapshots = caller.snapshots().await?;
                let members: Vec<_> =
                    snapshots.into_iter().filter(|(_, of)| of == "group").map(|(m, _)| m).collect();
                caller.remove_group("group", &members).await
            }
            Call::EmptyTrash => {
                for (_, id) in caller.trash().await? {
                    caller.drop_trash(&id).await?;
                }
                Ok(())
            }
        }
    }

    /// What everybody sees, and what a pool may not keep of what failed.
    async fn sight(&self) -> Vec<String> {
        let caller = &self.world.caller;
        let mut all = Vec::new();
        for volume in caller.volumes().await.unwrap() {
            let record = self.site.pool.path().join("volumes").join(&volume).join("record.json");
            let record: serde_json::Value =
                serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
            all.push(format!("{volume} of {} bytes, {}", record["size"], record["limits"]));
        }
        all.extend(caller.snapshots().await.unwrap().into_iter().map(|s| format!("{s:?}")));
        all.extend(
            caller.trash().await.unwrap().into_iter().map(|(name, _)| format!("trashed {name}")),
        );
        for folder in ["creating", "deleting", ".larder/scratch"] {
            let Ok(entries) = std::fs::read_dir(self.site.pool.path().join(folder)) else {
                continue;
            };
            all.extend(entries.map(|entry| format!("{:?}", entry.unwrap().path())));
        }
        all.sort();
        all
    }

    fn precious(&self) {
        assert_eq!(std::fs::read(self.used.target.join("file")).unwrap(), b"precious");
    }
}

/// The answer to a call that found no room.
fn assert_exhausted(call: Call, error: &anyhow::Error, left: u64) {
    let status = error.downcast_ref::<Status>();
    let status = status.unwrap_or_else(|| panic!("{call:?} with {left} left: {error:#}"));
    assert_eq!(status.code(), Code::ResourceExhausted, "{call:?} with {left} left: {status:?}");
    assert!(status.message().contains("hint"), "{call:?} with {left} left: {status:?}");
}

/// Everything that was written is where it belongs: delayed allocation finds no room later.
fn settle(folder: &Path) {
    let folder = std::fs::File::open(folder).unwrap();
    rustix::fs::syncfs(folder).unwrap();
}

/// Does the call with nothing left, one page, two, four, … until it finds room; how often it found
/// none.
async fn sweep(ground: &Ground, call: Call, fill: impl Fn(u64) -> Filler) -> u32 {
    let mut refused = 0;
    let mut left = 0;
    loop {
        ground.prepare().await;
        settle(ground.site.pool.path());
        let before = ground.sight().await;
        let filler = fill(left);
        let first = ground.call(call).await;
        if let Err(error) = &first {
            refused += 1;
            assert_exhausted(call, error, left);
            assert_eq!(ground.sight().await, before, "{call:?} with {left} left: {error:#}");
        }
        filler.remove();
        let second = ground.call(call).await;
        second
            .unwrap_or_else(|e| panic!("{call:?} after there was room again ({left} left): {e:#}"));
        if !matches!(call, Call::Unpublish | Call::Unstage) {
            ground.precious();
        }
        ground.clear().await;
        if first.is_ok() {
            return refused;
        }
        assert!(left < PLENTY, "{call:?} does not work with {left} pages left: {first:?}");
        left = if left == 0 { 1 } else { left * 2 };
    }
}
