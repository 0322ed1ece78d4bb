//! The trash as people and scripts use it, with real file systems in the volumes.

use crate::support::{Server, Site};
use rstest::rstest;
use serde_json::Value;

struct Kept {
    site: Site,
    /// Before the site, which unmounts, goes.
    server: Option<Server>,
}

impl Kept {
    /// A site whose pool keeps what is deleted for so long.
    async fn new(backend: &'static str, served: bool, time: &str) -> Self {
        let site = Site::new(backend, "xfs");
        let config = std::fs::read_to_string(site.config()).unwrap();
        let config = config.replace("create: true", &format!("create: true, trash: {time}"));
        std::fs::write(site.config(), config).unwrap();
        let mut kept = Self { site, server: None };
        if served {
            kept.serve().await;
        }
        kept
    }

    async fn serve(&mut self) {
        let mut server = self.site.server();
        assert!(server.ready().await);
        self.server = Some(server);
    }

    fn ok(&self, command: &str) -> String {
        self.site.ok(&command.split_whitespace().collect::<Vec<_>>())
    }
    fn json(&self, command: &str) -> Value {
        serde_json::from_str(&self.ok(&format!("{command} -o json"))).unwrap()
    }
    fn fails(&self, status: i32, command: &str) -> String {
        self.site.fails(status, &command.split_whitespace().collect::<Vec<_>>())
    }
    fn trash(&self) -> Vec<Value> {
        self.json("trash ls").as_array().unwrap().clone()
    }

    /// Reads or writes the file in a volume.
    fn with_file<T>(&self, volume: &str, work: impl FnOnce(&str) -> T) -> T {
        let here = self.site.path("here").display().to_string();
        self.ok(&format!("volume mount {volume} {here}"));
        let result = work(&format!("{here}/file"));
        self.ok(&format!("volume unmount {volume}"));
        result
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.server = None;
    }
}

#[rstest]
#[tokio::test]
async fn what_was_deleted_comes_back_with_its_data(
    #[values("loop", "dir")] backend: &'static str,
    #[values(false, true)] served: bool,
) {
    let mut kept = Kept::new(backend, served, "24h").await;
    kept.ok("volume create data --size 320Mi");
    kept.with_file("data", |file| std::fs::write(file, "precious").unwrap());
    kept.ok("snapshot create data@monday");
    kept.ok("snapshot rm data@monday");
    kept.ok("volume rm data");
    assert_eq!(kept.json("volume ls").as_array().unwrap().len(), 0);
    kept.fails(3, "volume rm data");
    let [volume, snapshot] = &kept.trash()[..] else { panic!("{:?}", kept.trash()) };
    assert_eq!((&volume["kind"], &volume["origin"]), (&"volume".into(), &"default/data".into()));
    assert_eq!((&volume["name"], &volume["size"]), (&"data".into(), &(320 << 20).into()));
    assert_eq!(snapshot["sourceVolume"], "default/data");
    assert!(volume["due"].as_str() > volume["deleted"].as_str(), "{volume}");
    let table = kept.ok("trash ls");
    assert!(table.starts_with("ID ") && table.contains(" data "), "{table}");

    // Its name is free, and taken again.
    kept.ok("volume create data --size 400Mi");
    let (volume, snapshot) = (volume["id"].as_str().unwrap(), snapshot["id"].as_str().unwrap());
    let said = kept.fails(4, &format!("trash restore {volume}"));
    assert!(said.contains("taken") && said.contains("--as NAME"), "{said}");
    if served {
        // What is in it outlives its server.
        kept.server = None;
        kept.serve().await;
    }
    let back = kept.json(&format!("trash restore {volume} --as rescued"));
    assert_eq!((&back["kind"], &back["id"]), (&"volume".into(), &"default/rescued".into()));
    let read = kept.with_file("rescued", |file| std::fs::read_to_string(file).unwrap());
    assert_eq!(read, "precious");
    let back = kept.json(&format!("trash restore {snapshot} --as tuesday"));
    assert_eq!(back["id"], "default/data.tuesday");
    kept.ok("volume create copy --size 320Mi --from data@tuesday");
    let read = kept.with_file("copy", |file| std::fs::read_to_string(file).unwrap());
    assert_eq!(read, "precious");
    kept.fails(3, &format!("trash restore {volume}"));
    assert!(kept.trash().is_empty());
}

#[rstest]
#[tokio::test]
async fn the_trash_is_emptied_by_hand_and_by_time(#[values(false, true)] served: bool) {
    let kept = Kept::new("loop", served, "24h").await;
    for name in ["one", "two", "three"] {
        kept.ok(&format!("volume create {name} --size 16Mi --block"));
        kept.ok(&format!("volume rm {name}"));
    }
    let trash = kept.trash();
    let id = trash[0]["id"].as_str().unwrap();
    assert_eq!(trash[0]["name"], "three", "the latest first");
    kept.fails(3, &format!("trash rm {id} 0123456789ab"));
    assert_eq!(kept.trash().len(), 3, "nothing is removed when one of them is not there");
    kept.ok(&format!("trash rm {id}"));
    assert_eq!(kept.json("trash empty --older-than 1h")["removed"], 0);
    let said = kept.fails(2, "trash empty --older-than soon");
    assert!(said.contains("as in 24h"), "{said}");
    assert_eq!(kept.json("trash empty")["removed"], 2);
    assert!(kept.trash().is_empty());
    let left = std::fs::read_dir(kept.site.pool.path().join("trash")).unwrap().count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn the_server_removes_what_is_due() {
    let kept = Kept::new("dir", true, "2s").await;
    kept.ok("volume create data --size 16Mi");
    kept.ok("volume rm data");
    assert_eq!(kept.trash().len(), 1);
    for _ in 0..100 {
        if kept.trash().is_empty() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("it is still there: {:?}", kept.trash());
}

/// SIGKILL of a real server at each step of a deletion and of a restoration.
#[rstest]
#[tokio::test]
async fn a_kill_at_any_step_of_deletion_and_restoration_loses_nothing(
    #[values("loop", "dir")] backend: &'static str,
) {
    use larder_proto::{csi::DeleteVolumeRequest, larder::RestoreTrashRequest};
    let kept = Kept::new(backend, false, "24h").await;
    kept.ok("volume create data --size 320Mi");
    kept.with_file("data", |file| std::fs::write(file, "precious").unwrap());
    let mut killed = 0;
    for restores in [false, true] {
        for step in 1..20 {
            let mut server = kept.site.server_that_crashes_at(step);
            if !server.ready().await {
                continue;
            }
            let ended = if restores {
                let id = kept.trash()[0]["id"].as_str().unwrap().to_owned();
                let request = RestoreTrashRequest { id, name: String::new() };
                server.client.admin().restore_trash(request).await.is_ok()
            } else {
                let volume_id = "default/data".to_owned();
                let request = DeleteVolumeRequest { volume_id, ..Default::default() };
                server.client.controller().delete_volume(request).await.is_ok()
            };
            if ended {
                // Nothing was left to kill it at.
                server.stop();
                break;
            }
            killed += 1;
            drop(server);
            // It is in one place, whole; and back where this step begins.
            let (volumes, trash) = (kept.json("volume ls"), kept.trash());
            let volumes = volumes.as_array().unwrap();
            assert_eq!(volumes.len() + trash.len(), 1, "step {step}: {volumes:?} {trash:?}");
            if restores {
                if trash.is_empty() {
                    kept.ok("volume rm data");
                }
            } else if let [trashed] = &trash[..] {
                kept.ok(&format!("trash restore {}", trashed["id"].as_str().unwrap()));
            }
        }
    }
    assert!(killed >= 5, "killed {killed} times");
    assert_eq!(kept.with_file("data", |f| std::fs::read_to_string(f).unwrap()), "precious");
}
