//! Snapshots and clones of images that share blocks.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{
    bed::{self, Bed},
    client::{Client, Places, Use, Volume},
    disk,
    report::{Row, shown},
    sample::Samples,
};

const GIB: i64 = 1 << 30;
const MIB: usize = 1 << 20;
/// From there on the image is empty: pages are scattered there.
const EMPTY: u64 = 3 << 30;
/// What separates two scattered pages.
const STRIDE: u64 = 64 << 10;

/// A mounted volume first (frozen while it is cut), then an unused one, then one that consists of
/// more and more extents.
pub(crate) async fn copies(bed: &mut Bed) -> Result<Vec<Row>> {
    let pool = bed.make("xfs/copies")?;
    let server = bed.serve("loop", &pool).await?;
    let mut client = server.client().await?;
    let mut rows = mounted(bed, &mut client, &pool).await?;
    rows.extend(scattered(bed, &mut client, &pool).await?);
    Ok(rows)
}

async fn mounted(bed: &Bed, client: &mut Client, pool: &Path) -> Result<Vec<Row>> {
    let volume = client.create("mounted", 10 * GIB, Use::Mount("xfs")).await?;
    let at = Places::in_folder(&bed.make("run/copies")?)?;
    client.stage(&volume, &at.staging).await?;
    disk::fill(&at.staging.join("data"), bed.count(2048, 16) as u64, MIB)?;
    settle(bed)?;
    let most = 50.0;
    let extents = disk::extents(&image(pool, &volume))?;
    let note = format!("{extents} extents");
    let mut rows = Vec::new();
    let (mut snapshot, mut frozen) = (Samples::default(), Samples::default());
    for n in 0..bed.count(15, 2) {
        // In turns with what the kernel alone takes for it: it waits until no writer is left.
        frozen.time(|| freeze_by_hand(&at.staging))?;
        let id = snapshot.wait(client.snapshot(&format!("frozen-{n}"), &volume)).await?;
        client.delete_snapshot(id).await?;
    }
    rows.push(Row::times("copies", "freeze and thaw by hand, nothing between", &frozen));
    let row = Row::times("copies", "snapshot, mounted (frozen)", &snapshot);
    rows.push(row.at_most(most, "").note(&note));
    client.unstage(&volume, &at.staging).await?;
    let (snapshot, clone) = cut(bed, client, &volume).await?;
    rows.push(Row::times("copies", "snapshot", &snapshot).at_most(most, "").note(&note));
    rows.push(Row::times("copies", "clone", &clone).at_most(most, "").note(&note));
    client.delete(&volume).await?;
    Ok(rows)
}

fn freeze_by_hand(place: &Path) -> Result<()> {
    bed::output(Command::new("fsfreeze").arg("--freeze").arg(place))?;
    bed::output(Command::new("fsfreeze").arg("--unfreeze").arg(place)).map(drop)
}

/// The same amount of data in more extents. Nobody uses the volume, so what is written to its image
/// by hand is what a workload would have written.
async fn scattered(bed: &Bed, client: &mut Client, pool: &Path) -> Result<Vec<Row>> {
    let volume = client.create("scattered", 10 * GIB, Use::Block).await?;
    let image = image(pool, &volume);
    disk::fill(&image, bed.count(2048, 16) as u64, MIB)?;
    let mut rows = Vec::new();
    let (mut written, mut first) = (0, None);
    for goal in [0, 1000, 10_000, 50_000] {
        let goal = bed.count(goal, goal / 1000) as u64;
        disk::scatter(&image, EMPTY + written * STRIDE, STRIDE, goal - written)?;
        written = goal;
        settle(bed)?;
        let extents = disk::extents(&image)?;
        let (snapshot, clone) = cut(bed, client, &volume).await?;
        for (what, samples) in [("snapshot", &snapshot), ("clone", &clone)] {
            let row =
                Row::times("copies", &format!("{what} of about {goal} extents more"), samples);
            let (base, base_time) = *first.get_or_insert((extents, samples.p50()));
            let beyond = f64::from(extents.saturating_sub(base)) / 1000.0;
            let slope = (samples.p50() - base_time) / beyond;
            let per = if beyond > 0.5 {
                format!(", {} ms per 1,000 beyond", shown(slope))
            } else {
                String::new()
            };
            let row = row.note(format!("{extents} extents{per}"));
            rows.push(if extents <= 1000 { row.at_most(50.0, "") } else { row });
        }
    }
    client.delete(&volume).await?;
    Ok(rows)
}

/// Snapshots and clones, in turns.
async fn cut(bed: &Bed, client: &mut Client, volume: &Volume) -> Result<(Samples, Samples)> {
    let (mut snapshot, mut clone) = (Samples::default(), Samples::default());
    for n in 0..bed.count(15, 2) {
        let id = snapshot.wait(client.snapshot(&format!("snapshot-{n}"), volume)).await?;
        client.delete_snapshot(id).await?;
        let copy = clone.wait(client.clone_of(&format!("clone-{n}"), volume, 10 * GIB)).await?;
        client.delete(&copy).await?;
    }
    Ok((snapshot, clone))
}

fn image(pool: &Path, volume: &Volume) -> std::path::PathBuf {
    let name = volume.id.rsplit('/').next().unwrap_or(&volume.id);
    pool.join("volumes").join(name).join("image")
}

/// What was written before is not to be part of a figure.
fn settle(bed: &Bed) -> Result<()> {
    bed::output(Command::new("sync").arg("--file-system").arg(bed.path("xfs"))).map(|_| ())
}
