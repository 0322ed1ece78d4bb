//! The CreateVolume request of a claim, but for what must be looked up.

use super::{Settings, outcome::Failure, parameters};
use crate::{
    api::{Claim, SecretRef, StorageClass},
    driver::{Can, ControllerCan, PluginCan},
    modes,
    secrets::{self, Names, Use},
};
use larder_model::Fault;
use larder_proto::csi;

/// What a class and a claim ask for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The volume's name, and that of its PersistentVolume.
    pub name: String,
    /// Its file system; empty: the driver's choice.
    pub fs_type: String,
    /// The request, without secrets, source, topology and mutable parameters.
    pub request: csi::CreateVolumeRequest,
    /// The secrets by use.
    pub secrets: Vec<(Use, SecretRef)>,
}

impl Wanted {
    /// The secret for that use.
    pub fn secret(&self, of: Use) -> Option<&SecretRef> {
        self.secrets.iter().find(|(u, _)| *u == of).map(|(_, secret)| secret)
    }
}

/// Whether the driver can do what the claim needs at all.
///
/// # Errors
/// Final.
pub fn able(claim: &Claim, can: &Can) -> Result<(), Failure> {
    let refuse = |what: &str| Err(Failure::finished(&Fault::unsupported(what)));
    let class = claim.spec.volume_attributes_class_name.as_deref();
    if class.is_some_and(|c| !c.is_empty()) && !can.control(ControllerCan::ModifyVolume) {
        return refuse("use a VolumeAttributesClass: the driver cannot modify volumes");
    }
    if !can.plugin(PluginCan::ControllerService) || !can.control(ControllerCan::CreateDeleteVolume)
    {
        return refuse("make a volume: the driver makes none (CREATE_DELETE_VOLUME)");
    }
    if claim.spec.selector.is_some() {
        return Err(Failure::finished(
            &Fault::invalid("make a volume: the claim has a selector")
                .hint("a selector chooses among volumes that exist; take it out of the claim"),
        ));
    }
    Ok(())
}

/// The name of a claim's volume.
///
/// # Errors
/// Final, for an empty prefix.
pub fn name(uid: &str, settings: &Settings) -> Result<String, Failure> {
    let Settings { name_prefix, name_uid_length, .. } = settings;
    if name_prefix.is_empty() {
        return Err(Failure::finished(&Fault::invalid("name the volume: the prefix is empty")));
    }
    if uid.is_empty() {
        return Err(Failure::finished(&Fault::internal("name the volume: the claim has no UID")));
    }
    Ok(match name_uid_length {
        None => format!("{name_prefix}-{uid}"),
        Some(length) => {
            let plain: String = uid.chars().filter(|c| *c != '-').take(*length).collect();
            format!("{name_prefix}-{plain}")
        }
    })
}

/// What is asked for, but for parameters and secrets ([`complete`]: they are looked at last).
///
/// # Errors
/// Final.
pub fn wanted(
    claim: &Claim,
    class: &StorageClass,
    can: &Can,
    settings: &Settings,
) -> Result<Wanted, Failure> {
    use csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
    let finished = |fault: Fault| Failure::finished(&fault);
    let name = name(&claim.metadata.uid, settings)?;
    let fs_type =
        parameters::fs_type(&class.parameters, &settings.default_fs_type).map_err(finished)?;
    let newer = can.control(ControllerCan::SingleNodeMultiWriter);
    let modes = modes::each(&claim.spec.access_modes, newer).map_err(finished)?;
    let capability = |mode: &csi::volume_capability::access_mode::Mode| {
        let access_type = match claim.spec.is_block() {
            true => AccessType::Block(BlockVolume {}),
            false => AccessType::Mount(MountVolume {
                fs_type: fs_type.clone(),
                mount_flags: class.mount_options.clone(),
                volume_mount_group: String::new(),
            }),
        };
        csi::VolumeCapability {
            access_mode: Some(AccessMode { mode: (*mode).into() }),
            access_type: Some(access_type),
        }
    };
    let size = csi::CapacityRange { required_bytes: claim.spec.requested(), limit_bytes: 0 };
    let request = csi::CreateVolumeRequest {
        name: name.clone(),
        capacity_range: Some(size),
        volume_capabilities: modes.iter().map(capability).collect(),
        ..csi::CreateVolumeRequest::default()
    };
    Ok(Wanted { name, fs_type, request, secrets: Vec::new() })
}

/// Adds the parameters, and which secrets there are.
///
/// # Errors
/// Final for parameters; no change for secrets, whose names may depend on what can still change.
pub fn complete(
    wanted: &mut Wanted,
    claim: &Claim,
    class: &StorageClass,
    settings: &Settings,
) -> Result<(), Failure> {
    let names = Names {
        volume: &wanted.name,
        namespace: &claim.metadata.namespace,
        claim: &claim.metadata.name,
        annotations: Some(&claim.metadata.annotations),
    };
    let mut found = Vec::new();
    for of in Use::ALL {
        let secret = secrets::resolve(&class.parameters, of, names)
            .map_err(|fault| Failure::no_change(&fault))?;
        found.extend(secret.map(|secret| (of, secret)));
    }
    let mut told =
        parameters::for_driver(&class.parameters).map_err(|fault| Failure::finished(&fault))?;
    if settings.extra_metadata {
        told.extend(parameters::metadata(names.claim, names.namespace, names.volume));
    }
    wanted.request.parameters = told;
    wanted.secrets = found;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::outcome::State;
    use rstest::rstest;
    use serde_json::{Value, json};

    fn wanted(
        claim: &Claim,
        class: &StorageClass,
        can: &Can,
        settings: &Settings,
    ) -> Result<Wanted, Failure> {
        let mut wanted = super::wanted(claim, class, can, settings)?;
        complete(&mut wanted, claim, class, settings)?;
        Ok(wanted)
    }

    fn can() -> Can {
        Can {
            plugin: [PluginCan::ControllerService].into(),
            controller: [ControllerCan::CreateDeleteVolume].into(),
        }
    }

    fn claim(spec: Value) -> Claim {
        serde_json::from_value(json!({
            "metadata": {"name": "data", "namespace": "shop", "uid": "0a1b-2c3d"},
            "spec": spec,
        }))
        .unwrap()
    }

    fn class(parameters: Value) -> StorageClass {
        serde_json::from_value(
            json!({"provisioner": "d", "parameters": parameters, "mountOptions": ["noatime"]}),
        )
        .unwrap()
    }

    #[test]
    fn a_claim_is_asked_for_as_it_is() {
        let claim = claim(json!({
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany"],
            "resources": {"requests": {"storage": "1.5Gi"}},
        }));
        let class = class(json!({"pool": "fast", "csi.storage.k8s.io/fstype": "xfs"}));
        let settings = Settings { extra_metadata: true, ..Settings::default() };
        let wanted = wanted(&claim, &class, &can(), &settings).unwrap();
        assert_eq!(wanted.name, "pvc-0a1b-2c3d");
        let request = wanted.request;
        assert_eq!(request.name, "pvc-0a1b-2c3d");
        assert_eq!(request.capacity_range.unwrap().required_bytes, 1_610_612_736);
        assert_eq!(request.capacity_range.unwrap().limit_bytes, 0);
        let modes: Vec<_> = request
            .volume_capabilities
            .iter()
            .map(|c| {
                let Some(csi::volume_capability::AccessType::Mount(mount)) = &c.access_type else {
                    panic!("a mount")
                };
                assert_eq!(
                    (mount.fs_type.as_str(), &mount.mount_flags[..]),
                    ("xfs", &["noatime".to_owned()][..])
                );
                c.access_mode.unwrap().mode().as_str_name()
            })
            .collect();
        assert_eq!(modes, ["SINGLE_NODE_WRITER", "MULTI_NODE_READER_ONLY"]);
        let told: Vec<_> = request.parameters.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            told,
            [
                "csi.storage.k8s.io/pv/name=pvc-0a1b-2c3d",
                "csi.storage.k8s.io/pvc/name=data",
                "csi.storage.k8s.io/pvc/namespace=shop",
                "pool=fast",
            ]
        );
    }

    #[rstest]
    #[case("pvc", None, Some("pvc-0a1b-2c3d"))]
    #[case("vol", Some(6), Some("vol-0a1b2c"))]
    #[case("vol", Some(99), Some("vol-0a1b2c3d"))]
    #[case("", None, None)]
    fn volumes_are_named_by_the_claims_uid(
        #[case] prefix: &str,
        #[case] length: Option<usize>,
        #[case] wanted: Option<&str>,
    ) {
        let settings = Settings {
            name_prefix: prefix.to_owned(),
            name_uid_length: length,
            ..Settings::default()
        };
        assert_eq!(name("0a1b-2c3d", &settings).ok().as_deref(), wanted);
    }

    #[rstest]
    #[case(json!({"selector": {}}), can(), Some("selector"))]
    #[case(json!({"volumeAttributesClassName": "gold"}), can(), Some("modify"))]
    #[case(json!({"volumeAttributesClassName": ""}), can(), None)]
    #[case(json!({}), Can::default(), Some("CREATE_DELETE_VOLUME"))]
    #[case(json!({}), Can { plugin: [].into(), ..can() }, Some("CREATE_DELETE_VOLUME"))]
    #[case(json!({}), can(), None)]
    fn what_a_driver_cannot_do_is_final(
        #[case] spec: Value,
        #[case] can: Can,
        #[case] refused: Option<&str>,
    ) {
        let failure = able(&claim(spec), &can).err();
        assert_eq!(failure.is_some(), refused.is_some());
        if let (Some(failure), Some(why)) = (failure, refused) {
            assert_eq!(failure.state, State::Finished);
            assert!(failure.message.contains(why), "{}", failure.message);
        }
    }

    #[rstest]
    #[case(json!({"csi.storage.k8s.io/odd": "x"}), State::Finished)]
    #[case(json!({"fstype": "a", "fsType": "b"}), State::Finished)]
    #[case(json!({"csi.storage.k8s.io/node-stage-secret-name": "x"}), State::NoChange)]
    fn a_wrong_class_says_so(#[case] parameters: Value, #[case] state: State) {
        let claim = claim(json!({"accessModes": ["ReadWriteOnce"]}));
        let settings = Settings::default();
        let failure = wanted(&claim, &class(parameters), &can(), &settings).unwrap_err();
        assert_eq!(failure.state, state);
    }

    #[test]
    fn a_raw_device_has_no_file_system_and_one_mode_by_itself() {
        let claim = claim(json!({"accessModes": ["ReadWriteOncePod"], "volumeMode": "Block"}));
        let mut can = can();
        can.controller.insert(ControllerCan::SingleNodeMultiWriter);
        let wanted = wanted(&claim, &class(json!({})), &can, &Settings::default()).unwrap();
        let [only] = &wanted.request.volume_capabilities[..] else { panic!("one") };
        assert!(matches!(only.access_type, Some(csi::volume_capability::AccessType::Block(_))));
        assert_eq!(only.access_mode.unwrap().mode().as_str_name(), "SINGLE_NODE_SINGLE_WRITER");
    }
}
