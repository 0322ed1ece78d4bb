//! Exports that another release wrote are served, and what this release does not know is kept.

use crate::bench::{Bench, cloned, restored, spec, volume};
use larder_model::{Cx, volume::Page};
use serde_json::Value;
use std::{fs, path::PathBuf};

/// An export as the sample says, with the data that belongs to its records.
fn laid_out(bench: &Bench, change: impl Fn(&str, &mut Value)) -> PathBuf {
    let root = bench.export();
    let sample = include_str!("../../../../apps/larder/tests/samples/format-1/nfs.json");
    let sample: Value = serde_json::from_str(sample).unwrap();
    for (file, content) in sample.as_object().unwrap() {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut content = content.clone();
        change(file, &mut content);
        let text = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        fs::write(&path, text).unwrap();
    }
    for data in ["team/data", "c", ".larder/snapshots/s.files"] {
        fs::create_dir_all(root.join(data)).unwrap();
        fs::write(root.join(data).join("precious"), data).unwrap();
    }
    root
}

#[tokio::test]
async fn an_export_of_every_released_format_is_served_whole() {
    let bench = Bench::new();
    let root = laid_out(&bench, |_, _| {});
    let nfs = bench.backend();
    let v = nfs.0.provision().get_volume(&volume("p/v")).await.unwrap();
    assert_eq!((&*v.name, &*v.context["subDir"]), ("v", "team/data"));
    let c = nfs.0.provision().get_volume(&volume("p/c")).await.unwrap();
    assert_eq!(c.source, restored("p/c", "p/s").source);
    let page = Page { after: None, max: None };
    let snapshots = nfs.0.provision().snapshots().unwrap();
    let listed = snapshots.list_snapshots(Some(&v.id), &page).await.unwrap().items;
    assert_eq!((listed.len(), &*listed[0].name), (1, "s"));
    nfs.make(&restored("p/r", "p/s")).await.unwrap();
    assert_eq!(fs::read_to_string(root.join("r/precious")).unwrap(), ".larder/snapshots/s.files");
    nfs.make(&cloned("p/d", "p/c")).await.unwrap();
    assert_eq!(fs::read_to_string(root.join("d/precious")).unwrap(), "c");
    nfs.delete_snapshot("p/s", &Cx::new()).await.unwrap();
    for id in ["p/v", "p/c", "p/r", "p/d"] {
        nfs.delete(id).await.unwrap();
    }
    assert_eq!(fs::read_to_string(root.join("team/archived-data/precious")).unwrap(), "team/data");
    assert_eq!(fs::read_dir(root.join(".larder/volumes")).unwrap().count(), 0);
    nfs.make(&spec("p/v")).await.unwrap();
}

#[tokio::test]
async fn what_a_later_release_noted_of_a_snapshot_is_kept_through_a_cut() {
    let bench = Bench::new();
    let root = laid_out(&bench, |file, content| {
        if file.ends_with("s.json") {
            content["state"] = "creating".into();
            content["later"] = 7.into();
        }
    });
    bench.backend().cut("p/s", "p/v", &Cx::new()).await.unwrap();
    let text = fs::read_to_string(root.join(".larder/snapshots/s.json")).unwrap();
    let record: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&record["later"], &record["state"]), (&7.into(), &"ready".into()));
}
