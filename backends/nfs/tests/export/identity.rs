//! An export proves itself, and what is not there is never taken for gone.

use crate::bench::{Bench, spec};
use larder_model::Kind;
use std::fs;

#[tokio::test]
async fn an_export_without_identity_is_not_touched_unless_it_may_be_made_one() {
    let mut bench = Bench::new();
    bench.create = false;
    let fault = bench.backend().make(&spec("p/v")).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Unavailable, "{fault}");
    assert!(fault.to_string().contains("create: true"), "{fault}");
    assert_eq!(bench.left(), Vec::<String>::new());
    // What others keep there does not matter.
    fs::write(bench.export().join("readme"), "ours").unwrap();
    bench.create = true;
    bench.backend().make(&spec("p/v")).await.unwrap();
    bench.create = false;
    bench.backend().delete("p/v").await.unwrap();
}

#[tokio::test]
async fn the_empty_directory_under_a_lost_disk_is_not_the_export() {
    let mut bench = Bench::new();
    let nfs = bench.backend();
    let id = nfs.make(&spec("p/v")).await.unwrap().id;
    // The server comes back without the disk behind its export.
    let disk = bench.path().join("disk");
    fs::rename(bench.export(), &disk).unwrap();
    fs::create_dir(bench.export()).unwrap();
    drop(nfs);
    bench.create = false;
    let nfs = bench.backend();
    for fault in
        [nfs.0.provision().get_volume(&id).await.unwrap_err(), nfs.delete("p/v").await.unwrap_err()]
    {
        assert_eq!(fault.kind(), Kind::Unavailable, "{fault}");
        assert!(fault.to_string().contains("mounted on the server"), "{fault}");
    }
    fs::remove_dir(bench.export()).unwrap();
    fs::rename(&disk, bench.export()).unwrap();
    bench.backend().0.provision().get_volume(&id).await.unwrap();
}

#[tokio::test]
async fn a_record_of_a_newer_release_is_refused_and_left_alone() {
    let bench = Bench::new();
    let id = bench.backend().make(&spec("p/v")).await.unwrap().id;
    let record = bench.export().join(".larder/volumes/v.json");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
    let nfs = bench.backend();
    assert_eq!(nfs.0.provision().get_volume(&id).await.unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(nfs.delete("p/v").await.unwrap_err().kind(), Kind::Corrupt);
    assert!(bench.export().join("v").is_dir());
}

#[tokio::test]
async fn volumes_of_a_pool_that_is_not_configured_are_not_gone() {
    let bench = Bench::new();
    let nfs = bench.backend();
    assert_eq!(nfs.delete("other/v").await.unwrap_err().kind(), Kind::Unavailable);
}
