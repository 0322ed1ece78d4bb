//! `kubectl larder get volumes`

use super::flags::{Get, GetVolumes};
use crate::output::{self, Row};
use anyhow::Result;
use larder_controllers::{
    api::{Attachment, Claim, Node, Object, Place, Pod, Volume},
    client::Kube,
    why::{Listed, Snapshot, listed},
};
use serde_json::Value;

impl Row for Listed {
    const HEADINGS: &'static [&'static str] = &[
        "VOLUME",
        "CLAIM",
        "SIZE",
        "NODE",
        "STATE",
        "CONDITION",
        "USED BY",
        "DRIVER",
        "CLASS",
        "HANDLE",
    ];
    const NARROW: usize = 6;
    fn cells(&self) -> Vec<String> {
        vec![
            self.volume.clone(),
            self.claim.clone(),
            self.size.clone(),
            self.nodes.join(","),
            self.state.clone(),
            self.conditions.join("; "),
            self.used_by.join(","),
            self.driver.clone(),
            self.class.clone(),
            self.handle.clone(),
        ]
    }
}

/// Runs `kubectl larder get`.
pub(crate) async fn run(command: Get) -> Result<()> {
    let Get::Volumes(flags) = command;
    let kube = flags.cluster.kube().await?;
    let see = look(&kube, &flags).await?;
    let mut rows = listed(&see);
    rows.retain(|row| {
        let claim = row.claim.split_once('/').map_or("", |(namespace, _)| namespace);
        flags.namespace.as_deref().is_none_or(|wanted| wanted == claim)
            && flags.driver.as_deref().is_none_or(|wanted| wanted == row.driver)
    });
    for why in &see.unseen {
        output::note(format!("not looked at: failed to {why}"));
    }
    output::list(flags.output.output, &rows)
}

async fn look(kube: &Kube, flags: &GetVolumes) -> Result<Snapshot> {
    let all =
        |place: Place, namespace: String| async move { kube.look_all(place, &namespace, "").await };
    let namespace = flags.namespace.clone().unwrap_or_default();
    let (volumes, claims, pods, nodes, attachments) = futures::join!(
        all(Volume::PLACE, String::new()),
        all(Claim::PLACE, namespace.clone()),
        all(Pod::PLACE, namespace),
        all(Node::PLACE, String::new()),
        all(Attachment::PLACE, String::new()),
    );
    // Without the volumes there is nothing to list; the rest only says more about them.
    let volumes = volumes.map_err(larder_model::Fault::from)?;
    let mut unseen = Vec::new();
    let mut rest = |found: Result<Vec<Value>, larder_controllers::client::ApiError>| {
        found.unwrap_or_else(|error| {
            unseen.push(error.to_string());
            Vec::new()
        })
    };
    let (claims, pods, nodes) = (rest(claims), rest(pods), rest(nodes));
    let attachments = rest(attachments);
    Ok(Snapshot { volumes, claims, pods, nodes, attachments, unseen, ..Snapshot::default() })
}
