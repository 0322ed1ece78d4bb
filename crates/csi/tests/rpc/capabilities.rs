//! What is announced is offered, and what is not announced is not.

use crate::{
    message::{call, code},
    support::Rig,
    valid,
};
use larder_csi::Client;
use larder_model::volume::Scope;
use larder_proto::csi::{
    self, controller_service_capability, group_controller_service_capability,
    node_service_capability, plugin_capability,
};
use larder_volumes::testing::{Abilities, Memory};
use std::collections::BTreeSet;
use tonic::Code;

/// The specification's table of RPCs, with the capability that each needs.
const RPCS: &str = include_str!("../../../proto/tests/tables/csi-rpcs.tsv");

/// Everything that is announced, as the table names it.
async fn announced(client: &Client) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let request = csi::GetPluginCapabilitiesRequest {};
    let plugin = client.identity().get_plugin_capabilities(request).await;
    for capability in plugin.unwrap().into_inner().capabilities {
        if let Some(service) = capability.service_kind() {
            let name = plugin_capability::service::Type::as_str_name(&service);
            all.insert(format!("PluginCapability.Service {name}"));
        }
        if let Some(expansion) = capability.expansion_kind() {
            let name = plugin_capability::volume_expansion::Type::as_str_name(&expansion);
            all.insert(format!("PluginCapability.VolumeExpansion {name}"));
        }
    }
    let request = csi::ControllerGetCapabilitiesRequest {};
    let controller = client.controller().controller_get_capabilities(request).await.unwrap();
    for capability in controller.into_inner().capabilities {
        let name =
            controller_service_capability::rpc::Type::as_str_name(&capability.kind().unwrap());
        assert!(all.insert(format!("ControllerServiceCapability.RPC {name}")), "{name} twice");
    }
    let node = client.node().node_get_capabilities(csi::NodeGetCapabilitiesRequest {}).await;
    for capability in node.unwrap().into_inner().capabilities {
        let name = node_service_capability::rpc::Type::as_str_name(&capability.kind().unwrap());
        assert!(all.insert(format!("NodeServiceCapability.RPC {name}")), "{name} twice");
    }
    let request = csi::GroupControllerGetCapabilitiesRequest {};
    let group = client.group_controller().group_controller_get_capabilities(request).await;
    for capability in group.map(|g| g.into_inner().capabilities).unwrap_or_default() {
        let name = group_controller_service_capability::rpc::Type::as_str_name(
            &capability.kind().unwrap(),
        );
        all.insert(format!("GroupControllerServiceCapability.RPC {name}"));
    }
    all
}

/// Everything, nothing, and everything but one.
fn all_abilities() -> Vec<Abilities> {
    let mut all = vec![Abilities::ALL, Abilities::NONE];
    let off: [fn(&mut Abilities); 10] = [
        |a| a.list = false,
        |a| a.capacity = false,
        |a| a.expand = false,
        |a| a.modify = false,
        |a| a.attach = false,
        |a| a.snapshots = false,
        |a| a.groups = false,
        |a| a.changed_blocks = false,
        |a| a.health = false,
        |a| a.clones = false,
    ];
    for off in off {
        let mut abilities = Abilities::ALL;
        off(&mut abilities);
        all.push(abilities);
    }
    all
}

#[tokio::test]
async fn an_rpc_is_offered_exactly_when_its_capability_is_announced() {
    for abilities in all_abilities() {
        let rig = Rig::ready(Memory { abilities, ..Memory::default() }).await;
        let client = rig.driver.client();
        let announced = announced(&client).await;
        for line in RPCS.lines().filter(|line| !line.starts_with('#')).skip(1) {
            let cells: Vec<&str> = line.split('\t').collect();
            let (rpc, gate) = (cells[1], cells[7]);
            let gate = gate.strip_prefix("always when ").unwrap_or(gate);
            let gate = gate.split(" (").next().unwrap();
            let offered = match gate {
                "always" | "the node service is served" => true,
                gate if gate.starts_with("the node service is served and") => true,
                gate => {
                    assert!(gate.contains("Capability"), "{rpc}: {gate}");
                    announced.contains(gate)
                }
            };
            let request = valid::request(rpc, rig.folder());
            let answer = call(&client, crate::message::method(rpc), &request).await;
            let unimplemented = code(&answer) == Code::Unimplemented;
            assert_eq!(!unimplemented, offered, "{rpc} {gate} with {abilities:?}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn storage_that_is_everywhere_announces_no_place() {
    let place = "PluginCapability.Service VOLUME_ACCESSIBILITY_CONSTRAINTS";
    let rig = Rig::ready(Memory::default()).await;
    assert!(announced(&rig.driver.client()).await.contains(place));
    let info = rig.driver.client().node().node_get_info(csi::NodeGetInfoRequest {}).await;
    let info = info.unwrap().into_inner();
    assert_eq!(info.node_id, valid::NODE);
    assert_eq!(info.accessible_topology.unwrap().segments.len(), 1);

    let mut memory = Memory::default();
    memory.facts.scope = Scope::Everywhere;
    memory.facts.max_volumes_per_node = Some(25);
    let rig = Rig::ready(memory).await;
    assert!(!announced(&rig.driver.client()).await.contains(place));
    let info = rig.driver.client().node().node_get_info(csi::NodeGetInfoRequest {}).await;
    let info = info.unwrap().into_inner();
    assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), (valid::NODE, 25));
    assert_eq!(info.accessible_topology, None);
}

#[tokio::test]
async fn growth_is_announced_as_it_is_possible() {
    for (online, expected) in [(true, "ONLINE"), (false, "OFFLINE")] {
        let mut memory = Memory::default();
        memory.facts.online_expansion = online;
        let rig = Rig::ready(memory).await;
        let kinds: Vec<_> = announced(&rig.driver.client()).await.into_iter().collect();
        let kinds: Vec<_> = kinds
            .iter()
            .filter_map(|k| k.strip_prefix("PluginCapability.VolumeExpansion "))
            .collect();
        assert_eq!(kinds, [expected]);
    }
}

/// The capabilities are the driver's, not those of the moment.
#[tokio::test]
async fn the_same_is_announced_before_and_after_the_start() {
    let rig = Rig::new(Memory::default());
    let before = announced(&rig.driver.client()).await;
    rig.driver.start().await.unwrap();
    assert_eq!(announced(&rig.driver.client()).await, before);
}
