//! Crashes at every step of every operation, on every file system.

use crate::support::{Bench, On, sweep::sweep};

#[tokio::test]
async fn a_crash_at_any_step_is_mended_by_the_next_call_or_start_on_ext4() {
    sweep(&Bench::on(On::Ext4 { quota: false })).await;
}

#[tokio::test]
async fn a_crash_at_any_step_is_mended_by_the_next_call_or_start_on_xfs() {
    sweep(&Bench::on(On::Xfs { quota: false })).await;
}

#[tokio::test]
async fn a_crash_at_any_step_is_mended_by_the_next_call_or_start_on_btrfs() {
    sweep(&Bench::on(On::Btrfs { quota: true })).await;
}
