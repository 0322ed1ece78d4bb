//! A cut takes what was not flushed, and nothing else.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{path::Path, time::Duration};

use larder_vm::{Cache, Disk, End, Machine};

const MINUTE: Duration = Duration::from_secs(60);

/// Writes files for ever; says which ones it has made durable.
const WRITER: &str = "
    mount /dev/larder/data /mnt
    echo volatile > /mnt/not-synced
    i=0
    while :; do
        head -c 20000 /dev/urandom > /mnt/file.$i
        sha256sum /mnt/file.$i > /mnt/sum.$i
        sync /mnt/file.$i /mnt/sum.$i /mnt
        echo \"durable $i.\"
        i=$((i + 1))
    done";

fn formatted(kind: &str, dir: &Path) -> Disk {
    let disk = Disk::new("data", dir.join("disk"), 512 << 20).unwrap().cache(Cache::Writeback);
    let mkfs =
        format!("mkfs.{kind} -q /dev/larder/data && mount /dev/larder/data /mnt && umount /mnt");
    Machine::new().disk(&disk).run(["sh", "-ec", &mkfs]).unwrap().checked().unwrap();
    disk
}

/// Boots with the disks, checks that each mounts, that every file with a sum agrees
/// with it, and returns what `ls` says of each.
fn survivors(disks: &[Disk]) -> Vec<String> {
    let mut machine = Machine::new();
    for disk in disks {
        machine = machine.disk(disk);
    }
    let script = "for disk in /dev/larder/*; do
            mount $disk /mnt
            cd /mnt
            ls
            for sum in sum.*; do
                # A sum that was not durable may be there in part.
                [ \"$(wc -c < $sum)\" -lt 70 ] || sha256sum --status -c $sum || echo bad ${sum#sum.}
            done
            cd /
            umount /mnt
            echo ===
        done";
    let text = machine.run(["bash", "-ec", script]).unwrap().checked().unwrap().text();
    text.split("===\n").map(str::to_owned).filter(|part| !part.is_empty()).collect()
}

fn last_durable(output: &str) -> Option<u32> {
    let lines = output.lines().rev();
    let mut complete = lines.filter_map(|line| line.strip_prefix("durable ")?.strip_suffix('.'));
    complete.next()?.parse().ok()
}

fn assert_durable(listing: &str, last: u32) {
    for number in 0..=last {
        for name in [format!("file.{number}"), format!("sum.{number}")] {
            assert!(listing.lines().any(|line| line == name), "{name} is lost:\n{listing}");
        }
        let bad = format!("bad {number}");
        assert!(!listing.lines().any(|line| line == bad), "{bad}");
    }
}

#[test]
fn the_same_disk_boots_again_after_a_cut_with_all_that_was_synced() {
    let dir = tempfile::tempdir().unwrap();
    let disk = formatted("ext4", dir.path());
    let running = Machine::new().disk(&disk).spawn(["sh", "-ec", WRITER]).unwrap();
    running.wait_for("durable 5.", MINUTE).unwrap();
    let output = running.power_cut().unwrap();
    assert_eq!(output.end, End::PowerCut);
    let last = last_durable(&output.text()).unwrap();
    assert_durable(&survivors(&[disk])[0], last);
}

fn every_state_that_a_cut_could_leave_has_what_was_synced_before(kind: &str) {
    let dir = tempfile::tempdir().unwrap();
    let disk = formatted(kind, dir.path());
    let base = disk.copy_to(dir.path().join("base")).unwrap();
    let recorded = disk.recorded(dir.path().join("log"));
    let running = Machine::new().disk(&recorded).spawn(["sh", "-ec", WRITER]).unwrap();
    running.wait_for("durable 8.", MINUTE).unwrap();
    let last = last_durable(&running.power_cut().unwrap().text()).unwrap();

    let log = recorded.write_log().unwrap();
    assert!(log.flushes().len() >= 8, "{} flushes", log.flushes().len());
    let end = log.len();
    // At the end: all that was said to be durable, whatever else survived. Earlier:
    // it mounts, and what has a sum has the right one.
    let mut cuts = vec![(end, None), (end, Some(1)), (end, Some(2)), (end, Some(3))];
    cuts.extend((1_usize..=8).map(|part| (end * part / 9, Some(part as u64))));
    let states: Vec<_> = cuts
        .iter()
        .enumerate()
        .map(|(index, &(entries, seed))| {
            let mut state = base.copy_to(dir.path().join(format!("state-{index}"))).unwrap();
            state = state.renamed(&format!("state-{index:02}")).unwrap();
            log.crash_state(entries, seed).apply_to(&state).unwrap();
            state
        })
        .collect();
    let listings = survivors(&states);
    assert_eq!(listings.len(), cuts.len());
    for (listing, &(entries, _)) in listings.iter().zip(&cuts) {
        if entries == end {
            assert_durable(listing, last);
        }
    }
}

#[test]
fn ext4_keeps_what_was_synced_in_every_state_that_a_cut_could_leave() {
    every_state_that_a_cut_could_leave_has_what_was_synced_before("ext4");
}

#[test]
fn xfs_keeps_what_was_synced_in_every_state_that_a_cut_could_leave() {
    every_state_that_a_cut_could_leave_has_what_was_synced_before("xfs");
}

#[test]
fn what_was_not_flushed_is_lost_in_the_strictest_state() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new("data", dir.path().join("disk"), 1 << 20).unwrap();
    let base = disk.copy_to(dir.path().join("base")).unwrap();
    let recorded = disk.recorded(dir.path().join("log"));
    // O_DIRECT: the writes reach the disk at once; only one of them is flushed.
    let script = "
        one() { printf %0512d $1 | dd of=/dev/larder/data bs=512 seek=$1 oflag=direct $2 2>/dev/null; }
        one 1 conv=fsync
        one 2
        echo written
        sleep 1000";
    let running = Machine::new().disk(&recorded).spawn(["sh", "-ec", script]).unwrap();
    running.wait_for("written", MINUTE).unwrap();
    running.power_cut().unwrap();

    let sectors = |disk: &Disk| {
        let bytes = std::fs::read(disk.path()).unwrap();
        [bytes[512 + 511], bytes[1024 + 511]]
    };
    assert_eq!(sectors(&recorded), *b"12", "the host keeps both");
    let log = recorded.write_log().unwrap();
    log.crash_state(log.len(), None).apply_to(&base).unwrap();
    assert_eq!(sectors(&base), [b'1', 0], "a disk that forgets keeps the flushed one");
}
