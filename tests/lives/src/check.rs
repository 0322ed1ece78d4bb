//! After a power cut: what must be there is, with its bytes; what must not be is not; and all of it
//! can be used and removed.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};

use crate::{caller::Use, ledger::State, life::World};

/// Compares what there is with the world's ledger, and removes everything.
pub async fn check(world: &World) -> Result<()> {
    there_is_what_must_be(world).await?;
    let ledger = world.book.ledger().clone();
    let volumes = world.caller.volumes().await?;
    for name in &volumes {
        // What nobody was told of is whole, too, but what it must hold is not known.
        let Ok(thing) = ledger.thing(name) else { continue };
        let volume = world.volume(name, thing.usage, thing.bytes);
        let context = || format!("volume {name}, {:?}", thing.state);
        world.put_to_use(&volume).await.with_context(context)?;
        world.verify(&volume).await?;
        world.take_back(&volume).await.with_context(context)?;
    }
    let snapshots = world.caller.snapshots().await?;
    for (name, _) in &snapshots {
        let Ok(thing) = ledger.thing(name) else { continue };
        verify_snapshot(world, name, thing.usage, thing.bytes, &thing.files).await?;
    }
    restore_from_trash(world, &volumes).await?;
    remove_everything(world).await
}

async fn there_is_what_must_be(world: &World) -> Result<()> {
    let volumes: BTreeSet<_> = world.caller.volumes().await?.into_iter().collect();
    let snapshots = world.caller.snapshots().await?;
    let snapshots: BTreeSet<_> = snapshots.into_iter().map(|(name, _)| name).collect();
    let trash: BTreeSet<_> = world.caller.trash().await?.into_iter().map(|(o, _)| o).collect();
    let ledger = world.book.ledger().clone();
    for (kind, listed, is_volume) in [("volume", &volumes, true), ("snapshot", &snapshots, false)] {
        let names = |state| ledger.named(state, is_volume);
        let lost: Vec<_> = names(State::Here).into_iter().filter(|n| !listed.contains(n)).collect();
        ensure!(lost.is_empty(), "{kind}s are lost: {lost:?}");
        for state in [State::Removed, State::Gone, State::Dropping] {
            let back: Vec<_> = names(state).into_iter().filter(|n| listed.contains(n)).collect();
            ensure!(back.is_empty(), "deleted {kind}s are back ({state:?}): {back:?}");
        }
        if world.trash {
            let gone: Vec<_> =
                names(State::Removed).into_iter().filter(|n| !trash.contains(n)).collect();
            ensure!(gone.is_empty(), "{kind}s are lost from the trash: {gone:?}");
            let either = |name: &String| !trash.contains(name) && !listed.contains(name);
            let gone: Vec<_> = names(State::Restoring).into_iter().filter(either).collect();
            ensure!(gone.is_empty(), "{kind}s are lost on their way from the trash: {gone:?}");
        }
    }
    for (group, members) in &ledger.groups {
        let there = members.iter().filter(|member| snapshots.contains(*member)).count();
        ensure!(there == 0 || there == members.len(), "a part of group {group} is gone");
    }
    Ok(())
}

async fn verify_snapshot(
    world: &World,
    name: &str,
    usage: Use,
    bytes: i64,
    files: &BTreeSet<String>,
) -> Result<()> {
    let context = || format!("snapshot {name}");
    let copy = world.volume(&format!("x{name}"), usage, bytes);
    world
        .caller
        .create(&copy.name, bytes, usage, Some((name, true)))
        .await
        .with_context(context)?;
    world.put_to_use(&copy).await.with_context(context)?;
    let verified = crate::place::Place(copy.target.clone()).verify(files.clone()).await;
    verified.with_context(context)?;
    world.take_back(&copy).await.with_context(context)?;
    world.caller.remove_volume(&copy.name).await
}

/// What was deleted is in the trash with its data.
async fn restore_from_trash(world: &World, listed: &[String]) -> Result<()> {
    let ledger = world.book.ledger().clone();
    for (name, id) in world.caller.trash().await? {
        let Ok(thing) = ledger.thing(&name) else { continue };
        if thing.volume.is_some() || thing.state != State::Removed || listed.contains(&name) {
            continue;
        }
        world.caller.restore(&id).await.with_context(|| format!("restore {name}"))?;
        let volume = world.volume(&name, thing.usage, thing.bytes);
        world.put_to_use(&volume).await?;
        world.verify(&volume).await?;
        world.take_back(&volume).await?;
    }
    Ok(())
}

async fn remove_everything(world: &World) -> Result<()> {
    for name in world.caller.volumes().await? {
        world.caller.remove_volume(&name).await?;
    }
    let snapshots = world.caller.snapshots().await?;
    let groups: BTreeSet<_> = snapshots.iter().map(|(_, group)| group).collect();
    for group in groups {
        let members: Vec<_> =
            snapshots.iter().filter(|(_, of)| of == group).map(|(name, _)| name.clone()).collect();
        if !group.is_empty() {
            world.caller.remove_group(group, &members).await?;
            continue;
        }
        for name in members {
            world.caller.remove_snapshot(&name).await?;
        }
    }
    for (_, id) in world.caller.trash().await? {
        world.caller.drop_trash(&id).await?;
    }
    Ok(())
}
