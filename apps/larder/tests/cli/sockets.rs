//! Finding the one who serves: by endpoint, by the pool's lock, or by `--socket`.

use crate::support::{Server, Site, program};
use rustix::process::Signal;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_command_finds_the_owner_of_a_pool_that_serves_another_endpoint() {
    let site = Site::new("dir", "xfs");
    let elsewhere = site.path("elsewhere/csi.sock").to_str().unwrap().parse().unwrap();
    let other = site.path("other.yaml");
    site.configure(&other, &elsewhere);
    let mut server = Server::start(&other, &elsewhere, &[]);
    assert!(server.ready().await);
    // The site's own configuration names an endpoint at which nobody is.
    assert!(!site.endpoint().path().exists());
    site.ok(&["volume", "create", "a"]);
    let log = std::fs::read_to_string(other.with_extension("log")).unwrap();
    assert!(!log.is_empty());
    let socket = elsewhere.to_string();
    assert!(site.ok(&["volume", "ls", "--socket", &socket]).contains("default/a"));
    assert!(server.stop().success());
    assert!(site.ok(&["volume", "ls"]).contains("default/a"));
}

#[tokio::test]
async fn driver_info_through_a_socket_tells_what_csi_tells() {
    let site = Site::new("loop", "xfs");
    let mut server = site.server();
    assert!(server.ready().await);
    let socket = site.endpoint().to_string();
    let info = |more: &[&str]| {
        let arguments = [&["driver", "info", "-o", "json"], more].concat();
        let printed = site.ok(&arguments);
        serde_json::from_str::<serde_json::Value>(&printed).unwrap()[0].clone()
    };
    let (ours, foreign) = (info(&[]), info(&["--socket", &socket]));
    for key in ["name", "version", "ready", "nodeId", "plugin", "controller", "node"] {
        assert_eq!(ours[key], foreign[key], "{key}");
    }
    assert_eq!(ours["ready"], true);
    // CSI has no words for parameters.
    assert!(!ours["parameters"].as_array().unwrap().is_empty());
    assert!(foreign["parameters"].as_array().unwrap().is_empty());
    site.fails(2, &["driver", "info", "--socket", &socket, "--driver", "x"]);
    assert!(site.ok(&["pool", "ls", "--socket", &socket]).contains("default"));
}

#[tokio::test]
async fn controllers_do_not_wait_in_silence_for_a_driver_that_takes_connections_and_answers_nothing()
 {
    let dir = tempfile::tempdir().unwrap();
    let (socket, log) = (dir.path().join("csi.sock"), dir.path().join("log"));
    let silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut controllers = program();
    controllers.args(["controllers", "--timeout=1s", "--csi-address"]).arg(&socket);
    controllers.stderr(std::fs::File::create(&log).unwrap());
    let mut child = controllers.spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    let mut text = String::new();
    while !text.contains("no answer in 1s") && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
        text = std::fs::read_to_string(&log).unwrap();
    }
    let ours = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(ours, Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(text.contains("waiting for the driver: no answer in 1s"), "{text}");
    drop(silent);
}
