//! Calls that come before a volume is used.

use std::{path::Path, time::Instant};

use anyhow::Result;
use futures::future::try_join_all;

use crate::{
    bed::Bed,
    client::{Client, Use},
    disk,
    report::{Row, shown},
    sample::Samples,
};

/// So that the size of a volume is no subject.
pub(crate) const SMALL: i64 = 1 << 20;
/// What a durable record may cost more inside of a creation: a folder is made, named and found too.
const RECORD_FACTOR: f64 = 1.3;

/// What the client can do at all: without that, slow calls might be the client's.
pub(crate) async fn probe(bed: &mut Bed) -> Result<Vec<Row>> {
    let pool = bed.make("probe")?;
    let server = bed.serve("dir", &pool).await?;
    let client = server.client().await?;
    let count = bed.count(20_000, 200);
    let mut rows = Vec::new();
    for at_a_time in [1, 16] {
        let each = |mut client: Client| async move {
            let mut samples = Samples::default();
            for _ in 0..count / at_a_time {
                samples.wait(client.probe()).await?;
            }
            Ok::<_, anyhow::Error>(samples)
        };
        let began = Instant::now();
        let done = try_join_all((0..at_a_time).map(|_| each(client.clone()))).await?;
        let rate = per_second(done.iter().map(Samples::len).sum(), began);
        let name = format!("Probe, {at_a_time} at a time");
        let samples = Samples::together(done);
        let row = Row::new("probe", &name, rate, "/s").pieces(&samples);
        rows.push(if at_a_time == 1 { row } else { row.at_least(5000.0, "") });
    }
    Ok(rows)
}

#[allow(clippy::cast_precision_loss, reason = "counts are small")]
pub(crate) fn per_second(count: usize, since: Instant) -> f64 {
    count as f64 / since.elapsed().as_secs_f64()
}

/// On the disk under test.
pub(crate) async fn create(bed: &mut Bed) -> Result<Vec<Row>> {
    let (pool, records) = (bed.make("create/pool")?, bed.make("create/records")?);
    let t = lives(bed, &pool, &records).await?;
    let most = t.probe.p50() + RECORD_FACTOR * t.record.p50();
    let why = format!(
        "Probe {} + {RECORD_FACTOR} × record {}",
        shown(t.probe.p50()),
        shown(t.record.p50())
    );
    Ok(vec![
        Row::times("create", "Probe", &t.probe),
        Row::times("create", "durable record by hand", &t.record),
        Row::times("create", "CreateVolume dir", &t.create).at_most(most, why),
        Row::times("create", "DeleteVolume dir", &t.delete),
    ])
}

/// In memory.
pub(crate) async fn create_tmpfs(bed: &mut Bed) -> Result<Vec<Row>> {
    let (pool, records) = (bed.make("memory/pool")?, bed.make("memory/records")?);
    let t = lives(bed, &pool, &records).await?;
    Ok(vec![
        Row::times("create-tmpfs", "Probe", &t.probe),
        Row::times("create-tmpfs", "durable record by hand", &t.record),
        Row::times("create-tmpfs", "CreateVolume dir", &t.create).at_most(0.4, ""),
        Row::times("create-tmpfs", "DeleteVolume dir", &t.delete),
    ])
}

#[derive(Default)]
struct Times {
    probe: Samples,
    record: Samples,
    create: Samples,
    delete: Samples,
}

/// Volumes made and deleted, in turns with what their cost is held against.
async fn lives(bed: &mut Bed, pool: &Path, records: &Path) -> Result<Times> {
    let server = bed.serve("dir", pool).await?;
    let mut client = server.client().await?;
    let mut times = Times::default();
    for n in 0..bed.count(1000, 10) {
        let name = format!("volume-{n}");
        times.probe.wait(client.probe()).await?;
        times.record.time(|| disk::record(records, &name))?;
        let volume = times.create.wait(client.create(&name, SMALL, Use::Mount(""))).await?;
        times.delete.wait(client.delete(&volume)).await?;
    }
    Ok(times)
}
