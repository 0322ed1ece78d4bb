//! What is announced is what works.

use super::*;
use larder_model::volume::Scope;
use std::collections::BTreeSet;

type Switch = fn(&mut Abilities) -> &mut bool;

#[tokio::test]
async fn each_ability_announces_its_capabilities_and_only_those() {
    use ControllerCapability as C;
    use PluginCapability as P;
    let announced = async |abilities| {
        let mut settings = Memory { abilities, ..Memory::default() };
        settings.facts.access_modes = vec![AccessMode::SingleNodeWriter];
        settings.facts.scope = Scope::Everywhere;
        let (engine, _) = engine_of(settings).await;
        let controller: BTreeSet<_> = engine.capabilities().into_iter().collect();
        let plugin: BTreeSet<_> = engine.plugin_capabilities().into_iter().collect();
        (controller, plugin)
    };
    let always = (
        BTreeSet::from([C::CreateDeleteVolume, C::GetVolume]),
        BTreeSet::from([P::ControllerService]),
    );
    assert_eq!(announced(Abilities::NONE).await, always);
    let table: [(Switch, &[C], &[P]); 10] = [
        (|a| &mut a.list, &[C::ListVolumes], &[]),
        (|a| &mut a.capacity, &[C::GetCapacity], &[]),
        (|a| &mut a.expand, &[C::ExpandVolume], &[P::VolumeExpansionOnline]),
        (|a| &mut a.modify, &[C::ModifyVolume], &[]),
        (|a| &mut a.attach, &[C::PublishUnpublishVolume, C::PublishReadonly], &[]),
        (|a| &mut a.snapshots, &[C::CreateDeleteSnapshot, C::ListSnapshots, C::GetSnapshot], &[]),
        (|a| &mut a.groups, &[], &[P::GroupControllerService]),
        // Blocks are those of snapshots.
        (|a| &mut a.changed_blocks, &[], &[]),
        (|a| &mut a.health, &[C::GetVolumeHealth], &[]),
        (|a| &mut a.clones, &[C::CloneVolume], &[]),
    ];
    for (switch, controller, plugin) in table {
        let mut abilities = Abilities::NONE;
        *switch(&mut abilities) = true;
        let (mut c, mut p) = always.clone();
        c.extend(controller.iter().copied());
        p.extend(plugin.iter().copied());
        assert_eq!(announced(abilities).await, (c, p), "{abilities:?}");
    }
    let pairs = Abilities { list: true, attach: true, health: true, ..Abilities::NONE };
    let (controller, _) = announced(pairs).await;
    assert!(controller.contains(&C::ListVolumesPublishedNodes));
    assert!(controller.contains(&C::ListVolumeHealth));
    let pair = Abilities { snapshots: true, changed_blocks: true, ..Abilities::NONE };
    assert!(announced(pair).await.1.contains(&P::SnapshotMetadataService));
}

#[tokio::test]
async fn facts_decide_topology_expansion_and_the_newer_modes() {
    use PluginCapability as P;
    let announced = async |change: fn(&mut larder_model::volume::Facts)| {
        let mut settings = Memory::default();
        change(&mut settings.facts);
        let (engine, _) = engine_of(settings).await;
        (engine.capabilities(), engine.plugin_capabilities())
    };
    let (controller, plugin) = announced(|_| ()).await;
    assert!(controller.contains(&ControllerCapability::SingleNodeMultiWriter));
    for expected in [P::VolumeAccessibilityConstraints, P::SnapshotAccessibilityConstraints] {
        assert!(plugin.contains(&expected), "{expected:?}");
    }
    assert!(plugin.contains(&P::VolumeExpansionOnline));
    assert!(!plugin.contains(&P::VolumeExpansionOffline));
    let (_, plugin) = announced(|f| f.online_expansion = false).await;
    assert!(plugin.contains(&P::VolumeExpansionOffline));
    assert!(!plugin.contains(&P::VolumeExpansionOnline));
    let (_, plugin) = announced(|f| f.scope = Scope::Everywhere).await;
    assert!(!plugin.contains(&P::VolumeAccessibilityConstraints));
    assert!(!plugin.contains(&P::SnapshotAccessibilityConstraints));
    let (controller, _) =
        announced(|f| f.access_modes.retain(|m| *m != AccessMode::SingleNodeMultiWriter)).await;
    assert!(!controller.contains(&ControllerCapability::SingleNodeMultiWriter));
}

#[tokio::test]
async fn what_is_not_announced_is_not_offered() {
    let abilities = Abilities::NONE;
    let (engine, _) = engine_of(Memory { abilities, ..Memory::default() }).await;
    make(&engine, "a").await;
    let members = GroupMembers {
        group_snapshot_id: "default/g".into(),
        snapshot_ids: vec!["default/s".into()],
    };
    let blocks = QueryBlocks { snapshot_id: "default/s".into(), ..QueryBlocks::default() };
    for (what, result) in [
        ("list", engine.list_volumes(Paging::default()).await.err()),
        ("capacity", engine.capacity(QueryCapacity::default()).await.err()),
        ("expand", engine.expand_volume(expand("default/a", 2 << 20)).await.err()),
        ("modify", engine.modify_volume(modify("default/a", "x")).await.err()),
        ("attach", engine.attach_volume(attach_to("default/a", "node-1")).await.err()),
        ("detach", engine.detach_volume(detach_from("default/a", "node-1")).await.err()),
        ("snapshot", engine.create_snapshot(snapshot("s", "default/a")).await.err()),
        ("delete snapshot", delete_snapshot(&engine, "default/s").await.err()),
        ("get snapshot", engine.get_snapshot("default/s").await.err()),
        ("list snapshots", engine.list_snapshots(ListSnapshots::default()).await.err()),
        ("group", engine.create_group(group("g", &["default/a"])).await.err()),
        ("delete group", engine.delete_group(members.clone()).await.err()),
        ("get group", engine.get_group(members).await.err()),
        ("blocks", engine.blocks(blocks).await.err()),
        ("health", engine.volume_health("default/a").await.err()),
        ("list health", engine.list_volume_health(Paging::default()).await.err()),
    ] {
        assert_eq!(result.map(|f| f.kind()), Some(Kind::Unsupported), "{what}");
    }
    delete(&engine, "default/a").await.unwrap();
}
