//! A pool's file system is full.

use super::{Call, Filler, Ground, sweep};
use crate::support::Site;
use rstest::rstest;

async fn swept(backend: &'static str, fs: &str, trash: bool, call: Call) -> u32 {
    let ground = Ground::new(Site::sized(backend, fs, size(fs)), trash).await;
    let pool = ground.site.pool.path().to_owned();
    let disk = pool.parent().unwrap().to_owned();
    let refused = sweep(&ground, call, |left| Filler::space(&disk, left)).await;
    drop(ground);
    refused
}

fn size(fs: &str) -> larder_model::Bytes {
    larder_model::Bytes::mib(if fs == "ext4" { 160 } else { 320 })
}

#[rstest]
#[case("loop", "xfs", Call::Create)]
#[case("loop", "xfs", Call::Clone)]
#[case("loop", "xfs", Call::Restore)]
#[case("loop", "xfs", Call::Cut)]
#[case("loop", "xfs", Call::Group)]
#[case("loop", "xfs", Call::Grow)]
#[case("loop", "xfs", Call::Modify)]
#[case("loop", "xfs", Call::Stage)]
#[case("loop", "btrfs", Call::Create)]
#[case("dir", "btrfs", Call::Create)]
#[case("dir", "btrfs", Call::Cut)]
#[case("dir", "btrfs", Call::Restore)]
#[case("loop", "ext4", Call::Restore)]
#[case("dir", "xfs", Call::Create)]
#[case("dir", "xfs", Call::Clone)]
#[case("dir", "xfs", Call::Cut)]
#[case("dir", "xfs", Call::Grow)]
#[case("dir", "ext4", Call::Restore)]
#[tokio::test]
async fn what_needs_room_says_so_at_each_write_and_leaves_nothing(
    #[case] backend: &'static str,
    #[case] fs: &str,
    #[case] call: Call,
) {
    let refused = swept(backend, fs, false, call).await;
    assert!(refused > 0, "it was never refused");
}

/// All at once, one after the other: what is left of a volume is less each time.
#[rstest]
#[case("loop", "ext4")]
#[case("loop", "xfs")]
#[case("dir", "ext4")]
#[case("dir", "xfs")]
#[tokio::test]
async fn what_gives_room_back_works_without_any(
    #[case] backend: &'static str,
    #[case] fs: &str,
    #[values(false, true)] trash: bool,
) {
    let ground = Ground::new(Site::sized(backend, fs, size(fs)), trash).await;
    let pool = ground.site.pool.path().to_owned();
    for call in [
        Call::RestoreTrash,
        Call::Publish,
        Call::Unpublish,
        Call::Unstage,
        Call::DeleteVolume,
        Call::DeleteSnapshot,
        Call::DeleteGroup,
        Call::EmptyTrash,
    ] {
        if call == Call::DeleteGroup && backend == "dir" {
            continue;
        }
        let refused = sweep(&ground, call, |left| Filler::space(pool.parent().unwrap(), left));
        assert_eq!(refused.await, 0, "{call:?}");
    }
}
