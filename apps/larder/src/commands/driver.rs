//! `larder driver …`

use super::answer;
use crate::{cli, output, output::Format, session::Session};
use anyhow::Result;
use larder_model::Kind;
use larder_proto::csi;
use serde::Serialize;
use std::collections::BTreeMap;

/// A driver as it is printed. The JSON form is part of the interface.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    name: String,
    version: String,
    ready: bool,
    node_id: Option<String>,
    topology: BTreeMap<String, String>,
    max_volumes: Option<i64>,
    plugin: Vec<String>,
    controller: Vec<String>,
    node: Vec<String>,
    group_controller: Vec<String>,
    parameters: Vec<Parameter>,
}

#[derive(Debug, Serialize)]
struct Parameter {
    name: String,
    default: String,
    what: String,
}

/// Runs a driver command.
pub(crate) async fn run(command: cli::Driver) -> Result<()> {
    let cli::Driver::Info { target, output } = command;
    let mut infos = Vec::new();
    for session in Session::open_all(&target).await? {
        let info = info(&session).await;
        session.close().await;
        infos.push(info?);
    }
    match output.output {
        Format::Json | Format::Yaml => output::value(output.output, &infos),
        Format::Table | Format::Wide => infos.iter().try_for_each(print),
    }
}

fn print(info: &Info) -> Result<()> {
    let ready = if info.ready { "ready" } else { "not ready" };
    output::line(format!("{} {} ({ready})", info.name, info.version))?;
    let topology: Vec<_> = info.topology.iter().map(|(k, v)| format!("{k}={v}")).collect();
    for (heading, values) in [
        ("node", info.node_id.iter().cloned().collect::<Vec<_>>()),
        ("topology", topology),
        ("plugin", info.plugin.clone()),
        ("controller", info.controller.clone()),
        ("node service", info.node.clone()),
        ("groups", info.group_controller.clone()),
    ] {
        if !values.is_empty() {
            output::line(format!("  {heading:13} {}", values.join(", ")))?;
        }
    }
    for parameter in &info.parameters {
        let Parameter { name, default, what } = parameter;
        output::line(format!("  parameter     {name} [{default}]: {what}"))?;
    }
    Ok(())
}

/// A service that is not there offers nothing.
fn or_nothing<T: Default>(answer: larder_model::Result<T>) -> larder_model::Result<T> {
    match answer {
        Err(fault) if fault.kind() == Kind::Unsupported => Ok(T::default()),
        other => other,
    }
}

fn names<T: std::fmt::Debug>(kinds: impl Iterator<Item = T>) -> Vec<String> {
    kinds.map(|k| screaming(&format!("{k:?}"))).collect()
}

/// `CreateDeleteVolume` as the specification writes it.
fn screaming(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 8);
    for (i, c) in name.char_indices() {
        if c.is_ascii_uppercase()
            && i > 0
            && !name[..i].ends_with(|p: char| p.is_ascii_uppercase() || p == '_')
        {
            text.push('_');
        }
        text.push(c.to_ascii_uppercase());
    }
    text
}

async fn info(session: &Session) -> larder_model::Result<Info> {
    let client = session.client();
    let mut identity = client.identity();
    let plugin = answer(identity.get_plugin_info(csi::GetPluginInfoRequest {}).await)?;
    let ready =
        answer(identity.probe(csi::ProbeRequest {}).await).is_ok_and(|p| p.ready.unwrap_or(true));
    let services =
        answer(identity.get_plugin_capabilities(csi::GetPluginCapabilitiesRequest {}).await)?;
    let request = csi::ControllerGetCapabilitiesRequest {};
    let controller =
        or_nothing(answer(client.controller().controller_get_capabilities(request).await))?;
    let node = or_nothing(answer(
        client.node().node_get_capabilities(csi::NodeGetCapabilitiesRequest {}).await,
    ))?;
    let request = csi::GroupControllerGetCapabilitiesRequest {};
    let groups = or_nothing(answer(
        client.group_controller().group_controller_get_capabilities(request).await,
    ))?;
    let here = or_nothing(answer(client.node().node_get_info(csi::NodeGetInfoRequest {}).await))?;
    let expansion = services.capabilities.iter().filter_map(csi::PluginCapability::expansion_kind);
    let mut offered =
        names(services.capabilities.iter().filter_map(csi::PluginCapability::service_kind));
    offered.extend(expansion.map(|k| format!("VOLUME_EXPANSION_{}", screaming(&format!("{k:?}")))));
    // The engine's own, whatever the backend.
    let pool = larder_model::backend::Parameter {
        name: "pool",
        what: "The pool of the configuration that the volume is made in.",
        default: "default, or the only one",
    };
    let backend = session.backend();
    let encryption = larder_model::encryption::PARAMETERS;
    let engine = backend.map(|kind| (&pool, if kind.devices { encryption } else { &[] }));
    let known = backend.map_or(&[][..], |kind| kind.parameters).iter();
    let engine =
        engine.into_iter().flat_map(|(pool, encryption)| [pool].into_iter().chain(encryption));
    let parameters = known.chain(engine).map(|p| Parameter {
        name: p.name.to_owned(),
        default: p.default.to_owned(),
        what: p.what.to_owned(),
    });
    Ok(Info {
        name: plugin.name,
        version: plugin.vendor_version,
        ready,
        node_id: (!here.node_id.is_empty()).then_some(here.node_id),
        topology: here.accessible_topology.unwrap_or_default().segments,
        max_volumes: (here.max_volumes_per_node > 0).then_some(here.max_volumes_per_node),
        plugin: offered,
        controller: names(
            controller.capabilities.iter().filter_map(csi::ControllerServiceCapability::kind),
        ),
        node: names(node.capabilities.iter().filter_map(csi::NodeServiceCapability::kind)),
        group_controller: names(
            groups.capabilities.iter().filter_map(csi::GroupControllerServiceCapability::kind),
        ),
        parameters: parameters.collect(),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn capabilities_are_named_as_the_specification_does() {
        assert_eq!(super::screaming("CreateDeleteVolume"), "CREATE_DELETE_VOLUME");
        assert_eq!(super::screaming("CREATE_DELETE_VOLUME"), "CREATE_DELETE_VOLUME");
        assert_eq!(super::screaming("Online"), "ONLINE");
    }
}
