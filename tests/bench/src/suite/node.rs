//! Calls on the node.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::try_join_all;

use crate::{
    bed::Bed,
    client::{Client, Places, Use, Volume},
    report::{Row, shown},
    sample::Samples,
    server::Server,
    suite::calls::SMALL,
};

/// What xfs needs at least, with some room.
const XFS: i64 = 512 << 20;
const AT_A_TIME: usize = 16;

/// A server with staged volumes.
struct Staged {
    server: Server,
    client: Client,
    volumes: Vec<(Volume, Places)>,
}

impl Staged {
    async fn new(bed: &mut Bed, bench: &str, backend: &str, count: usize) -> Result<Self> {
        let folder = if backend == "loop" { "xfs/" } else { "" };
        let pool = bed.make(&format!("{folder}{bench}-{backend}"))?;
        let server = bed.serve(backend, &pool).await?;
        let mut client = server.client().await?;
        let mut volumes = Vec::new();
        for n in 0..count {
            let name = format!("volume-{n}");
            let (bytes, fs) = if backend == "loop" { (XFS, "xfs") } else { (SMALL, "") };
            let volume = client.create(&name, bytes, Use::Mount(fs)).await?;
            let places = Places::in_folder(&bed.make(&format!("run/{bench}-{backend}/{n}"))?)?;
            client.stage(&volume, &places.staging).await?;
            volumes.push((volume, places));
        }
        Ok(Self { server, client, volumes })
    }

    /// Takes back what `new` did, so that the pool's file system can be unmounted.
    async fn end(mut self) -> Result<()> {
        for (volume, at) in &self.volumes {
            self.client.unstage(volume, &at.staging).await?;
            self.client.delete(volume).await?;
        }
        Ok(())
    }
}

/// One volume, again and again.
pub(crate) async fn publish(bed: &mut Bed) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for backend in ["dir", "loop"] {
        let mut staged = Staged::new(bed, "publish", backend, 1).await?;
        let (client, (volume, at)) = (&mut staged.client, &staged.volumes[0]);
        let (mut publish, mut unpublish) = (Samples::default(), Samples::default());
        for _ in 0..bed.count(1000, 10) {
            publish.wait(client.publish(volume, at)).await?;
            unpublish.wait(client.unpublish(volume, at)).await?;
        }
        staged.end().await?;
        let row = |call: &str, samples| {
            Row::times("publish", &format!("{call} {backend}"), samples).at_most(1.0, "")
        };
        rows.push(row("NodePublish", &publish));
        rows.push(row("NodeUnpublish", &unpublish));
    }
    Ok(rows)
}

/// Sixteen volumes at a time; each round is published as a whole, then unpublished.
pub(crate) async fn parallel(bed: &mut Bed) -> Result<Vec<Row>> {
    let staged = Staged::new(bed, "parallel", "dir", AT_A_TIME).await?;
    let mut clients = Vec::new();
    for _ in 0..AT_A_TIME {
        clients.push(staged.server.client().await?);
    }
    let mut times = [Samples::default(), Samples::default()];
    let mut spent = [Duration::ZERO; 2];
    let rounds = bed.count(200, 3);
    for _ in 0..rounds {
        for (up, down) in [(true, 0), (false, 1)] {
            let calls =
                clients.iter_mut().zip(&staged.volumes).map(|(client, (volume, at))| async move {
                    let mut samples = Samples::default();
                    if up {
                        samples.wait(client.publish(volume, at)).await?;
                    } else {
                        samples.wait(client.unpublish(volume, at)).await?;
                    }
                    Ok::<_, anyhow::Error>(samples)
                });
            let began = Instant::now();
            let done = try_join_all(calls).await?;
            spent[down] += began.elapsed();
            times[down].add(Samples::together(done));
        }
    }
    staged.end().await?;
    #[allow(clippy::cast_precision_loss, reason = "counts are small")]
    let rate = |spent: Duration| (rounds * AT_A_TIME) as f64 / spent.as_secs_f64();
    Ok(vec![
        Row::new("parallel", "NodePublish dir, 16 at a time", rate(spent[0]), "/s")
            .pieces(&times[0])
            .at_least(1500.0, ""),
        Row::new("parallel", "NodeUnpublish dir, 16 at a time", rate(spent[1]), "/s")
            .pieces(&times[1]),
    ])
}

/// In turns with Probe.
pub(crate) async fn stats(bed: &mut Bed) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for backend in ["dir", "loop"] {
        // Others are there too: kubelet asks for each of a node's volumes once a minute.
        let mut staged = Staged::new(bed, "stats", backend, bed.count(32, 2)).await?;
        let (client, (volume, at)) = (&mut staged.client, &staged.volumes[0]);
        client.publish(volume, at).await?;
        let (mut probe, mut stats) = (Samples::default(), Samples::default());
        for _ in 0..bed.count(3000, 20) {
            probe.wait(client.probe()).await?;
            stats.wait(client.stats(volume, at)).await?;
        }
        client.unpublish(volume, at).await?;
        staged.end().await?;
        let what = format!("NodeGetVolumeStats {backend}, one of 32 staged");
        let why = format!("Probe {} + 0.1", shown(probe.p50()));
        rows.push(Row::times("stats", &what, &stats).at_most(probe.p50() + 0.1, why));
    }
    Ok(rows)
}
