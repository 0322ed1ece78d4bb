//! Listings in pages: "all" in messages that Go clients take, tokens, and walks while things change.

use crate::{support::Rig, valid};
use larder_csi::Client;
use larder_host::fake::FakeKernel;
use larder_model::{
    Bytes, VolumeId,
    volume::{HealthEntry, HealthStatus},
};
use larder_proto::csi;
use larder_volumes::testing::{Inject, Memory};
use prost::Message;
use tonic::Code;

/// What a gRPC client written in Go takes unless told otherwise. It is tonic's limit, too, but these
/// tests must not depend on that.
const GO_LIMIT: usize = 4 << 20;

fn id(name: &str) -> VolumeId {
    VolumeId(format!("default/{name}").parse().unwrap())
}

/// A driver with `count` volumes whose contexts are as large as they may be.
async fn with_volumes(count: usize, context: usize) -> Rig {
    let rig = Rig::ready(Memory::default()).await;
    for n in 0..count {
        let id = id(&format!("v{n:05}"));
        rig.backend.add_static(&id, Bytes::gib(1));
        rig.backend.edit(&id, |volume| {
            volume.context = [("k".to_owned(), "v".repeat(context))].into();
        });
    }
    rig
}

async fn page(client: &Client, max_entries: i32, token: &str) -> csi::ListVolumesResponse {
    let request = csi::ListVolumesRequest { max_entries, starting_token: token.to_owned() };
    let mut controller = client.controller().max_decoding_message_size(GO_LIMIT);
    let page = controller.list_volumes(request).await.unwrap().into_inner();
    assert!(page.encoded_len() <= GO_LIMIT, "{} bytes", page.encoded_len());
    assert!(page.next_token.len() <= 128, "{}", page.next_token);
    page
}

fn ids(page: &csi::ListVolumesResponse) -> Vec<String> {
    page.entries.iter().map(|entry| entry.volume.clone().unwrap().volume_id).collect()
}

/// All pages from the beginning.
async fn walk(client: &Client, max_entries: i32) -> Vec<Vec<String>> {
    let (mut pages, mut token) = (Vec::new(), String::new());
    loop {
        let page = page(client, max_entries, &token).await;
        pages.push(ids(&page));
        if page.next_token.is_empty() {
            return pages;
        }
        token = page.next_token;
    }
}

#[tokio::test]
async fn all_volumes_come_in_one_page_while_they_fit() {
    let rig = with_volumes(5000, 10).await;
    let pages = walk(&rig.remote().await, 0).await;
    assert_eq!(pages.len(), 1);
    assert_eq!(pages[0].len(), 5000);
    assert!(pages[0].is_sorted());
}

#[tokio::test]
async fn what_does_not_fit_into_a_message_comes_in_further_pages() {
    let rig = with_volumes(2500, 4000).await;
    for client in [rig.driver.client(), rig.remote().await] {
        for max in [0, i32::MAX, 2000] {
            let pages = walk(&client, max).await;
            assert!(pages.len() >= 3, "{}", pages.len());
            // Filled well: not a page for every few volumes.
            assert!(pages.len() <= 6, "{}", pages.len());
            let all = pages.concat();
            assert_eq!(all.len(), 2500);
            assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "each once, in order");
        }
    }
}

#[tokio::test]
async fn a_caller_gets_no_more_than_it_asked_for() {
    let rig = with_volumes(7, 10).await;
    let pages = walk(&rig.driver.client(), 3).await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1]);
    assert_eq!(walk(&rig.driver.client(), 7).await.len(), 1, "the last page has no token");
}

#[tokio::test]
async fn a_walk_sees_each_volume_once_while_others_come_and_go() {
    let rig = with_volumes(6, 10).await;
    let client = rig.driver.client();
    let first = page(&client, 3, "").await;
    // The one that the token names goes, one comes before it and one after.
    let mut controller = client.controller();
    rig.backend.edit(&id("v00002"), |volume| volume.is_static = false);
    let gone =
        csi::DeleteVolumeRequest { volume_id: "default/v00002".into(), ..Default::default() };
    controller.delete_volume(gone).await.unwrap();
    for name in ["v00000a", "v00004a"] {
        rig.backend.add_static(&id(name), Bytes::gib(1));
    }
    let second = page(&client, 0, &first.next_token).await;
    let expected = ["v00003", "v00004", "v00004a", "v00005"].map(|n| format!("default/{n}"));
    assert_eq!(ids(&second), expected);
    // The token is good again, also for the next process.
    let next = Rig::on(rig.backend.restarted(), FakeKernel::new(), |_| {}).started().await;
    assert_eq!(ids(&page(&next.driver.client(), 0, &first.next_token).await), expected);
}

#[tokio::test]
async fn snapshots_come_in_pages_and_by_source() {
    let rig = Rig::filled(Memory::default()).await;
    let mut controller = rig.remote().await.controller();
    let mut ask = async |max_entries, token: &str, source: &str| {
        let request = csi::ListSnapshotsRequest {
            max_entries,
            starting_token: token.to_owned(),
            source_volume_id: source.to_owned(),
            ..Default::default()
        };
        controller.list_snapshots(request).await.map(tonic::Response::into_inner)
    };
    let first = ask(1, "", valid::VOLUME).await.unwrap();
    assert_eq!(first.entries.len(), 1);
    let second = ask(1, &first.next_token, valid::VOLUME).await.unwrap();
    assert_eq!((second.entries.len(), second.next_token.as_str()), (1, ""));
    assert_ne!(first.entries[0].snapshot, second.entries[0].snapshot);
    // A token is good for its own listing only.
    let other = ask(1, &first.next_token, "default/other").await.unwrap_err();
    assert_eq!(other.code(), Code::Aborted);
}

#[tokio::test]
async fn only_volumes_with_findings_are_listed_as_unhealthy() {
    let rig = with_volumes(1000, 10).await;
    let finding = |status, reason| HealthEntry { status, reason, message: "look at it".into() };
    for n in [3, 500, 999] {
        let id = id(&format!("v{n:05}"));
        let two = vec![
            finding(HealthStatus::Inaccessible, "ImageMissing"),
            finding(HealthStatus::DataLoss, "ImageTruncated"),
        ];
        rig.backend.set_health(&id, two);
    }
    let mut controller = rig.remote().await.controller();
    let (mut found, mut token) = (Vec::new(), String::new());
    loop {
        let request = csi::ControllerListVolumeHealthRequest {
            max_entries: 2,
            starting_token: token,
            ..Default::default()
        };
        let page = controller.controller_list_volume_health(request).await.unwrap().into_inner();
        found.extend(page.entries);
        token = page.next_token;
        if token.is_empty() {
            break;
        }
    }
    let ids: Vec<&str> = found.iter().map(|f| f.volume_id.as_str()).collect();
    assert_eq!(ids, ["default/v00003", "default/v00500", "default/v00999"]);
    for volume in &found {
        let told: Vec<_> =
            volume.health_statuses.iter().map(|h| (h.status(), h.reason.as_str())).collect();
        use csi::VolumeHealthErrorType::{DataLoss, Inaccessible};
        assert_eq!(told, [(Inaccessible, "ImageMissing"), (DataLoss, "ImageTruncated")]);
    }
}

/// Callers of revision 1.12 know VOLUME_CONDITION where 1.13 has the health RPCs.
#[tokio::test]
async fn callers_of_the_older_revision_are_told_the_condition() {
    let rig = with_volumes(2, 10).await;
    let sick = HealthEntry {
        status: HealthStatus::Degraded,
        reason: "PoolReadOnly",
        message: "the pool is read-only".into(),
    };
    rig.backend.set_health(&id("v00000"), vec![sick]);
    let client = rig.driver.client();
    let listed = page(&client, 0, "").await.entries;
    let condition = |n: usize| listed[n].status.clone().unwrap().volume_condition.unwrap();
    assert!(condition(0).abnormal);
    assert_eq!(condition(0).message, "PoolReadOnly: the pool is read-only");
    assert!(!condition(1).abnormal && !condition(1).message.is_empty());

    let request = csi::ControllerGetVolumeRequest { volume_id: "default/v00000".into() };
    let got = client.controller().controller_get_volume(request.clone()).await.unwrap();
    assert!(got.into_inner().status.unwrap().volume_condition.unwrap().abnormal);
    // That health cannot be told does not fail the listing.
    let fault = larder_model::Fault::unavailable("look at the pool");
    rig.backend.inject("volume_health", Inject::Fail(fault));
    let got = client.controller().controller_get_volume(request).await.unwrap();
    let condition = got.into_inner().status.unwrap().volume_condition.unwrap();
    assert!(condition.abnormal && condition.message.contains("look at the pool"));
}
