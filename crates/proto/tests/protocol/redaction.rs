//! `Debug` of no message shows a secret, and of every message all the rest.

use std::collections::BTreeSet;
use std::fmt::Debug;

use larder_proto::csi::volume_capability::{AccessType, MountVolume};
use larder_proto::csi::{NodePublishVolumeRequest, VolumeCapability};
use larder_proto::snapshotmetadata::GetMetadataDeltaRequest;
use larder_proto::{STRIPPED, csi};
use prost::Message;

use crate::{descriptors, fill, message_names, tables};

#[test]
fn no_message_shows_a_secret_and_every_message_shows_the_rest() {
    let mut seen = BTreeSet::new();
    macro_rules! check {
        ($name:literal, $message:ty) => {
            assert_hides_only_secrets::<$message>($name);
            seen.insert($name.to_owned());
        };
    }
    every_message!(check);
    assert_eq!(seen, message_names());
}

fn assert_hides_only_secrets<T: Message + Default + Debug>(name: &str) {
    let descriptor = descriptors().get_message_by_name(name).unwrap();
    for filled in fill::every_case(&descriptor) {
        let message = T::decode(filled.message.encode_to_vec().as_slice()).unwrap();
        for shown in [format!("{message:?}"), format!("{message:#?}")] {
            for secret in &filled.secret {
                assert!(!shown.contains(secret.as_str()), "{name} shows {secret}: {shown}");
            }
            for open in &filled.open {
                assert!(shown.contains(open.as_str()), "{name} hides {open}: {shown}");
            }
            let stripped = shown.matches(STRIPPED).count();
            assert_eq!(stripped, filled.secret.len(), "stripped values in {name}: {shown}");
        }
    }
}

/// Guards the test above: were its list of secret fields empty, or of fields
/// that do not exist, it would prove nothing.
#[test]
fn every_field_that_must_be_hidden_exists() {
    let pool = descriptors();
    let secret = tables::secret_fields();
    assert!(secret.len() > 20, "only {} secret fields", secret.len());
    for name in secret {
        let (message, field) = name.rsplit_once('.').unwrap();
        let message = pool.get_message_by_name(message).unwrap();
        assert!(message.get_field_by_name(field).is_some(), "{name}");
    }
}

fn a_publish_request() -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: "pool/vol-1".to_owned(),
        secrets: [("password".to_owned(), "hunter2".to_owned())].into(),
        volume_context: [
            (fill::TOKENS_KEY.to_owned(), "eyJhbGciOi".to_owned()),
            ("pool".to_owned(), "fast".to_owned()),
        ]
        .into(),
        volume_capability: Some(VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume {
                mount_flags: vec!["password=hunter2".to_owned()],
                ..MountVolume::default()
            })),
            ..VolumeCapability::default()
        }),
        ..NodePublishVolumeRequest::default()
    }
}

#[test]
fn a_publish_request_is_shown_as_an_operator_needs_it() {
    assert_eq!(
        format!("{:?}", a_publish_request()),
        "NodePublishVolumeRequest { volume_id: \"pool/vol-1\", publish_context: {}, \
         staging_target_path: \"\", target_path: \"\", volume_capability: Some(VolumeCapability { \
         access_mode: None, access_type: Some(Mount(MountVolume { fs_type: \"\", \
         mount_flags: [***stripped***], volume_mount_group: \"\" })) }), readonly: false, \
         secrets: {\"password\": ***stripped***}, volume_context: \
         {\"csi.storage.k8s.io/serviceAccount.tokens\": ***stripped***, \"pool\": \"fast\"} }"
    );
}

#[test]
fn a_secret_stays_hidden_in_whatever_wraps_the_message() {
    let request = tonic::Request::new(a_publish_request());
    let shown = format!("{:?} {:?}", Some(vec![a_publish_request()]), request);
    assert!(!shown.contains("hunter2") && !shown.contains("eyJhbGciOi"), "{shown}");
}

#[test]
fn a_missing_token_is_seen_to_be_missing() {
    let shown = format!("{:?}", GetMetadataDeltaRequest::default());
    assert!(shown.contains("security_token: \"\""), "{shown}");
}

#[test]
fn enums_are_shown_by_the_names_of_the_specification() {
    use csi::volume_capability::access_mode::Mode;
    assert_eq!(format!("{:?}", Mode::SingleNodeWriter), "SINGLE_NODE_WRITER");
    let capability = VolumeCapability::raw_block(Mode::MultiNodeReaderOnly);
    let shown = format!("{capability:?}");
    assert!(shown.contains("mode: MULTI_NODE_READER_ONLY"), "{shown}");
}
