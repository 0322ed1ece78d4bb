//! Allocated and changed blocks of snapshots, against the snapshots' own bytes.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

mod support;

use larder_model::{
    Bytes, Connect, Cx, FsType, Kind, Provision, Result, SnapshotId, VolumeId, volume::Extent,
};
use rstest::rstest;
use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    path::PathBuf,
};
use support::{Ask, Driver, Ground, pattern, run, write_files};

fn image(ground: &Ground, snapshot: &SnapshotId) -> PathBuf {
    ground.pool_path("default").join("snapshots").join(snapshot.native()).join("image")
}

/// All extents, asked for in pages.
async fn pages(
    driver: &Driver,
    base: Option<&SnapshotId>,
    target: &SnapshotId,
    max: usize,
) -> Result<(Vec<Extent>, Bytes)> {
    let blocks = driver.backend.changed_blocks().unwrap();
    let (mut all, mut at): (Vec<Extent>, u64) = (Vec::new(), 0);
    loop {
        let found = blocks.extents(base, target, at, max).await?;
        let (page, size) = (found.extents, found.size);
        assert!(page.len() <= max);
        assert!(page.first().is_none_or(|first| first.offset >= at));
        assert!(page.last().is_none_or(|last| last.offset + last.length <= found.next));
        assert!(found.next <= size.get() && (found.next > at || at == size.get()));
        all.extend(page);
        at = found.next;
        if at == size.get() {
            return Ok((all, size));
        }
    }
}

/// Makes, of nothing or of `base`, what a backup would restore; it must be the target.
async fn restores(
    ground: &Ground,
    driver: &Driver,
    base: Option<&SnapshotId>,
    target: &SnapshotId,
) -> Vec<Extent> {
    let (extents, size) = pages(driver, base, target, 61).await.unwrap();
    let wanted = std::fs::read(image(ground, target)).unwrap();
    assert_eq!(wanted.len() as u64, size.get());
    let mut restored = base.map(|id| std::fs::read(image(ground, id)).unwrap()).unwrap_or_default();
    restored.resize(wanted.len(), 0);
    for Extent { offset, length } in &extents {
        let range = usize::try_from(*offset).unwrap()..usize::try_from(offset + length).unwrap();
        restored[range.clone()].copy_from_slice(&wanted[range]);
    }
    assert!(restored == wanted, "{base:?} to {target}: a change was missed");
    extents
}

fn total(extents: &[Extent]) -> u64 {
    extents.iter().map(|e| e.length).sum()
}

#[rstest]
#[case(FsType::Xfs, FsType::Ext4, "sparse")]
#[case(FsType::Xfs, FsType::Btrfs, "preallocated")]
#[case(FsType::Btrfs, FsType::Ext4, "preallocated")]
#[case(FsType::Btrfs, FsType::Btrfs, "sparse")]
#[case(FsType::Ext4, FsType::Ext4, "sparse")]
#[tokio::test]
async fn backups_of_a_mounted_volume_are_whole_from_first_to_last(
    #[case] pool: FsType,
    #[case] fs: FsType,
    #[case] allocation: &'static str,
) {
    let sizes = if fs == FsType::Btrfs { [256, 300] } else { [48, 80] };
    let [small, large] = sizes.map(Bytes::mib);
    let ground = Ground::on(pool, Bytes::gib(4));
    let driver = ground.driver().await;
    let ask = Ask::mount("v", fs.as_str(), small).parameter("allocation", allocation);
    let volume = driver.create(&ask).await.unwrap();
    // Before it was ever used, in use, changed, not in use and grown.
    let mut cut = vec![driver.snapshot(&volume.id, "s0").await.unwrap().id];
    let staged = driver.stage(&volume).await.unwrap();
    for (n, seed) in [(1, 10), (2, 20)] {
        write_files(&staged.target, seed);
        std::fs::write(staged.target.join(format!("unsynced-{n}")), pattern(n, 70_000)).unwrap();
        cut.push(driver.snapshot(&volume.id, &format!("s{n}")).await.unwrap().id);
    }
    std::fs::remove_file(staged.target.join("file-2")).unwrap();
    run("fstrim", &[staged.target.to_str().unwrap()]);
    cut.push(driver.snapshot(&volume.id, "s3").await.unwrap().id);
    driver.unstage(&staged).await.unwrap();
    driver.expand(&volume.id, large).await.unwrap();
    let staged = driver.stage(&driver.backend.get_volume(&volume.id).await.unwrap()).await.unwrap();
    std::fs::write(staged.target.join("more"), pattern(4, 3 << 20)).unwrap();
    cut.push(driver.snapshot(&volume.id, "s4").await.unwrap().id);
    driver.unstage(&staged).await.unwrap();
    cut.push(driver.snapshot(&volume.id, "s5").await.unwrap().id);
    cut.push(driver.snapshot(&volume.id, "s6").await.unwrap().id);

    for (n, target) in cut.iter().enumerate() {
        restores(&ground, &driver, None, target).await;
        // Incremental, and over all that was between.
        for base in [n.saturating_sub(1), 1, 0] {
            restores(&ground, &driver, Some(&cut[base]), target).await;
        }
    }
    // Back, too: the larger one is the base.
    restores(&ground, &driver, Some(&cut[5]), &cut[1]).await;
    // What did not change is not told of.
    assert_eq!(restores(&ground, &driver, Some(&cut[5]), &cut[6]).await, []);
    assert_eq!(restores(&ground, &driver, Some(&cut[2]), &cut[2]).await, []);
    let small = restores(&ground, &driver, Some(&cut[1]), &cut[2]).await;
    assert!(total(&small) < 16 << 20, "{small:?}");
    // Deleted between two backups: the rest is as it was.
    driver.delete_snapshot(&cut[3]).await.unwrap();
    restores(&ground, &driver, Some(&cut[2]), &cut[4]).await;
    ground.assert_clean();
}

/// Numbers that look random and are the same each time.
fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
}

#[rstest]
#[tokio::test]
async fn deltas_of_a_raw_block_device_in_use_that_is_written_at_random(
    #[values(FsType::Xfs, FsType::Btrfs)] pool: FsType,
    #[values(1, 2)] seed: u64,
) {
    const SIZE: u64 = 24 << 20;
    let ground = Ground::on(pool, Bytes::gib(1));
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::block("v", Bytes::new(SIZE))).await.unwrap();
    let (path, attachment) = driver.block(&volume).await.unwrap();
    let device = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut random = numbers(seed);
    let mut next = |below: u64| random.next().unwrap() % below;
    let mut cut: Vec<SnapshotId> = Vec::new();
    for n in 0..8_u64 {
        for _ in 0..next(60) {
            let at = next(SIZE / 512 - 300) * 512;
            let length = (1 + next(300)) * 512;
            match next(12) {
                0 => {
                    let (at, length) = (at.to_string(), length.to_string());
                    let device = path.to_str().unwrap();
                    run("blkdiscard", &["-f", "-o", &at, "-l", &length, device]);
                }
                1 => device.write_all_at(&vec![0; usize::try_from(length).unwrap()], at).unwrap(),
                2 => device.sync_all().unwrap(),
                tag => device
                    .write_all_at(&pattern(tag + n, usize::try_from(length).unwrap()), at)
                    .unwrap(),
            }
        }
        cut.push(driver.snapshot(&volume.id, &format!("s{n}")).await.unwrap().id);
        let target = cut.last().unwrap();
        restores(&ground, &driver, None, target).await;
        for base in &cut {
            restores(&ground, &driver, Some(base), target).await;
        }
    }
    drop(device);
    driver.backend.disconnect(&volume.id, Some(&attachment), &Cx::new()).await.unwrap();
    ground.assert_clean();
}

#[rstest]
#[tokio::test]
async fn an_image_of_many_thousand_extents(#[values(FsType::Xfs, FsType::Btrfs)] pool: FsType) {
    const SIZE: u64 = 256 << 20;
    let ground = Ground::on(pool, Bytes::gib(2));
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::block("v", Bytes::new(SIZE))).await.unwrap();
    let scatter = |seed: u64, writes: usize| {
        let file = OpenOptions::new().write(true).open(driver.image(&volume.id)).unwrap();
        for n in numbers(seed).take(writes) {
            file.write_all_at(&pattern(n, 4096), n % (SIZE / 4096) * 4096).unwrap();
        }
        file.sync_all().unwrap();
    };
    scatter(5, 40_000);
    let one = driver.snapshot(&volume.id, "one").await.unwrap().id;
    // Its blocks are shared now: each write goes elsewhere.
    scatter(6, 20_000);
    let two = driver.snapshot(&volume.id, "two").await.unwrap().id;
    let held = restores(&ground, &driver, None, &two).await;
    let begun = std::time::Instant::now();
    let (changed, _) = pages(&driver, Some(&one), &two, 4096).await.unwrap();
    println!(
        "{pool}: {} runs hold data, {} changed: {:?}",
        held.len(),
        changed.len(),
        begun.elapsed()
    );
    assert!(changed.len() > 10_000, "{}", changed.len());
    let mut wanted: Vec<u64> = numbers(6).take(20_000).map(|n| n % (SIZE / 4096)).collect();
    wanted.sort_unstable();
    wanted.dedup();
    assert_eq!(total(&changed), wanted.len() as u64 * 4096, "just what was written");
    assert_eq!(restores(&ground, &driver, Some(&one), &two).await, changed);
}

#[tokio::test]
async fn what_cannot_be_told_of_is_refused() {
    let ground = Ground::on(FsType::Xfs, Bytes::gib(1));
    let driver = ground.driver().await;
    let volume = driver.create(&Ask::block("v", Bytes::mib(8))).await.unwrap();
    let there = driver.snapshot(&volume.id, "there").await.unwrap().id;
    let gone = SnapshotId::new("default".parse().unwrap(), "gone".parse().unwrap());
    let blocks = driver.backend.changed_blocks().unwrap();
    let kind = async |base: Option<&SnapshotId>, target: &SnapshotId, offset: u64| {
        blocks.extents(base, target, offset, 10).await.err().map(|fault| fault.kind())
    };
    assert_eq!(kind(None, &gone, 0).await, Some(Kind::NotFound));
    assert_eq!(kind(Some(&gone), &there, 0).await, Some(Kind::NotFound));
    assert_eq!(kind(Some(&there), &there, 8 << 20).await, None);
    assert_eq!(kind(None, &there, (8 << 20) + 1).await, Some(Kind::OutOfRange));
    // An image that lost its end would look unchanged there.
    File::options().write(true).open(image(&ground, &there)).unwrap().set_len(1 << 20).unwrap();
    assert_eq!(kind(None, &there, 0).await, Some(Kind::Corrupt));
    let other = driver.snapshot(&volume.id, "other").await.unwrap().id;
    assert_eq!(kind(Some(&there), &other, 0).await, Some(Kind::Corrupt));
    assert_eq!(volume.id, VolumeId::new("default".parse().unwrap(), "v".parse().unwrap()));
}
