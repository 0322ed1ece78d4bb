//! What the driver is asked for an attachment, but for the secrets.

use crate::{
    api::{Attachment, CsiNode, SecretRef, Volume, VolumeSpec},
    driver::{Can, ControllerCan},
    modes,
};
use larder_model::{Fault, Result};
use larder_proto::csi;

/// What the driver calls the node, noted on the attachment: the node may be gone when it is detached.
pub const NODE_ID: &str = "csi.alpha.kubernetes.io/node-id";

/// The volume of an attachment: by name, or in full (volumes of migrated drivers).
#[derive(Debug, Clone, Copy)]
pub enum Subject<'a> {
    /// Of that name.
    Named(&'a str),
    /// In the attachment itself.
    Inline(&'a VolumeSpec),
}

/// The volume that an attachment is about.
///
/// # Errors
/// `Invalid` where it names none or two.
pub fn subject(attachment: &Attachment) -> Result<Subject<'_>> {
    let source = &attachment.spec.source;
    match (&source.persistent_volume_name, &source.inline_volume_spec) {
        (Some(name), None) => Ok(Subject::Named(name)),
        (None, Some(spec)) => Ok(Subject::Inline(spec)),
        (None, None) => Err(Fault::invalid("use the VolumeAttachment: it names no volume")),
        (Some(_), Some(_)) => Err(Fault::invalid("use the VolumeAttachment: it names two volumes")),
    }
}

/// The volume as it is, fit to be attached or detached.
///
/// # Errors
/// `NotFound` where there is none, `Precondition` where it is deleted and shall be attached.
pub fn volume<'a>(name: &str, known: Option<&'a Volume>, attaching: bool) -> Result<&'a Volume> {
    let volume = known.ok_or_else(|| {
        Fault::not_found(format!("find PersistentVolume {name}: there is none of this driver"))
    })?;
    if attaching && volume.metadata.is_deleting() {
        return Err(Fault::precondition(format!(
            "attach PersistentVolume {name}: it is being deleted"
        )));
    }
    Ok(volume)
}

/// What the driver calls the node. A new attachment goes where the node is now; an old one may be
/// left over from where it was.
///
/// # Errors
/// `NotFound` where the driver does not run there.
pub fn node_id(
    attachment: &Attachment,
    driver: &str,
    node: Option<&CsiNode>,
    noted: bool,
) -> Result<String> {
    let found = node.and_then(|n| n.driver(driver)).map(|d| d.node_id.clone());
    let old = attachment.metadata.annotation(NODE_ID).filter(|_| noted).map(str::to_owned);
    found.or(old).filter(|id| !id.is_empty()).ok_or_else(|| {
        let name = &attachment.spec.node_name;
        Fault::not_found(format!("find node {name} in driver {driver}: CSINode does not list it"))
            .hint("see whether the driver runs on the node and has registered with kubelet")
    })
}

/// What is asked for, and which secret belongs to it.
#[derive(Debug)]
pub struct Asked {
    /// Without secrets.
    pub request: csi::ControllerPublishVolumeRequest,
    /// Of ControllerPublishVolume.
    pub secret: Option<SecretRef>,
}

/// What the driver is asked to attach.
///
/// # Errors
/// `Unsupported` for a volume that is not of a CSI driver, `Invalid` for access modes that no driver
/// can be told.
pub fn publish(
    spec: &VolumeSpec,
    node_id: String,
    can: &Can,
    default_fs_type: &str,
) -> Result<Asked> {
    use csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
    let csi = csi_of(spec)?;
    let newer = can.control(ControllerCan::SingleNodeMultiWriter);
    let mode = modes::combined(&spec.access_modes, newer)?;
    let access_type = match spec.is_block() {
        true => AccessType::Block(BlockVolume {}),
        false => AccessType::Mount(MountVolume {
            fs_type: match csi.fs_type.as_str() {
                "" => default_fs_type.to_owned(),
                own => own.to_owned(),
            },
            mount_flags: spec.mount_options.clone(),
            volume_mount_group: String::new(),
        }),
    };
    let capability = csi::VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(access_type),
    };
    let request = csi::ControllerPublishVolumeRequest {
        volume_id: csi.volume_handle.clone(),
        node_id,
        volume_capability: Some(capability),
        readonly: csi.read_only && can.control(ControllerCan::PublishReadonly),
        volume_context: csi.volume_attributes.clone(),
        ..csi::ControllerPublishVolumeRequest::default()
    };
    Ok(Asked { request, secret: csi.controller_publish_secret_ref.clone() })
}

/// The driver's part of a volume.
///
/// # Errors
/// `Unsupported` for a volume of another kind.
pub fn csi_of(spec: &VolumeSpec) -> Result<&crate::api::CsiSource> {
    // Here a volume of a driver that was part of Kubernetes would be translated.
    spec.csi.as_ref().ok_or_else(|| {
        Fault::unsupported("use the volume: it is not one of a CSI driver")
            .hint("volumes of drivers that were part of Kubernetes are not translated here")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn attachment(value: Value) -> Attachment {
        serde_json::from_value(value).unwrap()
    }

    fn can(all: &[ControllerCan]) -> Can {
        Can { controller: all.iter().copied().collect(), ..Can::default() }
    }

    fn asked(spec: Value, all: &[ControllerCan]) -> Result<Asked> {
        let spec: VolumeSpec = serde_json::from_value(spec).unwrap();
        publish(&spec, "id".to_owned(), &can(all), "ext4")
    }

    #[test]
    fn an_attachment_is_about_one_volume() {
        let of = |source: Value| attachment(json!({"spec": {"source": source}}));
        let named = of(json!({"persistentVolumeName": "pv"}));
        assert!(matches!(subject(&named), Ok(Subject::Named("pv"))));
        let inline = of(json!({"inlineVolumeSpec": {"csi": {"driver": "d"}}}));
        assert!(matches!(subject(&inline), Ok(Subject::Inline(_))));
        let both = json!({"persistentVolumeName": "pv", "inlineVolumeSpec": {}});
        for wrong in [json!({}), both] {
            assert!(subject(&of(wrong)).is_err());
        }
    }

    #[test]
    fn a_volume_that_is_deleted_is_detached_and_not_attached() {
        let one: Volume = serde_json::from_value(
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
        )
        .unwrap();
        assert!(volume("pv", Some(&one), false).is_ok());
        let refused = volume("pv", Some(&one), true).unwrap_err();
        assert!(refused.to_string().contains("being deleted"), "{refused}");
        assert!(volume("pv", None, false).is_err());
    }

    #[rstest]
    #[case(Some("now"), Some("before"), true, Some("now"))]
    #[case(Some("now"), None, false, Some("now"))]
    #[case(None, Some("before"), true, Some("before"))]
    #[case(None, Some("before"), false, None)]
    #[case(None, None, true, None)]
    #[case(None, Some(""), true, None)]
    fn the_node_is_called_as_the_driver_calls_it(
        #[case] here: Option<&str>,
        #[case] noted: Option<&str>,
        #[case] may_be_old: bool,
        #[case] wanted: Option<&str>,
    ) {
        let one = attachment(json!({
            "metadata": {"annotations": noted.map(|id| json!({NODE_ID: id})).unwrap_or(json!({}))},
            "spec": {"nodeName": "n1"},
        }));
        let drivers: Vec<_> =
            here.map(|id| json!({"name": "d", "nodeID": id})).into_iter().collect();
        let node: CsiNode = serde_json::from_value(json!({"spec": {"drivers": drivers}})).unwrap();
        let found = node_id(&one, "d", Some(&node), may_be_old);
        assert_eq!(found.ok().as_deref(), wanted);
        let found = node_id(&one, "d", None, may_be_old).ok();
        assert_eq!(found.is_some(), may_be_old && noted.is_some_and(|n| !n.is_empty()));
    }

    #[test]
    fn the_driver_is_asked_for_the_volume_as_it_is() {
        let spec = json!({
            "accessModes": ["ReadWriteOnce"], "mountOptions": ["noatime"],
            "csi": {
                "driver": "d", "volumeHandle": "h", "readOnly": true,
                "volumeAttributes": {"pool": "p"},
                "controllerPublishSecretRef": {"name": "key", "namespace": "sys"},
            },
        });
        let asked_for = asked(spec.clone(), &[]).unwrap();
        let request = asked_for.request;
        assert_eq!((request.volume_id.as_str(), request.node_id.as_str()), ("h", "id"));
        assert!(!request.readonly, "the driver cannot");
        assert_eq!(request.volume_context["pool"], "p");
        assert_eq!(asked_for.secret.unwrap().name, "key");
        let capability = request.volume_capability.unwrap();
        let Some(csi::volume_capability::AccessType::Mount(mount)) = capability.access_type else {
            panic!("no mount")
        };
        assert_eq!((mount.fs_type.as_str(), mount.mount_flags.len()), ("ext4", 1));
        assert!(asked(spec, &[ControllerCan::PublishReadonly]).unwrap().request.readonly);
    }

    #[test]
    fn what_no_driver_can_be_told_is_refused() {
        let modes =
            json!({"accessModes": ["ReadOnlyMany", "ReadWriteOnce"], "csi": {"driver": "d"}});
        assert_eq!(asked(modes, &[]).unwrap_err().kind(), larder_model::Kind::Invalid);
        let local = json!({"accessModes": ["ReadWriteOnce"]});
        assert_eq!(asked(local, &[]).unwrap_err().kind(), larder_model::Kind::Unsupported);
    }
}
