//! What people do by hand, with Larder and past it.

use crate::lab::{KEY, Lab, SIZE, encrypted, key, map};
use larder_host::luks;
use std::{fs, process::Command};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_an_administrator_encrypted_is_used_and_one_that_is_blank_is_encrypted() {
    let lab = Lab::new(false).await;
    let folder = lab.site.pool.path().join("static");
    fs::create_dir_all(&folder).unwrap();
    let made = "set -e; truncate -s 128M \"$IMAGE\"
        printf '%s' \"$KEY\" | cryptsetup luksFormat -q --type luks2 --pbkdf argon2id \
          --pbkdf-memory 4096 --pbkdf-force-iterations 4 --key-file - \"$IMAGE\"
        printf '%s' \"$KEY\" | cryptsetup open --key-file - \"$IMAGE\" by-hand
        mkfs.ext4 -q /dev/mapper/by-hand
        mkdir -p /run/by-hand; mount /dev/mapper/by-hand /run/by-hand
        echo -n precious > /run/by-hand/data; umount /run/by-hand
        cryptsetup close by-hand";
    let mut shell = crate::support::shell(made);
    let made = shell.env("IMAGE", folder.join("theirs.img")).env("KEY", KEY).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::File::create(folder.join("blank.img")).unwrap().set_len(SIZE as u64).unwrap();
    for volume in ["theirs", "blank"] {
        let refused = lab.stage_as(volume, encrypted(), key("wrong")).await;
        if volume == "theirs" {
            assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
        } else {
            // What opens it from now on.
            refused.unwrap();
            lab.unstage(volume).await.unwrap();
        }
    }
    for (volume, passphrase) in [("theirs", KEY), ("blank", "wrong")] {
        for _ in 0..2 {
            lab.stage_as(volume, encrypted(), key(passphrase)).await.unwrap();
            let mounted = lab.staging(volume);
            if volume == "theirs" {
                assert_eq!(fs::read(mounted.join("data")).unwrap(), b"precious");
            }
            lab.unstage(volume).await.unwrap();
        }
    }
    // Without being asked, nobody opens it, and nobody formats it.
    let refused = lab.stage_as("theirs", map(&[]), map(&[])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn deriving_a_key_takes_no_more_memory_than_allowed() {
    let lab = Lab::new(false).await;
    lab.create("a").await;
    lab.stage("a", key(KEY)).await.unwrap();
    lab.unstage("a").await.unwrap();
    let header = luks::header(&lab.image("a")).unwrap();
    let memory: Vec<_> = header.slots.values().map(ToString::to_string).collect();
    assert_eq!(memory, ["4Mi"]);
    // A header that wants more, as one that was made by hand does.
    let add = "printf '%s' \"$KEY\" | cryptsetup luksAddKey --key-file - --pbkdf argon2id \
               --pbkdf-memory 65536 --pbkdf-force-iterations 4 \"$IMAGE\" <(printf other)";
    let mut shell = crate::support::shell(add);
    assert!(shell.env("KEY", KEY).env("IMAGE", lab.image("a")).status().unwrap().success());
    let refused = lab.stage("a", key(KEY)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("encryptionMemory to 64Mi"), "{refused}");
    let mut context = encrypted();
    context.insert("encryptionMemory".to_owned(), "64Mi".to_owned());
    lab.stage_as("a", context, key(KEY)).await.unwrap();
    lab.unstage("a").await.unwrap();
    lab.delete("a").await;
    assert!(lab.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_mounted_grown_and_given_another_passphrase_by_hand() {
    let lab = Lab::new(false).await;
    let file = |name: &str, text: &str| {
        let path = lab.site.path(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (old, new) = (file("old", "old passphrase"), file("new", "new passphrase"));
    let target = lab.site.path("here").display().to_string();
    let ok = |arguments: &[&str]| lab.site.ok(arguments);
    ok(&[
        "volume",
        "create",
        "a",
        "--size",
        "128Mi",
        "--fs",
        "ext4",
        "--param",
        "encryption=luks2",
        "--param",
        "encryptionMemory=4Mi",
    ]);
    let told = lab.site.fails(2, &["volume", "mount", "a", &target]);
    assert!(told.contains("--passphrase-file"), "{told}");
    ok(&["volume", "mount", "a", &target, "--passphrase-file", &old]);
    fs::write(lab.site.path("here/data"), "precious").unwrap();
    ok(&["volume", "expand", "a", "--size", "192Mi", "--passphrase-file", &old]);
    assert!(fs::metadata(lab.site.path("here/data")).is_ok());
    let rotate =
        ["volume", "rotate-key", "a", "--old-passphrase-file", &old, "--passphrase-file", &new];
    ok(&rotate);
    ok(&["volume", "unmount", "a"]);
    ok(&rotate); // Done already, and not mounted now.
    assert!(lab.opened().is_empty());
    lab.site.larder(&["volume", "mount", "a", &target, "--passphrase-file", &old]);
    assert!(!lab.site.path("here/data").exists());
    // Through a pipe, as from a password manager.
    let pipe = format!(
        "printf 'new passphrase' | {} volume mount a {target} --passphrase-file -",
        env!("CARGO_BIN_EXE_larder")
    );
    let mut shell = Command::new("bash");
    let piped = shell.args(["-c", &pipe]).env("LARDER_CONFIG", lab.site.config()).output().unwrap();
    assert!(piped.status.success(), "{}", String::from_utf8_lossy(&piped.stderr));
    assert_eq!(fs::read(lab.site.path("here/data")).unwrap(), b"precious");
    ok(&["volume", "unmount", "a"]);
    ok(&["volume", "rm", "a"]);
    assert!(lab.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_and_closes_what_nobody_knows_to_be_open() {
    let mut lab = Lab::new(true).await;
    lab.create("a").await;
    let target = lab.open("a", KEY).await;
    lab.server.kill();
    let doctor = || {
        let told = lab.site.larder(&["doctor", "-o", "json"]);
        String::from_utf8_lossy(&told.stdout).into_owned()
    };
    let told = doctor();
    assert!(!told.contains("encrypted-device-unused"), "it is staged: {told}");
    fs::remove_dir_all(lab.site.path("state")).unwrap();
    // A pod has it, and has just not opened it.
    let told = doctor();
    assert!(!told.contains("encrypted-device-unused"), "it is published: {told}");
    assert!(Command::new("umount").arg(&target).status().unwrap().success());
    let told = doctor();
    assert!(told.contains("encrypted-device-unused"), "{told}");
    assert_eq!(lab.opened().len(), 1, "looking changes nothing");
    lab.site.larder(&["doctor", "--fix", "--yes"]);
    assert!(lab.opened().is_empty());
    lab.restart().await;
    lab.delete("a").await;
}
