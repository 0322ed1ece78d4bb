//! Passphrases: where they never are, and how they change.

use crate::lab::{KEY, Lab, NEW_KEY, key, map};
use larder_host::luks;
use larder_model::Passphrase;
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tonic::Code;

pub(crate) fn opens(image: &Path, passphrase: &str) -> bool {
    luks::opens(image, &Passphrase::new(passphrase.as_bytes()).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passphrase_is_replaced_when_the_secret_names_the_old_one() {
    let lab = Lab::new(false).await;
    lab.create("a").await;
    let target = lab.open("a", KEY).await;
    fs::write(target.join("data"), "precious").unwrap();
    let both = map(&[("passphrase", NEW_KEY), ("oldPassphrase", KEY)]);
    // In use: what is staged already changes its passphrase all the same.
    lab.stage("a", both.clone()).await.unwrap();
    assert!(opens(&lab.image("a"), NEW_KEY) && !opens(&lab.image("a"), KEY));
    assert_eq!(fs::read(target.join("data")).unwrap(), b"precious");
    lab.close("a").await;
    // The secret stays as it is until all volumes have been staged.
    lab.stage("a", both).await.unwrap();
    lab.unstage("a").await.unwrap();
    let refused = lab.stage("a", key(KEY)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    // And back, at staging.
    lab.stage("a", map(&[("passphrase", KEY), ("oldPassphrase", NEW_KEY)])).await.unwrap();
    let target = lab.publish("a").await.unwrap();
    assert_eq!(fs::read(target.join("data")).unwrap(), b"precious");
    assert!(opens(&lab.image("a"), KEY) && !opens(&lab.image("a"), NEW_KEY));
    // A passphrase that replaces itself stays.
    lab.stage("a", map(&[("passphrase", KEY), ("oldPassphrase", KEY)])).await.unwrap();
    assert!(opens(&lab.image("a"), KEY));
    lab.close("a").await;
    let header = luks::header(&lab.image("a")).unwrap();
    assert_eq!(header.slots.len(), 1, "{header:?}");
    lab.delete("a").await;
    assert!(lab.is_clean());
}

/// Looks through everything that other users, or a log, could show.
fn watch(stop: &AtomicBool, secrets: &[&str]) -> (Vec<String>, usize) {
    let mut found = Vec::new();
    let mut seen = 0;
    let me = std::process::id().to_string();
    while !stop.load(Ordering::Relaxed) {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with(|c: char| c.is_ascii_digit()) || name == me {
                continue;
            }
            for what in ["cmdline", "environ"] {
                let Ok(bytes) = fs::read(entry.path().join(what)) else { continue };
                let text = String::from_utf8_lossy(&bytes);
                seen += usize::from(what == "cmdline" && text.contains("cryptsetup"));
                if secrets.iter().any(|secret| text.contains(secret)) {
                    found.push(format!("{what} of {name}: {text}"));
                }
            }
        }
        // It shares the processors with what it watches, which runs for longer than that.
        std::thread::sleep(Duration::from_millis(3));
    }
    (found, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_passphrase_is_in_a_process_list_an_environment_a_log_or_a_file() {
    // Without the newline: files and lists may cut there.
    let (first, second) = ("the-first-passphrase-7f3a", "the-second-passphrase-91bc");
    let mut lab = Lab::new(false).await;
    lab.server.kill();
    lab.server = crate::support::Server::spawn(
        &lab.site.config(),
        &lab.site.endpoint(),
        &[("LARDER_LOG", "trace")],
    );
    assert!(lab.server.ready().await);
    let stop = Arc::new(AtomicBool::new(false));
    let calls = AtomicUsize::new(0);
    let watcher = {
        let stop = stop.clone();
        std::thread::spawn(move || watch(&stop, &[first, second]))
    };
    lab.create("a").await;
    for secrets in [
        key(first),
        map(&[("passphrase", second), ("oldPassphrase", first)]),
        key(second),
        key("wrong-passphrase-55aa"),
    ] {
        let _ = lab.stage("a", secrets).await;
        let _ = lab.unstage("a").await;
        calls.fetch_add(1, Ordering::Relaxed);
    }
    lab.open("a", second).await;
    lab.expand("a", 2 * crate::lab::SIZE).await.unwrap();
    lab.node_expand("a", key(second)).await.unwrap();
    stop.store(true, Ordering::Relaxed);
    let (found, seen) = watcher.join().unwrap();
    assert!(found.is_empty(), "{found:#?}");
    assert!(seen > 0, "cryptsetup was never seen running: nothing was proven");
    let log = fs::read_to_string(lab.site.path("config.log")).unwrap();
    assert!(log.contains("luksFormat"), "the log tells what runs");
    let state = crate::support::shell(&format!(
        "grep -rlaE 'the-first-passphrase|the-second-passphrase|wrong-passphrase' {} {} /run/cryptsetup \
         /tmp --exclude-dir=image 2>/dev/null",
        lab.site.path("state").display(),
        lab.site.path("config.log").display(),
    ))
    .output()
    .unwrap();
    assert_eq!(String::from_utf8_lossy(&state.stdout), "");
    for word in [first, second, "wrong-passphrase-55aa"] {
        assert!(!log.contains(word), "the log has it");
    }
    lab.close("a").await;
    lab.delete("a").await;
    assert!(lab.is_clean());
}
