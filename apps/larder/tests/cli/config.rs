//! The configuration: `config check`, `config show`, several drivers.

use crate::support::{Site, larder, program};
use serde_json::Value;
use std::{fs, path::Path, process::Output};

fn check(yaml: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    fs::write(&file, yaml).unwrap();
    larder(&file, &["config", "check"])
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The site's file system with a pool of each backend.
fn two_drivers(site: &Site) {
    let mnt = site.path("disk/mnt");
    let yaml = format!(
        "node: n1\nstateDir: {run}/state\nkubeletDir: {run}/kubelet\ndrivers:\n\
         - name: loop.csi.larder.dev\n  backend: loop\n  endpoint: unix://{run}/loop/csi.sock\n  \
           pools:\n    default: {{ path: {mnt}/loop, fs: xfs }}\n\
         - name: dir.csi.larder.dev\n  backend: dir\n  endpoint: unix://{run}/dir/csi.sock\n  \
           pools:\n    default: {{ path: {mnt}/dir }}\n",
        run = site.dir.path().display(),
        mnt = mnt.display(),
    );
    fs::write(site.config(), yaml).unwrap();
    for backend in ["loop", "dir"] {
        fs::create_dir(mnt.join(backend)).unwrap();
    }
}

#[test]
fn every_problem_is_printed_with_its_key_and_nothing_is_touched() {
    let output = check(
        "stateDir: run\nnode: two words\nlog: { level: 'larder=loud' }\n\
         shutdownGraceSeconds: 18446744073709551615\ndrivers:\n\
         - {name: a, backend: dir, endpoint: /run/x/a.sock, pools: {p: {path: /no/p}}}\n\
         - {name: A, backend: tape, endpoint: /run/x/b.sock, pools: {p: {path: /no/p/q}, r: {path: rel}}}\n\
         - {name: c, backend: loop, endpoint: /run/y/c.sock}\n",
    );
    let said = said(&output);
    assert_eq!(output.status.code(), Some(64), "{said}");
    for wanted in [
        "error: stateDir:",
        "error: node:",
        "error: log.level:",
        "error: shutdownGraceSeconds:",
        "error: drivers[1].name:",
        "error: drivers[1].backend:",
        "error: drivers[1].endpoint: unix:///run/x/b.sock is in the folder of drivers[0]'s",
        "error: drivers[1].pools.p.path:",
        "error: drivers[1].pools.r:",
        "error: drivers[2].pools:",
        "warning: drivers[0].pools.p.path:",
    ] {
        assert!(said.contains(wanted), "{wanted} is not in\n{said}");
    }
    assert!(!Path::new("/run/x").exists());
}

#[test]
fn an_unknown_key_is_refused_with_its_path() {
    for (yaml, path, key) in [
        ("nodes: n1", "nodes", "nodes"),
        ("log: { colour: red }", "log", "colour"),
        ("drivers: [{name: a, backend: dir, pool: {}}]", "drivers[0]", "pool"),
        ("drivers: [{name: a, backend: dir, pools: {p: {pth: /x}}}]", "drivers[0].pools.p", "pth"),
        ("drivers: [{name: a, backend: dir, endpoint: 'tcp://x'}]", "drivers[0].endpoint", "tcp"),
        ("drivers: 7", "drivers", "7"),
        ("drivers: [", "read", "line"),
    ] {
        let output = check(yaml);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(64), "{yaml}: {said}");
        assert!(said.contains(path) && said.contains(key), "{yaml}: {said}");
    }
}

#[test]
fn show_fills_in_the_defaults_and_is_a_configuration_itself() {
    let site = Site::new("loop", "xfs");
    let shown = site.ok(&["config", "show"]);
    for wanted in ["kubeletDir: /var/lib/kubelet", "shutdownGraceSeconds: 25", "level: info"] {
        assert!(shown.contains(wanted), "{wanted} is not in\n{shown}");
    }
    let again = site.path("again.yaml");
    fs::write(&again, &shown).unwrap();
    let output = larder(&again, &["config", "show"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), shown);
    assert_eq!(larder(&again, &["config", "check"]).status.code(), Some(0));
}

#[test]
fn the_node_is_called_as_the_file_the_environment_or_the_host_says() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    let node = |yaml: &str, env: Option<&str>| {
        fs::write(&file, yaml).unwrap();
        let mut command = program();
        command.args(["config", "show", "--config"]).arg(&file);
        env.map(|name| command.env("NODE_NAME", name));
        let shown: Value = serde_yaml_ng::from_slice(&command.output().unwrap().stdout).unwrap();
        shown["node"].as_str().unwrap().to_owned()
    };
    assert_eq!(node("node: file", Some("env")), "file");
    assert_eq!(node("", Some("env")), "env");
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_eq!(node("", None), host);
    assert_eq!(node("", Some("")), host);
}

#[tokio::test]
async fn two_drivers_of_one_file_are_served_by_one_process_and_told_apart() {
    let site = Site::new("loop", "xfs");
    two_drivers(&site);
    let warned = site.ok(&["config", "check"]);
    assert!(
        warned.contains("drivers[1].pools.default.path") && warned.contains("larder pool init")
    );
    // No pool until somebody says so.
    site.fails(7, &["volume", "ls", "--driver", "dir", "--timeout", "1"]);
    let several = site.fails(2, &["pool", "init"]);
    assert!(several.contains("loop.csi.larder.dev, dir.csi.larder.dev"), "{several}");
    site.ok(&["pool", "init", "--driver", "loop"]);
    site.ok(&["pool", "init", "default", "--driver", "dir.csi.larder.dev"]);
    assert!(site.ok(&["config", "check"]).contains("2 drivers, 2 pools: ok"));

    for served in [false, true] {
        let endpoint = format!("unix://{}", site.path("dir/csi.sock").display());
        let mut server = served.then(|| {
            crate::support::Server::start(&site.config(), &endpoint.parse().unwrap(), &[])
        });
        if let Some(server) = &mut server {
            assert!(server.ready().await);
        }
        for driver in ["loop", "dir"] {
            let name = format!("of-{driver}");
            site.ok(&["volume", "create", &name, "--driver", driver, "--size", "320Mi"]);
        }
        let ls = |driver: &str| {
            let mut command = program();
            command.args(["volume", "ls", "-o", "json"]).env("LARDER_CONFIG", site.config());
            command.env("LARDER_DRIVER", driver).output().unwrap()
        };
        for driver in ["loop", "dir"] {
            let output = ls(driver);
            let list = String::from_utf8(output.stdout).unwrap();
            assert!(list.contains(&format!("default/of-{driver}")), "{list}");
            assert_eq!(list.matches("\"id\"").count(), 1, "{list}");
        }
        let why = site.fails(2, &["volume", "ls"]);
        assert!(
            why.contains("--driver with one of loop.csi.larder.dev, dir.csi.larder.dev"),
            "{why}"
        );
        for command in ["pool ls", "driver info"] {
            let printed = site.ok(&command.split(' ').collect::<Vec<_>>());
            assert!(printed.contains("loop.csi.larder.dev"), "{printed}");
            assert!(printed.contains("dir.csi.larder.dev"), "{printed}");
            let words: Vec<_> = command.split(' ').chain(["--driver", "dir"]).collect();
            assert!(!site.ok(&words).contains("loop.csi.larder.dev"));
        }
        if let Some(server) = &mut server {
            assert!(server.stop().success());
        }
    }
}

#[test]
fn pool_init_makes_a_pool_of_an_empty_directory_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool");
    let init = |more: &[&str]| {
        let mut command = program();
        command.args(["pool", "init", "--backend", "dir", "--path"]).arg(&path).args(more);
        command.output().unwrap()
    };
    fs::create_dir(&path).unwrap();
    fs::write(path.join("file"), "somebody's").unwrap();
    let refused = init(&[]);
    assert_eq!(refused.status.code(), Some(5));
    let why = said(&refused);
    assert!(why.contains("file") && why.contains("hint"), "{why}");
    assert!(init(&["--allow-non-empty"]).status.success());
    assert_eq!(fs::read(path.join("file")).unwrap(), b"somebody's");
    assert!(path.join("larder-pool.json").exists());
    assert!(init(&[]).status.success(), "repeated");
    assert_eq!(
        said(&init(&[])).split("identity").nth(1),
        said(&init(&["--allow-non-empty"])).split("identity").nth(1)
    );
    let mut other = program();
    other.args(["pool", "init", "--backend", "loop", "--path"]).arg(&path);
    assert!(!other.output().unwrap().status.success(), "it is a pool of dir");
    let mut unknown = program();
    unknown.args(["pool", "init", "--backend", "tape", "--path"]).arg(&path);
    assert_eq!(unknown.output().unwrap().status.code(), Some(2));
}
