//! The file system of the node's records is full: a tmpfs, as under /run.

use super::{Call, Filler, Ground, sweep};
use crate::support::Site;
use larder_host::{Host, mounts::MountRequest};
use rstest::rstest;

async fn swept(backend: &'static str, inodes: bool, call: Call) -> u32 {
    let site = Site::new(backend, "xfs");
    let state = site.path("state");
    std::fs::create_dir_all(&state).unwrap();
    let request = MountRequest {
        fs_type: "tmpfs".to_owned(),
        source: "tmpfs".to_owned(),
        target: state.clone(),
        options: vec!["size=256k".to_owned(), "nr_inodes=200".to_owned()],
        read_only: false,
    };
    Host::real().mounts.mount(&request).unwrap();
    let ground = Ground::new(site, false).await;
    let refused = sweep(&ground, call, |left| match inodes {
        true => Filler::inodes(&state, usize::try_from(left).unwrap()),
        false => Filler::space(&state, left),
    });
    let refused = refused.await;
    drop(ground);
    refused
}

#[rstest]
#[tokio::test]
async fn what_needs_a_record_says_so_at_each_write_and_leaves_nothing(
    #[values("loop", "dir")] backend: &'static str,
    #[values(false, true)] inodes: bool,
    #[values(Call::Stage, Call::Publish)] call: Call,
) {
    let refused = swept(backend, inodes, call).await;
    assert!(refused > 0, "{call:?}");
}

#[rstest]
#[tokio::test]
async fn a_freeze_that_cannot_be_recorded_is_no_freeze(
    #[values(false, true)] inodes: bool,
    #[values(Call::Cut, Call::Clone, Call::Group)] call: Call,
) {
    let refused = swept("loop", inodes, call).await;
    assert!(refused > 0, "{call:?}");
}

#[rstest]
#[tokio::test]
async fn what_takes_a_volume_back_works_without_room_for_a_record(
    #[values("loop", "dir")] backend: &'static str,
    #[values(false, true)] inodes: bool,
    #[values(Call::Unpublish, Call::Unstage, Call::DeleteVolume, Call::DeleteSnapshot)] call: Call,
) {
    assert_eq!(swept(backend, inodes, call).await, 0, "{call:?}");
}
