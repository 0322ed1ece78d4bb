//! The benchmarks.

mod calls;
mod copies;
mod crowd;
mod io;
mod node;

use anyhow::{Result, bail};

use crate::{bed::Bed, report::Row};

/// Names, and what is measured.
pub(crate) const LIST: &[(&str, &str)] = &[
    ("probe", "what the client can do: Probe per second"),
    ("create", "CreateVolume of dir, beside Probe and one durable record on that disk"),
    ("create-tmpfs", "the same on tmpfs: what is left when the disk costs nothing"),
    ("publish", "NodePublishVolume and NodeUnpublishVolume, dir and loop"),
    ("parallel", "NodePublishVolume of 16 volumes at a time"),
    ("stats", "NodeGetVolumeStats, beside Probe"),
    ("copies", "loop: snapshot and clone of a 10 GiB image with 2 GiB of data"),
    ("crowd", "create and list with 10,000 volumes, against a pool of 100"),
    ("start", "from the start of the process to ready: empty pool, 10,000 volumes"),
    ("memory", "resident memory: idle, with 10,000 volumes"),
    ("size", "the stripped program"),
    ("io", "I/O through a loop volume against the same file system by hand"),
];

/// Runs one of the list.
pub(crate) async fn run(name: &str, bed: &mut Bed) -> Result<Vec<Row>> {
    match name {
        "probe" => calls::probe(bed).await,
        "create" => calls::create(bed).await,
        "create-tmpfs" => calls::create_tmpfs(bed).await,
        "publish" => node::publish(bed).await,
        "parallel" => node::parallel(bed).await,
        "stats" => node::stats(bed).await,
        "copies" => copies::copies(bed).await,
        "crowd" => crowd::crowd(bed).await,
        "start" => crowd::start(bed).await,
        "memory" => crowd::memory(bed).await,
        "size" => size(bed),
        "io" => io::io(bed).await,
        other => bail!("there is no benchmark {other}"),
    }
}

fn size(bed: &Bed) -> Result<Vec<Row>> {
    #[allow(clippy::cast_precision_loss, reason = "a program has far less than 2^52 bytes")]
    let bytes = std::fs::metadata(bed.program())?.len() as f64;
    Ok(vec![Row::new("size", "program", bytes / 1e6, "MB").at_most(12.0, "")])
}
