//! From create to delete.

use crate::{
    lab::{KEY, LARGE, Lab, MIB, SIZE, each, holds, key, map},
    support::capability,
};
use larder_proto::csi;
use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::FileTypeExt,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

const PATTERN: &[u8] = b"nobody but the owner of the key may ever read these very words";

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_volume_is_noise_at_rest_and_itself_when_it_is_opened_again() {
    let lab = Lab::new(false).await;
    let made = lab.create("a").await;
    assert_eq!(made.volume_context["encryption"], "luks2");
    assert_eq!(made.capacity_bytes, SIZE, "the header is inside");
    let target = lab.open("a", KEY).await;
    let mut file = File::create(target.join("secret")).unwrap();
    (0..1000).for_each(|_| file.write_all(PATTERN).unwrap());
    file.sync_all().unwrap();
    drop(file);
    let opened = lab.opened();
    assert_eq!(opened.len(), 1);
    assert!(opened[0].starts_with("larder-default_a-"), "{opened:?}");
    lab.close("a").await;
    assert!(lab.opened().is_empty());
    assert!(!holds(&lab.image("a"), PATTERN), "the data lies open");
    assert!(!holds(&lab.image("a"), KEY.as_bytes()), "the key lies beside it");

    let target = lab.open("a", KEY).await;
    let read = fs::read(target.join("secret")).unwrap();
    assert_eq!(read.len(), 1000 * PATTERN.len());
    assert!(read.starts_with(PATTERN));
    // Asked for again, as kubelet does: no passphrase is needed for what stands.
    lab.stage("a", map(&[])).await.unwrap();
    let shown = lab.site.ok(&["volume", "show", "a", "-o", "json"]);
    assert!(shown.contains("\"encrypted\": true"), "{shown}");
    lab.close("a").await;
    lab.delete("a").await;
    assert!(lab.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_volume_is_noise_at_rest_and_itself_when_it_is_opened_again() {
    let lab = Lab::new(true).await;
    lab.create("a").await;
    let target = lab.open("a", KEY).await;
    assert!(fs::metadata(&target).unwrap().file_type().is_block_device());
    let mut device = File::options().write(true).open(&target).unwrap();
    let size = device.seek(SeekFrom::End(0)).unwrap();
    assert_eq!(size, (SIZE - 16 * MIB) as u64, "what the header leaves");
    device.seek(SeekFrom::Start(5 << 20)).unwrap();
    (0..1000).for_each(|_| device.write_all(PATTERN).unwrap());
    device.sync_all().unwrap();
    drop(device);
    lab.close("a").await;
    assert!(!holds(&lab.image("a"), PATTERN), "the data lies open");

    let target = lab.open("a", KEY).await;
    let mut read = vec![0; PATTERN.len()];
    let mut device = File::open(&target).unwrap();
    device.seek(SeekFrom::Start(5 << 20)).unwrap();
    device.read_exact(&mut read).unwrap();
    assert_eq!(read, PATTERN);
    drop(device);
    let stats = csi::NodeGetVolumeStatsRequest {
        volume_id: "default/a".to_owned(),
        volume_path: target.display().to_string(),
        ..Default::default()
    };
    let stats = lab.server.client.node().node_get_volume_stats(stats).await.unwrap().into_inner();
    assert_eq!(stats.usage[0].total, SIZE - 16 * MIB);
    lab.close("a").await;
    lab.delete("a").await;
    assert!(lab.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_each_file_system_grows_while_it_is_written() {
    for fs_type in each(&["ext4", "xfs", "btrfs"]) {
        let lab = Lab::new(false).await;
        let mut request = lab.request("a");
        request.volume_capabilities = vec![capability(false, fs_type)];
        request.parameters.insert("fs".to_owned(), fs_type.to_owned());
        request.capacity_range.as_mut().unwrap().required_bytes = LARGE;
        lab.make(request).await.unwrap();
        let target = lab.open("a", KEY).await;
        let (stop, written) = (AtomicBool::new(false), AtomicUsize::new(0));
        let before = total(&target);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let n = written.load(Ordering::Relaxed);
                    fs::write(target.join(n.to_string()), n.to_string()).unwrap();
                    written.store(n + 1, Ordering::Relaxed);
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            });
            let grown = tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    lab.expand("a", 2 * LARGE).await?;
                    // The kernel keeps the key to itself.
                    let refused = lab.node_expand("a", map(&[])).await.unwrap_err();
                    let wrong = lab.node_expand("a", key("wrong")).await.unwrap_err();
                    lab.node_expand("a", key(KEY)).await?;
                    lab.node_expand("a", map(&[])).await?; // Nothing is left to do.
                    Ok::<_, tonic::Status>((refused, wrong))
                })
            });
            stop.store(true, Ordering::Relaxed);
            let (refused, wrong) = grown.unwrap();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
            assert!(refused.message().contains("node-expand-secret-name"), "{refused}");
            assert_eq!(wrong.code(), tonic::Code::Unauthenticated, "{wrong}");
        });
        assert!(total(&target) > before * 3 / 2, "{fs_type}: {before} became {}", total(&target));
        for n in 0..written.into_inner() {
            assert_eq!(fs::read_to_string(target.join(n.to_string())).unwrap(), n.to_string());
        }
        lab.close("a").await;
        // Growth that nobody finished on the node is made up for.
        lab.expand("a", 3 * LARGE).await.unwrap();
        let target = lab.open("a", KEY).await;
        assert!(total(&target) > before * 5 / 2, "{fs_type}");
        lab.close("a").await;
        lab.delete("a").await;
        assert!(lab.is_clean());
    }
}

pub(crate) fn total(path: &std::path::Path) -> u64 {
    larder_host::Host::real().filesystems.usage(path).unwrap().total.get()
}
