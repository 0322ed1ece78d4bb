//! What is refused, and that nothing is changed by it.

use crate::lab::{KEY, Lab, MIB, SIZE, each, encrypted, key, map};
use std::{fs, path::Path, process::Command};
use tonic::Code;

fn image_is(image: &Path) -> Vec<u8> {
    let data = fs::read(image).unwrap();
    assert!(!data.is_empty());
    data
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_or_missing_passphrase_is_a_clear_error_and_changes_nothing() {
    for block in each(&[false, true]) {
        let lab = Lab::new(block).await;
        lab.create("a").await;
        for (secrets, word) in [
            (map(&[]), "no key passphrase"),
            (map(&[("password", "x")]), "no key passphrase"),
            (map(&[("passphrase", "")]), "empty passphrase"),
        ] {
            let refused = lab.stage("a", secrets).await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
            assert!(refused.message().contains(word), "{refused}");
        }
        let target = lab.open("a", KEY).await;
        if !block {
            fs::write(target.join("data"), "precious").unwrap();
        }
        lab.close("a").await;
        let before = image_is(&lab.image("a"));
        for secrets in [
            key("wrong"),
            key(&format!("{KEY}\n")),
            map(&[("passphrase", "wrong"), ("oldPassphrase", "wrong, too")]),
        ] {
            let refused = lab.stage("a", secrets).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
            assert!(refused.message().contains("the passphrase does not open it"), "{refused}");
            assert!(refused.message().contains("hint"), "{refused}");
            assert!(lab.opened().is_empty());
        }
        assert!(image_is(&lab.image("a")) == before, "something was written");
        let target = lab.open("a", KEY).await;
        if !block {
            assert_eq!(fs::read(target.join("data")).unwrap(), b"precious");
        }
        lab.close("a").await;
        lab.delete("a").await;
        assert!(lab.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_a_device_is_never_encrypted_over() {
    let lab = Lab::new(false).await;
    // Somebody made a file system on the image past Larder.
    lab.create("foreign").await;
    let image = lab.image("foreign");
    assert!(Command::new("mkfs.ext4").arg("-q").arg(&image).status().unwrap().success());
    let before = image_is(&image);
    let refused = lab.stage("foreign", key(KEY)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("ext4"), "{refused}");
    assert!(image_is(&image) == before);
    lab.delete("foreign").await;

    // A volume that was used without encryption.
    let mut plain = lab.request("plain");
    plain.parameters = crate::lab::plain();
    lab.make(plain).await.unwrap();
    lab.stage("plain", map(&[])).await.unwrap();
    lab.unstage("plain").await.unwrap();
    let refused = lab.stage_as("plain", encrypted(), key(KEY)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    lab.stage("plain", map(&[])).await.unwrap();
    lab.unstage("plain").await.unwrap();
    lab.delete("plain").await;

    // A header that was lost is not made again.
    lab.create("lost").await;
    lab.stage("lost", key(KEY)).await.unwrap();
    lab.unstage("lost").await.unwrap();
    let file = fs::File::options().write(true).open(lab.image("lost")).unwrap();
    file.set_len(0).unwrap();
    file.set_len(SIZE as u64).unwrap();
    let refused = lab.stage("lost", key(KEY)).await.unwrap_err();
    assert_eq!(refused.code(), Code::DataLoss, "{refused}");
    lab.delete("lost").await;
    assert!(lab.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_device_is_not_handed_out_as_if_it_were_the_volume() {
    for block in each(&[false, true]) {
        let lab = Lab::new(block).await;
        lab.create("a").await;
        lab.stage("a", key(KEY)).await.unwrap();
        lab.unstage("a").await.unwrap();
        let mut context = lab.context("a").await.unwrap();
        context.retain(|key, _| !key.starts_with("encryption"));
        let refused = lab.stage_as("a", context, key(KEY)).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("encryption: luks2"), "{refused}");
        lab.delete("a").await;
        assert!(lab.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_encrypted_so_is_refused_when_it_is_asked_for() {
    let lab = Lab::new(false).await;
    for (name, value) in
        [("encryption", "rot13"), ("encryptionMemory", "1Ti"), ("encryptionKey", "x")]
    {
        let mut request = lab.request("a");
        request.parameters.insert(name.to_owned(), value.to_owned());
        let refused = lab.make(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(name), "{refused}");
    }
    // Room for the header comes on top of what the file system needs.
    let mut small = lab.request("small");
    let range = small.capacity_range.as_mut().unwrap();
    (range.required_bytes, range.limit_bytes) = (0, 300 * MIB);
    small.parameters.insert("fs".to_owned(), "xfs".to_owned());
    assert_eq!(lab.make(small).await.unwrap_err().code(), Code::OutOfRange);
    // The same name without encryption is another volume.
    lab.create("a").await;
    let mut plain = lab.request("a");
    plain.parameters = crate::lab::plain();
    assert_eq!(lab.make(plain).await.unwrap_err().code(), Code::AlreadyExists);
    lab.make(lab.request("a")).await.unwrap();
    lab.delete("a").await;
    assert!(lab.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_cryptsetup_is_named_with_the_command_that_mends_it() {
    let mut lab = Lab::new(false).await;
    lab.create("a").await;
    lab.server.kill();
    // Only for this server: others work beside it.
    let hidden = "mount --bind /dev/null $(readlink -f /usr/sbin/cryptsetup) && \
                  exec \"$LARDER\" serve --config \"$CONFIG\"";
    let mut without = Command::new("unshare");
    without.args(["--mount", "--propagation", "private", "bash", "-c", hidden]);
    without.env("LARDER", env!("CARGO_BIN_EXE_larder")).env("CONFIG", lab.site.config());
    lab.server = crate::support::Server::run(&mut without, &lab.site.endpoint());
    assert!(lab.server.ready().await);
    let refused = lab.stage("a", key(KEY)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("apt-get install cryptsetup-bin"), "{refused}");
    // It goes on from there.
    lab.restart().await;
    lab.stage("a", key(KEY)).await.unwrap();
    lab.unstage("a").await.unwrap();
    lab.delete("a").await;
    assert!(lab.is_clean());
}
