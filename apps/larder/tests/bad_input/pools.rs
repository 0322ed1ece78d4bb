//! Pools that are not what they should be.

use super::*;
use std::time::{Duration, Instant};

/// Runs a command against a pool at `path` with more `keys`; returns status and words.
fn ask(site: &Site, path: &Path, keys: &str, arguments: &[&str]) -> (i32, String) {
    let config = site.path("ask.yaml");
    let yaml = format!(
        "node: n1\nstateDir: {}\ndrivers:\n- name: {}\n  backend: {}\n  endpoint: unix://{}\n  pools:\n    \
         default: {{ path: {}{keys} }}\n",
        site.path("state").display(),
        support::DRIVER,
        site.backend,
        site.path("run/csi.sock").display(),
        path.display(),
    );
    std::fs::write(&config, yaml).unwrap();
    let output = support::larder(&config, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), said)
}

const CREATE: [&str; 5] = ["volume", "create", "v", "--size", "16Mi"];

#[test]
fn a_pool_that_is_a_file_missing_or_without_identity_is_never_written_to() {
    let site = Site::new("dir", "xfs");
    let file = site.path("file");
    std::fs::write(&file, "theirs").unwrap();
    let folder = site.path("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("theirs"), "x").unwrap();
    let before = picture(&folder);
    let missing = site.path("missing");
    for (path, keys, word) in [
        (&file, "", "file"),
        (&file, ", create: true", "file"),
        (&missing, "", "missing"),
        (&folder, "", "identity"),
        // Somebody else's files are in it: it is not made a pool by the way.
        (&folder, ", create: true", "folder"),
    ] {
        let (status, said) = ask(&site, path, keys, &CREATE);
        assert_ne!(status, 0, "{}{keys}: {said}", path.display());
        assert!(said.contains(word), "{}{keys} does not say {word:?}: {said}", path.display());
        assert!(!said.contains("panicked"), "{said}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"theirs");
    assert_eq!(picture(&folder), before);
    assert!(!missing.exists());
}

#[test]
fn a_pool_whose_disk_is_not_mounted_is_away_and_not_empty() {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "v", "--size", "16Mi"]);
    let mount = site.pool.path().parent().unwrap().to_owned();
    let device = larder_host::Host::real().mounts.mounts_at(&mount).unwrap()[0].source.clone();
    // Keeps the device, which goes with its last user.
    let _held = std::fs::File::open(&device).unwrap();
    assert!(Command::new("umount").arg(&mount).status().unwrap().success());
    let (status, said) = ask(&site, site.pool.path(), "", &["volume", "ls"]);
    assert_ne!(status, 0, "an empty list would say that everything is gone");
    assert!(said.contains(&site.pool.path().display().to_string()), "{said}");
    let (status, _) = ask(&site, site.pool.path(), "", &["volume", "rm", "v"]);
    assert_ne!(status, 0);
    let (status, said) = ask(&site, &mount, ", mount: required, create: true", &CREATE);
    assert_ne!(status, 0, "{said}");
    assert_eq!(
        std::fs::read_dir(&mount).unwrap().count(),
        0,
        "nothing is made below a mount point"
    );
    assert!(Command::new("mount").arg(&device).arg(&mount).status().unwrap().success());
    assert!(site.ok(&["volume", "ls"]).contains("v"));
}

#[tokio::test]
async fn a_pool_that_became_read_only_says_so_and_serves_again_later() {
    let mut ground = Ground::of("dir", "xfs").await;
    let id = ground.make("v", false).await.volume_id;
    let mount = ground.site.pool.path().parent().unwrap().to_owned();
    let remount = |how: &str| {
        let options = format!("remount,{how}");
        assert!(
            Command::new("mount").args(["-o", &options]).arg(&mount).status().unwrap().success()
        );
    };
    // Nobody can make it so while the server holds its lock file.
    assert!(ground.server.stop().success());
    remount("ro");
    ground.server = ground.site.server();
    assert!(ground.server.ready().await);
    let request = create("w", SIZE, capability(false, ""));
    let answer = ground.server.client.controller().create_volume(request.clone()).await;
    let codes = [Code::Unavailable, Code::FailedPrecondition];
    refused(answer, &codes, &["read-only"]);
    refused(ground.delete(&id).await, &codes, &["read-only"]);
    assert!(ground.site.ok(&["volume", "ls"]).contains('v'));
    assert!(ground.server.stop().success());
    remount("rw");
    ground.server = ground.site.server();
    assert!(ground.server.ready().await);
    ground.server.client.controller().create_volume(request).await.unwrap();
    ground.delete(&id).await.unwrap();
}

#[tokio::test]
async fn a_full_pool_is_resource_exhausted_and_can_be_emptied() {
    let ground = Ground::of("loop", "xfs").await;
    let id = ground.make("v", false).await.volume_id;
    let filler = ground.site.pool.path().parent().unwrap().join("filler");
    let output = Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", &format!("of={}", filler.display())])
        .output()
        .unwrap();
    assert!(!output.status.success(), "the disk is not full");
    let request = csi::CreateVolumeRequest {
        parameters: [("allocation".to_owned(), "preallocated".to_owned())].into(),
        ..create("w", SIZE, capability(false, ""))
    };
    let answer = ground.server.client.controller().create_volume(request.clone()).await;
    refused(answer, &[Code::ResourceExhausted], &["default"]);
    let pool = ground.site.pool.path();
    assert_eq!(std::fs::read_dir(pool.join("volumes")).unwrap().count(), 1, "nothing is left");
    assert_eq!(std::fs::read_dir(pool.join("creating")).unwrap().count(), 0, "nothing is left");
    ground.delete(&id).await.unwrap();
    std::fs::remove_file(filler).unwrap();
    // XFS takes the blocks of what was removed back in its own time.
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match ground.server.client.controller().create_volume(request.clone()).await {
            Ok(_) => break,
            Err(status) => {
                let waits = status.code() == Code::ResourceExhausted && Instant::now() < until;
                assert!(waits, "{status}");
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
