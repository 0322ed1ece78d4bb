//! `larder pool …`

use super::answer;
use crate::{
    backends, cli,
    output::{self, Row},
    session::{self, Session},
};
use anyhow::Result;
use larder_model::{Fault, PoolName};
use larder_proto::larder::{self, ListPoolsRequest};
use serde::Serialize;
use std::path::Path;

/// A pool as it is printed. The JSON form is part of the interface.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PoolRow {
    driver: String,
    pool: String,
    storage: String,
    total: u64,
    free: u64,
    provisioned: u64,
    volumes: i64,
    snapshots: i64,
    state: String,
    location: String,
    identity: String,
    warnings: Vec<String>,
}

impl Row for PoolRow {
    const HEADINGS: &'static [&'static str] = &[
        "DRIVER",
        "POOL",
        "ON",
        "TOTAL",
        "FREE",
        "PROVISIONED",
        "VOLUMES",
        "SNAPSHOTS",
        "STATE",
        "LOCATION",
        "IDENTITY",
        "WARNINGS",
    ];
    const NARROW: usize = 9;
    fn cells(&self) -> Vec<String> {
        vec![
            self.driver.clone(),
            self.pool.clone(),
            self.storage.clone(),
            rounded(self.total),
            rounded(self.free),
            rounded(self.provisioned),
            self.volumes.to_string(),
            self.snapshots.to_string(),
            self.state.clone(),
            self.location.clone(),
            self.identity.clone(),
            self.warnings.join("; "),
        ]
    }
}

/// A size for people: free space is rarely a whole number of anything.
pub(crate) fn rounded(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut tenths = u128::from(bytes) * 10;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    match (tenths % 10, unit) {
        (0, _) | (_, 0) => format!("{} {}", tenths / 10, UNITS[unit]),
        (tenth, _) => format!("{}.{tenth} {}", tenths / 10, UNITS[unit]),
    }
}

fn row(driver: &str, pool: larder::Pool) -> PoolRow {
    let size = |n: i64| u64::try_from(n).unwrap_or(0);
    PoolRow {
        driver: driver.to_owned(),
        state: match (pool.fault.as_str(), pool.warnings.len()) {
            ("", 0) => "ok".to_owned(),
            ("", n) => format!("ok, {n} warnings"),
            (fault, _) => fault.to_owned(),
        },
        pool: pool.name,
        storage: pool.storage,
        total: size(pool.total_bytes),
        free: size(pool.free_bytes),
        provisioned: size(pool.provisioned_bytes),
        volumes: pool.volumes,
        snapshots: pool.snapshots,
        location: pool.location,
        identity: pool.identity,
        warnings: pool.warnings,
    }
}

/// Runs a pool command.
pub(crate) async fn run(command: cli::Pool) -> Result<()> {
    match command {
        cli::Pool::Ls { target, output } => {
            let mut rows = Vec::new();
            for session in Session::open_all(&target).await? {
                let listed = list(&session).await;
                session.close().await;
                rows.extend(listed?);
            }
            output::list(output.output, &rows)
        }
        cli::Pool::Init { path: Some(path), backend: Some(backend), allow_non_empty, .. } => {
            init(&path, &backend, allow_non_empty).await
        }
        cli::Pool::Init { pool, allow_non_empty, target, .. } => {
            let driver = session::driver_settings(&target)?;
            let pool: PoolName = match &pool {
                Some(pool) => pool.parse()?,
                None => session::default_pool(&driver)?,
            };
            if driver.exports.contains_key(&pool) {
                return Err(Fault::invalid(format!("make the export {pool} a pool by hand"))
                    .hint("with create: true in the configuration its first use does that")
                    .into());
            }
            let settings = driver.pools.get(&pool).ok_or_else(|| {
                Fault::not_found(format!(
                    "find pool {pool} of driver {} in the configuration",
                    driver.name
                ))
            })?;
            settings.is_mounted(&larder_host::Host::real(), &pool)?;
            init(&settings.path, &driver.backend, allow_non_empty).await
        }
    }
}

async fn list(session: &Session) -> larder_model::Result<Vec<PoolRow>> {
    let listed = answer(session.client().admin().list_pools(ListPoolsRequest {}).await)?;
    Ok(listed.pools.into_iter().map(|p| row(session.driver(), p)).collect())
}

async fn init(path: &Path, backend: &str, allow_non_empty: bool) -> Result<()> {
    let kind = backends::find(backend).ok_or_else(|| {
        let known: Vec<_> = backends::KINDS.iter().map(|k| k.name).collect();
        Fault::invalid(format!("use backend {backend:?}"))
            .hint(format!("use one of {}", known.join(", ")))
    })?;
    let path = std::path::absolute(path).map_err(|e| Fault::io("find the current folder", e))?;
    let (name, folder) = (kind.name, path.clone());
    let identity =
        larder_host::blocking(move || larder_pool::init(&folder, name, allow_non_empty)).await?;
    output::line(format!(
        "{} is a {} pool now (identity {})",
        path.display(),
        kind.name,
        identity.id
    ))
}

#[cfg(test)]
mod tests {
    use super::rounded;

    #[test]
    fn sizes_are_rounded_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (1 << 30, "1 GiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(rounded(bytes), text);
        }
    }
}
