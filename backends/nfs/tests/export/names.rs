//! Names from outside: handles, attributes, templates.

use crate::bench::{Bench, spec, with};
use larder_model::{
    AccessMode, AccessType, Cx, Kind, MountAccess, Secrets, VolumeCapability, VolumeId,
    backend::{ConnectRequest, Source},
    volume::{Attributes, VolumeSpec},
};
use std::{fs, os::unix::fs::symlink};

fn attributes(pairs: &[(&str, &str)]) -> Attributes {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn request(id: VolumeId, context: Attributes) -> ConnectRequest {
    let access = AccessType::Mount(MountAccess::default());
    ConnectRequest {
        id,
        capability: VolumeCapability { access, mode: AccessMode::MultiNodeMultiWriter },
        readonly: false,
        context,
        publish_context: Attributes::new(),
        secrets: Secrets::default(),
    }
}

#[tokio::test]
async fn two_volumes_never_share_a_directory_nor_does_one_lie_in_another() {
    let bench = Bench::new();
    let nfs = bench.backend();
    nfs.make(&with("p/a", &[("subDir", "team/data")])).await.unwrap();
    for taken in ["team/data", "team", "team/data/deep/er"] {
        let fault = nfs.make(&with("p/b", &[("subDir", taken)])).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition, "{taken}: {fault}");
        assert!(fault.to_string().contains("subDir"), "{fault}");
    }
    assert!(bench.export().join("team/data").is_dir(), "a refused volume took nothing away");
    nfs.make(&with("p/b", &[("subDir", "team/data2")])).await.unwrap();
    nfs.delete("p/a").await.unwrap();
    assert!(!bench.export().join("team/data").exists());
    nfs.make(&with("p/c", &[("subDir", "team/data")])).await.unwrap();
}

#[tokio::test]
async fn directories_are_named_after_claims() {
    let bench = Bench::new();
    let nfs = bench.backend();
    let template = "${pvc.metadata.namespace}/${pvc.metadata.name}";
    let spec = VolumeSpec {
        about: attributes(&[
            ("csi.storage.k8s.io/pvc/name", "data"),
            ("csi.storage.k8s.io/pvc/namespace", "team"),
        ]),
        ..with("p/pvc-1", &[("subDir", template)])
    };
    let made = nfs.make(&spec).await.unwrap();
    assert_eq!(made.context["subDir"], "team/data");
    assert!(bench.export().join("team/data").is_dir());
    assert_eq!(nfs.make(&spec).await.unwrap(), made);
}

#[tokio::test]
async fn no_name_and_no_symlink_leads_out_of_an_export() {
    let bench = Bench::new();
    let nfs = bench.backend();
    let outside = bench.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "precious").unwrap();
    symlink(&outside, bench.export().join("link")).unwrap();
    for sub_dir in ["../outside", "/../outside", "a/../../outside", ".larder/volumes", "a/.."] {
        let fault = nfs.make(&with("p/v", &[("subDir", sub_dir)])).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Invalid, "{sub_dir}: {fault}");
    }
    for sub_dir in ["link", "link/deep"] {
        let fault = nfs.make(&with("p/v", &[("subDir", sub_dir)])).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition, "{sub_dir}: {fault}");
    }
    // A workload puts a symlink into its volume, and one in place of a directory on the way to it.
    nfs.make(&with("p/v", &[("subDir", "team/v")])).await.unwrap();
    symlink(&outside, bench.export().join("team/v/link")).unwrap();
    nfs.delete("p/v").await.unwrap();
    nfs.make(&with("p/v", &[("subDir", "team/v")])).await.unwrap();
    fs::create_dir(outside.join("v")).unwrap();
    fs::remove_dir_all(bench.export().join("team")).unwrap();
    symlink(&outside, bench.export().join("team")).unwrap();
    let fault = nfs.delete("p/v").await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "precious");
    assert!(outside.join("v").is_dir());
}

#[tokio::test]
async fn a_volume_that_others_made_is_named_by_its_attributes_whatever_its_id() {
    let nfs = Bench::new().backend();
    let attributes = attributes(&[
        ("server", "10.0.0.1"),
        ("share", "/export/"),
        ("subDir", "a/b"),
        ("mountOptions", "nconnect=4, vers=4.1"),
    ]);
    for id in ["nas.example/share##", "10.0.0.1#export#a/b#", "any thing", "../../etc", "pvc-1"] {
        let id = VolumeId(nfs.0.parse_handle(id).unwrap());
        let volume = nfs.0.provision().describe_volume(&id, &attributes).await.unwrap();
        assert!(volume.is_static && volume.uses.mount && nfs.0.has_pool(id.pool()));
        let request = request(id.clone(), attributes.clone());
        let (source, _) = nfs.0.connect().connect(&request, &Cx::new()).await.unwrap();
        let Source::FileSystem { fs_type, source, options } = source else { panic!("{source:?}") };
        assert_eq!((&*fs_type, &*source), ("nfs", "10.0.0.1:/export/a/b"));
        assert_eq!(options, ["hard", "nconnect=4", "vers=4.1"]);
        let secrets = Secrets::default();
        nfs.0.provision().delete_volume(&id, &secrets, &Cx::new()).await.unwrap();
        let unknown = nfs.0.provision().get_volume(&id).await.unwrap_err();
        assert_eq!(unknown.kind(), Kind::NotFound, "without attributes nothing is known of it");
    }
    for bad in ["", "a\0b", &"a".repeat(129)] {
        assert_eq!(nfs.0.parse_handle(bad).unwrap_err().kind(), Kind::NotFound, "{bad:?}");
    }
}

/// CVE-2026-3864: names in a handle or in attributes that lead out of a share.
#[tokio::test]
async fn attributes_that_lead_out_of_a_share_are_refused() {
    let nfs = Bench::new().backend();
    for bad in [
        [("server", "nas"), ("share", "/export"), ("subDir", "../other")],
        [("server", "nas"), ("share", "/export"), ("subDir", "a/../../other")],
        [("server", "nas"), ("share", "/export/.."), ("subDir", "a")],
        [("server", "nas"), ("share", "export"), ("subDir", "a")],
        [("server", "nas:/other"), ("share", "/export"), ("subDir", "a")],
        [("server", "nas"), ("share", "/export"), ("subDir", "a\nb")],
        [("server", ""), ("share", "/export"), ("subDir", "a")],
    ] {
        let id = VolumeId(nfs.0.parse_handle("x").unwrap());
        let request = request(id, attributes(&bad));
        let fault = nfs.0.connect().connect(&request, &Cx::new()).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Invalid, "{bad:?}: {fault}");
    }
}

#[tokio::test]
async fn a_volume_of_ours_is_found_without_its_attributes() {
    let bench = Bench::new();
    let nfs = bench.backend();
    let id = nfs.make(&with("p/v", &[("subDir", "team/v")])).await.unwrap().id;
    let found = nfs.0.connect().find(&id).await.unwrap().unwrap();
    let Source::FileSystem { source, .. } = found.0 else { panic!("{found:?}") };
    assert_eq!(source, "nas.example:/export/team/v");
    let gone = nfs.0.connect().find(&spec("p/other").id).await.unwrap_err();
    assert_eq!(gone.kind(), Kind::NotFound);
}

#[tokio::test]
async fn of_equal_options_the_one_nearest_to_the_volume_stands_and_wins() {
    let nfs = Bench::new().backend();
    let id = VolumeId(nfs.0.parse_handle("x").unwrap());
    let given = |options| {
        let pairs = [("server", "nas"), ("share", "/x"), ("mountOptions", options)];
        request(id.clone(), attributes(&pairs))
    };
    let connect = nfs.0.connect();
    let (source, _) = connect.connect(&given("soft,nconnect=2,hard"), &Cx::new()).await.unwrap();
    let Source::FileSystem { options, .. } = source else { panic!("{source:?}") };
    assert_eq!(
        options,
        ["soft", "nconnect=2", "hard"],
        "the last of two that exclude each other wins"
    );
    for bad in ["a\nb", "a\0b"] {
        let fault = connect.connect(&given(bad), &Cx::new()).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Invalid, "{bad:?}: {fault}");
    }
}
