//! Requests of the node service.

use super::{Check, field};
use larder_model::Result;
use larder_proto::csi;
use larder_volumes::node::{
    ExpandRequest, HealthRequest, PublishRequest, StageRequest, StatsRequest, UnpublishRequest,
    UnstageRequest,
};

impl Check for csi::NodeStageVolumeRequest {
    type Typed = StageRequest;
    fn subject(&self) -> Option<&str> {
        Some(&self.volume_id)
    }
    fn check(self) -> Result<StageRequest> {
        Ok(StageRequest {
            volume: field::id("volume_id", self.volume_id)?,
            staging_path: field::path("staging_target_path", self.staging_target_path)?,
            capability: field::capability("volume_capability", self.volume_capability)?,
            context: field::attributes("volume_context", self.volume_context)?,
            publish_context: field::attributes("publish_context", self.publish_context)?,
            secrets: field::secrets(self.secrets)?,
        })
    }
}

impl Check for csi::NodeUnstageVolumeRequest {
    type Typed = UnstageRequest;
    fn subject(&self) -> Option<&str> {
        Some(&self.volume_id)
    }
    fn check(self) -> Result<UnstageRequest> {
        Ok(UnstageRequest {
            volume: field::id("volume_id", self.volume_id)?,
            staging_path: field::path("staging_target_path", self.staging_target_path)?,
        })
    }
}

impl Check for csi::NodePublishVolumeRequest {
    type Typed = PublishRequest;
    fn subject(&self) -> Option<&str> {
        Some(&self.volume_id)
    }
    fn check(self) -> Result<PublishRequest> {
        let staging = "staging_target_path";
        Ok(PublishRequest {
            volume: field::id("volume_id", self.volume_id)?,
            // Whether it may be absent depends on the volume: the engine answers Precondition.
            staging_path: field::optional_path(staging, self.staging_target_path)?,
            target_path: field::path("target_path", self.target_path)?,
            capability: field::capability("volume_capability", self.volume_capability)?,
            readonly: self.readonly,
            context: field::attributes("volume_context", self.volume_context)?,
            publish_context: field::attributes("publish_context", self.publish_context)?,
            secrets: field::secrets(self.secrets)?,
        })
    }
}

impl Check for csi::NodeUnpublishVolumeRequest {
    type Typed = UnpublishRequest;
    fn subject(&self) -> Option<&str> {
        Some(&self.volume_id)
    }
    fn check(self) -> Result<UnpublishRequest> {
        Ok(UnpublishRequest {
            volume: field::id("volume_id", self.volume_id)?,
            target_path: field::path("target_path", self.target_path)?,
        })
    }
}

impl Check for csi::NodeGetVolumeStatsRequest {
    type Typed = StatsRequest;
    fn subject(&self) -> Option<&str> {
        Some(&self.volume_id)
    }
    fn check(self) -> Result<StatsRequest> {
        field::optional_path("staging_target_path", self.staging_target_path)?;
        Ok(StatsRequest {
            volume: field::id("volume_id", self.volume_id)?,
            volume_path: field::place("volume_path", self.volume_path)?,
        })
    }
}

impl Check for csi::NodeExpandVolumeRequest {
    type Typed = ExpandRequest;
    fn subject(&self) -> Option<&str> {
        Some(&self.volume_id)
    }
    fn check(self) -> Result<ExpandRequest> {
        let staging = "staging_target_path";
        Ok(ExpandRequest {
            volume: field::id("volume_id", self.volume_id)?,
            volume_path: field::place("volume_path", self.volume_path)?,
            staging_path: field::optional_path(staging, self.staging_target_path)?,
            range: field::optional_range("capacity_range", self.capacity_range)?
                .unwrap_or_default(),
            capability: field::optional_capability("volume_capability", self.volume_capability)?,
            secrets: field::secrets(self.secrets)?,
        })
    }
}

impl Check for csi::NodeGetVolumeHealthRequest {
    type Typed = HealthRequest;
    fn subject(&self) -> Option<&str> {
        Some(&self.volume_id)
    }
    fn check(self) -> Result<HealthRequest> {
        let (publish, staging) = ("volume_publish_path", "staging_target_path");
        Ok(HealthRequest {
            volume: field::id("volume_id", self.volume_id)?,
            publish_path: field::optional_path(publish, self.volume_publish_path)?,
            staging_path: field::optional_path(staging, self.staging_target_path)?,
        })
    }
}

impl Check for csi::NodeGetStorageHealthRequest {
    type Typed = ();
    fn check(self) -> Result<()> {
        field::secrets(self.secrets).map(drop)
    }
}
