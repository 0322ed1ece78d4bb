//! Short ways to build and read the messages that wrap one value in three
//! layers.

use crate::csi::volume_capability::{
    AccessMode, AccessType, BlockVolume, MountVolume, access_mode,
};
use crate::csi::{
    ControllerServiceCapability, GroupControllerServiceCapability, NodeServiceCapability,
    PluginCapability, VolumeCapability, controller_service_capability,
    group_controller_service_capability, node_service_capability, plugin_capability,
};

/// `From<rpc::Type>` and a reader for the capabilities of one service.
macro_rules! rpc_capability {
    ($capability:ident, $module:ident) => {
        impl From<$module::rpc::Type> for $capability {
            fn from(kind: $module::rpc::Type) -> Self {
                let rpc = $module::Rpc { r#type: kind.into() };
                Self { r#type: Some($module::Type::Rpc(rpc)) }
            }
        }

        impl $capability {
            /// The capability meant; none for one that is unset, `UNKNOWN` or
            /// newer than this crate.
            #[must_use]
            pub fn kind(&self) -> Option<$module::rpc::Type> {
                let Some($module::Type::Rpc(rpc)) = self.r#type else { return None };
                $module::rpc::Type::try_from(rpc.r#type)
                    .ok()
                    .filter(|kind| *kind != $module::rpc::Type::Unknown)
            }
        }
    };
}

rpc_capability!(ControllerServiceCapability, controller_service_capability);
rpc_capability!(NodeServiceCapability, node_service_capability);
rpc_capability!(GroupControllerServiceCapability, group_controller_service_capability);

impl From<plugin_capability::service::Type> for PluginCapability {
    fn from(kind: plugin_capability::service::Type) -> Self {
        let service = plugin_capability::Service { r#type: kind.into() };
        Self { r#type: Some(plugin_capability::Type::Service(service)) }
    }
}

impl From<plugin_capability::volume_expansion::Type> for PluginCapability {
    fn from(kind: plugin_capability::volume_expansion::Type) -> Self {
        let expansion = plugin_capability::VolumeExpansion { r#type: kind.into() };
        Self { r#type: Some(plugin_capability::Type::VolumeExpansion(expansion)) }
    }
}

impl PluginCapability {
    /// The service meant; none for any other capability, and for a service
    /// that is `UNKNOWN` or newer than this crate.
    #[must_use]
    pub fn service_kind(&self) -> Option<plugin_capability::service::Type> {
        use plugin_capability::service::Type;
        let Some(plugin_capability::Type::Service(service)) = self.r#type else { return None };
        Type::try_from(service.r#type).ok().filter(|kind| *kind != Type::Unknown)
    }

    /// The kind of expansion meant; none for any other capability, and for a
    /// kind that is `UNKNOWN` or newer than this crate.
    #[must_use]
    pub fn expansion_kind(&self) -> Option<plugin_capability::volume_expansion::Type> {
        use plugin_capability::volume_expansion::Type;
        let Some(plugin_capability::Type::VolumeExpansion(expansion)) = self.r#type else {
            return None;
        };
        Type::try_from(expansion.r#type).ok().filter(|kind| *kind != Type::Unknown)
    }
}

impl VolumeCapability {
    /// Use as a raw block device.
    #[must_use]
    pub fn raw_block(mode: access_mode::Mode) -> Self {
        Self {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Block(BlockVolume {})),
        }
    }

    /// Use as a mounted file system. An empty `fs_type` leaves the choice to
    /// the driver.
    #[must_use]
    pub fn mounted(fs_type: &str, mount_flags: &[&str], mode: access_mode::Mode) -> Self {
        let mount = MountVolume {
            fs_type: fs_type.to_owned(),
            mount_flags: mount_flags.iter().map(|&flag| flag.to_owned()).collect(),
            volume_mount_group: String::new(),
        };
        Self {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(mount)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use access_mode::Mode;

    #[test]
    fn a_capability_gives_back_the_kind_it_was_made_of() {
        use controller_service_capability::rpc::Type as Controller;
        use group_controller_service_capability::rpc::Type as Group;
        use node_service_capability::rpc::Type as Node;
        use plugin_capability::service::Type as Service;
        use plugin_capability::volume_expansion::Type as Expansion;

        let kind = Controller::CloneVolume;
        assert_eq!(ControllerServiceCapability::from(kind).kind(), Some(kind));
        let kind = Node::VolumeMountGroup;
        assert_eq!(NodeServiceCapability::from(kind).kind(), Some(kind));
        let kind = Group::CreateDeleteGetVolumeGroupSnapshot;
        assert_eq!(GroupControllerServiceCapability::from(kind).kind(), Some(kind));

        let service = PluginCapability::from(Service::ControllerService);
        assert_eq!(service.service_kind(), Some(Service::ControllerService));
        assert_eq!(service.expansion_kind(), None);
        let expansion = PluginCapability::from(Expansion::Online);
        assert_eq!(expansion.expansion_kind(), Some(Expansion::Online));
        assert_eq!(expansion.service_kind(), None);
    }

    #[test]
    fn a_capability_that_is_unset_unknown_or_newer_has_no_kind() {
        use node_service_capability::{Rpc, Type, rpc};

        assert_eq!(NodeServiceCapability::default().kind(), None);
        assert_eq!(NodeServiceCapability::from(rpc::Type::Unknown).kind(), None);
        let newer = NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: 4711 })) };
        assert_eq!(newer.kind(), None);

        assert_eq!(PluginCapability::default().service_kind(), None);
        let newer = plugin_capability::Service { r#type: 4711 };
        let newer = PluginCapability { r#type: Some(plugin_capability::Type::Service(newer)) };
        assert_eq!(newer.service_kind(), None);
        let newer = plugin_capability::VolumeExpansion { r#type: 4711 };
        let newer =
            PluginCapability { r#type: Some(plugin_capability::Type::VolumeExpansion(newer)) };
        assert_eq!(newer.expansion_kind(), None);
    }

    #[test]
    fn a_volume_capability_says_how_and_by_whom() {
        let block = VolumeCapability::raw_block(Mode::SingleNodeWriter);
        assert_eq!(block.access_type, Some(AccessType::Block(BlockVolume {})));
        assert_eq!(block.access_mode.map(|access| access.mode()), Some(Mode::SingleNodeWriter));

        let mount = VolumeCapability::mounted("xfs", &["noatime"], Mode::MultiNodeMultiWriter);
        let Some(AccessType::Mount(how)) = mount.access_type else { panic!("not a mount") };
        assert_eq!(
            (how.fs_type.as_str(), how.mount_flags.as_slice()),
            ("xfs", &["noatime".into()][..])
        );
        assert_eq!(mount.access_mode.map(|access| access.mode()), Some(Mode::MultiNodeMultiWriter));
    }
}
