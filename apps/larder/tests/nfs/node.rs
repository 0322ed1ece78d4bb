//! What nodes make of mounts: letting go of them, and knowing their own again.

use crate::{
    ADDRESS,
    server::server,
    site::{Site, processes},
};
use larder_proto::csi;
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// A PersistentVolume of a share that is there already.
fn of_share(id: &str, share: &Path) -> csi::Volume {
    let context = [
        ("server".to_owned(), ADDRESS.to_owned()),
        ("share".to_owned(), share.display().to_string()),
    ];
    csi::Volume { volume_id: id.to_owned(), volume_context: context.into(), ..Default::default() }
}

/// What a pod that was killed has not written yet must not keep kubelet waiting, and is not lost.
#[tokio::test]
async fn what_was_not_written_yet_holds_no_call_and_reaches_the_server_when_it_is_back() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    let site = Site::new(&export, "");
    let larder = site.serve().await;
    let volume = larder.create("v", &[]).await.unwrap();
    let target = larder.publish(&volume).await.unwrap();
    fs::write(target.join("file"), "acknowledged").unwrap();
    let script =
        format!("exec 3<>{}/file; printf LATE >&3; echo; exec sleep 1000", target.display());
    let mut pod = crate::support::shell(&script);
    let mut pod = pod.stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(pod.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    server.fall_silent();
    pod.kill().unwrap();

    let began = Instant::now();
    larder.unpublish(&volume).await.unwrap();
    let took = began.elapsed();
    println!("unpublish and unstage with unwritten data took {took:.1?}");
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert_eq!(site.mounts(), [""; 0]);
    larder.probe().await;
    println!("{} helpers are left", processes("detach"));

    server.wake();
    let until = Instant::now() + Duration::from_secs(180);
    while processes("detach") > 0 {
        assert!(Instant::now() < until, "the helper does not end");
        tokio::time::sleep(Duration::from_millis(500)).await;
        larder.probe().await;
    }
    println!("on the server: {:?}", fs::read_to_string(export.join("v/file")));
    pod.wait().unwrap();
    let target = larder.publish(&volume).await.unwrap();
    assert_eq!(fs::read_to_string(target.join("file")).unwrap().len(), 12);
    larder.unpublish(&volume).await.unwrap();
}

/// Nothing in the mount table tells them apart.
#[tokio::test]
async fn two_volumes_of_one_share_and_a_mount_of_the_host_do_not_hold_each_other() {
    let mut server = server();
    let export = server.export("rw,no_root_squash");
    fs::write(export.join("file"), "x").unwrap();
    let site = Site::new(&server.export("rw,no_root_squash"), "");
    let larder = site.serve().await;
    let (a, b) = (of_share("a", &export), of_share("b", &export));
    larder.publish(&a).await.unwrap();
    let kept = larder.publish(&b).await.unwrap();
    larder.unpublish(&a).await.unwrap();
    assert_eq!(fs::read_to_string(kept.join("file")).unwrap(), "x");
    larder.unpublish(&b).await.unwrap();
    assert_eq!(site.mounts(), [""; 0]);
}
