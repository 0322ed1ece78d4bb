//! `larder manifests`: the chart's objects, without Helm.
//!
//! ```text
//! values.yaml ◀ --values ◀ --set ─▶ schema ─▶ the chart's own templates ─▶ objects, in order
//! ```
//! The chart in deploy/chart is the one source: it is built in, and rendered by as much of Go's
//! templates as it uses (docs/adr/0013). A test compares the result with Helm's.

mod functions;
mod schema;
mod template;

use crate::{exit::WrongConfig, output};
use anyhow::{Context, Result};
use clap::{Args, ValueHint};
use larder_model::Fault;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use template::Templates;

macro_rules! chart {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../../deploy/chart/", $name)))),*]
    };
}

const TEMPLATES: [(&str, &str); 9] = chart![
    "templates/_helpers.tpl",
    "templates/config.yaml",
    "templates/daemonset.yaml",
    "templates/deployment.yaml",
    "templates/drivers.yaml",
    "templates/monitoring.yaml",
    "templates/policies.yaml",
    "templates/rbac.yaml",
    "templates/uninstall.yaml",
];
const FILES: [(&str, &str); 1] = chart!["files/dashboard.json"];
const OTHERS: [(&str, &str); 3] = chart!["Chart.yaml", "values.yaml", "values.schema.json"];

/// What others need comes first; kinds that are not here come last.
const ORDER: [&str; 13] = [
    "Namespace",
    "NetworkPolicy",
    "PriorityClass",
    "PodDisruptionBudget",
    "ServiceAccount",
    "ConfigMap",
    "StorageClass",
    "CSIDriver",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
];

/// `manifests`.
#[derive(Debug, Args)]
pub(crate) struct ManifestsFlags {
    /// A file of values, as for Helm; later ones go over earlier ones.
    #[arg(short = 'f', long = "values", value_name = "FILE", value_hint = ValueHint::FilePath)]
    values: Vec<PathBuf>,
    /// One value, as in image.tag=0.1.0.
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
    /// The namespace; made by the manifests, with its Pod Security labels, unless a value says else.
    #[arg(short, long, default_value = "larder")]
    namespace: String,
    /// What names begin with.
    #[arg(long, default_value = "larder")]
    release: String,
    /// Print all values with what they do instead.
    #[arg(long)]
    show_values: bool,
}

/// Runs `larder manifests`.
pub(crate) fn run(flags: &ManifestsFlags) -> Result<()> {
    let [_, (_, defaults), _] = OTHERS;
    if flags.show_values {
        return output::line(defaults.trim_end());
    }
    let mut given = Value::Object(Map::new());
    for path in &flags.values {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("failed to read values {}", path.display()))?;
        let values = parse(&text).map_err(|e| WrongConfig(format!("{}: {e}", path.display())))?;
        merge(&mut given, values);
    }
    for text in &flags.set {
        merge(&mut given, setting(text).map_err(WrongConfig)?);
    }
    for object in objects(given, &flags.release, &flags.namespace)? {
        output::line(format!("---\n{object}"))?;
    }
    Ok(())
}

/// All objects, in the order in which they are to be made.
fn objects(given: Value, release: &str, namespace: &str) -> Result<Vec<String>> {
    let [(_, chart), (_, defaults), (_, schema)] = OTHERS;
    let broken = |e: serde_yaml_ng::Error| Fault::internal("read the chart").because(e);
    let chart: Value = serde_yaml_ng::from_str(chart).map_err(broken)?;
    let mut values = parse(defaults).map_err(broken)?;
    // With Helm the namespace is there before the chart.
    merge(&mut values, json!({"namespace": {"create": true}}));
    merge(&mut values, given);
    let schema: Value = serde_json::from_str(schema)?;
    let problems = schema::problems(&schema, &values);
    if !problems.is_empty() {
        let text = problems.join("\n");
        return Err(WrongConfig(format!(
            "{text}\n(hint: larder manifests --show-values prints every value)"
        ))
        .into());
    }
    let dot = json!({
        "Values": values,
        "Chart": { "Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"] },
        "Release": { "Name": release, "Namespace": namespace, "Service": "larder" },
    });
    let mut templates = Templates::default();
    FILES.iter().for_each(|(name, text)| templates.file(name, text));
    for (name, text) in TEMPLATES {
        templates.add(name, text)?;
    }
    let mut all = Vec::new();
    for (name, _) in TEMPLATES.iter().filter(|(name, _)| name.ends_with(".yaml")) {
        let text = templates.render(name, &dot)?;
        for text in format!("\n{text}").split("\n---") {
            let text = text.trim_start_matches('\n').trim_end();
            let object: Value = serde_yaml_ng::from_str(text).map_err(broken)?;
            let hook = object.pointer("/metadata/annotations/helm.sh~1hook");
            let Some(kind) = object["kind"].as_str().filter(|_| hook.is_none()) else { continue };
            let order = ORDER.iter().position(|known| *known == kind).unwrap_or(ORDER.len());
            all.push((order, text.to_owned()));
        }
    }
    all.sort_by_key(|(order, _)| *order);
    Ok(all.into_iter().map(|(_, text)| text).collect())
}

fn parse(text: &str) -> Result<Value, serde_yaml_ng::Error> {
    let value: Option<Value> = serde_yaml_ng::from_str(text)?;
    Ok(value.filter(|value| !value.is_null()).unwrap_or_else(|| json!({})))
}

/// As Helm: maps are merged, null removes, anything else replaces.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                if value.is_null() {
                    into.remove(&key);
                } else if let Some(old) = into.get_mut(&key) {
                    merge(old, value);
                } else {
                    into.insert(key, value);
                }
            }
        }
        (into, from) => *into = from,
    }
}

/// `a.b=1` as a value.
fn setting(text: &str) -> Result<Value, String> {
    let (path, value) = text
        .split_once('=')
        .filter(|(path, _)| path.split('.').all(|key| !key.is_empty()))
        .ok_or_else(|| format!("--set {text}: write PATH=VALUE, as in image.tag=0.1.0"))?;
    let value = match value {
        "true" | "false" => (value == "true").into(),
        "null" => Value::Null,
        _ => value.parse::<i64>().map_or_else(|_| value.into(), Value::from),
    };
    Ok(path.rsplit('.').fold(value, |value, key| json!({ key: value })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_of_the_chart_is_built_in() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/chart/templates");
        let mut there: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|file| format!("templates/{}", file.unwrap().file_name().to_string_lossy()))
            .filter(|name| !name.ends_with("NOTES.txt"))
            .collect();
        there.sort();
        assert_eq!(there, TEMPLATES.map(|(name, _)| name));
    }

    #[test]
    fn nothing_but_the_node_is_needed_where_all_storage_is_of_one_node() {
        let all = objects(json!({}), "larder", "storage").unwrap().join("\n---");
        assert!(all.contains("kind: DaemonSet") && all.contains("namespace: storage"));
        assert!(!all.contains("kind: Deployment") && !all.contains("helm.sh/hook"));
        let shared = json!({"drivers": {"dir": {"pools": {"default": {"shared": true}}}}});
        let all = objects(shared, "larder", "storage").unwrap().join("\n---");
        assert!(all.contains("kind: Deployment") && all.contains("kind: PodDisruptionBudget"));
    }

    #[test]
    fn wrong_values_are_named_with_their_path() {
        for (wrong, path) in [
            (json!({"nodes": {}}), "nodes: there is no such value"),
            (json!({"drivers": {"dir": {"backend": "zfs"}}}), "drivers.dir.backend: \"zfs\""),
            (json!({"drivers": {"x": {"enabled": true}}}), "drivers.x.name: it is missing"),
            (json!({"metrics": {"port": "9808"}}), "metrics.port: \"9808\" is no integer"),
            (json!({"metrics": {"port": 0}}), "metrics.port: 0 is too small"),
        ] {
            let error = objects(wrong, "larder", "larder").unwrap_err().to_string();
            assert!(error.contains(path), "{error}");
        }
    }

    #[test]
    fn two_grants_of_secrets_for_one_namespace_are_two_roles() {
        let grants =
            json!([{"namespace": "a", "names": ["x"]}, {"namespace": "a", "names": ["y"]}]);
        let all =
            objects(json!({"controllers": {"secrets": grants}}), "larder", "storage").unwrap();
        let named = |kind: &str, name: &str| {
            let wanted = [format!("kind: {kind}\n"), format!("name: {name}\n")];
            all.iter().filter(|one| wanted.iter().all(|text| one.contains(text))).count()
        };
        for name in ["larder-storage-secrets-0", "larder-storage-secrets-1"] {
            assert_eq!((named("Role", name), named("RoleBinding", name)), (1, 1), "{name}");
        }
    }

    #[test]
    fn releases_of_one_name_in_two_namespaces_have_roles_of_their_own() {
        let roles = |namespace: &str| -> std::collections::BTreeSet<String> {
            let shared = json!({"drivers": {"dir": {"pools": {"default": {"shared": true}}}}});
            let all = objects(shared, "larder", namespace).unwrap();
            let of_cluster = all.iter().filter(|one| one.contains("kind: ClusterRole"));
            let names =
                of_cluster.flat_map(|one| one.lines().filter(|l| l.starts_with("  name: ")));
            names.map(str::to_owned).collect()
        };
        let (one, other) = (roles("one"), roles("other"));
        assert!(one.len() >= 2 && one.is_disjoint(&other), "{one:?} {other:?}");
    }

    #[test]
    fn nothing_may_touch_attachments_that_nothing_of_ours_writes() {
        let shared = json!({"drivers": {"dir": {"pools": {"default": {"shared": true}}}}});
        let all = objects(shared, "larder", "storage").unwrap().join("\n---");
        assert!(all.contains("csinodes") && !all.contains("volumeattachments"));
    }

    #[test]
    fn a_driver_with_shared_and_local_pools_is_refused_before_anything_runs() {
        let pools = json!({"default": {"shared": true}, "fast": {"path": "/fast"}});
        let wrong = json!({"drivers": {"dir": {"pools": pools}}});
        let error = objects(wrong, "larder", "storage").unwrap_err().to_string();
        assert!(error.contains("drivers.dir") && error.contains("pool fast"), "{error}");
    }

    #[test]
    fn an_address_of_version_6_has_its_brackets() {
        let of = |address: &str| {
            let values = json!({"metrics": {"address": address}});
            objects(values, "larder", "storage").unwrap().join("\n---")
        };
        assert!(of("::").contains("http: \"[::]:9808\""), "{}", of("::"));
        assert!(of("127.0.0.1").contains("http: \"127.0.0.1:9808\""));
    }

    #[test]
    fn set_takes_paths_and_null_removes() {
        let mut values = json!({"a": {"b": 1, "c": 2}});
        for text in ["a.b=x", "a.c=null", "d.e=3", "d.f=true"] {
            merge(&mut values, setting(text).unwrap());
        }
        assert_eq!(values, json!({"a": {"b": "x"}, "d": {"e": 3, "f": true}}));
        assert!(setting("a").is_err() && setting("=1").is_err());
    }
}
