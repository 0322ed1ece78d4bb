//! `larder can-uninstall`: whether a cluster still needs drivers.

use crate::{cli::CanUninstall, output};
use anyhow::Result;
use larder_controllers::{
    api::Volume,
    client::{Access, Kube},
};
use larder_model::Fault;
use prometheus_client::registry::Registry;

/// As many volumes are named.
const NAMED: usize = 10;

/// Runs `larder can-uninstall`.
pub(crate) async fn run(flags: CanUninstall) -> Result<()> {
    if flags.drivers.is_empty() {
        output::note("there is no driver that volumes could need");
        return Ok(());
    }
    let access = Access { kubeconfig: flags.kubeconfig.clone(), ..Access::default() };
    let kube = Kube::new(&access, &mut Registry::default()).await?;
    let mut used = Vec::new();
    let mut look = |volumes: Vec<Volume>| {
        for volume in volumes {
            let driver = volume.spec.csi.as_ref().map(|csi| csi.driver.as_str());
            if driver.is_some_and(|driver| flags.drivers.iter().any(|of| of.as_str() == driver)) {
                used.push(named(&volume));
            }
        }
    };
    kube.list("", "", &mut look).await.map_err(Fault::from)?;
    if used.is_empty() {
        output::note("no PersistentVolume needs these drivers");
        return Ok(());
    }
    let more = used.len().saturating_sub(NAMED);
    let mut text = used[..used.len() - more].join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    let fault = Fault::precondition(format!(
        "uninstall: {} PersistentVolumes need these drivers: {text}",
        used.len()
    ));
    Err(fault
        .hint(
            "delete their claims first; or leave the volumes without a driver, data and mounts \
             staying as they are, with `helm uninstall --no-hooks`",
        )
        .into())
}

fn named(volume: &Volume) -> String {
    let name = &volume.metadata.name;
    match &volume.spec.claim_ref {
        Some(claim) => format!("{name} ({}/{})", claim.namespace, claim.name),
        None => name.clone(),
    }
}
