//! What the driver says is attached, against what the attachments say.
//!
//! A volume that somebody has detached behind everybody's back (in a console, or with the machine) is
//! attached again; one whose detachment has not happened is detached again. What is attached without
//! an attachment is nobody's business here.

use super::{Attacher, Inner, request};
use crate::{
    api::{Attachment, Key, Object},
    client::Priority,
};
use larder_proto::csi;
use std::collections::{BTreeMap, BTreeSet};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Volumes with the nodes that they are attached to.
type Published = BTreeMap<String, BTreeSet<String>>;

impl Attacher {
    /// Compares again and again, until `stop`.
    pub(super) async fn reconcile(&self, stop: &CancellationToken) {
        let Inner { parts, .. } = &*self.0;
        loop {
            let pause = tokio::time::sleep(parts.settings.reconcile);
            if stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
            let round = tokio::time::timeout(parts.driver.timeout(), self.compare());
            match stop.run_until_cancelled(round).await {
                None => return,
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(status))) => {
                    tracing::warn!("failed to list what is attached: {}", status.message());
                }
                Some(Err(_)) => tracing::warn!("failed to list what is attached in time"),
            }
        }
    }

    async fn compare(&self) -> Result<(), Status> {
        let Inner { parts, attachments, .. } = &*self.0;
        // Before the driver is asked: what is attached meanwhile is in its answer.
        let known = parts.cache.attachments.all();
        if known.is_empty() {
            return Ok(());
        }
        let published = self.published().await?;
        let ours = known.iter().filter(|a| a.spec.attacher == parts.driver.name());
        for attachment in ours {
            let Some((handle, node)) = self.place(attachment) else { continue };
            let now = parts.cache.attachments.get(&attachment.key());
            let same = now.is_some_and(|now| now.status.attached == attachment.status.attached);
            if same && differs(attachment.status.attached, &published, &handle, &node) {
                tracing::info!(
                    attachment = attachment.metadata.name,
                    attached = attachment.status.attached,
                    "the driver says otherwise: asking it again"
                );
                self.forced().insert(attachment.metadata.name.clone());
                attachments.add(attachment.key(), Priority::Retry);
            }
        }
        Ok(())
    }

    /// Which volume an attachment attaches to which node, in the driver's words.
    fn place(&self, attachment: &Attachment) -> Option<(String, String)> {
        let super::Parts { cache, driver, .. } = &self.0.parts;
        let csi_node = cache.csi_nodes.get(&Key::cluster(&attachment.spec.node_name));
        let node = request::node_id(attachment, driver.name(), csi_node.as_deref(), true).ok()?;
        let handle = match request::subject(attachment).ok()? {
            request::Subject::Inline(spec) => spec.csi.as_ref()?.volume_handle.clone(),
            request::Subject::Named(name) => {
                let volume = cache.volumes.get(&Key::cluster(name))?;
                volume.spec.csi.as_ref()?.volume_handle.clone()
            }
        };
        Some((handle, node))
    }

    async fn published(&self) -> Result<Published, Status> {
        let super::Parts { driver, settings, .. } = &self.0.parts;
        let (mut published, mut token) = (Published::new(), String::new());
        loop {
            let asked = csi::ListVolumesRequest {
                max_entries: settings.page,
                starting_token: std::mem::take(&mut token),
            };
            let page = driver.list_volumes(asked).await?;
            for entry in page.entries {
                if let (Some(volume), Some(status)) = (entry.volume, entry.status) {
                    let nodes = published.entry(volume.volume_id).or_default();
                    nodes.extend(status.published_node_ids);
                }
            }
            token = page.next_token;
            if token.is_empty() {
                return Ok(published);
            }
        }
    }
}

fn differs(attached: bool, published: &Published, handle: &str, node: &str) -> bool {
    attached != published.get(handle).is_some_and(|nodes| nodes.contains(node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_compared_with_what_the_driver_says() {
        let published: Published = [("v".to_owned(), ["n1".to_owned()].into())].into();
        assert!(!differs(true, &published, "v", "n1"));
        assert!(differs(false, &published, "v", "n1"));
        assert!(differs(true, &published, "v", "n2"));
        assert!(!differs(false, &published, "v", "n2"));
        assert!(differs(true, &published, "gone", "n1"));
    }
}
