//! The conditions of the node service.

use super::*;

/// Stages the volume.
async fn staged() -> Rig {
    let rig = Rig::filled(directories()).await;
    assert_eq!(ask(&rig, "NodeStageVolume", &[]).await, Code::Ok);
    rig
}

/// Publishes it, too.
async fn published() -> Rig {
    let rig = staged().await;
    assert_eq!(ask(&rig, "NodePublishVolume", &[]).await, Code::Ok);
    rig
}

pub(super) async fn nodes(rpc: &str, condition: &str) -> Option<Proof> {
    let nobody = || [("volume_id", text("default/nobody"))];
    let elsewhere = |rig: &Rig| text(rig.folder().join("pod/second").to_str().unwrap());
    Some(match (rpc, condition) {
        ("NodeStageVolume", "volume not found") => {
            Seen(ask(&Rig::filled(directories()).await, rpc, &nobody()).await)
        }
        ("NodeStageVolume", "already staged at path with different capability") => {
            let rig = staged().await;
            assert_eq!(ask(&rig, rpc, &[]).await, Code::Ok);
            let path = "volume_capability.access_mode.mode";
            Seen(ask(&rig, rpc, &[(path, mode(Mode::SingleNodeReaderOnly))]).await)
        }
        ("NodeStageVolume" | "NodePublishVolume", "capability not supported by volume") => {
            let rig = Rig::filled(directories()).await;
            let broken = Fault::precondition("connect volume: it has no raw device");
            rig.backend.inject("connect", Inject::Fail(broken));
            Seen(ask(&rig, "NodeStageVolume", &[]).await)
        }
        // kubelet repeats these for ever when they fail, and what is not there is not mounted.
        ("NodeUnstageVolume" | "NodeUnpublishVolume", "volume not found") => {
            let rig = Rig::filled(directories()).await;
            for unknown in ["default/nobody", "not an id of ours"] {
                assert_eq!(ask(&rig, rpc, &[("volume_id", text(unknown))]).await, Code::Ok);
            }
            Deviates(Code::Ok)
        }
        ("NodeUnstageVolume", "not staged at that path") => {
            Seen(ask(&Rig::filled(directories()).await, rpc, &[]).await)
        }
        ("NodePublishVolume", "volume not found") => {
            Seen(ask(&Rig::filled(directories()).await, rpc, &nobody()).await)
        }
        ("NodePublishVolume", c) if c.starts_with("same target_path, other arguments") => {
            let rig = published().await;
            assert_eq!(ask(&rig, rpc, &[]).await, Code::Ok);
            let other_secrets = [("secrets", with_map(&[("password", "rotated")]))];
            assert_eq!(ask(&rig, rpc, &other_secrets).await, Code::Ok);
            Seen(ask(&rig, rpc, &[("readonly", Value::Bool(false))]).await)
        }
        ("NodePublishVolume", c) if c.starts_with("second target_path") => {
            let rig = Rig::filled(directories()).await;
            let path = "volume_capability.access_mode.mode";
            let alone = (path, mode(Mode::SingleNodeSingleWriter));
            let alone = std::slice::from_ref(&alone);
            assert_eq!(ask(&rig, "NodeStageVolume", alone).await, Code::Ok);
            assert_eq!(ask(&rig, rpc, alone).await, Code::Ok);
            let second = [alone[0].clone(), ("target_path", elsewhere(&rig))];
            Seen(ask(&rig, rpc, &second).await)
        }
        ("NodePublishVolume", c) if c.starts_with("plugin advertises STAGE_UNSTAGE_VOLUME") => {
            let rig = staged().await;
            Seen(ask(&rig, rpc, &[("staging_target_path", text(""))]).await)
        }
        ("NodeGetVolumeStats", "volume not found at volume_path") => {
            let rig = published().await;
            Seen(ask(&rig, rpc, &[("volume_path", elsewhere(&rig))]).await)
        }
        ("NodeExpandVolume", "capability not supported by volume") => {
            let mut memory = directories();
            memory.facts.access_modes = larder_model::AccessMode::SINGLE_NODE.to_vec();
            let rig = Rig::filled(memory).await;
            assert_eq!(ask(&rig, "NodeStageVolume", &[]).await, Code::Ok);
            assert_eq!(ask(&rig, "NodePublishVolume", &[]).await, Code::Ok);
            let path = "volume_capability.access_mode.mode";
            Seen(ask(&rig, rpc, &[(path, mode(Mode::MultiNodeMultiWriter))]).await)
        }
        ("NodeExpandVolume", "volume not found") => {
            Seen(ask(&published().await, rpc, &nobody()).await)
        }
        ("NodeExpandVolume", c) if c.starts_with("published/staged and filesystem cannot") => {
            let rig = published().await;
            let busy = Fault::precondition("grow volume: it is mounted for reading");
            rig.backend.inject("refresh_size", Inject::Fail(busy));
            Seen(ask(&rig, rpc, &[]).await)
        }
        ("NodeExpandVolume", "capacity_range not allowed") => {
            let larger = [("capacity_range.required_bytes", Value::I64(3 << 30))];
            Seen(ask(&published().await, rpc, &larger).await)
        }
        _ => return None,
    })
}
