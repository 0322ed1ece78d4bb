//! The control plane in an export, through real helper processes. The export is a directory of this
//! machine here (`local`); the tests of the program do the same with a server, in a virtual machine.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;
mod copies;
mod crashes;
mod formats;
mod identity;
mod leftovers;
mod names;
mod two;

use bench::{Bench, spec, with};
use larder_model::{
    Bytes, CapacityRange, Cx, Kind, Secrets,
    volume::{HealthStatus, Page, VolumeSpec},
};
use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

#[tokio::test]
async fn a_volume_is_a_directory_of_its_export_from_creation_to_deletion() {
    let bench = Bench::new();
    let nfs = bench.backend();
    let made = nfs.make(&spec("p/v")).await.unwrap();
    assert_eq!((made.capacity, made.is_static), (Bytes::gib(1), false));
    let context: Vec<_> = made.context.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(context, [("server", "nas.example"), ("share", "/export"), ("subDir", "v")]);
    let directory = bench.export().join("v");
    assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o7777, 0o777);
    assert_eq!(nfs.0.provision().get_volume(&made.id).await.unwrap(), made);
    assert_eq!(nfs.make(&spec("p/v")).await.unwrap(), made, "an equal call returns it");

    fs::create_dir_all(directory.join("deep/er")).unwrap();
    fs::write(directory.join("deep/er/file"), "x").unwrap();
    let secrets = Secrets::default();
    for _ in 0..2 {
        nfs.0.provision().delete_volume(&made.id, &secrets, &Cx::new()).await.unwrap();
    }
    let gone = nfs.0.provision().get_volume(&made.id).await.unwrap_err();
    assert_eq!(gone.kind(), Kind::NotFound);
    assert_eq!(bench.left(), [".larder", ".larder/pool.json", ".larder/volumes"]);
}

#[tokio::test]
async fn another_volume_under_the_same_name_is_a_conflict_that_says_in_what() {
    let bench = Bench::new();
    let nfs = bench.backend();
    nfs.make(&spec("p/v")).await.unwrap();
    let large = CapacityRange { required: Bytes::gib(9), limit: None };
    for (other, what) in [
        (VolumeSpec { capacity: large, ..spec("p/v") }, "size"),
        (with("p/v", &[("subDir", "elsewhere")]), "directory"),
        (with("p/v", &[("onDelete", "retain")]), "onDelete"),
    ] {
        let fault = nfs.make(&other).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Conflict, "{fault}");
        assert!(fault.to_string().contains(what), "{fault}");
    }
}

#[tokio::test]
async fn permissions_are_those_of_the_class_or_the_servers() {
    let bench = Bench::new();
    let nfs = bench.backend();
    let mode =
        |name: &str| fs::metadata(bench.export().join(name)).unwrap().permissions().mode() & 0o7777;
    nfs.make(&with("p/a", &[("mountPermissions", "2770")])).await.unwrap();
    nfs.make(&with("p/b", &[("mountPermissions", "0")])).await.unwrap();
    assert_eq!((mode("a"), mode("b")), (0o2770, 0o755));
}

#[tokio::test]
async fn what_is_retained_stays_and_what_is_archived_is_renamed() {
    let bench = Bench::new();
    let nfs = bench.backend();
    nfs.make(&with("p/kept", &[("onDelete", "retain")])).await.unwrap();
    fs::write(bench.export().join("kept/file"), "kept").unwrap();
    nfs.delete("p/kept").await.unwrap();
    assert_eq!(fs::read_to_string(bench.export().join("kept/file")).unwrap(), "kept");

    let archive = [("onDelete", "archive"), ("subDir", "team/data")];
    for (n, expected) in ["team/archived-data", "team/archived-data-2"].iter().enumerate() {
        nfs.make(&with("p/a", &archive)).await.unwrap();
        fs::write(bench.export().join("team/data/file"), n.to_string()).unwrap();
        nfs.delete("p/a").await.unwrap();
        let text = fs::read_to_string(bench.export().join(expected).join("file")).unwrap();
        assert_eq!(text, n.to_string());
        assert!(!bench.export().join("team/data").exists());
    }
}

#[tokio::test]
async fn a_directory_that_was_there_is_used_as_it_is_and_never_removed() {
    let bench = Bench::new();
    let nfs = bench.backend();
    let data = bench.export().join("old/data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("file"), "precious").unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o701)).unwrap();
    nfs.make(&with("p/v", &[("subDir", "old/data")])).await.unwrap();
    assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o7777, 0o701);
    nfs.delete("p/v").await.unwrap();
    assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "precious");
}

#[tokio::test]
async fn volumes_grow_on_paper_and_never_shrink() {
    let bench = Bench::new();
    let nfs = bench.backend();
    let id = nfs.make(&spec("p/v")).await.unwrap().id;
    let expand = nfs.0.provision().expand().unwrap();
    let to = |required, limit| CapacityRange { required, limit };
    let secrets = Secrets::default();
    let cx = Cx::new();
    let grown = |range| expand.expand_volume(&id, range, &secrets, &cx);
    assert_eq!(grown(to(Bytes::gib(2), None)).await.unwrap(), Bytes::gib(2));
    assert_eq!(grown(to(Bytes::gib(1), None)).await.unwrap(), Bytes::gib(2));
    let fault = grown(to(Bytes::ZERO, Some(Bytes::gib(1)))).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::OutOfRange);
    assert_eq!(nfs.0.provision().get_volume(&id).await.unwrap().capacity, Bytes::gib(2));
}

#[tokio::test]
async fn volumes_are_listed_in_pages_and_pools_tell_how_they_are() {
    let bench = Bench::new();
    let nfs = bench.backend();
    for name in ["p/a", "p/b", "p/c"] {
        nfs.make(&spec(name)).await.unwrap();
    }
    let list = nfs.0.provision().list().unwrap();
    let mut page = Page { after: None, max: Some(2) };
    let mut seen = Vec::new();
    loop {
        let listed = list.list_volumes(&page).await.unwrap();
        seen.extend(listed.items.iter().map(|v| v.id.to_string()));
        if !listed.more {
            break;
        }
        page.after = seen.last().cloned();
    }
    assert_eq!(seen, ["p/a", "p/b", "p/c"]);
    let status = nfs.0.pool_status().await.remove(0);
    assert_eq!((status.volumes, status.provisioned), (3, Bytes::gib(3)));
    assert_eq!((status.fault, &*status.location), (None, "nas.example:/export"));
    assert!(status.total > Bytes::ZERO && status.warnings[0].contains("not enforced"));
    let free = nfs.0.provision().capacity().unwrap();
    let free = free.capacity(&"p".parse().unwrap(), &[].into()).await.unwrap();
    assert!(free.available > Bytes::ZERO);
}

/// `-` comes before `/`: volumes of `nas-2` before those of `nas`.
#[tokio::test]
async fn pages_of_a_list_lose_no_export_whatever_their_names_are() {
    let bench = Bench::new();
    let nfs = bench.backend_of(&["nas", "nas-2"]);
    for name in ["nas/a", "nas/z", "nas-2/b"] {
        nfs.make(&spec(name)).await.unwrap();
        nfs.cut(&name.replace('/', "/s-"), name, &Cx::new()).await.unwrap();
    }
    let (list, snapshots) =
        (nfs.0.provision().list().unwrap(), nfs.0.provision().snapshots().unwrap());
    let mut page = Page { after: None, max: Some(1) };
    let mut seen = Vec::new();
    while let [volume] = &*list.list_volumes(&page).await.unwrap().items {
        seen.push(volume.id.to_string());
        page.after = seen.last().cloned();
    }
    assert_eq!(seen, ["nas-2/b", "nas/a", "nas/z"]);
    page.after = None;
    while let [snapshot] = &*snapshots.list_snapshots(None, &page).await.unwrap().items {
        page.after = Some(snapshot.id.to_string());
        seen.push(snapshot.id.to_string());
    }
    assert_eq!(seen[3..], ["nas-2/s-b", "nas/s-a", "nas/s-z"]);
}

#[tokio::test]
async fn a_volume_whose_directory_is_gone_is_lost_and_says_so() {
    let bench = Bench::new();
    let nfs = bench.backend();
    let id = nfs.make(&spec("p/v")).await.unwrap().id;
    let health = nfs.0.provision().health().unwrap();
    assert_eq!(health.volume_health(&id).await.unwrap(), []);
    fs::remove_dir(bench.export().join("v")).unwrap();
    let found = health.volume_health(&id).await.unwrap();
    assert_eq!((found[0].status, found[0].reason), (HealthStatus::DataLoss, "DirectoryMissing"));
    nfs.delete("p/v").await.unwrap();
}

#[tokio::test]
async fn a_helper_that_never_answers_holds_up_its_own_export_only() {
    let bench = Bench::new();
    let hung = Bench::hung();
    let (nfs, dead) = (bench.backend(), hung.backend());
    let began = Instant::now();
    let wanted = spec("p/v");
    let waiting = async { (dead.make(&wanted).await, Instant::now()) };
    let living = async { (nfs.make(&wanted).await, Instant::now()) };
    let ((refused, late), (made, soon)) = tokio::join!(waiting, living);
    made.unwrap();
    assert!(soon < late, "the living one did not wait for the dead one");
    let fault = refused.unwrap_err();
    assert_eq!(fault.kind(), Kind::Unavailable, "{fault}");
    assert!(fault.to_string().contains("no answer"), "{fault}");
    // Known to be silent: nobody waits as long again.
    let first = began.elapsed();
    let again = Instant::now();
    let fault = dead.delete("p/v").await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Unavailable, "a silent server's volumes are not gone: {fault}");
    assert!(again.elapsed() < first, "{:?} after {first:?}", again.elapsed());
    let health = dead.0.storage_health().await;
    assert!(health[0].unreachable && health[0].message.contains("no answer"), "{health:?}");
}
