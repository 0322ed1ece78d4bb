//! Data is sacred: what is not proven ours and blank is never formatted.

use crate::{
    lifecycle::{is_same, kept},
    world::{On, World, block, mount, mount_as},
};
use larder_host::command::Command;
use larder_model::{AccessMode, FsType, Kind, volume::FormatState};
use std::{fs, os::unix::fs::FileExt, path::Path, time::Duration};

fn run(program: &str, args: &[&str], last: &Path) {
    let mut command = Command::new(program);
    for arg in args {
        command = command.arg(*arg);
    }
    command.arg(last).deadline(Duration::from_secs(60)).run().unwrap();
}

fn write(image: &Path, offset: u64, data: &[u8]) {
    fs::File::options().write(true).open(image).unwrap().write_all_at(data, offset).unwrap();
}

/// Everything that must not be formatted, each put on a blank image.
fn foreign(name: &str, image: &Path) {
    let size = image.metadata().unwrap().len();
    match name {
        "f-ext4" => run("mkfs.ext4", &["-q"], image),
        "f-xfs" => run("mkfs.xfs", &["-q"], image),
        "f-btrfs" => run("mkfs.btrfs", &["-q"], image),
        "swap" => run("mkswap", &[], image),
        "luks" => {
            // The beginning of a LUKS2 header: magic, version, header size.
            write(image, 0, b"LUKS\xba\xbe\x00\x02\x00\x00\x00\x00\x00\x00\x40\x00");
        }
        "partitions" => {
            // A partition table with one Linux partition.
            let mut sector = [0; 512];
            sector[446..462]
                .copy_from_slice(&[0, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 0xf8, 1, 0]);
            sector[510..].copy_from_slice(&[0x55, 0xaa]);
            write(image, 0, &sector);
        }
        "end" => write(image, size - 4096, b"the last block of an old database"),
        "middle" => write(image, size / 2, b"a table of a database that begins with zeros"),
        "start" => write(image, 1 << 20, b"a little beyond every superblock"),
        _ => panic!("{name}"),
    }
}

const FOREIGN: [&str; 8] =
    ["f-ext4", "f-xfs", "f-btrfs", "swap", "luks", "partitions", "end", "start"];

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_not_blank_is_never_formatted() {
    let world = World::new(On::Real);
    for name in FOREIGN {
        world.volume(name);
        let id = world.id(name);
        let image = world.backend.image(&id);
        foreign(name, &image);
        let before = kept(&image);
        let is_fs = name.starts_with("f-");
        for state in [FormatState::Unformatted, FormatState::Foreign, FormatState::Raw] {
            if is_fs && state != FormatState::Unformatted {
                continue; // Those are used as they are; see below.
            }
            world.backend.write_state(&id, state);
            let fault = world.stage(name, mount()).await.unwrap_err();
            assert_eq!(fault.kind(), Kind::Precondition, "{name} {state:?}: {fault}");
            assert!(is_same(before.path(), &image), "{name} {state:?}: it was written to");
            assert_eq!(world.backend.read_state(&id), state, "{name}");
            world.assert_nothing_left();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_that_others_made_is_used_and_never_replaced() {
    let world = World::new(On::Real);
    for (name, fs) in [("f-ext4", FsType::Ext4), ("f-xfs", FsType::Xfs), ("f-btrfs", FsType::Btrfs)]
    {
        for state in [FormatState::Foreign, FormatState::Raw] {
            if !world.backend.image(&world.id(name)).exists() {
                world.volume(name);
                foreign(name, &world.backend.image(&world.id(name)));
            }
            let id = world.id(name);
            world.backend.write_state(&id, state);
            let other = if fs == FsType::Ext4 { "xfs" } else { "ext4" };
            let wrong = mount_as(other, AccessMode::SingleNodeWriter);
            let fault = world.stage(name, wrong).await.unwrap_err();
            assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
            assert!(fault.to_string().contains(fs.as_str()), "{fault}");
            world.assert_nothing_left();
            world.stage(name, mount()).await.unwrap();
            assert_eq!(world.backend.read_state(&id), FormatState::Formatted { fs });
            world.unstage(name).await.unwrap();
        }
    }
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_device_with_data_only_where_no_probe_looks_is_never_formatted() {
    let world = World::new(On::Real);
    world.volume("middle");
    let id = world.id("middle");
    let image = world.backend.image(&id);
    foreign("middle", &image);
    world.backend.write_state(&id, FormatState::Foreign);
    let before = kept(&image);
    let fault = world.stage("middle", mount()).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    let place = format!("data at byte {}", image.metadata().unwrap().len() / 2);
    assert!(fault.to_string().contains(&place), "{fault}");
    assert!(is_same(before.path(), &image), "it was written to");
    assert_eq!(world.backend.read_state(&id), FormatState::Foreign);
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blank_static_device_is_formatted_after_it_was_recorded() {
    let world = World::new(On::Real);
    world.volume("image");
    let id = world.id("image");
    world.backend.write_state(&id, FormatState::Foreign);
    world.stage("image", mount()).await.unwrap();
    assert_eq!(world.backend.read_state(&id), FormatState::Formatted { fs: FsType::Ext4 });
    world.unstage("image").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_formatted_once_is_not_formatted_again_however_blank_it_looks() {
    let world = World::new(On::Real);
    world.volume("image");
    let id = world.id("image");
    let image = world.backend.image(&id);
    for state in [FormatState::Formatted { fs: FsType::Ext4 }, FormatState::Raw] {
        world.backend.write_state(&id, state);
        let before = kept(&image);
        let fault = world.stage("image", mount()).await.unwrap_err();
        let expected = if state == FormatState::Raw { Kind::Precondition } else { Kind::Corrupt };
        assert_eq!(fault.kind(), expected, "{fault}");
        assert!(is_same(before.path(), &image));
        world.assert_nothing_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_remains_of_our_own_mkfs_are_formatted_again() {
    let world = World::new(On::Real);
    world.volume("image");
    let id = world.id("image");
    write(&world.backend.image(&id), 1024, b"half a superblock");
    world.backend.write_state(&id, FormatState::Formatting { fs: FsType::Ext4 });
    world.stage("image", mount()).await.unwrap();
    world.unstage("image").await.unwrap();
    // Also when it had finished, and only the record had not.
    world.backend.write_state(&id, FormatState::Formatting { fs: FsType::Ext4 });
    world.stage("image", mount()).await.unwrap();
    world.unstage("image").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_workload_wrote_to_a_raw_device_where_no_probe_looks_is_never_formatted() {
    let world = World::new(On::Real);
    world.volume("raw");
    let id = world.id("raw");
    world.stage("raw", block()).await.unwrap();
    assert_eq!(world.backend.read_state(&id), FormatState::Raw);
    world.publish("raw", 1, block()).await.unwrap();
    write(&world.target("raw", 1), 32 << 20, b"precious, in the middle");
    world.unpublish("raw", 1).await.unwrap();
    world.unstage("raw").await.unwrap();
    let fault = world.stage("raw", mount()).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("raw block device"), "{fault}");
    world.stage("raw", block()).await.unwrap();
    world.unstage("raw").await.unwrap();
    world.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_system_is_refused_and_not_repaired() {
    let world = World::new(On::Real);
    world.volume("image");
    let id = world.id("image");
    let image = world.backend.image(&id);
    world.stage("image", mount()).await.unwrap();
    world.unstage("image").await.unwrap();
    // The root directory's inode is gone: more than `e2fsck -p` decides alone.
    run("debugfs", &["-w", "-R", "clri <2>"], &image);
    let fault = world.stage("image", mount()).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Corrupt, "{fault}");
    assert_eq!(world.backend.read_state(&id), FormatState::Formatted { fs: FsType::Ext4 });
    world.assert_nothing_left();
}
