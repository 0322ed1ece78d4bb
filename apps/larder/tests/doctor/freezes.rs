//! Freezes.

use crate::{doctor, found_and_mended, support::Site, text, told};
use larder_host::{HelperProgram, freeze::Freezer};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Thaws whatever becomes of the test.
struct Thaw<'a>(&'a Path);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        let script = format!("fsfreeze --unfreeze '{}'", self.0.display());
        let _ = crate::support::shell(&script).output();
    }
}

/// The watchdog: the child of this process that runs `internal`.
fn watchdog() -> Option<Pid> {
    let own = std::process::id();
    let children = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let is_it = parent == own && command.windows(8).any(|w| w == b"internal");
        is_it.then(|| Pid::from_raw(pid)).flatten()
    });
    children.into_iter().next()
}

#[tokio::test]
async fn a_freeze_whose_watchdog_was_killed_is_found_and_thawed() {
    let site = Site::new("loop", "xfs");
    site.ok(&["volume", "create", "a", "--size", "320Mi"]);
    let here = site.path("a");
    site.ok(&["volume", "mount", "a", text(&here)]);
    let records = site.path("state/freezes");
    let program = HelperProgram(vec![env!("CARGO_BIN_EXE_larder").into(), "internal".into()]);
    let freezer = Freezer::new(&records, program, Vec::new());
    let _thaw = Thaw(&here);
    let frozen = freezer.freeze(std::slice::from_ref(&here), Duration::from_secs(1)).unwrap();
    kill_process(watchdog().unwrap(), Signal::KILL).unwrap();
    // Nobody of ours is left to thaw it.
    std::mem::forget(frozen);
    let record = std::fs::read_dir(&records).unwrap().next().unwrap().unwrap().path();
    assert_eq!(told(&doctor(&site, &[])), [], "before its deadline it may be about to start");
    let end = Instant::now() + Duration::from_secs(60);
    while told(&doctor(&site, &[])).is_empty() {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    found_and_mended(&site, &[("freeze-left", &record, true)]);
    assert!(!record.exists());
    // It would hang if it was frozen still.
    let file = here.join("file");
    let wrote = tokio::task::spawn_blocking(move || std::fs::write(file, "x"));
    tokio::time::timeout(Duration::from_secs(60), wrote).await.unwrap().unwrap().unwrap();
}

#[test]
fn records_of_freezes_that_are_old_or_damaged_are_told() {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "a"]);
    let (old, bad) = (
        site.path("state/freezes/1-1-0.freeze.json"),
        site.path("state/freezes/2-1-0.freeze.json"),
    );
    std::fs::write(&old, include_str!("../samples/format-1/freeze.json")).unwrap();
    found_and_mended(&site, &[("freeze-of-another-boot", &old, true)]);
    std::fs::write(&bad, "{").unwrap();
    found_and_mended(&site, &[("freeze-record-unreadable", &bad, false)]);
    assert!(bad.exists());
}
