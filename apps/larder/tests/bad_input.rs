//! Wrong input against a real server on real storage: the right code, words that help, nothing
//! changed, no panic. What the fields of requests may hold is tested, message by message, in
//! `crates/csi/tests/rpc`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]
#![allow(clippy::disallowed_methods, reason = "tests start programs as a user would")]

mod support;

#[path = "bad_input/places.rs"]
mod places;
#[path = "bad_input/pools.rs"]
mod pools;
#[path = "bad_input/requests.rs"]
mod requests;
#[path = "bad_input/storage.rs"]
mod storage;

use larder_proto::csi;
use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};
use support::{Server, Site, capability, create};
use tonic::{Code, Status};

const SIZE: i64 = 320 << 20;

/// What lies below a folder.
fn paths(folder: &Path) -> Vec<PathBuf> {
    let (mut seen, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            seen.push(entry.path());
        }
    }
    seen.sort();
    seen
}

/// The same with mode, owner, size and checksum.
fn picture(folder: &Path) -> BTreeMap<PathBuf, String> {
    let look = |path: PathBuf| {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let sum = if meta.is_file() { sum(&path) } else { String::new() };
        (path, format!("{:o} {} {} bytes {sum}", meta.mode(), meta.uid(), meta.len()))
    };
    paths(folder).into_iter().map(look).collect()
}

fn sum(file: &Path) -> String {
    let output = Command::new("sha256sum").arg(file).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

/// A site with its server.
struct Ground {
    site: Site,
    server: Server,
}

impl Ground {
    async fn of(backend: &'static str, fs: &str) -> Self {
        let site = Site::new(backend, fs);
        for made in ["staging", "pods"] {
            std::fs::create_dir_all(site.path(made)).unwrap();
        }
        let mut server = site.server();
        assert!(server.ready().await);
        Self { site, server }
    }

    fn text(&self, name: &str) -> String {
        self.site.path(name).display().to_string()
    }

    async fn make(&self, name: &str, block: bool) -> csi::Volume {
        let request = create(name, SIZE, capability(block, ""));
        let made = self.server.client.controller().create_volume(request).await.unwrap();
        made.into_inner().volume.unwrap()
    }

    async fn stage(
        &self,
        id: &str,
        at: &str,
        capability: csi::VolumeCapability,
    ) -> Result<(), Status> {
        let request = csi::NodeStageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: at.to_owned(),
            volume_capability: Some(capability),
            ..Default::default()
        };
        self.server.client.node().node_stage_volume(request).await.map(drop)
    }

    async fn publish(
        &self,
        id: &str,
        at: &str,
        capability: csi::VolumeCapability,
    ) -> Result<(), Status> {
        let request = csi::NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: self.text("staging"),
            target_path: at.to_owned(),
            volume_capability: Some(capability),
            ..Default::default()
        };
        self.server.client.node().node_publish_volume(request).await.map(drop)
    }

    async fn unstage(&self, id: &str) -> Result<(), Status> {
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: self.text("staging"),
        };
        self.server.client.node().node_unstage_volume(request).await.map(drop)
    }

    async fn delete(&self, id: &str) -> Result<(), Status> {
        let request = csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        self.server.client.controller().delete_volume(request).await.map(drop)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.site.config().with_extension("log")).unwrap_or_default()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(!self.log().contains("panicked"), "{}", self.log());
        }
    }
}

/// The code, and words that the message must have.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, codes: &[Code], words: &[&str]) {
    let status = answer.unwrap_err();
    assert!(codes.contains(&status.code()), "{codes:?} expected: {status}");
    for word in words {
        let said = status.message().to_lowercase();
        assert!(said.contains(&word.to_lowercase()), "it does not say {word:?}: {status}");
    }
}
