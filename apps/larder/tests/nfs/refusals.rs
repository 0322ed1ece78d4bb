//! What a server refuses: the right code, and what to do about it.

use crate::{
    ADDRESS,
    server::server,
    site::{Site, code},
};
use larder_proto::csi;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

/// The export of a site, what creating a volume says there, and words of the advice.
async fn refused(keys: &str, expected: &str, words: &str) {
    let site = Site::of(keys);
    let larder = site.serve().await;
    let status = larder.create("v", &[]).await.unwrap_err();
    assert_eq!(status.code(), code(expected), "{keys}: {status:?}");
    assert!(status.message().contains(words), "{keys}: {status:?}");
    assert!(status.message().contains("pool default"), "it names the pool: {status:?}");
}

#[tokio::test]
async fn what_a_server_refuses_has_the_right_code_and_advice() {
    let mut server = server();
    let squashed = server.export("rw,root_squash");
    let read_only = server.export("ro,no_root_squash");
    let open = server.export("rw,no_root_squash");
    refused("share: /nowhere", "FAILED_PRECONDITION", "exportfs -v").await;
    refused(
        &format!("share: {}, mountOptions: [port=2050]", open.display()),
        "UNAVAILABLE",
        "TCP port 2049",
    )
    .await;
    refused("server: no-such-host.invalid, share: /x", "UNAVAILABLE", "name").await;
    fs::set_permissions(&squashed, fs::Permissions::from_mode(0o755)).unwrap();
    refused(&format!("share: {}", squashed.display()), "FAILED_PRECONDITION", "no_root_squash")
        .await;
    refused(&format!("share: {}", read_only.display()), "FAILED_PRECONDITION", "export it with rw")
        .await;
    // A version that the server does not speak.
    server.run("rpc.nfsd 0\nrpc.nfsd --no-udp -V 4.1 -N 4.2 --grace-time 10 --lease-time 10 4");
    let options = "mountOptions: [vers=4.2]";
    refused(
        &format!("share: {}, {options}", open.display()),
        "FAILED_PRECONDITION",
        "does not speak this version",
    )
    .await;
    let site = Site::of(&format!("share: {}", open.display()));
    let larder = site.serve().await;
    larder.create("v", &[]).await.unwrap();
    server.run("rpc.nfsd 0\nrpc.nfsd --no-udp -V 4.2 --grace-time 10 --lease-time 10 4");
}

/// Whoever has squashed root to somebody else gives that user the export.
#[tokio::test]
async fn a_squashed_root_works_in_an_export_that_is_its_own() {
    let mut server = server();
    let export = server.export("rw,root_squash,anonuid=4711,anongid=4711");
    std::os::unix::fs::chown(&export, Some(4711), Some(4711)).unwrap();
    let site = Site::new(&export, "");
    let larder = site.serve().await;
    let volume = larder.create("v", &[]).await.unwrap();
    let target = larder.publish(&volume).await.unwrap();
    fs::write(target.join("file"), "x").unwrap();
    larder.unpublish(&volume).await.unwrap();
    larder.delete(&volume.volume_id).await.unwrap();
}

#[tokio::test]
async fn a_full_server_is_exhausted_and_what_was_begun_is_taken_back() {
    let mut server = server();
    let export = server.small_export(16);
    let site = Site::new(&export, "");
    let larder = site.serve().await;
    let volume = larder.create("first", &[]).await.unwrap();
    let filled = crate::support::shell(&format!(
        "dd if=/dev/zero of={0}/first/big bs=4k status=none; dd if=/dev/zero of={0}/first/rest bs=1 status=none; sync -f {0}",
        export.display()
    ));
    { filled }.status().unwrap();
    let status = larder.create("second", &[]).await.unwrap_err();
    assert_eq!(status.code(), code("RESOURCE_EXHAUSTED"), "{status:?}");
    assert!(!export.join("second").exists());
    larder.delete(&volume.volume_id).await.unwrap();
    larder.create("second", &[]).await.unwrap();
}

/// Somebody has edited /etc/exports.
#[tokio::test]
async fn an_export_that_is_gone_is_told_keeps_nobody_and_is_used_again_when_it_is_back() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    let site = Site::new(&export, "");
    let larder = site.serve().await;
    let volume = larder.create("v", &[]).await.unwrap();
    let other = larder.create("other", &[]).await.unwrap();
    let target = larder.publish(&volume).await.unwrap();
    fs::write(target.join("file"), "precious").unwrap();
    fs::File::open(target.join("file")).unwrap().sync_all().unwrap();

    server.withdraw(&export);
    let told = [code("UNAVAILABLE"), code("FAILED_PRECONDITION")];
    for _ in 0..3 {
        let status = larder.create("new", &[]).await.unwrap_err();
        assert!(told.contains(&status.code()), "{status:?}");
        let status = larder.delete(&other.volume_id).await.unwrap_err();
        assert!(told.contains(&status.code()), "a volume that is away is not gone: {status:?}");
    }
    let status = larder.publish_at(&other, "second").await.unwrap_err();
    assert!(told.contains(&status.code()), "{status:?}");
    larder.unpublish(&volume).await.unwrap();

    server.export_again(&export);
    let until = Instant::now() + Duration::from_secs(120);
    while larder.delete(&other.volume_id).await.is_err() {
        assert!(Instant::now() < until, "it is exported again, and Larder does not use it");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let target = larder.publish(&volume).await.unwrap();
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "precious");
    larder.unpublish(&volume).await.unwrap();
    assert_eq!(site.mounts(), [""; 0]);
}

fn attributes(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[tokio::test]
async fn a_volume_of_others_is_used_by_server_and_share_and_never_deleted() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    fs::create_dir_all(export.join("old/data")).unwrap();
    fs::write(export.join("old/data/file"), "precious").unwrap();
    let elsewhere = server.export("rw,no_root_squash");
    let site = Site::new(&elsewhere, "");
    let larder = site.serve().await;
    let share = export.display().to_string();
    let volume = csi::Volume {
        volume_id: "nas.example/share##".to_owned(),
        volume_context: attributes(&[
            ("server", ADDRESS),
            ("share", &share),
            ("subDir", "old/data"),
            ("mountOptions", "vers=4.1"),
        ]),
        ..Default::default()
    };
    let target = larder.publish(&volume).await.unwrap();
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "precious");
    larder.unpublish(&volume).await.unwrap();
    larder.delete(&volume.volume_id).await.unwrap();
    assert_eq!(fs::read_to_string(export.join("old/data/file")).unwrap(), "precious");

    // CVE-2026-3864: no attribute leads out of its share.
    for (key, value) in
        [("subDir", "../other"), ("subDir", "a/../../other"), ("share", "/scratch/../etc")]
    {
        let mut context = volume.volume_context.clone();
        context.insert(key.to_owned(), value.to_owned());
        let volume = csi::Volume { volume_context: context, ..volume.clone() };
        let status = larder.publish(&volume).await.unwrap_err();
        assert_eq!(status.code(), code("INVALID_ARGUMENT"), "{key}={value}: {status:?}");
    }
    assert_eq!(site.mounts(), [""; 0]);
}
