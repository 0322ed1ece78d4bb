//! Streams of blocks: paging, order, resuming, back-pressure, cancelling, and how they may end.

use crate::{
    support::Rig,
    valid::{NEWER_SNAPSHOT, SNAPSHOT, VOLUME},
};
use larder_csi::Client;
use larder_model::{Fault, VolumeId};
use larder_proto::csi::{self, BlockMetadata, BlockMetadataType};
use larder_volumes::testing::{BLOCK, Inject, Memory};
use std::time::Duration;
use tonic::{Code, Status, Streaming};

/// A volume with every third of `blocks` written and two snapshots, between which every ninth was
/// written again.
async fn written(blocks: u64) -> Rig {
    let rig = Rig::ready(Memory::default()).await;
    let mut controller = rig.driver.client().controller();
    let create = csi::CreateVolumeRequest {
        name: "vol".to_owned(),
        volume_capabilities: vec![crate::valid::block()],
        ..Default::default()
    };
    controller.create_volume(create).await.unwrap();
    let id = VolumeId(VOLUME.parse().unwrap());
    for (name, step, tag) in [("snap", 3, 1), ("snap-2", 9, 2)] {
        for number in (0..blocks).step_by(step) {
            rig.backend.write(&id, number, tag);
        }
        let create = csi::CreateSnapshotRequest {
            name: name.to_owned(),
            source_volume_id: VOLUME.to_owned(),
            ..Default::default()
        };
        controller.create_snapshot(create).await.unwrap();
    }
    rig
}

async fn allocated(
    client: &Client,
    starting_offset: i64,
    max_results: i32,
) -> Result<Streaming<csi::GetMetadataAllocatedResponse>, Status> {
    let request = csi::GetMetadataAllocatedRequest {
        snapshot_id: SNAPSHOT.to_owned(),
        starting_offset,
        max_results,
        ..Default::default()
    };
    let answer = client.snapshot_metadata().get_metadata_allocated(request).await?;
    Ok(answer.into_inner())
}

#[tokio::test]
async fn a_stream_that_nobody_reads_holds_up_no_shutdown() {
    let rig = written(1 << 16).await;
    let client = rig.remote().await;
    let mut stream = allocated(&client, 0, 1).await.unwrap();
    stream.message().await.unwrap().unwrap();
    let begun = std::time::Instant::now();
    let busy = rig.driver.shutdown(Duration::from_secs(30)).await;
    assert!(busy.is_empty() && rig.backend.calls("stop") == 1, "{busy:?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// The messages until the stream ends, and how it ended.
async fn read(
    mut stream: Streaming<csi::GetMetadataAllocatedResponse>,
) -> (Vec<csi::GetMetadataAllocatedResponse>, Result<(), Status>) {
    let mut messages = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return (messages, Ok(())),
            Err(status) => return (messages, Err(status)),
        }
    }
}

fn block(number: u64) -> BlockMetadata {
    let [byte_offset, size_bytes] = [number * BLOCK, BLOCK].map(u64::cast_signed);
    BlockMetadata { byte_offset, size_bytes }
}

#[tokio::test]
async fn allocated_blocks_come_in_order_in_messages_of_the_size_asked_for() {
    let rig = written(3000).await;
    let expected: Vec<_> = (0..3000).step_by(3).map(block).collect();
    for client in [rig.driver.client(), rig.remote().await] {
        for (max, messages) in [(0, 1), (300, 4), (1, 1000), (i32::MAX, 1)] {
            let (pages, end) = read(allocated(&client, 0, max).await.unwrap()).await;
            end.unwrap();
            assert_eq!(pages.len(), messages, "max_results {max}");
            for page in &pages {
                assert_eq!(page.volume_capacity_bytes, 1 << 30);
                assert_eq!(page.block_metadata_type(), BlockMetadataType::VariableLength);
                let length = i32::try_from(page.block_metadata.len()).unwrap();
                assert!(length > 0 && (max == 0 || length <= max));
            }
            let blocks: Vec<_> = pages.into_iter().flat_map(|page| page.block_metadata).collect();
            assert_eq!(blocks, expected);
        }
    }
}

#[tokio::test]
async fn changed_blocks_are_those_that_differ() {
    let rig = written(90).await;
    let request = csi::GetMetadataDeltaRequest {
        base_snapshot_id: SNAPSHOT.to_owned(),
        target_snapshot_id: NEWER_SNAPSHOT.to_owned(),
        max_results: 4,
        ..Default::default()
    };
    let answer = rig.remote().await.snapshot_metadata().get_metadata_delta(request).await;
    let mut stream = answer.unwrap().into_inner();
    let mut blocks = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        assert_eq!(message.volume_capacity_bytes, 1 << 30);
        blocks.extend(message.block_metadata);
    }
    assert_eq!(blocks, (0..90).step_by(9).map(block).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_broken_stream_says_so_and_can_be_resumed_behind_its_last_block() {
    let rig = written(300).await;
    let client = rig.remote().await;
    // The fourth page fails; the first three have come.
    for _ in 0..3 {
        rig.backend.inject("extents", Inject::Sleep(Duration::ZERO));
    }
    rig.backend.inject("extents", Inject::Fail(Fault::unavailable("reach the pool")));
    let (pages, end) = read(allocated(&client, 0, 10).await.unwrap()).await;
    let status = end.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("reach the pool"));
    let mut blocks: Vec<_> = pages.into_iter().flat_map(|page| page.block_metadata).collect();
    assert_eq!(blocks.len(), 30);
    let last = blocks.last().unwrap();
    let next = last.byte_offset + last.size_bytes;
    let (pages, end) = read(allocated(&client, next, 10).await.unwrap()).await;
    end.unwrap();
    blocks.extend(pages.into_iter().flat_map(|page| page.block_metadata));
    assert_eq!(blocks, (0..300).step_by(3).map(block).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_first_block_may_begin_before_the_offset_but_ends_after_it() {
    let rig = written(30).await;
    let inside = (3 * BLOCK + 1).cast_signed();
    let (pages, end) = read(allocated(&rig.driver.client(), inside, 0).await.unwrap()).await;
    end.unwrap();
    assert_eq!(pages[0].block_metadata[0], block(3));
    let behind = (4 * BLOCK).cast_signed();
    let (pages, _) = read(allocated(&rig.driver.client(), behind, 0).await.unwrap()).await;
    assert_eq!(pages[0].block_metadata[0], block(6));
}

#[tokio::test]
async fn an_empty_snapshot_ends_cleanly_without_a_block() {
    let rig = Rig::filled(Memory::default()).await;
    let (pages, end) = read(allocated(&rig.remote().await, 0, 0).await.unwrap()).await;
    end.unwrap();
    assert!(pages.iter().all(|page| page.block_metadata.is_empty()));
}

#[tokio::test]
async fn a_refusal_is_an_error_of_the_call() {
    let rig = Rig::filled(Memory::default()).await;
    let status = allocated(&rig.driver.client(), -1, 0).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
}

/// A caller that takes one message of 10,000: the driver reads what the connection's window and
/// buffers hold (64 KiB each way, some 30 bytes a message), and waits.
#[tokio::test]
async fn nothing_piles_up_for_a_slow_caller_and_nothing_is_read_for_one_that_left() {
    const WINDOW: u32 = 65_535;
    let rig = written(30_000).await;
    rig.remote().await;
    let narrow = tonic::transport::Endpoint::try_from(rig.endpoint().to_string()).unwrap();
    let narrow = narrow.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
    for client in [rig.driver.client(), Client::in_process(narrow.connect_lazy())] {
        let before = rig.backend.calls("extents");
        let mut stream = allocated(&client, 0, 1).await.unwrap();
        stream.message().await.unwrap().unwrap();
        let mut read = rig.backend.calls("extents");
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = rig.backend.calls("extents");
            if now == read {
                break;
            }
            read = now;
        }
        let ahead = read - before;
        assert!(ahead < 6_000, "{ahead} pages were read ahead");
        drop(stream);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let after = rig.backend.calls("extents") - read;
        assert!(after <= 1, "{after} pages were read for nobody");
    }
}

#[tokio::test]
async fn a_panic_ends_its_stream_and_not_the_connection() {
    let rig = written(30).await;
    let client = rig.remote().await;
    rig.backend.inject("extents", Inject::Sleep(Duration::ZERO));
    rig.backend.inject("extents", Inject::Panic);
    let (pages, end) = read(allocated(&client, 0, 1).await.unwrap()).await;
    assert_eq!(pages.len(), 1);
    assert_eq!(end.unwrap_err().code(), Code::Internal);
    let (pages, end) = read(allocated(&client, 0, 0).await.unwrap()).await;
    end.unwrap();
    assert_eq!(pages[0].block_metadata.len(), 10);
}

#[tokio::test]
async fn a_stream_ends_with_its_driver_and_touches_no_storage_afterwards() {
    let rig = written(30).await;
    let mut stream = allocated(&rig.driver.client(), 0, 1).await.unwrap();
    stream.message().await.unwrap().unwrap();
    let busy = rig.driver.shutdown(Duration::from_millis(200)).await;
    assert!(busy.is_empty());
    assert_eq!(rig.backend.calls("stop"), 1);
    let before = rig.backend.calls("extents");
    let (_, end) = read(stream).await;
    assert_eq!(end.unwrap_err().code(), Code::Unavailable);
    assert_eq!(rig.backend.calls("extents"), before);
}

/// As kill -9 does it: the connection breaks while an answer is under way.
#[test]
fn an_answer_that_breaks_off_with_its_driver_is_unavailable() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let (server, caller) = (runtime().unwrap(), runtime().unwrap());
    let rig = server.block_on(written(30));
    server.block_on(rig.driver.listen(&rig.endpoint())).unwrap();
    rig.backend.inject("extents", Inject::Sleep(Duration::ZERO));
    rig.backend.inject("extents", Inject::Sleep(Duration::from_secs(600)));
    let mut stream = caller.block_on(async {
        let client = Client::connect(&rig.endpoint()).unwrap();
        let mut stream = allocated(&client, 0, 1).await.unwrap();
        stream.message().await.unwrap().unwrap();
        stream
    });
    server.shutdown_background();
    let lost = caller.block_on(stream.message()).unwrap_err();
    assert_eq!(lost.code(), Code::Unavailable, "{lost:?}");
    assert!(lost.message().contains("repeat the call"), "{lost:?}");
}
