//! `larder can-uninstall`: whether a cluster still needs drivers.

use crate::{cli::CanUninstall, output};
use anyhow::Result;
use larder_controllers::{
    api::{Pod, Volume},
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
    if flags.inline {
        inline(&kube, &flags).await?;
    }
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

/// Refuses where a pod has a volume of one of the drivers that is defined in the pod itself: it would
/// hang while it ends.
async fn inline(kube: &Kube, flags: &CanUninstall) -> Result<()> {
    let mut used = Vec::new();
    let look = |pods: Vec<Pod>| {
        let ours = |name: &str| flags.drivers.iter().any(|driver| driver.as_str() == name);
        let pods = pods.into_iter().filter(|pod| pod.inline_drivers().any(ours));
        used.extend(pods.map(|pod| format!("{}/{}", pod.metadata.namespace, pod.metadata.name)));
    };
    kube.list("", "", look).await.map_err(Fault::from)?;
    if used.is_empty() {
        return Ok(());
    }
    let (count, more) = (used.len(), used.len().saturating_sub(NAMED));
    let mut text = used[..count - more].join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    let what =
        format!("uninstall: {count} pods have volumes of these drivers of their own: {text}");
    Err(Fault::precondition(what)
        .hint("delete the pods first: without the driver they hang while they end")
        .into())
}

fn named(volume: &Volume) -> String {
    let name = &volume.metadata.name;
    match &volume.spec.claim_ref {
        Some(claim) => format!("{name} ({}/{})", claim.namespace, claim.name),
        None => name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_needs_the_drivers_of_its_own_volumes_until_it_is_over() {
        let drivers = |phase: &str| -> Vec<String> {
            let volumes = json!([{"csi": {"driver": "ours"}}, {"emptyDir": {}}, {
                "persistentVolumeClaim": {"claimName": "data"},
            }]);
            let pod = json!({"spec": {"volumes": volumes}, "status": {"phase": phase}});
            let pod: Pod = serde_json::from_value(pod).unwrap();
            pod.inline_drivers().map(str::to_owned).collect()
        };
        assert_eq!(drivers("Running"), ["ours"]);
        assert_eq!(drivers("Pending"), ["ours"]);
        assert_eq!(drivers("Succeeded"), Vec::<String>::new());
    }
}
