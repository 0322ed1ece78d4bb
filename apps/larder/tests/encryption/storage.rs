//! What reaches the storage below: flushed data, discards.

use crate::{
    data::{consistency, copy, of_snapshot},
    lab::{KEY, Lab},
};
use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_volume_in_use_is_flushed_for_its_snapshot() {
    use std::io::{Read, Write};
    let lab = Lab::new(true).await;
    lab.create("a").await;
    let target = lab.open("a", KEY).await;
    // In the page cache of the opened device.
    let mut device = fs::File::options().write(true).open(&target).unwrap();
    device.write_all(&[7; 1 << 20]).unwrap();
    lab.snapshot("a", "s").await;
    assert_eq!(consistency(&lab), "crash");
    drop(device);
    lab.make(copy(&lab, "b", of_snapshot())).await.unwrap();
    let mut read = vec![0; 1 << 20];
    let target = lab.open("b", KEY).await;
    fs::File::open(target).unwrap().read_exact(&mut read).unwrap();
    assert!(read.iter().all(|byte| *byte == 7));
    for volume in ["a", "b"] {
        lab.close(volume).await;
        lab.delete(volume).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn discards_reach_the_storage_only_where_they_are_asked_for() {
    for discard in [true, false] {
        let lab = Lab::new(false).await;
        let mut request = lab.request("a");
        request.parameters.insert("encryptionDiscard".to_owned(), discard.to_string());
        lab.make(request).await.unwrap();
        let target = lab.open("a", KEY).await;
        fs::write(target.join("large"), vec![7; 64 << 20]).unwrap();
        File::open(&target).unwrap().sync_all().unwrap();
        let _ = std::process::Command::new("sync").status();
        let allocated = || fs::metadata(lab.image("a")).unwrap().blocks() * 512;
        let full = allocated();
        fs::remove_file(target.join("large")).unwrap();
        let _ = std::process::Command::new("sync").status();
        let trim = std::process::Command::new("fstrim").arg(&target).output().unwrap();
        assert_eq!(trim.status.success(), discard, "{}", String::from_utf8_lossy(&trim.stderr));
        let given_back = full.saturating_sub(allocated());
        assert_eq!(given_back > 32 << 20, discard, "{given_back} of {full}");
        lab.close("a").await;
        lab.delete("a").await;
        assert!(lab.is_clean());
    }
}
