//! A disk that fails once: at each write, fsync, rename and removal of each call in turn.

use super::{Call, Ground};
use crate::support::{Server, Site, leaks};
use rstest::rstest;
use rustix::io::Errno;
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};
use tonic::{Code, Status};

/// What the disk says, and the code that callers are told.
const FULL: (i32, Code) = (Errno::NOSPC.raw_os_error(), Code::ResourceExhausted);
const BROKEN: (i32, Code) = (Errno::IO.raw_os_error(), Code::Internal);

/// Orders failures of the server; see `larder_host::durable::points`.
struct Failures(PathBuf);

impl Failures {
    fn order(&self, n: u32, errno: i32) {
        let new = self.0.with_extension("new");
        std::fs::write(&new, format!("{n} {errno}")).unwrap();
        std::fs::rename(new, &self.0).unwrap();
    }
    /// Whether it has happened.
    fn is_over(&self) -> bool {
        std::fs::remove_file(&self.0).is_err()
    }
}

/// Calls that leave what they began when they fail after the moment that counts: the repeated call
/// goes on from there. All others leave what was before.
fn goes_on(call: Call) -> bool {
    matches!(
        call,
        Call::Grow
            | Call::Modify
            | Call::Unpublish
            | Call::Unstage
            | Call::DeleteVolume
            | Call::DeleteSnapshot
            | Call::DeleteGroup
            | Call::EmptyTrash
            | Call::RestoreTrash
    )
}

/// Makes the call again and again, with the disk failing at the next point each time, until it does not
/// get that far; how often it failed.
async fn sweep(
    ground: &Ground,
    failures: &Failures,
    call: Call,
    (errno, code): (i32, Code),
) -> u32 {
    let mut failed = 0;
    ground.prepare().await;
    for n in 1.. {
        let before = ground.sight().await;
        failures.order(n, errno);
        let first = ground.call(call).await;
        let happened = failures.is_over();
        let told = || format!("{call:?}, failure {n}: {first:?}");
        if let Err(error) = &first {
            failed += 1;
            assert!(happened, "{}", told());
            let status = error.downcast_ref::<Status>().unwrap_or_else(|| panic!("{}", told()));
            assert_eq!(status.code(), code, "{}", told());
            if !goes_on(call) {
                assert_eq!(ground.sight().await, before, "{}", told());
                continue;
            }
        }
        let second = ground.call(call).await;
        second.unwrap_or_else(|e| panic!("{}; and again: {e:#}", told()));
        if !matches!(call, Call::Unpublish | Call::Unstage) {
            ground.precious();
        }
        ground.clear().await;
        if !happened {
            break;
        }
        ground.prepare().await;
    }
    failed
}

#[rstest]
#[tokio::test]
async fn a_disk_that_fails_at_any_point_fails_the_call_loses_nothing_and_leaves_nothing(
    #[values("loop", "dir")] backend: &'static str,
    #[values(FULL, BROKEN)] error: (i32, Code),
) {
    let site = Site::in_memory(backend, "xfs");
    let failures = Failures(site.path("failure"));
    let file = failures.0.display().to_string();
    let env = [("LARDER_FAIL_FILE", file.as_str())];
    let mut ground = Ground::with(site, true, &env).await;
    for call in [
        Call::Create,
        Call::Clone,
        Call::Restore,
        Call::Cut,
        Call::Group,
        Call::Grow,
        Call::Modify,
        Call::Stage,
        Call::Publish,
        Call::RestoreTrash,
        Call::Unpublish,
        Call::Unstage,
        Call::DeleteVolume,
        Call::DeleteSnapshot,
        Call::DeleteGroup,
        Call::EmptyTrash,
    ] {
        if matches!(call, Call::Group | Call::DeleteGroup | Call::Modify) && backend == "dir" {
            continue;
        }
        let failed = sweep(&ground, &failures, call, error).await;
        println!("{backend} {call:?}: {failed} failures");
        // A record of nothing that could not be removed goes with the next start.
        assert!(ground.server.stop().success());
        let (config, endpoint) = (ground.site.config(), ground.site.endpoint());
        ground.server = Server::start(&config, &endpoint, &env);
        assert!(ground.server.ready().await);
        // In the background, what it finds to delete.
        let until = Instant::now() + Duration::from_secs(60);
        let left = || leaks::find(ground.site.dir.path(), ground.site.pool.path());
        while !left().is_empty() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(left().is_empty(), "{call:?} left {:#?}", left());
    }
}
