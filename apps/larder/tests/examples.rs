//! What the documentation shows is what the program does: the README's commands, the files in
//! `examples/`, the messages in docs/troubleshooting.md.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

mod support;

use rstest::rstest;
use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
};
use support::{Site, larder, shell};

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn read(file: &str) -> String {
    std::fs::read_to_string(checkout().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// The commands of a section of the README, block by block.
fn commands(section: &str) -> Vec<Vec<String>> {
    let page = read("README.md");
    let section = page.split(&format!("\n## {section}\n")).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.map(|block| block.lines().map(str::to_owned).collect()).collect()
}

/// A StorageClass in examples/kubernetes.
#[derive(serde::Deserialize)]
struct Class {
    kind: String,
    provisioner: String,
    parameters: BTreeMap<String, String>,
}

fn classes() -> Vec<Class> {
    let folder = std::fs::read_dir(checkout().join("examples/kubernetes")).unwrap();
    let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    // The others hold more than a class.
    files.retain(|file| file.to_string_lossy().contains("/storageclass-"));
    files.sort();
    let read = |file: PathBuf| {
        serde_yaml_ng::from_str(&std::fs::read_to_string(&file).unwrap())
            .unwrap_or_else(|e| panic!("{}: {e}", file.display()))
    };
    files.retain(|file| file.display().to_string().contains("/storageclass-"));
    files.into_iter().map(read).collect()
}

#[test]
fn the_example_of_a_volume_attributes_class_modifies_a_volume() {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Attributes {
        kind: String,
        driver_name: String,
        parameters: BTreeMap<String, String>,
    }
    let class: Attributes =
        serde_yaml_ng::from_str(&read("examples/kubernetes/volumeattributesclass-loop.yaml"))
            .unwrap();
    assert_eq!(class.kind, "VolumeAttributesClass");
    assert!(classes().iter().any(|other| other.provisioner == class.driver_name));
    let site = Site::new("loop", "xfs");
    site.ok(&["volume", "create", "v", "--size", "16Mi", "--block"]);
    let parameters: Vec<_> = class.parameters.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let mut words = vec!["volume", "modify", "v"];
    parameters.iter().for_each(|parameter| words.extend(["--param", parameter]));
    let shown = site.ok(&words);
    assert!(shown.contains("maxReadBps=50Mi, maxWriteBps=20Mi"), "{shown}");
    site.ok(&["volume", "rm", "v"]);
}

/// A root folder of its own, so that `/etc`, `/run`, `/srv` and `/var/lib/larder` are nobody else's.
/// All of it ends with the process that makes it.
const ROOT: &str = r#"
set -euo pipefail
mount -t tmpfs none "$ROOT"
for folder in /bin /sbin /lib /lib32 /lib64 /usr; do
  if [ -L $folder ]; then cp -P $folder "$ROOT$folder"
  elif [ -d $folder ]; then mkdir "$ROOT$folder"; mount --rbind $folder "$ROOT$folder"; fi
done
for folder in /dev /sys /proc; do mkdir "$ROOT$folder"; mount --rbind $folder "$ROOT$folder"; done
mkdir -p "$ROOT"/{etc,run,srv,tmp,opt,checkout,var/lib/larder}
for file in passwd group mke2fs.conf ld.so.cache; do
  if [ -e /etc/$file ]; then cp /etc/$file "$ROOT/etc/"; fi
done
mount --bind "$DISK" "$ROOT/var/lib/larder"
mount --bind "$CHECKOUT" "$ROOT/checkout"
mount --bind "$(dirname "$LARDER")" "$ROOT/opt"
exec chroot "$ROOT" /bin/bash -euxo pipefail -c "cd /checkout; PATH=/opt:$PATH; $SCRIPT"
"#;

fn run_in_a_root_of_its_own(site: &Site, script: &str) {
    let root = site.path("root");
    std::fs::create_dir(&root).unwrap();
    // A process namespace ends with its first process, whatever that left running.
    let alone = "exec timeout -k 5 120 unshare --mount --pid --fork --kill-child --mount-proc \
                 bash -c \"$MAKE_ROOT\"";
    let mut command = shell(alone);
    for variable in ["LARDER_CONFIG", "LARDER_DRIVER", "LARDER_LOG", "CSI_ENDPOINT"] {
        command.env_remove(variable);
    }
    command.env("MAKE_ROOT", ROOT).env("SCRIPT", script).env("ROOT", root);
    command.env("DISK", site.path("disk/mnt")).env("CHECKOUT", checkout());
    let output = command.env("LARDER", env!("CARGO_BIN_EXE_larder")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}:\n{printed}\n{said}", output.status);
}

#[rstest]
#[case::without_the_server(false)]
#[case::beside_the_server(true)]
fn every_command_of_the_readme_works_as_it_is_written(#[case] keep_serving: bool) {
    let site = Site::new("loop", "xfs");
    let blocks = commands("Use it");
    let [serving, by_hand] = blocks.as_slice() else { panic!("two blocks: {blocks:?}") };
    let [install, serve] = serving.as_slice() else { panic!("two commands: {serving:?}") };
    // Building is what made this test possible.
    assert_eq!(install, "cargo install --path apps/larder");
    assert!(checkout().join("apps/larder/Cargo.toml").exists());
    assert!(serve.starts_with("larder serve "), "{serve}");

    let mut script = format!("{serve} & server=$!\n");
    script.push_str(
        "until larder driver info --socket unix:///run/larder/csi.sock; do sleep 0.05; done\n",
    );
    if !keep_serving {
        script.push_str("kill $server; wait $server\n");
    }
    for command in by_hand {
        let _ = writeln!(script, "{command}");
        if command.starts_with("larder volume mount data /srv/data") {
            script.push_str("mountpoint -q /srv/data; echo precious > /srv/data/file; sync\n");
        }
        if command.starts_with("larder volume create copy") {
            script.push_str("larder volume mount copy /srv/copy; grep precious /srv/copy/file\n");
            script.push_str("larder volume unmount /srv/copy\n");
        }
        if command.starts_with("larder volume expand data --size 20Gi") {
            script.push_str("[ $(df --output=size -k /srv/data | tail -1) -gt 19000000 ]\n");
        }
    }
    script.push_str("[ \"$(larder volume ls -o json)\" = '[]' ]\n");
    run_in_a_root_of_its_own(&site, &script);
}

#[test]
fn the_example_of_a_configuration_passes_the_check_and_has_both_drivers() {
    let file = checkout().join("examples/config.yaml");
    let output = larder(&file, &["config", "check"]);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}");
    assert!(printed.contains("2 drivers, 2 pools: ok"), "{printed}");
    let page = read("docs/configuration.md");
    let shown = page.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    for line in shown.lines().filter(|line| !line.starts_with("node:")) {
        assert!(text.contains(line), "docs/configuration.md has another example: {line}");
    }
}

#[test]
fn the_storage_classes_are_of_the_drivers_in_the_example_and_their_parameters_are_taken() {
    let site = Site::new("loop", "xfs");
    let classes = classes();
    let drivers: Vec<_> = classes.iter().map(|class| class.provisioner.as_str()).collect();
    assert_eq!(drivers, ["dir.csi.larder.dev", "loop.csi.larder.dev"]);
    let mut script = String::from("export LARDER_CONFIG=examples/config.yaml\n");
    for Class { kind, provisioner, parameters } in &classes {
        assert_eq!(kind, "StorageClass");
        let flags: Vec<_> = parameters.iter().map(|(k, v)| format!("--param {k}={v}")).collect();
        let _ = write!(
            script,
            "export LARDER_DRIVER={provisioner}\nlarder pool init\n\
             larder volume create data --size 1Gi {flags}\n\
             larder volume mount data /srv/data; echo precious > /srv/data/file\n\
             larder volume unmount data\n",
            flags = flags.join(" "),
        );
    }
    run_in_a_root_of_its_own(&site, &script);
}

/// All Rust sources but tests, with strings that go over lines put together.
fn sources() -> String {
    fn walk(folder: &Path, all: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && !matches!(name, "target" | "tests") {
                walk(&path, all);
            } else if name.ends_with(".rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let mut rest = text.as_str();
                while let Some((line, next)) = rest.split_once("\\\n") {
                    all.push_str(line);
                    rest = next.trim_start();
                }
                all.push_str(rest);
            }
        }
    }
    let mut all = String::new();
    for folder in ["crates", "backends", "apps"] {
        walk(&checkout().join(folder), &mut all);
    }
    all
}

/// The fixed parts of a quoted message, between what stands for a name or a number.
fn parts(quoted: &str) -> impl Iterator<Item = &str> {
    quoted.split('…').map(|part| part.trim_matches([' ', ':'])).filter(|part| !part.is_empty())
}

#[test]
fn every_message_that_troubleshooting_quotes_is_one_of_the_program() {
    let (page, sources) = (read("docs/troubleshooting.md"), sources());
    let mut checked = 0;
    for quoted in page.split('"').skip(1).step_by(2) {
        for part in parts(quoted) {
            assert!(sources.contains(part), "{part:?} of {quoted:?} is in no source");
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked} messages are quoted");
}

/// Whether `said` has the parts of the message in their order, and the page quotes it.
fn says(said: &str, message: &str) {
    assert!(read("docs/troubleshooting.md").contains(&format!("\"{message}\"")), "{message}");
    let mut rest = said;
    for part in parts(message) {
        let at = rest.find(part).unwrap_or_else(|| panic!("{message:?} is not said: {said}"));
        rest = &rest[at + part.len()..];
    }
}

#[test]
fn the_messages_in_troubleshooting_are_said_in_the_situations_that_it_tells_of() {
    let site = Site::new("loop", "xfs");
    let config = std::fs::read_to_string(site.config()).unwrap();
    let pool = |more: &str| {
        std::fs::write(site.config(), config.replace("create: true", more)).unwrap();
    };
    let here = site.path("here").display().to_string();

    pool("create: false");
    says(&site.fails(7, &["volume", "create", "a"]), "there is no such directory");
    std::fs::create_dir(site.pool.path()).unwrap();
    says(&site.fails(7, &["volume", "create", "a"]), "use the pool at …: its identity is missing");
    site.ok(&["pool", "init"]);
    pool("mount: required");
    says(&site.fails(7, &["volume", "create", "a"]), "nothing is mounted at …");
    says(&site.fails(7, &["pool", "init"]), "nothing is mounted at …");
    pool("reserve: 1Ti");
    says(&site.fails(6, &["volume", "create", "a"]), "find … in pool …");
    pool("overprovision: 0.1");
    says(&site.fails(6, &["volume", "create", "a"]), "promise … in pool …");

    pool("create: true");
    site.ok(&["volume", "create", "a", "--size", "320Mi"]);
    let mount = ["volume", "mount", "a", &here, "--read-only"];
    says(&site.fails(5, &mount), "mount the volume for reading: it holds no file system yet");
    site.ok(&mount[..4]);
    says(&site.fails(5, &["volume", "rm", "a"]), "delete volume …: it is mounted at …");
    site.ok(&["volume", "unmount", "a"]);
    site.ok(&mount);
    let there = site.path("there").display().to_string();
    let said = site.fails(5, &["volume", "mount", "a", &there]);
    says(&said, "mounted for reading only, and nothing can write to it");
    site.ok(&["volume", "unmount", "a"]);

    // Somebody's data where a new volume's file system would be made.
    site.ok(&["volume", "create", "b", "--size", "320Mi"]);
    let image =
        std::fs::OpenOptions::new().write(true).open(site.pool.path().join("volumes/b/image"));
    std::os::unix::fs::FileExt::write_at(&image.unwrap(), b"precious", 1 << 20).unwrap();
    let said = site.fails(5, &["volume", "mount", "b", &here]);
    says(&said, "format the volume: its device is not blank, … was found");

    let lock = site.pool.path().join(".larder/lock");
    let held = larder_host::lock::FileLock::try_exclusive(&lock).unwrap();
    let said = site.fails(7, &["volume", "ls", "--timeout", "1"]);
    says(&said, "start driver … in …: its pool is held by another process");
    drop(held);
}

#[test]
fn every_file_that_the_documentation_links_to_exists() {
    let mut pages = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    for entry in std::fs::read_dir(checkout().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".md") {
            pages.push(format!("docs/{name}"));
        }
    }
    for page in pages {
        for link in read(&page).split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.contains("://") || link.starts_with('#') {
                continue;
            }
            let file =
                checkout().join(&page).with_file_name("").join(link.split('#').next().unwrap());
            assert!(file.exists(), "{page} links to {link}");
        }
    }
}

#[test]
fn the_example_of_encryption_names_the_keys_that_are_read_and_makes_encrypted_volumes() {
    use serde::Deserialize;
    let text = read("examples/kubernetes/encrypted.yaml");
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    let documents: Vec<_> =
        documents.map(|d| serde_yaml_ng::Value::deserialize(d).unwrap()).collect();
    let [secret, class] = documents.as_slice() else { panic!("two documents") };
    assert!(secret["stringData"][larder_model::encryption::secret::PASSPHRASE].is_string());
    let site = Site::new("loop", "xfs");
    let mut arguments: Vec<String> =
        ["volume", "create", "data", "--size", "1Gi", "-o", "json"].map(str::to_owned).into();
    for (key, value) in class["parameters"].as_mapping().unwrap() {
        let (key, value) = (key.as_str().unwrap(), value.as_str().unwrap());
        match key.strip_prefix("csi.storage.k8s.io/") {
            None => arguments.extend(["--param".to_owned(), format!("{key}={value}")]),
            Some(key) if key.ends_with("name") => assert_eq!(secret["metadata"]["name"], value),
            Some(_) => assert_eq!(secret["metadata"]["namespace"], value),
        }
    }
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let made = site.ok(&arguments);
    assert!(made.contains("\"encrypted\": true"), "{made}");
    site.ok(&["volume", "rm", "data"]);
}
