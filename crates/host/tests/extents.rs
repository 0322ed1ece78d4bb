//! Allocated and changed bytes of files, against a comparison byte for byte.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use larder_host::{copy, extents};
use larder_model::{Bytes, Cx, FsType, volume::Extent};
use proptest::{prelude::*, test_runner::TestRunner};
use rstest::rstest;
use rustix::fs::{FallocateFlags, fallocate};
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use support::Scratch;

/// Files in these tests have at most this size.
const LARGEST: u64 = 3 << 20;
const BLOCK: u64 = 4096;

/// What a workload does to its image.
#[derive(Debug, Clone)]
enum Write {
    /// Bytes that look like nothing else, or (0) zeros.
    Bytes {
        at: u64,
        length: u64,
        seed: u8,
    },
    /// The bytes that are there, again.
    Same {
        at: u64,
        length: u64,
    },
    /// Gives space back.
    Punch {
        at: u64,
        length: u64,
    },
    /// Reserves space.
    Reserve {
        at: u64,
        length: u64,
    },
    /// Makes the file larger.
    Grow {
        by: u64,
    },
    Sync,
}

fn changed(base: &Path, target: &Path, size: u64, at: u64, max: usize) -> Vec<Extent> {
    told(extents::changed(base, target, size, at, max, u64::MAX).unwrap(), size, max)
}
fn allocated(file: &Path, size: u64, at: u64, max: usize) -> Vec<Extent> {
    told(extents::allocated(file, size, at, max).unwrap(), size, max)
}
/// It goes on behind the last that was wanted, or is at the end.
fn told(told: extents::Told, size: u64, max: usize) -> Vec<Extent> {
    let end = told.extents.last().map_or(0, |last| last.offset + last.length);
    assert!(told.next == size || (told.extents.len() == max && told.next == end), "{told:?}");
    told.extents
}

fn write() -> impl Strategy<Value = Write> {
    // Mostly whole blocks, as file systems write; sometimes any bytes.
    let place = prop_oneof![
        4 => (0..LARGEST / BLOCK, 1..40_u64).prop_map(|(at, n)| (at * BLOCK, n * BLOCK)),
        1 => (0..LARGEST, 1..70_000_u64),
    ];
    prop_oneof![
        8 => (place.clone(), 0..=u8::MAX)
            .prop_map(|((at, length), seed)| Write::Bytes { at, length, seed }),
        1 => place.clone().prop_map(|(at, length)| Write::Same { at, length }),
        2 => place.clone().prop_map(|(at, length)| Write::Punch { at, length }),
        1 => place.prop_map(|(at, length)| Write::Reserve { at, length }),
        1 => (1..200_000_u64).prop_map(|by| Write::Grow { by }),
        1 => Just(Write::Sync),
    ]
}

fn pattern(seed: u8, at: u64, length: u64) -> Vec<u8> {
    if seed == 0 {
        return vec![0; usize::try_from(length).unwrap()];
    }
    let mut state = at.wrapping_add(u64::from(seed)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Half of all data can be compressed.
        if seed.is_multiple_of(2) { seed } else { state.to_le_bytes()[0] }
    };
    (0..length).map(byte).collect()
}

impl Write {
    /// Does it; the range that it touched.
    fn apply(&self, file: &File) -> Option<(u64, u64)> {
        let size = file.metadata().unwrap().len();
        let within = |at: u64, length: u64| (at < size).then(|| (at, length.min(size - at)));
        let (at, length) = match *self {
            Self::Bytes { at, length, .. }
            | Self::Same { at, length }
            | Self::Punch { at, length }
            | Self::Reserve { at, length } => within(at, length)?,
            Self::Grow { by } => (size, by.min(LARGEST.saturating_sub(size))),
            Self::Sync => (0, 0),
        };
        match *self {
            Self::Bytes { seed, .. } => {
                file.write_all_at(&pattern(seed, at, length), at).unwrap();
            }
            Self::Same { .. } => {
                let mut bytes = vec![0; usize::try_from(length).unwrap()];
                file.read_exact_at(&mut bytes, at).unwrap();
                file.write_all_at(&bytes, at).unwrap();
            }
            Self::Punch { .. } => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(file, flags, at, length).unwrap();
            }
            Self::Reserve { .. } => {
                let _ = fallocate(file, FallocateFlags::KEEP_SIZE, at, length);
            }
            Self::Grow { .. } => file.set_len(size + length).unwrap(),
            Self::Sync => file.sync_all().unwrap(),
        }
        (length > 0).then(|| (at, at + length))
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Ground {
    Xfs,
    Btrfs,
    /// Its extents have no addresses of their own.
    CompressedBtrfs,
    /// Copies are whole, and the file system is like any other.
    Ext4,
    /// No extents are told at all.
    Tmpfs,
}

impl Ground {
    fn make(self) -> (Scratch, PathBuf) {
        let scratch = Scratch::new();
        let (fs, options): (_, &[&str]) = match self {
            Self::Xfs => (FsType::Xfs, &[]),
            Self::Btrfs => (FsType::Btrfs, &[]),
            Self::CompressedBtrfs => (FsType::Btrfs, &["compress-force=zstd"]),
            Self::Ext4 => (FsType::Ext4, &[]),
            Self::Tmpfs => {
                let dir = scratch.dir("pool");
                return (scratch, dir);
            }
        };
        let (_, device) = scratch.device("pool.img", Bytes::gib(1));
        support::mkfs(&device, fs);
        let dir = scratch.dir("pool");
        scratch.mount(&device, fs, &dir, options);
        (scratch, dir)
    }

    fn cut(self, image: &Path, to: &Path) {
        match self {
            Self::Xfs | Self::Btrfs | Self::CompressedBtrfs => {
                assert!(copy::reflink(image, to).unwrap());
            }
            Self::Ext4 | Self::Tmpfs => copy::sparse(image, to, &Cx::new()).unwrap(),
        }
    }

    /// Only what differs is told of, to the block.
    fn is_exact(self) -> bool {
        matches!(self, Self::Ext4 | Self::Tmpfs)
    }
}

/// A set of bytes, one flag each.
fn marked(extents: &[Extent], size: u64) -> Vec<bool> {
    let mut marks = vec![false; usize::try_from(size).unwrap()];
    let mut end = None;
    for extent in extents {
        assert!(extent.length > 0, "{extents:?}");
        assert!(end.is_none_or(|end| extent.offset > end), "in order, none touching: {extents:?}");
        let to = extent.offset + extent.length;
        assert!(to <= size, "{extent:?} in a file of {size}");
        let range = usize::try_from(extent.offset).unwrap()..usize::try_from(to).unwrap();
        marks[range].fill(true);
        end = Some(to);
    }
    marks
}

/// All pages together are the whole, and a page begins wherever it is asked to.
fn check_pages(
    all: &[Extent],
    size: u64,
    max: usize,
    from: u64,
    page: impl Fn(u64, usize) -> Vec<Extent>,
) {
    let (mut paged, mut at) = (Vec::new(), 0);
    loop {
        let found = page(at, max);
        assert!(found.len() <= max);
        let Some(last) = found.last() else { break };
        at = last.offset + last.length;
        paged.extend(found);
    }
    assert_eq!(paged, all, "in pages of {max}");
    let rest = marked(&page(from, usize::MAX), size);
    let (from, whole) = (usize::try_from(from).unwrap(), marked(all, size));
    assert!(rest[..from].iter().all(|mark| !mark), "nothing before the offset");
    // A block that begins before the offset is looked at from the offset on, so it may differ only
    // before: then it is told of as a whole and not in the rest.
    let block = from.next_multiple_of(4096).min(whole.len());
    assert_eq!(rest[block..], whole[block..], "from {from}");
    assert!((from..block).all(|n| !rest[n] || whole[n]), "more from {from} than at once");
}

fn check(ground: Ground, dir: &Path, before: &[Write], after: &[Write], max: usize, from: u64) {
    let name = |name: &str| dir.join(name);
    let (image, base, target) = (name("image"), name("base"), name("target"));
    for path in [&image, &base, &target] {
        let _ = fs::remove_file(path);
    }
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&image).unwrap();
    file.set_len(LARGEST / 2).unwrap();
    for write in before {
        write.apply(&file);
    }
    ground.cut(&image, &base);
    let touched: Vec<_> = after.iter().filter_map(|write| write.apply(&file)).collect();
    ground.cut(&image, &target);

    let (old, new) = (fs::read(&base).unwrap(), fs::read(&target).unwrap());
    let size = new.len() as u64;
    let from = from.min(size);
    let changes = |at, max| changed(&base, &target, size, at, max);
    let all = changes(0, usize::MAX);
    let told = marked(&all, size);
    for (n, byte) in new.iter().enumerate() {
        let was = old.get(n).copied().unwrap_or(0);
        assert!(*byte == was || told[n], "byte {n} changed from {was} to {byte}: {all:?}");
    }
    let rest = marked(&changes(from, usize::MAX), size);
    let first = usize::try_from(from).unwrap();
    for (n, byte) in new.iter().enumerate().skip(first) {
        assert!(
            *byte == old.get(n).copied().unwrap_or(0) || rest[n],
            "byte {n} is missed from {from}"
        );
    }
    // In steps of one read each, every byte is told of as at once.
    let (mut at, mut in_steps) = (0, vec![false; told.len()]);
    while at < size {
        let part = extents::changed(&base, &target, size, at, usize::MAX, 1).unwrap();
        assert!(part.next > at && part.next <= size, "{part:?} from {at} of {size}");
        assert!(part.extents.last().is_none_or(|last| last.offset + last.length <= part.next));
        let marks = marked(&part.extents, size);
        in_steps.iter_mut().zip(marks).for_each(|(step, mark)| *step |= mark);
        at = part.next;
    }
    let missed = in_steps
        .iter()
        .zip(new.iter().enumerate())
        .position(|(step, (n, byte))| !step && *byte != old.get(n).copied().unwrap_or(0));
    assert_eq!(missed, None, "a change is missed where it is looked in steps");
    // What nobody touched is not told of, but for the blocks at the edges.
    let mut near = vec![false; usize::try_from(size).unwrap()];
    for (start, end) in touched {
        let end = (end.next_multiple_of(BLOCK) + BLOCK).min(size);
        let start = (start / BLOCK * BLOCK).saturating_sub(BLOCK).min(end);
        near[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()].fill(true);
    }
    assert!(told.iter().zip(&near).all(|(told, near)| !told || *near), "{all:?}: far too much");
    if ground.is_exact() {
        for extent in &all {
            let end = extent.offset + extent.length;
            for start in (extent.offset..end).step_by(usize::try_from(BLOCK).unwrap()) {
                let range = usize::try_from(start).unwrap()
                    ..usize::try_from((start + BLOCK).min(end)).unwrap();
                let was = old.get(range.clone()).unwrap_or_default();
                assert!(new[range] != *was, "block at {start} is as it was");
            }
        }
    }
    check_pages(&all, size, max, from, changes);

    let holds = |at, max| allocated(&target, size, at, max);
    let all = holds(0, usize::MAX);
    let told = marked(&all, size);
    let lost = new.iter().zip(&told).position(|(byte, told)| *byte != 0 && !told);
    assert_eq!(lost, None, "data that is not told of: {all:?}");
    check_pages(&all, size, max, from, holds);
}

#[rstest]
fn no_change_of_random_writes_is_ever_missed(
    #[values(Ground::Xfs, Ground::Btrfs, Ground::CompressedBtrfs, Ground::Ext4, Ground::Tmpfs)]
    ground: Ground,
) {
    let (_scratch, dir) = ground.make();
    let writes = || prop::collection::vec(write(), 0..14);
    let cases = (writes(), writes(), 1..6_usize, 0..LARGEST);
    // Each writes and reads real files. More where `PROPTEST_CASES` asks for more.
    let default = ProptestConfig::default();
    let config = ProptestConfig {
        cases: (default.cases / 16).max(60),
        failure_persistence: None,
        ..default
    };
    let mut runner = TestRunner::new(config);
    runner
        .run(&cases, |(before, after, max, from)| {
            check(ground, &dir, &before, &after, max, from);
            Ok(())
        })
        .unwrap();
}

#[rstest]
fn what_is_not_written_out_yet_is_told_of(
    #[values(Ground::Xfs, Ground::Btrfs, Ground::Ext4)] ground: Ground,
) {
    let (_scratch, dir) = ground.make();
    let image = dir.join("image");
    let file = File::create_new(&image).unwrap();
    file.set_len(LARGEST).unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, LARGEST / 2).unwrap();
    file.sync_all().unwrap();
    assert_eq!(allocated(&image, LARGEST, 0, 9), [], "reserved, never written");
    // Into reserved space and into a hole; still only in memory.
    for at in [1 << 20, 2 << 20] {
        file.write_all_at(&[1; 8192], at).unwrap();
    }
    let told = allocated(&image, LARGEST, 0, 9);
    let wanted = [1 << 20, 2 << 20].map(|offset| Extent { offset, length: 8192 });
    assert_eq!(told, wanted);
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_and_never_unchanged() {
    let scratch = Scratch::new();
    let there = scratch.file("there", b"data");
    let absent = scratch.path().join("absent");
    let folder = scratch.dir("folder");
    for other in [&absent, &folder] {
        extents::allocated(other, 4, 0, 1).unwrap_err();
        extents::changed(other, &there, 4, 0, 1, 1).unwrap_err();
        extents::changed(&there, other, 4, 0, 1, 1).unwrap_err();
    }
}

/// Tens of thousands of extents: pages stay cheap, and nothing is lost at their edges.
#[rstest]
fn a_fragmented_image_is_told_of_in_pages(#[values(Ground::Xfs, Ground::Btrfs)] ground: Ground) {
    const PIECES: u64 = 20_000;
    let (_scratch, dir) = ground.make();
    let (image, base, target) = (dir.join("image"), dir.join("base"), dir.join("target"));
    let file = File::create_new(&image).unwrap();
    let size = PIECES * 2 * BLOCK;
    file.set_len(size).unwrap();
    // A block, a hole, a block …: as many extents.
    for n in 0..PIECES {
        file.write_all_at(&pattern(1, n, BLOCK), n * 2 * BLOCK).unwrap();
    }
    file.sync_all().unwrap();
    ground.cut(&image, &base);
    for n in (0..PIECES).step_by(7) {
        file.write_all_at(&pattern(3, n, BLOCK), n * 2 * BLOCK).unwrap();
    }
    ground.cut(&image, &target);

    let begun = Instant::now();
    let all = allocated(&target, size, 0, usize::MAX);
    let allocated = begun.elapsed();
    assert_eq!(all.len() as u64, PIECES);
    let begun = Instant::now();
    let differ = changed(&base, &target, size, 0, usize::MAX);
    let compared = begun.elapsed();
    let wanted: Vec<_> =
        (0..PIECES).step_by(7).map(|n| Extent { offset: n * 2 * BLOCK, length: BLOCK }).collect();
    assert_eq!(differ, wanted);
    println!("{ground:?}: {PIECES} extents allocated {allocated:?}, compared {compared:?}");
    check_pages(&differ, size, 500, size / 3, |at, max| changed(&base, &target, size, at, max));
    assert!(compared < Duration::from_secs(20), "{compared:?}");
}

/// What moves its data gives blocks addresses that others had before.
#[test]
fn no_change_is_missed_while_a_btrfs_moves_its_data() {
    let (_scratch, dir) = Ground::Btrfs.make();
    let (image, base, target) = (dir.join("image"), dir.join("base"), dir.join("target"));
    let file = File::create_new(&image).unwrap();
    let blocks = 2000;
    for n in 0..blocks {
        file.write_all_at(&pattern(1, n, BLOCK), n * BLOCK).unwrap();
    }
    Ground::Btrfs.cut(&image, &base);
    for n in (0..blocks).step_by(5) {
        file.write_all_at(&pattern(3, n, BLOCK), n * BLOCK).unwrap();
    }
    Ground::Btrfs.cut(&image, &target);
    let mover = dir.clone();
    let moved = std::thread::spawn(move || {
        for _ in 0..3 {
            larder_host::command::Command::new("btrfs")
                .args(["balance", "start", "--full-balance"])
                .arg(&mover)
                .run()
                .unwrap();
        }
    });
    let mut looked = 0;
    while !moved.is_finished() || looked < 5 {
        let size = blocks * BLOCK;
        let told = marked(&changed(&base, &target, size, 0, usize::MAX), size);
        let missed = (0..blocks).step_by(5).find(|n| !told[usize::try_from(n * BLOCK).unwrap()]);
        assert_eq!(missed, None);
        looked += 1;
    }
    moved.join().unwrap();
}
