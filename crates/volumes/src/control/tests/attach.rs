//! ControllerPublishVolume and ControllerUnpublishVolume.

use super::*;

#[tokio::test]
async fn attaching_is_repeatable_and_exclusive_between_nodes() {
    let (engine, _) = engine().await;
    make(&engine, "a").await;
    let context = engine.attach_volume(attach_to("default/a", "node-1")).await.unwrap();
    assert_eq!(engine.attach_volume(attach_to("default/a", "node-1")).await.unwrap(), context);
    let other = AttachVolume { readonly: true, ..attach_to("default/a", "node-1") };
    assert_eq!(kind(engine.attach_volume(other).await), Kind::Conflict);
    let other = AttachVolume { capability: block(), ..attach_to("default/a", "node-1") };
    assert_eq!(kind(engine.attach_volume(other).await), Kind::Conflict);
    let fault = engine.attach_volume(attach_to("default/a", "node-2")).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("node-1"), "{fault}");
    engine.detach_volume(detach_from("default/a", "node-1")).await.unwrap();
    engine.attach_volume(attach_to("default/a", "node-2")).await.unwrap();
}

#[tokio::test]
async fn attachment_needs_a_volume_a_node_and_a_possible_capability() {
    let mut settings = Memory::default();
    settings.facts.access_modes = AccessMode::SINGLE_NODE.to_vec();
    let (engine, _) = engine_of(settings).await;
    make(&engine, "a").await;
    assert_eq!(kind(engine.attach_volume(attach_to("default/a", "moon")).await), Kind::NotFound);
    for node in ["", "node\n1", &"n".repeat(257)] {
        assert_eq!(kind(engine.attach_volume(attach_to("default/a", node)).await), Kind::Invalid);
    }
    assert_eq!(kind(engine.attach_volume(attach_to("default/b", "node-1")).await), Kind::NotFound);
    assert_eq!(kind(engine.attach_volume(attach_to("what?", "node-1")).await), Kind::NotFound);
    assert_eq!(kind(engine.attach_volume(attach_to("", "node-1")).await), Kind::Invalid);
    let capability = mount(AccessMode::MultiNodeMultiWriter);
    let wrong = AttachVolume { capability, ..attach_to("default/a", "node-1") };
    assert_eq!(kind(engine.attach_volume(wrong).await), Kind::Invalid);
}

#[tokio::test]
async fn detaching_what_is_not_attached_is_a_success() {
    let (engine, backend) = engine().await;
    make(&engine, "a").await;
    for (volume, node) in
        [("default/a", "node-1"), ("default/a", ""), ("default/none", "node-1"), ("what?", "moon")]
    {
        engine.detach_volume(detach_from(volume, node)).await.unwrap();
    }
    assert_eq!(kind(engine.detach_volume(detach_from("", "node-1")).await), Kind::Invalid);
    assert_eq!(kind(engine.detach_volume(detach_from("default/a", "a\nb")).await), Kind::Invalid);
    backend.lose_pool("default", true);
    let lost = engine.detach_volume(detach_from("default/a", "node-1")).await;
    assert_eq!(kind(lost), Kind::Unavailable);
}

#[tokio::test]
async fn an_empty_node_means_all_nodes() {
    let (engine, _) = engine().await;
    make(&engine, "a").await;
    for node in ["node-1", "node-2"] {
        let capability = mount(AccessMode::MultiNodeMultiWriter);
        let request = AttachVolume { capability, ..attach_to("default/a", node) };
        engine.attach_volume(request).await.unwrap();
    }
    let nodes = async || engine.get_volume("default/a").await.unwrap().published_nodes;
    assert_eq!(nodes().await, ["node-1", "node-2"]);
    engine.detach_volume(detach_from("default/a", "")).await.unwrap();
    assert!(nodes().await.is_empty());
}
