//! An export proves itself, and what is not there is never taken for gone.

use crate::bench::{Bench, spec};
use larder_model::{Cx, Kind, volume::Page};
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

fn assert_not_there<T>(result: larder_model::Result<T>) {
    let fault = result.map(drop).unwrap_err();
    assert_eq!(fault.kind(), Kind::Unavailable, "{fault}");
}

#[tokio::test]
async fn whoever_asks_for_volumes_never_makes_an_export_a_pool() {
    let mut bench = Bench::new();
    let nfs = bench.backend();
    let page = Page { after: None, max: None };
    let id = spec("p/v").id;
    // Where a first volume may be made it is told how much room there is.
    let free = nfs.0.provision().capacity().unwrap();
    assert!(free.capacity(&"p".parse().unwrap(), &[].into()).await.is_ok());
    for round in 0..2 {
        let nfs = bench.backend();
        assert_not_there(nfs.delete("p/v").await);
        assert_not_there(nfs.delete_snapshot("p/s", &Cx::new()).await);
        assert_not_there(nfs.0.provision().get_volume(&id).await);
        assert_not_there(nfs.0.provision().list().unwrap().list_volumes(&page).await);
        assert!(
            nfs.0.pool_status().await[0].fault.as_ref().unwrap().contains("first volume")
                || round > 0
        );
        assert_eq!(bench.left(), Vec::<String>::new());
        if round == 0 {
            nfs.make(&spec("p/v")).await.unwrap();
            let disk = bench.path().join("disk");
            fs::rename(bench.export(), &disk).unwrap();
            fs::create_dir(bench.export()).unwrap();
        }
    }
    // An administrator noted which one it is: then not even a creation takes the empty directory for it.
    let text = fs::read_to_string(bench.path().join("disk/.larder/pool.json")).unwrap();
    let pool: serde_json::Value = serde_json::from_str(&text).unwrap();
    bench.identity = Some(serde_json::from_value(pool["id"].clone()).unwrap());
    assert_not_there(bench.backend().make(&spec("p/w")).await);
    let free = bench.backend();
    let free = free.0.provision().capacity().unwrap();
    assert_not_there(free.capacity(&"p".parse().unwrap(), &[].into()).await);
    fs::remove_dir(bench.export()).unwrap();
    fs::rename(bench.path().join("disk"), bench.export()).unwrap();
    bench.backend().0.provision().get_volume(&id).await.unwrap();
    bench.identity = Some(uuid::Uuid::from_u128(7));
    assert_not_there(bench.backend().0.provision().get_volume(&id).await);
}

#[tokio::test]
async fn what_is_absent_is_gone_only_while_the_export_is_there() {
    let bench = Bench::new();
    let nfs = bench.backend();
    let id = nfs.make(&spec("p/v")).await.unwrap().id;
    let page = Page { after: None, max: None };
    // The same visits go on, and the disk behind them is another one.
    let (ours, away) = (bench.export().join(".larder"), bench.path().join("away"));
    for other in [None, Some(uuid::Uuid::from_u128(7))] {
        fs::rename(&ours, &away).unwrap();
        if let Some(id) = other {
            fs::create_dir_all(ours.join("volumes")).unwrap();
            let text = format!(r#"{{"format": 1, "backend": "nfs", "id": "{id}"}}"#);
            fs::write(ours.join("pool.json"), text).unwrap();
        }
        let snapshots = nfs.0.provision().snapshots().unwrap();
        assert_not_there(nfs.delete("p/v").await);
        assert_not_there(nfs.delete_snapshot("p/s", &Cx::new()).await);
        assert_not_there(nfs.0.provision().get_volume(&id).await);
        assert_not_there(nfs.0.provision().list().unwrap().list_volumes(&page).await);
        assert_not_there(snapshots.list_snapshots(None, &page).await);
        assert_not_there(nfs.make(&spec("p/w")).await);
        assert_not_there(nfs.cut("p/s", "p/v", &Cx::new()).await);
        if ours.exists() {
            fs::remove_dir_all(&ours).unwrap();
        }
        fs::rename(&away, &ours).unwrap();
        nfs.0.provision().get_volume(&id).await.unwrap();
    }
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
