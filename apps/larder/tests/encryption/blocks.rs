//! Changed blocks of encrypted volumes: a backup reads the opened device, so they are told as they lie there.

use crate::lab::{KEY, Lab, MIB};
use larder_proto::csi::{self, BlockMetadata};
use std::{fs::File, os::unix::fs::FileExt, path::Path};

const SIZE: i64 = 64 * MIB;
const HEADER: i64 = 16 * MIB;

type Told = (i64, Vec<BlockMetadata>);

async fn allocated(lab: &Lab, snapshot: &str, starting_offset: i64) -> Told {
    let snapshot_id = format!("default/{snapshot}");
    let request =
        csi::GetMetadataAllocatedRequest { snapshot_id, starting_offset, ..Default::default() };
    let mut client = lab.server.client.snapshot_metadata();
    let mut stream = client.get_metadata_allocated(request).await.unwrap().into_inner();
    let mut told = (0, Vec::new());
    while let Some(page) = stream.message().await.unwrap() {
        told.0 = page.volume_capacity_bytes;
        told.1.extend(page.block_metadata);
    }
    told
}

async fn changed(lab: &Lab, base: &str, target: &str) -> Told {
    let request = csi::GetMetadataDeltaRequest {
        base_snapshot_id: format!("default/{base}"),
        target_snapshot_id: format!("default/{target}"),
        ..Default::default()
    };
    let mut client = lab.server.client.snapshot_metadata();
    let mut stream = client.get_metadata_delta(request).await.unwrap().into_inner();
    let mut told = (0, Vec::new());
    while let Some(page) = stream.message().await.unwrap() {
        told.0 = page.volume_capacity_bytes;
        told.1.extend(page.block_metadata);
    }
    told
}

fn is_told(told: &Told, offset: i64) -> bool {
    let holds = |b: &BlockMetadata| (b.byte_offset..b.byte_offset + b.size_bytes).contains(&offset);
    told.1.iter().any(holds)
}

fn write(target: &Path, byte: u8, offset: i64) {
    let device = File::options().write(true).open(target).unwrap();
    device.write_all_at(&[byte; 4096], offset.try_into().unwrap()).unwrap();
    device.sync_all().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_blocks_are_told_by_their_places_on_the_opened_device() {
    for pool in ["xfs", "ext4"] {
        let lab = Lab::on(pool, true).await;
        let mut request = lab.request("a");
        request.capacity_range.as_mut().unwrap().required_bytes = SIZE;
        lab.make(request).await.unwrap();
        let target = lab.open("a", KEY).await;
        let last = SIZE - HEADER - 4096;
        for (byte, offset) in [(1, 0), (2, 20 * MIB), (3, last)] {
            write(&target, byte, offset);
        }
        // A pool that cannot share blocks copies only what nobody uses.
        if pool == "ext4" {
            lab.close("a").await;
        }
        lab.snapshot("a", "s1").await;
        if pool == "ext4" {
            lab.open("a", KEY).await;
        }
        for (byte, offset) in [(4, 20 * MIB), (5, 40 * MIB)] {
            write(&target, byte, offset);
        }
        lab.close("a").await;
        lab.snapshot("a", "s2").await;

        let told = allocated(&lab, "s1", 0).await;
        assert_eq!(told.0, SIZE - HEADER, "{pool}: the size of the opened device");
        for offset in [0, 20 * MIB, last] {
            assert!(is_told(&told, offset), "{pool}: {offset} is not in {told:?}");
        }
        let sum: i64 = told.1.iter().map(|block| block.size_bytes).sum();
        assert!(sum < 4 * MIB, "{pool}: the header is told: {told:?}");
        let rest = allocated(&lab, "s1", 30 * MIB).await;
        assert!(is_told(&rest, last) && !is_told(&rest, 20 * MIB), "{pool}: {rest:?}");
        let told = changed(&lab, "s1", "s2").await;
        assert_eq!(told.0, SIZE - HEADER);
        for (offset, wanted) in [(20 * MIB, true), (40 * MIB, true), (0, false), (last, false)] {
            assert_eq!(is_told(&told, offset), wanted, "{pool}: {offset} in {told:?}");
        }

        // A backup: the first one, and what has changed since.
        for (snapshot, volume) in [("s1", "r1"), ("s2", "r2")] {
            let snapshot_id = format!("default/{snapshot}");
            let source = csi::volume_content_source::Type::Snapshot(
                csi::volume_content_source::SnapshotSource { snapshot_id },
            );
            let source = Some(csi::VolumeContentSource { r#type: Some(source) });
            let mut request = lab.request(volume);
            request.capacity_range = None;
            request.volume_content_source = source;
            lab.make(request).await.unwrap();
        }
        let (r1, r2) = (lab.open("r1", KEY).await, lab.open("r2", KEY).await);
        let (old, new) = (File::open(r1).unwrap(), File::open(r2).unwrap());
        let read = |device: &File, length: i64, offset: i64| {
            let mut bytes = vec![0; length.try_into().unwrap()];
            device.read_exact_at(&mut bytes, offset.try_into().unwrap()).unwrap();
            bytes
        };
        let mut at = 0;
        let mut differs = Vec::new();
        while at < SIZE - HEADER {
            let length = MIB.min(SIZE - HEADER - at);
            let (before, now) = (read(&old, length, at), read(&new, length, at));
            let blocks = before.chunks(4096).zip(now.chunks(4096)).enumerate();
            differs.extend(
                blocks
                    .filter(|(_, (b, n))| b != n)
                    .map(|(i, _)| at + 4096 * i64::try_from(i).unwrap()),
            );
            at += length;
        }
        assert_eq!(differs, [20 * MIB, 40 * MIB], "{pool}");
        drop((old, new));
        for volume in ["r1", "r2"] {
            lab.close(volume).await;
            lab.delete(volume).await;
        }
        lab.delete("a").await;
        lab.delete_snapshot("s1").await;
        lab.delete_snapshot("s2").await;
        assert!(lab.is_clean());
    }
}
