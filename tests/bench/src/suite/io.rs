//! What a workload gets through a volume, against what it gets without Larder.
//!
//! ```text
//! volume     file ─ xfs ─ loop ─ image in the pool      made, formatted and mounted by Larder
//! by hand    file ─ xfs ─ loop ─ image beside the pool  truncate, mkfs.xfs, losetup, mount
//! directly   file                                       on the pool's file system, without a loop device
//! ```
//! Each pattern is cut into short turns, and the three take them in changing order, so that what others do
//! to the disk meets all alike. Turns that follow each other give one ratio, and the median of the ratios
//! counts. How sure it is, is told; where that leaves it open whether the target is met, that too.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{
    bed::{self, Bed},
    client::{Places, Use},
    disk::{PAGE, Pages, Random, direct, fill},
    report::{Row, shown},
    sample::{median_lies_within, quantile},
};

const VOLUME: i64 = 2 << 30;
const BLOCK: usize = 1 << 20;
/// Turns in which one goes once through a pattern.
const TURNS: u64 = 8;

#[derive(Debug, Clone, Copy)]
enum Pattern {
    SequentialWrite,
    SequentialRead,
    RandomWrite,
    RandomRead,
}

use Pattern::{RandomRead, RandomWrite, SequentialRead, SequentialWrite};

/// The volume against both others.
pub(crate) async fn io(bed: &mut Bed) -> Result<Vec<Row>> {
    let pool = bed.make("xfs/io")?;
    let server = bed.serve("loop", &pool).await?;
    let mut client = server.client().await?;
    let volume = client.create("volume", VOLUME, Use::Mount("xfs")).await?;
    let at = Places::in_folder(&bed.make("run/io")?)?;
    client.stage(&volume, &at.staging).await?;
    client.publish(&volume, &at).await?;
    let (image, hand, plain) =
        (bed.path("xfs/by-hand.img"), bed.make("by-hand")?, bed.make("xfs/directly")?);
    File::create(&image)?.set_len(VOLUME.unsigned_abs())?;
    bed::output(Command::new("mkfs.xfs").arg("-q").arg(&image))?;
    bed::mount_image(&image, &hand)?;
    let rows = measure(bed, [&at.target, &hand, &plain]);
    bed::output(Command::new("umount").arg(&hand))?;
    client.unpublish(&volume, &at).await?;
    client.unstage(&volume, &at.staging).await?;
    rows
}

fn measure(bed: &Bed, folders: [&Path; 3]) -> Result<Vec<Row>> {
    let blocks = bed.count(256, 8) as u64;
    let files = folders.map(|folder| folder.join("data"));
    // Written once, so that no round is about the allocation of blocks.
    files.iter().try_for_each(|file| fill(file, blocks, BLOCK))?;
    let mut rows = Vec::new();
    for (pattern, what) in [
        (SequentialWrite, "sequential write of 1 MiB blocks, fsync"),
        (SequentialRead, "sequential read of 1 MiB blocks"),
        (RandomWrite, "random write of 4 KiB blocks, fsync"),
        (RandomRead, "random read of 4 KiB blocks"),
    ] {
        let operations = match pattern {
            SequentialWrite | SequentialRead => blocks,
            RandomWrite | RandomRead => bed.count(2000, 20) as u64,
        };
        let part = (operations / TURNS).max(1);
        let mut times: [Vec<f64>; 3] = Default::default();
        for turn in 0..bed.count(15, 2) as u64 * TURNS {
            // Whoever comes first finds another disk than whoever comes last.
            for which in ORDERS[usize::try_from(turn % 6)?] {
                let turn = Turn { pattern, blocks, first: turn % TURNS * part, part, seed: turn };
                times[which].push(turn.take(&files[which])?.as_secs_f64());
            }
        }
        let ratios = |other: &[f64]| -> Vec<f64> {
            other.iter().zip(&times[0]).map(|(other, volume)| 100.0 * other / volume).collect()
        };
        let (hand, plain) = (ratios(&times[1]), ratios(&times[2]));
        let speed = speed(pattern, part, quantile(&times[0], 0.5));
        let row = Row::new("io", what, quantile(&hand, 0.5), "% of by hand").at_least(95.0, "");
        let (low, high) = median_lies_within(&hand);
        rows.push(row.known_to(low, high).note(format!(
            "95 % sure to lie in {}–{}; half of {} turns {}–{}; {speed}; {} % of the pool's file \
             system itself",
            shown(low),
            shown(high),
            hand.len(),
            shown(quantile(&hand, 0.25)),
            shown(quantile(&hand, 0.75)),
            shown(quantile(&plain, 0.5)),
        )));
    }
    Ok(rows)
}

/// All orders of three.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1], [2, 0, 1], [1, 0, 2]];

#[allow(clippy::cast_precision_loss, reason = "counts are small")]
fn speed(pattern: Pattern, operations: u64, seconds: f64) -> String {
    let rate = operations as f64 / seconds;
    match pattern {
        SequentialWrite | SequentialRead => format!("{} MiB/s", shown(rate)),
        RandomWrite | RandomRead => format!("{} IOPS", shown(rate)),
    }
}

/// A part of a pattern, past the page cache; equal seeds mean equal blocks.
#[derive(Debug, Clone, Copy)]
struct Turn {
    pattern: Pattern,
    /// In the file.
    blocks: u64,
    /// The operation that it begins with, and their number.
    first: u64,
    part: u64,
    seed: u64,
}

impl Turn {
    fn take(self, path: &Path) -> Result<Duration> {
        let file = direct(path)?;
        let size = match self.pattern {
            SequentialWrite | SequentialRead => BLOCK,
            RandomWrite | RandomRead => PAGE,
        };
        let mut pages = Pages::new(size);
        let mut random = Random::new(self.seed);
        let places = self.blocks * (BLOCK / PAGE) as u64;
        let began = Instant::now();
        for n in self.first..self.first + self.part {
            let next = n % self.blocks * BLOCK as u64;
            match self.pattern {
                SequentialWrite => file.write_all_at(pages.get(), next)?,
                SequentialRead => file.read_exact_at(pages.get(), next)?,
                RandomWrite => {
                    file.write_all_at(pages.get(), random.next() % places * PAGE as u64)?;
                }
                RandomRead => {
                    file.read_exact_at(pages.get(), random.next() % places * PAGE as u64)?;
                }
            }
        }
        if matches!(self.pattern, SequentialWrite | RandomWrite) {
            file.sync_all()?;
        }
        Ok(began.elapsed())
    }
}
