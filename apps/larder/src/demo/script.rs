//! The demo's plot.

use super::{bench::Bench, data};
use anyhow::{Context, Result, ensure};
use std::{path::Path, time::Duration};

const MIB: usize = 1 << 20;

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Plays every act; the first failure ends it.
pub(crate) async fn play(bench: &mut Bench) -> Result<()> {
    let data_at = bench.path("data");
    let restored_at = bench.path("restored");
    let mut original = data::Sums::new();

    bench
        .step("larder volume create data --size 1Gi; volume mount data …", async |bench| {
            let larder = bench.larder();
            larder.run(&["volume", "create", "data", "--size", "1Gi"]).await?;
            larder.run(&["volume", "mount", "data", &text(&data_at)]).await?;
            let again =
                larder.run(&["volume", "create", "data", "--size", "1Gi", "-o", "json"]).await?;
            ensure!(again.contains("default/data"), "creating it again gave another volume");
            Ok("mounted; repeating the creation returns the same volume".to_owned())
        })
        .await?;
    bench
        .step("write 64 files, 64 MiB", async |_| {
            data::write_files(&data_at, 64, MIB, 1)?;
            original = data::sums(&data_at)?;
            ensure!(original.len() == 64, "{} files were written", original.len());
            Ok("checksums taken".to_owned())
        })
        .await?;
    bench
        .step("larder snapshot create data@before", async |bench| {
            // Somebody goes on writing while the snapshot is cut.
            let busy = data_at.join("busy");
            let writer = tokio::task::spawn_blocking(move || data::write(&busy, 7, 32 * MIB));
            bench.larder().run(&["snapshot", "create", "data@before"]).await?;
            writer.await??;
            Ok("cut while a file was being written".to_owned())
        })
        .await?;
    bench
        .step("delete every file in data", async |_| {
            data::destroy(&data_at)?;
            ensure!(data::sums(&data_at)?.is_empty(), "files are left");
            Ok("nothing left".to_owned())
        })
        .await?;
    bench
        .step("larder volume create restored --from data@before; mount", async |bench| {
            let larder = bench.larder();
            larder
                .run(&["volume", "create", "restored", "--size", "1Gi", "--from", "data@before"])
                .await?;
            larder.run(&["volume", "mount", "restored", &text(&restored_at)]).await?;
            let mut found = data::sums(&restored_at)?;
            found.remove(Path::new("busy"));
            ensure!(found == original, "{} of 64 files came back, or others", found.len());
            Ok("64 of 64 checksums agree".to_owned())
        })
        .await?;
    grow(bench, &restored_at).await?;
    bench
        .step("larder volume create copy --from restored; mount", async |bench| {
            let larder = bench.larder();
            let at = bench.path("copy");
            larder
                .run(&["volume", "create", "copy", "--size", "2Gi", "--from", "restored"])
                .await?;
            larder.run(&["volume", "mount", "copy", &text(&at)]).await?;
            let mut found = data::sums(&at)?;
            found.remove(Path::new("busy"));
            ensure!(found == original, "the clone differs");
            data::destroy(&at)?;
            let mut kept = data::sums(&restored_at)?;
            kept.remove(Path::new("busy"));
            ensure!(kept == original, "emptying the clone changed the original");
            Ok("64 of 64 checksums agree; emptying it leaves the original alone".to_owned())
        })
        .await?;
    if bench.is_root() {
        raw_block(bench).await?;
    }
    kill_the_server(bench, &restored_at, &original).await?;
    bench
        .step("larder volume unmount …; snapshot rm; volume rm", async |bench| {
            let larder = bench.larder();
            for volume in ["data", "restored", "copy"] {
                larder.run(&["volume", "unmount", volume]).await?;
            }
            larder.run(&["snapshot", "rm", "data@before"]).await?;
            let listed = larder.run(&["volume", "ls", "-o", "json"]).await?;
            let listed: Vec<serde_json::Value> = serde_json::from_str(&listed)?;
            for volume in &listed {
                larder
                    .run(&["volume", "rm", volume["id"].as_str().context("a volume without id")?])
                    .await?;
            }
            for folder in ["volumes", "snapshots", "creating", "deleting"] {
                let left =
                    std::fs::read_dir(bench.path("pool").join(folder)).map_or(0, Iterator::count);
                ensure!(left == 0, "{left} entries are left in {folder}/ of the pool");
            }
            Ok(format!("{} volumes deleted, the pool is empty", listed.len()))
        })
        .await
}

async fn grow(bench: &mut Bench, at: &Path) -> Result<()> {
    let (online, root) = (if bench.is_root() { " (mounted)" } else { "" }, bench.is_root());
    bench
        .step(format!("larder volume expand restored --size 2Gi{online}"), async |bench| {
            let size = |at: &Path| -> Result<u64> {
                let stat = rustix::fs::statvfs(at)?;
                Ok(stat.f_blocks * stat.f_frsize)
            };
            let before = size(at)?;
            bench.larder().run(&["volume", "expand", "restored", "--size", "2Gi"]).await?;
            let after = size(at)?;
            ensure!(
                !root || after > before + before / 2,
                "the file system has {after} bytes, it had {before}"
            );
            Ok(if root {
                format!("df: {} MiB, then {} MiB", before >> 20, after >> 20)
            } else {
                "recorded".to_owned()
            })
        })
        .await
}

async fn raw_block(bench: &mut Bench) -> Result<()> {
    bench
        .step("larder volume create disk --size 256Mi --block; mount --block", async |bench| {
            let larder = bench.larder();
            let at = bench.path("disk");
            larder.run(&["volume", "create", "disk", "--size", "256Mi", "--block"]).await?;
            larder.run(&["volume", "mount", "--block", "disk", &text(&at)]).await?;
            data::write(&at, 99, 16 * MIB)?;
            let sum = data::sum(&at, 16 << 20)?;
            larder.run(&["volume", "unmount", "disk"]).await?;
            larder.run(&["volume", "mount", "--block", "disk", &text(&at)]).await?;
            ensure!(data::sum(&at, 16 << 20)? == sum, "the device's content changed");
            larder.run(&["volume", "unmount", "disk"]).await?;
            Ok("16 MiB written to the device, unmounted, mounted, read back".to_owned())
        })
        .await
}

/// Kills the server in the middle of operations, three times, and shows that all is found again.
async fn kill_the_server(bench: &mut Bench, mounted: &Path, sums: &data::Sums) -> Result<()> {
    bench
        .step("kill -9 the server amid operations, 3 times", async |bench| {
            let mut acknowledged = Vec::new();
            for round in 0..3u64 {
                let mut calls = tokio::task::JoinSet::new();
                for n in 0..6 {
                    let (larder, name) = (bench.larder(), format!("k{round}-{n}"));
                    calls.spawn(async move {
                        let create =
                            ["volume", "create", &name, "--size", "1Gi", "--from", "data@before"];
                        larder.run(&create).await.map(|_| name.clone()).map_err(|_| name.clone())
                    });
                }
                tokio::time::sleep(Duration::from_millis(10 + 15 * round)).await;
                bench.kill_server().await?;
                // The data path does not need the server.
                let mut found = data::sums(mounted)?;
                found.remove(Path::new("busy"));
                ensure!(found == *sums, "mounted data changed while the server was down");
                let mut unanswered = Vec::new();
                while let Some(answer) = calls.join_next().await {
                    match answer? {
                        Ok(name) => acknowledged.push(name),
                        Err(name) => unanswered.push(name),
                    }
                }
                bench.start_server().await?;
                // Whoever got no answer asks again, as kubelet and provisioner do.
                for name in unanswered {
                    let create =
                        ["volume", "create", &name, "--size", "1Gi", "--from", "data@before"];
                    bench.larder().run(&create).await?;
                    acknowledged.push(name);
                }
            }
            let listed = bench.larder().run(&["volume", "ls", "-o", "json"]).await?;
            let listed: Vec<serde_json::Value> = serde_json::from_str(&listed)?;
            let there = |name: &str| listed.iter().any(|v| v["id"] == format!("default/{name}"));
            for name in &acknowledged {
                ensure!(there(name), "volume {name} was acknowledged and is lost");
            }
            let half = std::fs::read_dir(bench.path("pool/creating")).map_or(0, Iterator::count);
            ensure!(half == 0, "{half} half-made volumes are left");
            Ok(format!(
                "{} volumes promised, {} there; mounted data never missed a byte",
                acknowledged.len(),
                acknowledged.len()
            ))
        })
        .await
}
