//! The node's half of the memory backend. What a node gets is up to [`super::Memory::source`].

use super::MemoryBackend;
use async_trait::async_trait;
use larder_model::{
    AccessMode, AccessType, Bytes, Connect, Cx, Fault, MountAccess, Result, Secrets,
    VolumeCapability, VolumeId,
    backend::{Attachment, ConnectRequest, Source},
    volume::{Attributes, FormatState, HealthEntry, VolumeUsage},
};

#[async_trait]
impl Connect for MemoryBackend {
    async fn connect(&self, request: &ConnectRequest, cx: &Cx) -> Result<(Source, Attachment)> {
        let work = async {
            self.store().volume(&request.id)?;
            let of = self.settings.source.as_ref().ok_or_else(|| {
                Fault::precondition("connect a volume of a backend that only exists in memory")
            })?;
            cx.step("connect it")?;
            let source = of(request)?;
            self.store().connected.insert(request.id.as_str().to_owned());
            let id = request.id.to_string();
            Ok((source, Attachment::from([("connected".to_owned(), id)])))
        };
        self.injections.call("connect", work).await
    }

    async fn find(&self, id: &VolumeId) -> Result<Option<(Source, Attachment)>> {
        let work = async {
            self.store().volume(id)?;
            let connected = self.store().connected.contains(id.as_str());
            let Some(of) = self.settings.source.as_ref().filter(|_| connected) else {
                return Ok(None);
            };
            let request = ConnectRequest {
                id: id.clone(),
                capability: VolumeCapability {
                    access: AccessType::Mount(MountAccess::default()),
                    mode: AccessMode::SingleNodeWriter,
                },
                readonly: false,
                context: Attributes::new(),
                publish_context: Attributes::new(),
                secrets: Secrets::default(),
            };
            Ok(Some((of(&request)?, Attachment::from([("connected".to_owned(), id.to_string())]))))
        };
        self.injections.call("find", work).await
    }

    async fn disconnect(&self, id: &VolumeId, _: Option<&Attachment>, cx: &Cx) -> Result<()> {
        let work = async {
            cx.step("disconnect it")?;
            self.store().connected.remove(id.as_str());
            Ok(())
        };
        self.injections.call("disconnect", work).await
    }

    async fn is_connected(&self, id: &VolumeId, _: &Attachment) -> Result<bool> {
        let work = async { Ok(self.store().connected.contains(id.as_str())) };
        self.injections.call("is_connected", work).await
    }

    async fn format_state(&self, id: &VolumeId) -> Result<FormatState> {
        let work = async { self.store().volume(id).map(|v| v.format) };
        self.injections.call("format_state", work).await
    }

    async fn set_format_state(&self, id: &VolumeId, state: FormatState) -> Result<()> {
        let work = async {
            self.store().volume_mut(id)?.format = state;
            Ok(())
        };
        self.injections.call("set_format_state", work).await
    }

    async fn refresh_size(&self, id: &VolumeId, _: &Attachment, _: &Cx) -> Result<Bytes> {
        let work = async { self.store().volume(id).map(|v| v.volume.capacity) };
        self.injections.call("refresh_size", work).await
    }

    async fn usage(&self, id: &VolumeId) -> Result<Option<VolumeUsage>> {
        let work = async { self.store().volume(id).map(|_| None) };
        self.injections.call("usage", work).await
    }

    async fn node_health(&self, id: &VolumeId, _: Option<&Attachment>) -> Result<Vec<HealthEntry>> {
        let work = async { self.store().volume(id).map(|v| v.health.clone()) };
        self.injections.call("node_health", work).await
    }
}
