//! `-o`: tables for people, JSON and YAML for scripts, the same everywhere.

use crate::support::{Site, program, shell};
use serde_json::Value;

/// A site with something of everything.
fn site() -> Site {
    let site = Site::new("loop", "xfs");
    site.ok(&["volume", "create", "data", "--size", "320Mi"]);
    site.ok(&["snapshot", "create", "data@monday"]);
    site
}

/// Every command with `-o`, the headings of its table and of its wide table, and its JSON keys.
const COMMANDS: [(&str, &str, &str, &[&str]); 8] = [
    ("volume ls", "VOLUME SIZE FROM MOUNTED", "HEALTH TOPOLOGY CONTEXT", VOLUME),
    ("volume show data", "VOLUME: SIZE: HEALTH:", "TOPOLOGY: CONTEXT:", VOLUME),
    ("volume create data --size 320Mi", "VOLUME: SIZE:", "TOPOLOGY: CONTEXT:", VOLUME),
    ("volume expand data --size 320Mi", "VOLUME: SIZE:", "TOPOLOGY: CONTEXT:", VOLUME),
    ("snapshot ls", "SNAPSHOT SIZE CREATED READY", "ID SOURCE", SNAPSHOT),
    ("snapshot create data@monday", "SNAPSHOT: SIZE:", "ID: SOURCE:", SNAPSHOT),
    ("pool ls", "DRIVER POOL ON TOTAL FREE", "LOCATION IDENTITY WARNINGS", POOL),
    ("driver info", "ready node topology plugin controller parameter", "", DRIVER),
];
const VOLUME: &[&str] = &["id", "size", "mounted", "health", "topology", "context"];
const SNAPSHOT: &[&str] = &["snapshot", "size", "created", "ready", "id", "sourceVolume"];
const POOL: &[&str] = &[
    "driver",
    "pool",
    "storage",
    "total",
    "free",
    "provisioned",
    "volumes",
    "snapshots",
    "state",
    "location",
    "identity",
    "warnings",
];
const DRIVER: &[&str] = &[
    "name",
    "version",
    "ready",
    "nodeId",
    "topology",
    "plugin",
    "controller",
    "node",
    "parameters",
];

#[test]
fn every_command_prints_a_table_a_wide_table_json_and_yaml() {
    let site = site();
    let run = |command: &str, format: &str| {
        let words: Vec<_> = command.split(' ').chain(["-o", format]).collect();
        site.ok(&words)
    };
    for (command, narrow, wide, keys) in COMMANDS {
        let table = site.ok(&command.split(' ').collect::<Vec<_>>());
        let has = |table: &str, headings: &str| {
            headings
                .split(' ')
                .all(|h| table.split_whitespace().any(|w| w.trim_matches(['(', ')']) == h))
        };
        assert!(has(&table, narrow), "{command}:\n{table}");
        let all = run(command, "wide");
        assert!(has(&all, narrow) && (wide.is_empty() || has(&all, wide)), "{command}:\n{all}");
        if command.ends_with(" ls") {
            assert!(!has(&table, wide), "{command}: the narrow table is wide:\n{table}");
            assert_eq!(table.lines().count(), 2, "{command}:\n{table}");
        }
        assert!(!table.contains('\u{1b}'), "{command}: colours");

        let json: Value = serde_json::from_str(&run(command, "json")).unwrap();
        let one =
            if command.ends_with(" ls") || command == "driver info" { &json[0] } else { &json };
        for key in keys {
            assert!(one.get(key).is_some(), "{command}: no {key} in {json}");
        }
        let mut yaml: Value = serde_yaml_ng::from_str(&run(command, "yaml")).unwrap();
        // Free space changes by itself.
        if command == "pool ls" {
            yaml[0]["free"] = json[0]["free"].clone();
        }
        assert_eq!(yaml, json, "{command}");
    }
}

#[test]
fn sizes_are_bytes_and_times_rfc_3339() {
    let site = site();
    let json: Value = serde_json::from_str(&site.ok(&["snapshot", "ls", "-o", "json"])).unwrap();
    assert_eq!(json[0]["size"], 320 << 20);
    let created: jiff::Timestamp = json[0]["created"].as_str().unwrap().parse().unwrap();
    assert!(jiff::Timestamp::now().duration_since(created).as_secs() < 600);
}

#[test]
fn nothing_is_an_empty_list_and_an_unknown_format_wrong_usage() {
    let site = Site::new("dir", "xfs");
    assert_eq!(site.ok(&["volume", "ls", "-o", "json"]).trim(), "[]");
    assert_eq!(site.ok(&["snapshot", "ls", "-o", "json"]).trim(), "[]");
    assert!(site.ok(&["volume", "ls"]).starts_with("VOLUME"));
    site.fails(2, &["volume", "ls", "-o", "xml"]);
}

#[test]
fn the_list_tells_the_health_of_each_volume() {
    let site = Site::new("loop", "xfs");
    site.ok(&["volume", "create", "good"]);
    site.ok(&["volume", "create", "lost"]);
    std::fs::remove_file(site.pool.path().join("volumes/lost/image")).unwrap();
    let json: Value = serde_json::from_str(&site.ok(&["volume", "ls", "-o", "json"])).unwrap();
    assert_eq!(json[0]["health"], serde_json::json!(["ok"]));
    let lost = json[1]["health"][0].as_str().unwrap();
    assert!(lost.contains("image"), "{lost}");
    let wide = site.ok(&["volume", "ls", "-o", "wide"]);
    assert!(wide.contains(lost), "{wide}");
    let shown = site.ok(&["volume", "show", "lost"]);
    assert!(shown.contains("HEALTH:") && shown.contains("image"), "{shown}");
}

#[test]
fn logs_go_beside_the_output() {
    let site = Site::new("dir", "xfs");
    let mut command = program();
    command.args(["volume", "ls", "-o", "json"]).env("LARDER_CONFIG", site.config());
    let output = command.env("LARDER_LOG", "debug").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "[]");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("ListVolumes"), "{said}");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let site = site();
    let script = format!(
        "{} volume ls -o json | true; echo ${{PIPESTATUS[0]}}",
        env!("CARGO_BIN_EXE_larder")
    );
    let output = shell(&script).env("LARDER_CONFIG", site.config()).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "0");
}
