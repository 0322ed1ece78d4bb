//! What a driver announces, derived from what its backend implements.

use larder_model::{AccessMode, Backend, volume::Scope};

/// Capabilities of the controller service (`ControllerServiceCapability.RPC.Type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ControllerCapability {
    /// Always.
    CreateDeleteVolume,
    /// `Provision::attach`.
    PublishUnpublishVolume,
    /// `Provision::list`.
    ListVolumes,
    /// `Provision::capacity`.
    GetCapacity,
    /// `Provision::snapshots`.
    CreateDeleteSnapshot,
    /// `Provision::snapshots`.
    ListSnapshots,
    /// `Provision::clones`.
    CloneVolume,
    /// `Provision::attach`.
    PublishReadonly,
    /// `Provision::expand`.
    ExpandVolume,
    /// `Provision::list` and `Provision::attach`.
    ListVolumesPublishedNodes,
    /// Always.
    GetVolume,
    /// The facts accept both newer single-node modes.
    SingleNodeMultiWriter,
    /// `Provision::modify`.
    ModifyVolume,
    /// `Provision::snapshots`.
    GetSnapshot,
    /// `Provision::health`.
    GetVolumeHealth,
    /// `Provision::health` and `Provision::list`.
    ListVolumeHealth,
}

/// Capabilities of the plugin as a whole (`PluginCapability`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PluginCapability {
    /// Always.
    ControllerService,
    /// The volumes have a place.
    VolumeAccessibilityConstraints,
    /// `Provision::groups`.
    GroupControllerService,
    /// `Provision::changed_blocks` and `Provision::snapshots`.
    SnapshotMetadataService,
    /// The volumes have a place, and so have their snapshots.
    SnapshotAccessibilityConstraints,
    /// Published volumes can grow.
    VolumeExpansionOnline,
    /// Only volumes that are not published can grow.
    VolumeExpansionOffline,
}

/// Whether both access modes that CSI 1.5 added are accepted. Callers send them only to drivers
/// that announce SINGLE_NODE_MULTI_WRITER (on the controller and on the node).
pub fn single_node_multi_writer(backend: &dyn Backend) -> bool {
    let modes = &backend.facts().access_modes;
    modes.contains(&AccessMode::SingleNodeSingleWriter)
        && modes.contains(&AccessMode::SingleNodeMultiWriter)
}

pub(super) fn controller(backend: &dyn Backend) -> Vec<ControllerCapability> {
    use ControllerCapability as C;
    let p = backend.provision();
    let (list, attach) = (p.list().is_some(), p.attach().is_some());
    let (snapshots, health) = (p.snapshots().is_some(), p.health().is_some());
    [
        (true, C::CreateDeleteVolume),
        (attach, C::PublishUnpublishVolume),
        (list, C::ListVolumes),
        (p.capacity().is_some(), C::GetCapacity),
        (snapshots, C::CreateDeleteSnapshot),
        (snapshots, C::ListSnapshots),
        (p.clones(), C::CloneVolume),
        (attach, C::PublishReadonly),
        (p.expand().is_some(), C::ExpandVolume),
        (list && attach, C::ListVolumesPublishedNodes),
        (true, C::GetVolume),
        (single_node_multi_writer(backend), C::SingleNodeMultiWriter),
        (p.modify().is_some(), C::ModifyVolume),
        (snapshots, C::GetSnapshot),
        (health, C::GetVolumeHealth),
        (health && list, C::ListVolumeHealth),
    ]
    .into_iter()
    .filter_map(|(has, capability)| has.then_some(capability))
    .collect()
}

pub(super) fn plugin(backend: &dyn Backend) -> Vec<PluginCapability> {
    use PluginCapability as C;
    let (p, facts) = (backend.provision(), backend.facts());
    let placed = facts.scope != Scope::Everywhere;
    let expand = p.expand().is_some();
    [
        (true, C::ControllerService),
        (placed, C::VolumeAccessibilityConstraints),
        (p.groups().is_some(), C::GroupControllerService),
        // Of snapshots: without them there is nothing to compare.
        (p.changed_blocks().is_some() && p.snapshots().is_some(), C::SnapshotMetadataService),
        (
            placed && facts.snapshot_topology && p.snapshots().is_some(),
            C::SnapshotAccessibilityConstraints,
        ),
        (expand && facts.online_expansion, C::VolumeExpansionOnline),
        (expand && !facts.online_expansion, C::VolumeExpansionOffline),
    ]
    .into_iter()
    .filter_map(|(has, capability)| has.then_some(capability))
    .collect()
}
