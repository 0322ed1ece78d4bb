//! Every command that works on volumes and snapshots, over a volume's whole life.

use crate::support::{Server, Site, leaks};
use rstest::rstest;
use serde_json::Value;

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Via {
    /// Nobody serves: each command does it by itself.
    Nobody,
    /// A server, found through the configuration.
    Owner,
    /// The same, through `--socket`, as any CSI driver.
    Socket,
}

struct Life {
    site: Site,
    /// Before the site, which unmounts, goes.
    server: Option<Server>,
    via: Via,
}

impl Life {
    async fn new(backend: &'static str, via: Via) -> Self {
        // Records of mounts through --socket are kept by driver name, for the whole machine.
        let driver = format!("{backend}-{via:?}-{}.larder.test", std::process::id());
        let site = Site::named(&driver.to_lowercase(), backend, "xfs");
        let server = match via {
            Via::Nobody => None,
            Via::Owner | Via::Socket => {
                let mut server = site.server();
                assert!(server.ready().await);
                Some(server)
            }
        };
        Self { site, server, via }
    }

    fn ok(&self, command: &str) -> String {
        let endpoint = self.site.endpoint().to_string();
        let mut words: Vec<_> = command.split_whitespace().collect();
        if self.via == Via::Socket {
            words.extend(["--socket", &endpoint]);
        }
        self.site.ok(&words)
    }
    fn json(&self, command: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{command} -o json"))).unwrap()
    }
    fn path(&self, name: &str) -> String {
        self.site.path(name).display().to_string()
    }
    fn mounted(&self, volume: &str) -> Vec<String> {
        let shown = self.json(&format!("volume show {volume}"));
        serde_json::from_value(shown["mounted"].clone()).unwrap()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.server = None;
        if self.via == Via::Socket {
            let _ = std::fs::remove_dir(format!("/run/larder/mounts/{}", self.site.driver));
        }
    }
}

fn ids(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|entry| entry["id"].as_str().unwrap()).collect()
}

#[rstest]
#[tokio::test]
async fn a_volume_lives_from_create_to_rm(
    #[values("loop", "dir")] backend: &'static str,
    #[values(Via::Nobody, Via::Owner, Via::Socket)] via: Via,
) {
    let mut life = Life::new(backend, via).await;
    let (here, there, copied) = (life.path("here"), life.path("there"), life.path("copied"));

    let made = life.json("volume create data --size 320Mi");
    assert_eq!((&made["id"], &made["size"]), (&"default/data".into(), &(320 << 20).into()));
    assert_eq!(life.json("volume create data --size 320Mi"), made, "repeated");
    assert_eq!(ids(&life.json("volume ls")), ["default/data"]);

    life.ok(&format!("volume mount data {here}"));
    life.ok(&format!("volume mount data {here}"));
    life.ok(&format!("volume mount default/data {there} --read-only"));
    assert_eq!(life.mounted("data"), [here.as_str(), &there]);
    std::fs::write(format!("{here}/file"), "precious").unwrap();
    assert_eq!(std::fs::read(format!("{there}/file")).unwrap(), b"precious");
    let refused = std::fs::write(format!("{there}/file"), "changed").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);

    let cut = life.json("snapshot create data@monday");
    assert_eq!(cut["snapshot"], "data@monday");
    assert_eq!(cut["ready"], true);
    assert_eq!(life.json("snapshot create data@monday")["id"], cut["id"], "repeated");
    std::fs::remove_file(format!("{here}/file")).unwrap();

    let grown = life.json("volume expand data --size 400Mi");
    assert_eq!(grown["size"], 400 << 20);

    let copy = life.json("volume create copy --size 400Mi --from data@monday");
    assert!(copy["source"].as_str().unwrap().contains("data.monday"), "{copy}");
    life.ok(&format!("volume mount copy {copied}"));
    assert_eq!(std::fs::read(format!("{copied}/file")).unwrap(), b"precious");
    life.ok("volume create clone --size 400Mi --from copy");

    assert_eq!(ids(&life.json("snapshot ls")), ["default/data.monday"]);
    assert_eq!(ids(&life.json("snapshot ls data")), ["default/data.monday"]);
    assert_eq!(ids(&life.json("snapshot ls copy")), Vec::<&str>::new());
    assert_eq!(ids(&life.json("volume ls")), ["default/clone", "default/copy", "default/data"]);

    life.ok(&format!("volume unmount {there}"));
    assert_eq!(life.mounted("data"), [here.as_str()]);
    life.ok(&format!("volume mount data {there}"));
    life.ok(&format!("volume unmount data {there}"));
    assert_eq!(life.mounted("data"), [here.as_str()]);
    life.ok("volume unmount data");
    life.ok("volume unmount copy");
    assert_eq!(life.mounted("data"), Vec::<String>::new());

    life.ok("snapshot rm data@monday");
    life.ok("volume rm clone copy default/data");
    assert_eq!(ids(&life.json("volume ls")), Vec::<&str>::new());

    if let Some(server) = &mut life.server {
        assert!(server.stop().success());
    }
    let left = leaks::find(life.site.dir.path(), life.site.pool.path());
    assert!(left.is_empty(), "{left:#?}");
}

#[rstest]
#[tokio::test]
async fn a_raw_block_volume_is_a_device_file(#[values(Via::Nobody, Via::Owner)] via: Via) {
    use std::os::unix::fs::FileTypeExt;
    let mut life = Life::new("loop", via).await;
    let (here, there) = (life.path("here"), life.path("there"));
    life.ok("volume create raw --size 16Mi --block --param sectorSize=4096");
    life.ok(&format!("volume mount raw {here} --block"));
    life.ok(&format!("volume mount raw {there} --block"));
    std::fs::write(&here, "raw bytes").unwrap();
    let same = std::fs::read(&there).unwrap();
    assert_eq!((&same[..9], same.len()), (&b"raw bytes"[..], 16 << 20));
    let grown = life.json("volume expand raw --size 32Mi");
    assert_eq!(grown["size"], 32 << 20);
    assert_eq!(std::fs::read(&there).unwrap().len(), 32 << 20);
    life.ok("volume unmount raw");

    life.ok(&format!("volume mount raw {here} --block --read-only"));
    life.ok(&format!("volume mount raw {there} --block --read-only"));
    assert!(std::fs::metadata(&here).unwrap().file_type().is_block_device());
    assert!(std::fs::write(&here, "more").is_err(), "written through --read-only");
    assert_eq!(&std::fs::read(&there).unwrap()[..9], b"raw bytes");
    life.ok(&format!("volume unmount {here}"));
    life.ok(&format!("volume unmount {there}"));
    life.ok("volume rm raw");
    if let Some(server) = &mut life.server {
        assert!(server.stop().success());
    }
    let left = leaks::find(life.site.dir.path(), life.site.pool.path());
    assert!(left.is_empty(), "{left:#?}");
}

/// A test that fails must not take loop devices and mounts from those after it.
#[tokio::test]
async fn a_test_that_panics_leaves_neither_mounts_nor_devices() {
    use larder_host::Host;
    let life = Life::new("loop", Via::Owner).await;
    let (at, disk) = (life.site.dir.path().to_owned(), life.site.disk());
    life.ok("volume create raw --size 16Mi --block");
    life.ok(&format!("volume mount raw {} --block", life.path("raw")));
    life.ok("volume create data --size 320Mi");
    life.ok(&format!("volume mount data {}", life.path("data")));
    let open = std::fs::File::create(at.join("data/open")).unwrap();
    let fails = move || -> () {
        let _dropped = (open, life);
        std::panic::resume_unwind(Box::new("it fails"));
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(fails)).unwrap_err();
    let host = Host::real();
    let mounts = host.mounts.table().unwrap();
    assert!(!mounts.iter().any(|mount| mount.target.starts_with(&at)), "{mounts:#?}");
    // The kernel lets go of a device a moment after its last user.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let left = || {
        let devices = host.loops.list().unwrap();
        devices.into_iter().find(|device| device.backing().device == disk)
    };
    while let Some(device) = left() {
        assert!(std::time::Instant::now() < until, "{device:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(!at.exists());
}

#[rstest]
#[tokio::test]
async fn groups_of_snapshots_and_their_blocks(#[values(Via::Nobody, Via::Owner)] via: Via) {
    let life = Life::new("loop", via).await;
    for name in ["one", "two"] {
        life.ok(&format!("volume create {name} --size 16Mi --block"));
    }
    let made = life.json("snapshot group create monday one two");
    assert_eq!(made.as_array().unwrap().len(), 2);
    assert_eq!(life.json("snapshot group ls monday"), made);
    assert_eq!(life.json("snapshot ls"), made);
    let id = made[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(life.json(&format!("snapshot blocks {id}")), serde_json::json!([]));
    let image = life.site.pool.path().join("volumes/one/image");
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; 8192], 1 << 20).unwrap();
    drop(file);
    life.ok("snapshot create one@later");
    let told = life.json(&format!("snapshot blocks one@later --since {id}"));
    assert_eq!(told, life.json("snapshot blocks one@later"));
    assert_eq!(told, serde_json::json!([{ "offset": 1 << 20, "size": 8192 }]));
    life.ok("snapshot group rm monday");
    assert_eq!(life.json("snapshot ls").as_array().unwrap().len(), 1);
}
