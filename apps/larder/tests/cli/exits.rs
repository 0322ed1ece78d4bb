//! Exit statuses: each one that docs/cli.md lists.

use crate::support::{Site, larder, program};
use std::time::{Duration, Instant};

const PAGE: &str = include_str!("../../../../docs/cli.md");

#[test]
fn every_documented_exit_status_has_a_test_here() {
    let section = PAGE.split("## Exit status").nth(1).unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next());
    let documented: Vec<u8> = rows.filter_map(|cell| cell.parse().ok()).collect();
    assert_eq!(documented, [0, 1, 2, 3, 4, 5, 6, 7, 8, 64]);
    let help = program().arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let help = help.split("Exit status:").nth(1).unwrap();
    assert!(documented.iter().all(|code| help.split_whitespace().any(|w| w == code.to_string())));
}

/// Also with a server: then statuses come from gRPC codes.
#[rstest::rstest]
#[case::alone(false)]
#[case::served(true)]
#[tokio::test]
async fn failures_exit_with_the_status_of_their_kind(#[case] served: bool) {
    let site = Site::new("loop", "xfs");
    let server = if served {
        let mut server = site.server();
        assert!(server.ready().await);
        Some(server)
    } else {
        None
    };
    let here = site.path("here").display().to_string();
    let full = site.path("full").display().to_string();
    std::fs::create_dir(&full).unwrap();
    std::fs::write(site.path("full/file"), "").unwrap();
    for (status, command, says) in [
        (0, "volume create data --size 320Mi", ""),
        (0, "volume create raw --size 16Mi --block", ""),
        (0, "volume mount data HERE", ""),
        (0, "snapshot create data@s", ""),
        // Wrong usage.
        (2, "volume", "Usage"),
        (2, "volume create", "<NAME>"),
        (2, "volume create data --size many", "--size"),
        (2, "volume create x --size 0", "above 0"),
        (2, "volume expand data --size 0Gi", "above 0"),
        (2, "volume create x --param y", "KEY=VALUE"),
        (2, "volume create x --param foo=bar", "unknown parameter \"foo\""),
        (2, "volume create x --param csi.storage.k8s.io/pvc/name=y", "belongs to Kubernetes"),
        (2, "volume create x --fs zfs", "ext4, xfs and btrfs"),
        (2, "volume create x --block --fs xfs", "cannot be used with"),
        (2, "volume create x --pool Fast", "Fast"),
        (2, "snapshot create data", "VOLUME@NAME"),
        (2, "volume ls --timeout 0", "--timeout"),
        (2, "volume ls --socket relative.sock", "--socket"),
        // Not found.
        (3, "volume show nope", "default/nope"),
        (3, "volume rm nope", "default/nope"),
        (3, "volume mount nope HERE", "default/nope"),
        (3, "volume unmount raw", "has not mounted it"),
        (3, "volume expand nope --size 1Gi", "default/nope"),
        (3, "volume create x --from nope", "default/nope"),
        (3, "volume create x --from data@nope", "data@nope"),
        (3, "snapshot create nope@s", "default/nope"),
        (3, "snapshot rm data@nope", "data@nope"),
        (3, "pool init nope", "pool nope"),
        (3, "volume ls --driver nope", "driver nope"),
        // Exists with other properties.
        (4, "volume create data --size 400Mi", "exists"),
        (4, "volume create data --size 320Mi --fs ext4", "exists"),
        (4, "volume mount data HERE --read-only", "already"),
        // In use, not possible in this state.
        (5, "volume rm data", "mounted at"),
        (5, "volume mount data FULL", "a directory with files in it"),
        // No space, or a size that cannot be had.
        (6, "volume create x --size 8Gi --param allocation=preallocated", "default/x"),
        // Not reachable.
        (7, "volume ls --socket unix:///no/such.sock", "nobody serves it"),
    ] {
        let words: Vec<_> = command
            .split(' ')
            .map(|word| match word {
                "HERE" => here.as_str(),
                "FULL" => &full,
                other => other,
            })
            .collect();
        let output = site.larder(&words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "larder {command}: {said}");
        assert!(said.contains(says), "larder {command}: {said}");
        if status > 2 {
            assert!(said.starts_with("larder: failed to "), "larder {command}: {said}");
            assert_eq!(said.lines().count(), 1, "larder {command}: {said}");
        }
    }
    drop(server);
}

#[test]
fn what_is_damaged_fails_with_status_1() {
    let site = Site::new("dir", "xfs");
    site.ok(&["volume", "create", "data"]);
    std::fs::write(site.pool.path().join("volumes/data/record.json"), "{ no record").unwrap();
    let why = site.fails(1, &["volume", "show", "data"]);
    assert!(why.contains("volumes/data/record.json") && why.contains("hint"), "{why}");
}

#[test]
fn a_full_pool_is_status_6_and_leaves_nothing() {
    let site = Site::new("loop", "xfs");
    let arguments =
        ["volume", "create", "big", "--size", "8Gi", "--param", "allocation=preallocated"];
    let why = site.fails(6, &arguments);
    assert!(why.contains("default/big"), "{why}");
    assert_eq!(site.ok(&["volume", "ls", "-o", "json"]).trim(), "[]");
}

#[test]
fn wrong_configuration_is_status_64_for_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, "drivers: [{name: a, backend: tape, endpoint: /run/a/s.sock}]").unwrap();
    for command in ["volume ls", "snapshot ls", "pool ls", "driver info", "config check", "serve"] {
        let output = larder(&file, &command.split(' ').collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(64), "larder {command}: {said}");
        assert!(said.contains("drivers[0].backend"), "larder {command}: {said}");
    }
    let absent = larder(&dir.path().join("absent.yaml"), &["volume", "ls"]);
    assert_eq!(absent.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&absent.stderr).contains("--config"));
}

/// Somebody who accepts connections and never says a word.
#[test]
fn a_command_gives_up_at_its_timeout_whatever_it_waits_for() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let endpoint = format!("unix://{}", socket.display());
    let started: Vec<_> = ["volume ls", "volume rm a/b", "snapshot ls", "pool ls", "driver info"]
        .into_iter()
        .map(|command| {
            let mut program = program();
            program.args(command.split(' ')).args(["--timeout", "1", "--socket", &endpoint]);
            program.stderr(std::process::Stdio::piped());
            (command, Instant::now(), program.spawn().unwrap())
        })
        .collect();
    for (command, start, child) in started {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(7), "larder {command}: {said}");
        assert!(said.contains("1s") && said.contains("--timeout"), "larder {command}: {said}");
        assert!(start.elapsed() < Duration::from_secs(20), "larder {command}");
    }
    drop(listener);
}

#[test]
fn a_command_waits_for_a_pool_of_somebody_else_no_longer_than_its_timeout() {
    let site = Site::new("dir", "xfs");
    site.ok(&["pool", "ls"]);
    let lock = site.pool.path().join(".larder/lock");
    let held = larder_host::lock::FileLock::try_exclusive(&lock).unwrap().unwrap();
    let start = Instant::now();
    let why = site.fails(7, &["volume", "ls", "--timeout", "1"]);
    assert!(why.contains("held by another process") && why.contains("hint"), "{why}");
    assert!(start.elapsed() < Duration::from_secs(20));
    drop(held);
    site.ok(&["volume", "ls", "--timeout", "20"]);
}
