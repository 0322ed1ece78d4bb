//! Paths that cannot be mounted at, and sockets that cannot be made.

use super::*;
use std::{
    os::unix::{fs::symlink, net::UnixListener},
    time::{Duration, Instant},
};

#[tokio::test]
async fn a_target_that_is_taken_or_leads_elsewhere_is_refused_and_left_as_it_is() {
    let ground = Ground::of("loop", "xfs").await;
    let id = ground.make("v", false).await.volume_id;
    ground.stage(&id, &ground.text("staging"), capability(false, "")).await.unwrap();
    let elsewhere = ground.site.path("elsewhere");
    std::fs::create_dir_all(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("theirs"), "x").unwrap();

    // A symlink is not followed.
    symlink(&elsewhere, ground.site.path("pods/link")).unwrap();
    let answer = ground.publish(&id, &ground.text("pods/link"), capability(false, "")).await;
    refused(answer, &[Code::InvalidArgument, Code::FailedPrecondition], &["symlink"]);
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 1);

    // Somebody else's mount is not covered.
    let busy = ground.site.path("pods/busy");
    std::fs::create_dir_all(&busy).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "theirs"]).arg(&busy).status();
    assert!(mounted.unwrap().success());
    std::fs::write(busy.join("theirs"), "x").unwrap();
    let answer = ground.publish(&id, &ground.text("pods/busy"), capability(false, "")).await;
    refused(answer, &[Code::FailedPrecondition, Code::AlreadyExists], &["mount"]);
    assert!(busy.join("theirs").exists());
    let answer = ground
        .server
        .client
        .node()
        .node_unpublish_volume(csi::NodeUnpublishVolumeRequest {
            volume_id: id.clone(),
            target_path: ground.text("pods/busy"),
        })
        .await;
    assert!(busy.join("theirs").exists(), "{answer:?}: somebody else's mount was taken away");
    assert!(Command::new("umount").arg(&busy).status().unwrap().success());

    // A file where a directory must be; paths that are no paths.
    std::fs::write(ground.site.path("pods/file"), "theirs").unwrap();
    let answer = ground.publish(&id, &ground.text("pods/file"), capability(false, "")).await;
    refused(answer, &[Code::InvalidArgument, Code::FailedPrecondition], &["file"]);
    assert_eq!(std::fs::read(ground.site.path("pods/file")).unwrap(), b"theirs");
    let up = format!("{}/../../escape", ground.text("pods"));
    for path in ["", "relative/path", "/nul\0", up.as_str(), "/"] {
        let answer = ground.publish(&id, path, capability(false, "")).await;
        refused(answer, &[Code::InvalidArgument, Code::FailedPrecondition], &[]);
    }
    ground.unstage(&id).await.unwrap();
    ground.delete(&id).await.unwrap();
}

/// Starts a server at `endpoint`; returns how it ends, and what it says.
fn serve_at(site: &Site, endpoint: &str) -> (Option<i32>, String) {
    let config = site.path("other.yaml");
    site.configure(&config, &endpoint.parse().unwrap());
    let mut server = Command::new(env!("CARGO_BIN_EXE_larder"))
        .args(["serve", "--config"])
        .arg(&config)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let status = loop {
        match server.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > end => {
                server.kill().unwrap();
                break server.wait().unwrap();
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let mut said = String::new();
    std::io::Read::read_to_string(&mut server.stderr.take().unwrap(), &mut said).unwrap();
    (status.code(), said)
}

#[test]
fn a_socket_that_cannot_be_made_ends_the_server_with_words_and_changes_nothing() {
    let site = Site::new("dir", "xfs");
    for folder in ["plain", "folder/csi.sock", "file"] {
        std::fs::create_dir_all(site.path(folder)).unwrap();
    }
    std::fs::write(site.path("plain/csi.sock"), "theirs").unwrap();
    std::fs::write(site.path("file/not-a-folder"), "theirs").unwrap();
    for (socket, word) in [
        ("plain/csi.sock", "plain/csi.sock"),
        ("folder/csi.sock", "folder/csi.sock"),
        ("file/not-a-folder/csi.sock", "not-a-folder"),
    ] {
        let before = picture(&site.path("plain"));
        let (status, said) = serve_at(&site, &format!("unix://{}", site.path(socket).display()));
        assert!(matches!(status, Some(code) if code != 0), "{socket}: {status:?}: {said}");
        assert!(said.contains(word) && !said.contains("panicked"), "{socket}: {said}");
        assert_eq!(picture(&site.path("plain")), before);
    }
    assert_eq!(std::fs::read(site.path("file/not-a-folder")).unwrap(), b"theirs");
}

#[test]
fn an_endpoint_that_no_socket_can_have_is_a_wrong_configuration() {
    let site = Site::new("dir", "xfs");
    for endpoint in ["tcp://0.0.0.0:1", "unix://relative", "http://x", "", "unix:///run/../x"] {
        let pool = site.path("pool").display().to_string();
        let output = Command::new(env!("CARGO_BIN_EXE_larder"))
            .args(["serve", "--backend", "dir", "--pool", &pool, "--endpoint", endpoint])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(2 | 64)), "{endpoint:?}: {said}");
        assert!(!site.path("pool").exists(), "{endpoint:?}: nothing is made before all is checked");
    }
}

#[tokio::test]
async fn somebody_elses_live_socket_is_not_taken() {
    let site = Site::new("dir", "xfs");
    std::fs::create_dir_all(site.path("run")).unwrap();
    let theirs = UnixListener::bind(site.path("run/csi.sock")).unwrap();
    let mut server = site.server();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!server.has_ended(), "it waits for whoever serves there");
    theirs.set_nonblocking(true).unwrap();
    assert!(theirs.accept().is_ok(), "the socket is still the other's");
    drop(theirs);
    assert!(server.ready().await, "and is replaced once nobody listens any more");
}
