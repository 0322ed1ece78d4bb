//! Pools with many volumes.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};

use crate::{
    bed::Bed,
    client::{Client, Use},
    report::{Row, shown},
    sample::Samples,
    suite::calls::SMALL,
};

const PAGE: i32 = 100;
/// How often a figure with many volumes may exceed the one with few.
const FACTOR: f64 = 2.0;

/// Two pools on one file system and two servers, asked in turns.
pub(crate) async fn crowd(bed: &mut Bed) -> Result<Vec<Row>> {
    let large = pool(bed).await?;
    let small = bed.make("xfs/few")?;
    let servers = [bed.serve("dir", &small).await?, bed.serve("dir", &large).await?];
    let mut clients = [servers[0].client().await?, servers[1].client().await?];
    fill(&clients[0], 100).await?;
    let (mut create, mut list) = (<[Samples; 2]>::default(), <[Samples; 2]>::default());
    for n in 0..bed.count(500, 5) {
        for which in [0, 1] {
            let client = &mut clients[which];
            let name = format!("another-{n}");
            let volume = create[which].wait(client.create(&name, SMALL, Use::Mount(""))).await?;
            let entries = list[which].wait(client.list(PAGE)).await?;
            ensure!(entries == 100, "a page of {PAGE} has {entries} entries");
            client.delete(&volume).await?;
        }
    }
    let mut rows = Vec::new();
    for (what, [few, many]) in
        [("CreateVolume dir", create), ("a page of 100 of ListVolumes", list)]
    {
        let why = format!("{FACTOR} × {}", shown(few.p50()));
        rows.push(Row::times("crowd", &format!("{what}, 100 volumes"), &few));
        let row = Row::times("crowd", &format!("{what}, 10,000 volumes"), &many);
        rows.push(row.at_most(FACTOR * few.p50(), why));
    }
    Ok(rows)
}

/// Process start to ready, with what the kernel caches and without.
pub(crate) async fn start(bed: &mut Bed) -> Result<Vec<Row>> {
    let empty = bed.make("empty")?;
    let crowd = pool(bed).await?;
    let mut rows = Vec::new();
    // The identity of a new pool is made by the first start.
    drop(bed.serve("dir", &empty).await?);
    for (what, pool, most, cold) in [
        ("empty pool", &empty, 10.0, false),
        ("10,000 volumes", &crowd, 300.0, false),
        ("10,000 volumes, after a remount", &crowd, 300.0, true),
    ] {
        let (mut answered, mut ready, mut waited) = (Samples::default(), Samples::default(), 0);
        for _ in 0..bed.count(if cold { 5 } else { 20 }, 2) {
            if cold {
                bed.remount_xfs()?;
            }
            let start = bed.spawn("dir", pool)?.ready().await?;
            answered.push(start.answered);
            ready.push(start.ready);
            waited += u32::from(start.waited);
        }
        let note = format!(
            "first Probe answered after {} ms; {waited} of {} starts were seen not ready",
            shown(answered.p50()),
            answered.len()
        );
        rows.push(Row::times("start", what, &ready).at_most(most, "").note(note));
    }
    Ok(rows)
}

/// After this what a call has freed is given back to the kernel.
const QUIET: std::time::Duration = std::time::Duration::from_secs(15);

/// Resident memory. The program's file counts as far as it was read.
pub(crate) async fn memory(bed: &mut Bed) -> Result<Vec<Row>> {
    let empty = bed.make("idle")?;
    let server = bed.serve("dir", &empty).await?;
    server.client().await?.probe().await?;
    let row = |what: &str, (all, own): (f64, f64), most| {
        let note = format!("{} MB without the program's own file", shown(own));
        Row::new("memory", what, all, "MB").at_most(most, "").note(note)
    };
    let mut rows = vec![row("idle", server.memory()?, 10.0)];
    let crowd = pool(bed).await?;
    let server = bed.serve("dir", &crowd).await?;
    let mut client = server.client().await?;
    rows.push(row("10,000 volumes, started", server.memory()?, 25.0));
    let (listed, most) = (client.list_all().await?, bed.count(10_000, 150));
    ensure!(listed >= most, "a list of all has {listed} of {most} volumes");
    rows.push(row("10,000 volumes, all listed", server.memory()?, 25.0));
    tokio::time::sleep(QUIET).await;
    rows.push(row("the same after 15 s of quiet", server.memory()?, 25.0));
    let more = bed.count(1000, 10);
    for n in 0..more {
        let volume = client.create(&format!("another-{n}"), SMALL, Use::Mount("")).await?;
        client.delete(&volume).await?;
    }
    let what = "10,000 volumes, 1,000 more made and deleted";
    rows.push(row(what, server.memory()?, 25.0));
    Ok(rows)
}

/// A pool with 10,000 volumes, made once.
async fn pool(bed: &mut Bed) -> Result<PathBuf> {
    if let Some(pool) = &bed.crowd {
        return Ok(pool.clone());
    }
    let pool = bed.make("xfs/many")?;
    let server = bed.serve("dir", &pool).await?;
    fill(&server.client().await?, bed.count(10_000, 150)).await?;
    bed.crowd = Some(pool.clone());
    Ok(pool)
}

async fn fill(client: &Client, count: usize) -> Result<()> {
    let create = |n| {
        let mut client = client.clone();
        async move { client.create(&format!("volume-{n:05}"), SMALL, Use::Mount("")).await }
    };
    let mut made = futures::stream::iter((0..count).map(create)).buffer_unordered(32);
    while made.try_next().await?.is_some() {}
    Ok(())
}
