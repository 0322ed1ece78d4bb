//! The generated servers and clients, and the table of what they can be asked.

use std::collections::BTreeSet;

use larder_proto::{Method, csi, larder, pluginregistration, snapshotmetadata};
use tonic::Code;

use crate::tables::{self, rows};

/// A plugin that implements nothing: it compiles because every method has a
/// default.
struct Nothing;

impl csi::identity_server::Identity for Nothing {}
impl csi::controller_server::Controller for Nothing {}
impl csi::group_controller_server::GroupController for Nothing {}
impl csi::snapshot_metadata_server::SnapshotMetadata for Nothing {}
impl csi::node_server::Node for Nothing {}
impl larder::admin_server::Admin for Nothing {}
impl pluginregistration::registration_server::Registration for Nothing {}
impl snapshotmetadata::snapshot_metadata_server::SnapshotMetadata for Nothing {}

#[tokio::test]
async fn what_is_not_implemented_answers_unimplemented() {
    use csi::controller_client::ControllerClient;
    use csi::controller_server::ControllerServer;
    use csi::snapshot_metadata_client::SnapshotMetadataClient;
    use csi::snapshot_metadata_server::SnapshotMetadataServer;

    let mut controller = ControllerClient::new(ControllerServer::new(Nothing));
    let answer = controller.create_volume(csi::CreateVolumeRequest::default()).await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);

    let mut metadata = SnapshotMetadataClient::new(SnapshotMetadataServer::new(Nothing));
    let answer = metadata.get_metadata_delta(csi::GetMetadataDeltaRequest::default()).await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
}

#[test]
fn the_servers_have_the_names_of_the_specification() {
    use csi::{
        controller_server, group_controller_server, identity_server, node_server,
        snapshot_metadata_server,
    };
    let served: BTreeSet<&str> = [
        identity_server::SERVICE_NAME,
        controller_server::SERVICE_NAME,
        group_controller_server::SERVICE_NAME,
        snapshot_metadata_server::SERVICE_NAME,
        node_server::SERVICE_NAME,
    ]
    .into();
    let listed: BTreeSet<&str> = csi::METHODS.iter().map(|method| method.service).collect();
    assert_eq!(served, listed);
    assert_eq!(
        pluginregistration::registration_server::SERVICE_NAME,
        "pluginregistration.Registration"
    );
    assert_eq!(
        snapshotmetadata::snapshot_metadata_server::SERVICE_NAME,
        "snapshotmetadata.SnapshotMetadata"
    );
}

#[test]
fn the_methods_are_those_of_the_table_in_its_order() {
    let listed: Vec<String> = csi::METHODS
        .iter()
        .map(|method| {
            let Method { path, service, name, request, response, server_streaming } = method;
            format!("{path} {service} {name} {request} {response} {server_streaming}")
        })
        .collect();
    let expected: Vec<String> = rows(tables::RPCS)
        .iter()
        .map(|row| {
            let (service, name) = (format!("csi.v1.{}", &row["service"]), &row["rpc"]);
            let streaming = &row["streaming"] == "server-stream";
            let (request, response) = (&row["request"], &row["response"]);
            format!("/{service}/{name} {service} {name} {request} {response} {streaming}")
        })
        .collect();
    assert_eq!(listed, expected);
}

#[test]
fn a_path_finds_its_method_and_nothing_else_does() {
    let all =
        [csi::METHODS, larder::METHODS, pluginregistration::METHODS, snapshotmetadata::METHODS]
            .concat();
    for method in &all {
        assert_eq!(Method::by_path(method.path), Some(method));
    }
    let paths: BTreeSet<&str> = all.iter().map(|method| method.path).collect();
    assert_eq!(paths.len(), all.len(), "paths are unique");
    for path in ["", "/", "/csi.v1.Node/", "/csi.v1.Node/nodeGetInfo", "csi.v1.Node/NodeGetInfo"] {
        assert_eq!(Method::by_path(path), None, "{path:?}");
    }
}
