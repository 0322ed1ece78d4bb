//! File systems on real devices.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use larder_host::{
    FileSystems, Found, HelperProgram, Host, MountRequest, command::Command, filesystems,
    filesystems::RealFileSystems, image,
};
use larder_model::{Bytes, Cx, FsType, Kind};
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};
use support::{Scratch, mkfs, mount_request, request};

fn helper() -> HelperProgram {
    HelperProgram(vec![env!("CARGO_BIN_EXE_larder-host-test-helper").into()])
}

fn tool(program: &str, arguments: &[&str], device: &Path) {
    Command::new(program).args(arguments).arg(device).run().unwrap();
}

#[test]
fn an_untouched_device_is_blank_and_ours_are_recognised() {
    let filesystems = Host::real().filesystems;
    for fs_type in FsType::ALL {
        let scratch = Scratch::new();
        let (_, device) = scratch.device("a.img", Bytes::mib(512));
        assert_eq!(filesystems.probe(&device).unwrap(), Found::Blank);
        assert_eq!(filesystems.identity(&device).unwrap().uuid, None);
        filesystems.make(&device, fs_type, &["-L".into(), "label x".into()]).unwrap();
        assert_eq!(filesystems.probe(&device).unwrap(), Found::FileSystem(fs_type));
        let identity = filesystems.identity(&device).unwrap();
        assert_eq!(identity.label.as_deref(), Some("label x"));
        assert_eq!(identity.uuid.unwrap().len(), 36);
    }
}

#[test]
fn whatever_else_is_on_a_device_is_found_and_never_formatted() {
    let filesystems = Host::real().filesystems;
    type Put<'a> = (&'a str, &'a dyn Fn(&Path));
    let write = |device: &Path, at: u64| {
        OpenOptions::new().write(true).open(device).unwrap().write_all_at(b"x", at).unwrap();
    };
    let cases: [Put<'_>; 7] = [
        ("ext3", &|d| tool("mkfs.ext3", &["-q"], d)),
        ("swap", &|d| tool("mkswap", &[], d)),
        ("partition table (dos)", &|d| {
            // One partition of 1000 sectors from sector 2048 on, and the mark at the end.
            let mut sector = [0; 512];
            sector[446 + 4] = 0x83;
            sector[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
            sector[446 + 12..446 + 16].copy_from_slice(&1000_u32.to_le_bytes());
            sector[510..].copy_from_slice(&[0x55, 0xaa]);
            OpenOptions::new().write(true).open(d).unwrap().write_all_at(&sector, 0).unwrap();
        }),
        ("data at byte 0", &|d| write(d, 0)),
        ("data at byte 4194303", &|d| write(d, (4 << 20) - 1)),
        ("data at byte 62914560", &|d| write(d, 60 << 20)),
        ("data at byte 67108863", &|d| write(d, (64 << 20) - 1)),
    ];
    for (what, put) in cases {
        let scratch = Scratch::new();
        let (_, device) = scratch.device("a.img", Bytes::mib(64));
        put(&device);
        assert_eq!(filesystems.probe(&device).unwrap(), Found::Other(what.into()));
        let before = fs::read(scratch.path().join("a.img")).unwrap();
        let fault = filesystems.make(&device, FsType::Ext4, &[]).unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition);
        assert!(fault.to_string().contains(what), "{fault}");
        assert!(before == fs::read(scratch.path().join("a.img")).unwrap(), "{what} was changed");
    }
}

#[test]
fn one_byte_in_the_middle_of_a_device_is_found_and_holes_take_no_time() {
    let filesystems = Host::real().filesystems;
    let scratch = Scratch::new();
    let size = Bytes::gib(1024);
    let (_, device) = scratch.device("large.img", size);
    let cx = Cx::new();
    let begun = Instant::now();
    assert_eq!(filesystems.first_data(&device, &cx).unwrap(), None);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    // Blocks of zeros are read and are nothing, one byte is something.
    let (zeros, data) = (Bytes::gib(300).get(), Bytes::gib(700).get() + 12345);
    let file = OpenOptions::new().write(true).open(&device).unwrap();
    file.write_all_at(&vec![0; 3 << 20], zeros).unwrap();
    assert_eq!(filesystems.first_data(&device, &cx).unwrap(), None);
    file.write_all_at(b"x", data).unwrap();
    assert_eq!(filesystems.probe(&device).unwrap(), Found::Blank, "no probe looks there");
    assert_eq!(filesystems.first_data(&device, &cx).unwrap(), Some(data));
    assert!(cx.progress().total == size.get() && cx.progress().done > data - (1 << 20));
    // The image's name leads to another file: its device is read, all of it.
    drop(file);
    let image = scratch.image("small.img", Bytes::mib(16));
    let device = scratch.host.loops.attach(&request(&image)).unwrap();
    fs::rename(&image, image.with_extension("away")).unwrap();
    image::create_sparse(&image, Bytes::mib(16)).unwrap();
    let file = OpenOptions::new().write(true).open(&device.path).unwrap();
    file.write_all_at(b"x", 5 << 20).unwrap();
    assert_eq!(filesystems.first_data(&device.path, &cx).unwrap(), Some(5 << 20));
    assert!(filesystems.first_data(&image, &cx).is_err(), "a file is no device");
}

#[test]
fn luks_lvm_and_raid_are_found_by_their_signatures() {
    let filesystems = Host::real().filesystems;
    // Headers as the formats' specifications give them; the tools need kernel modules.
    let mut lvm = vec![0; 1024];
    lvm[512..520].copy_from_slice(b"LABELONE");
    lvm[520] = 1;
    lvm[532] = 32;
    lvm[536..544].copy_from_slice(b"LVM2 001");
    lvm[544..576].copy_from_slice(&[b'a'; 32]);
    let mut luks = b"LUKS\xba\xbe\0\x01".to_vec();
    luks.resize(592, 0);
    for (header, what) in [(lvm, "LVM2_member"), (luks, "LUKS")] {
        let scratch = Scratch::new();
        let (_, device) = scratch.device("a.img", Bytes::mib(16));
        OpenOptions::new().write(true).open(&device).unwrap().write_all_at(&header, 0).unwrap();
        let found = filesystems.probe(&device).unwrap();
        // A label without its checksum is data all the same: it is never blank.
        let data = matches!(&found, Found::Other(w) if w == what || w.starts_with("data at"));
        assert!(data, "{found:?}");
    }
}

#[test]
fn what_another_way_wrote_is_seen_in_spite_of_the_page_cache() {
    let scratch = Scratch::new();
    let (_, device) = scratch.device("a.img", Bytes::mib(64));
    let filesystems = Host::real().filesystems;
    assert_eq!(filesystems.probe(&device).unwrap(), Found::Blank);
    // Behind the loop device's back, as another machine would do it to a shared disk.
    let image = OpenOptions::new().write(true).open(scratch.path().join("a.img")).unwrap();
    image.write_all_at(b"x", 5000).unwrap();
    assert_eq!(filesystems.probe(&device).unwrap(), Found::Other("data at byte 5000".into()));
}

#[test]
fn what_is_no_device_is_an_error_and_never_blank() {
    let scratch = Scratch::new();
    let filesystems = Host::real().filesystems;
    let file = scratch.file("f", &[]);
    assert_eq!(filesystems.probe(&file).unwrap_err().kind(), Kind::Precondition);
    let absent = Path::new("/dev/no-such-device");
    assert_eq!(filesystems.probe(absent).unwrap_err().kind(), Kind::NotFound);
    // Unreadable in places: the image was truncated under the device.
    let (_, device) = scratch.device("a.img", Bytes::mib(64));
    File::options().write(true).open(scratch.path().join("a.img")).unwrap().set_len(0).unwrap();
    filesystems.probe(&device).unwrap_err();
}

#[test]
fn a_cut_mkfs_is_done_again_and_other_devices_are_refused() {
    for fs_type in FsType::ALL {
        let scratch = Scratch::new();
        let (_, device) = scratch.device("a.img", Bytes::mib(512));
        let filesystems = Host::real().filesystems;
        mkfs(&device, FsType::Ext4);
        let fault = filesystems.make(&device, fs_type, &[]).unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition);
        filesystems.make_again(&device, fs_type, &[]).unwrap();
        assert_eq!(filesystems.probe(&device).unwrap(), Found::FileSystem(fs_type));
        let target = scratch.dir("m");
        scratch.mount(&device, fs_type, &target, &[]);
        // Mounted: not even again.
        let fault = filesystems.make_again(&device, fs_type, &[]).unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
        assert!(fs::read_dir(&target).is_ok());
    }
}

#[test]
fn sizes_and_options_that_do_not_fit_are_told_apart() {
    let scratch = Scratch::new();
    let (_, device) = scratch.device("a.img", Bytes::mib(64));
    let filesystems = Host::real().filesystems;
    let kind = |fs, options: &[&str]| {
        let options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        filesystems.make(&device, fs, &options).unwrap_err().kind()
    };
    assert_eq!(kind(FsType::Xfs, &[]), Kind::OutOfRange);
    assert_eq!(kind(FsType::Btrfs, &[]), Kind::OutOfRange);
    assert_eq!(kind(FsType::Ext4, &["-O", "no_such_feature"]), Kind::Invalid);
    assert_eq!(kind(FsType::Ext4, &["-F"]), Kind::Invalid);
    assert_eq!(filesystems.probe(&device).unwrap(), Found::Blank);
    // The least sizes really are enough.
    for fs_type in FsType::ALL {
        let least = filesystems::least_size(fs_type);
        let (_, device) = scratch.device(&format!("{fs_type}.img"), least);
        filesystems.make(&device, fs_type, &[]).unwrap();
        let target = scratch.dir(fs_type.as_str());
        scratch.mount(&device, fs_type, &target, &[]);
        fs::write(target.join("f"), "x").unwrap();
    }
}

#[test]
fn a_new_file_system_on_a_sparse_image_stays_sparse() {
    for fs_type in FsType::ALL {
        let scratch = Scratch::new();
        let (_, device) = scratch.device("a.img", Bytes::gib(4));
        let start = Instant::now();
        mkfs(&device, fs_type);
        assert!(start.elapsed() < Duration::from_secs(120));
        let used = image::allocated(&scratch.path().join("a.img")).unwrap();
        assert!(used < Bytes::mib(160), "{fs_type}: {used}");
    }
}

#[test]
fn file_systems_grow_online_and_offline_and_know_their_size() {
    for (fs_type, online) in [
        (FsType::Ext4, false),
        (FsType::Xfs, false),
        (FsType::Xfs, true),
        (FsType::Btrfs, false),
        (FsType::Btrfs, true),
    ] {
        let scratch = Scratch::new();
        let (number, device) = scratch.device("a.img", Bytes::mib(512));
        mkfs(&device, fs_type);
        let filesystems = Host::real().filesystems;
        let size = |at: Option<&Path>| filesystems.size(&device, fs_type, at).unwrap();
        assert_eq!(size(None), Bytes::mib(512));
        let target = scratch.dir("m");
        scratch.mount(&device, fs_type, &target, &[]);
        fs::write(target.join("kept"), "data").unwrap();
        if !online {
            scratch.unmount(&target);
        }
        image::grow(&scratch.path().join("a.img"), Bytes::mib(900)).unwrap();
        scratch.host.loops.set_capacity(number).unwrap();
        let at = online.then_some(target.as_path());
        for _ in 0..2 {
            filesystems.grow(&device, fs_type, at).unwrap();
            assert_eq!(size(at), Bytes::mib(900), "{fs_type}, online: {online}");
        }
        if !online {
            scratch.mount(&device, fs_type, &target, &[]);
        }
        assert_eq!(fs::read_to_string(target.join("kept")).unwrap(), "data");
        assert!(filesystems.usage(&target).unwrap().total > Bytes::mib(700));
    }
}

#[test]
fn growing_by_less_than_a_block_is_no_error() {
    for fs_type in FsType::ALL {
        let scratch = Scratch::new();
        let (number, device) = scratch.device("a.img", Bytes::mib(512));
        mkfs(&device, fs_type);
        let size = Bytes::new((512 << 20) + 4096 + 512);
        image::grow(&scratch.path().join("a.img"), size).unwrap();
        scratch.host.loops.set_capacity(number).unwrap();
        Host::real().filesystems.grow(&device, fs_type, None).unwrap();
    }
}

#[test]
fn without_the_capability_online_growth_of_ext4_names_it() {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let capabilities = status.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap();
    let has = u64::from_str_radix(capabilities.trim(), 16).unwrap() & (1 << 24) != 0;
    let scratch = Scratch::new();
    let (number, device) = scratch.device("a.img", Bytes::mib(64));
    mkfs(&device, FsType::Ext4);
    let target = scratch.dir("m");
    scratch.mount(&device, FsType::Ext4, &target, &[]);
    image::grow(&scratch.path().join("a.img"), Bytes::mib(128)).unwrap();
    scratch.host.loops.set_capacity(number).unwrap();
    let grown = Host::real().filesystems.grow(&device, FsType::Ext4, Some(&target));
    if has {
        grown.unwrap();
    } else {
        let fault = grown.unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition);
        assert!(fault.to_string().contains("CAP_SYS_RESOURCE"), "{fault}");
    }
}

#[test]
fn a_check_mends_what_needs_no_decision_and_refuses_the_rest() {
    let scratch = Scratch::new();
    let (_, device) = scratch.device("a.img", Bytes::mib(64));
    mkfs(&device, FsType::Ext4);
    let filesystems = Host::real().filesystems;
    filesystems.check(&device, FsType::Ext4).unwrap();
    let target = scratch.dir("m");
    scratch.mount(&device, FsType::Ext4, &target, &[]);
    let fault = filesystems.check(&device, FsType::Ext4).unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "mounted");
    for n in 0..50 {
        fs::create_dir(target.join(n.to_string())).unwrap();
    }
    scratch.unmount(&target);
    // Not unmounted cleanly: mended without a word.
    let debugfs = |request: &str| tool("debugfs", &["-w", "-R", request], &device);
    debugfs("ssv state 0");
    filesystems.check(&device, FsType::Ext4).unwrap();
    // No root directory: nothing to be decided by a program.
    debugfs("clri <2>");
    debugfs("ssv state 0");
    let fault = filesystems.check(&device, FsType::Ext4).unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    assert!(fault.to_string().contains("e2fsck -n"), "{fault}");
    for fs_type in [FsType::Xfs, FsType::Btrfs] {
        filesystems.check(Path::new("/dev/no-such-device"), fs_type).unwrap();
    }
}

/// Copies the image of a mounted file system: what a crash would leave, its log still to be replayed.
fn crashed_copy(scratch: &Scratch, fs_type: FsType) -> std::path::PathBuf {
    let (_, target) = scratch.mounted("live", fs_type, Bytes::mib(512));
    for n in 0..200 {
        fs::write(target.join(format!("f{n}")), "x").unwrap();
    }
    File::open(target.join("f1")).unwrap().sync_all().unwrap();
    let copy = scratch.path().join("copy.img");
    fs::copy(scratch.path().join("live.img"), &copy).unwrap();
    scratch.unmount(&target);
    copy
}

#[test]
fn a_reader_only_mount_writes_nothing_to_the_device() {
    for fs_type in FsType::ALL {
        let scratch = Scratch::new();
        let copy = crashed_copy(&scratch, fs_type);
        let device = scratch.host.loops.attach(&request(&copy)).unwrap();
        let before = fs::read(&copy).unwrap();
        let target = scratch.dir("m");
        let options = filesystems::reader_options(fs_type);
        let mount = MountRequest {
            read_only: true,
            ..mount_request(&device.path, fs_type, &target, options)
        };
        scratch.host.mounts.mount(&mount).unwrap();
        assert!(fs::read_dir(&target).is_ok());
        scratch.unmount(&target);
        let after = fs::read(&copy).unwrap();
        assert!(before == after, "{fs_type} was written by a reader-only mount");
    }
}

#[test]
fn usage_counts_bytes_and_inodes() {
    let scratch = Scratch::new();
    let (_, target) = scratch.mounted("m", FsType::Ext4, Bytes::mib(64));
    let filesystems = Host::real().filesystems;
    let before = filesystems.usage(&target).unwrap();
    File::create(target.join("f")).unwrap().write_all_at(&vec![1; 8 << 20], 0).unwrap();
    File::open(target.join("f")).unwrap().sync_all().unwrap();
    let after = filesystems.usage(&target).unwrap();
    assert_eq!(after.total, before.total);
    assert!(after.used >= before.used.saturating_add(Bytes::mib(8)));
    assert_eq!(after.inodes_used, before.inodes_used + 1);
    assert_eq!(after.inodes, after.inodes_free + after.inodes_used);
    assert_eq!(filesystems.usage(&target.join("none")).unwrap_err().kind(), Kind::NotFound);
    // Through symlinks, as an administrator may have moved kubelet's folder.
    let link = scratch.path().join("link");
    std::os::unix::fs::symlink("./../".to_owned() + &dir_name(&scratch), &link).unwrap();
    assert_eq!(filesystems.usage(&link.join("m")).unwrap(), after);
    std::os::unix::fs::symlink("self", scratch.path().join("self")).unwrap();
    filesystems.usage(&scratch.path().join("self/m")).unwrap_err();
}

fn dir_name(scratch: &Scratch) -> String {
    scratch.path().file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_helper_process_asks_what_might_hang() {
    let scratch = Scratch::new();
    // mqueue is none of the kinds that are asked directly.
    let target = scratch.dir("m");
    let mount = MountRequest {
        fs_type: "mqueue".into(),
        source: "none".into(),
        target: target.clone(),
        ..Default::default()
    };
    scratch.host.mounts.mount(&mount).unwrap();
    let filesystems = RealFileSystems::new(helper());
    let usage = filesystems.usage(&target).unwrap();
    let direct = rustix::fs::statvfs(&target).unwrap();
    assert_eq!(usage.total, Bytes::new(direct.f_blocks * direct.f_frsize));
    let absent = filesystems.usage(&target.join("none")).unwrap_err();
    assert_eq!(absent.kind(), Kind::NotFound, "{absent}");
    // One that never answers is given up.
    let sleeper = HelperProgram(vec!["/bin/sh".into(), "-c".into(), "sleep 600".into()]);
    let start = Instant::now();
    let fault = RealFileSystems::new(sleeper).usage(&target).unwrap_err();
    assert_eq!(fault.kind(), Kind::Unavailable);
    assert!(start.elapsed() < Duration::from_secs(120));
}
