//! Loop devices on a real kernel.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use larder_host::{Backing, LoopRequest, Loops, image, loops::RealLoops};
use larder_model::{Bytes, FsType, Kind};
use std::{collections::BTreeSet, os::unix::fs::MetadataExt, sync::Arc};
use support::{Scratch, loops_below, mkfs, request};

fn backing(path: &std::path::Path) -> Backing {
    Backing::of(path).unwrap()
}

fn inode(path: &std::path::Path) -> u64 {
    std::fs::metadata(path).unwrap().ino()
}

#[test]
fn an_attached_image_is_found_by_its_inode_also_after_it_was_renamed() {
    let scratch = Scratch::new();
    let image = scratch.image("a.img", Bytes::mib(8));
    let loops = &scratch.host.loops;
    assert_eq!(loops.find(&image).unwrap(), vec![]);
    let device = loops.attach(&request(&image)).unwrap();
    let renamed = scratch.path().join("b.img");
    std::fs::rename(&image, &renamed).unwrap();
    let found = loops.find(&renamed).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].number, found[0].size), (device.number, Bytes::mib(8)));
    assert_eq!(found[0].backing_inode, inode(&renamed));
    assert!(!found[0].deleted && !found[0].read_only && !found[0].autoclear);
    std::fs::remove_file(&renamed).unwrap();
    assert!(loops.info(device.number).unwrap().unwrap().deleted);
}

#[test]
fn detaching_is_repeatable_and_spares_a_device_that_is_someone_elses_by_now() {
    let scratch = Scratch::new();
    let loops = &scratch.host.loops;
    let image = scratch.image("a.img", Bytes::mib(1));
    let device = loops.attach(&request(&image)).unwrap();
    let number = device.number;
    drop(device);
    let other = Backing { inode: inode(&image) + 1, ..backing(&image) };
    loops.detach(number, other).unwrap();
    let elsewhere = Backing { device: 1, ..backing(&image) };
    loops.detach(number, elsewhere).unwrap();
    assert!(loops.info(number).unwrap().is_some(), "another inode: not ours to remove");
    loops.detach(number, backing(&image)).unwrap();
    assert_eq!(loops_below(&scratch.path()), Vec::<u32>::new());
    loops.detach(number, backing(&image)).unwrap();
}

#[test]
fn a_device_in_use_is_not_detached_and_stays_as_it_was() {
    let scratch = Scratch::new();
    let loops = &scratch.host.loops;
    let image = scratch.image("a.img", Bytes::mib(64));
    let device = loops.attach(&request(&image)).unwrap();
    let (number, path) = (device.number, device.path.clone());
    // Open: the kernel would only turn autoclear on, and the device would vanish later.
    let fault = loops.detach(number, backing(&image)).unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("open in process"), "{fault}");
    assert!(!loops.info(number).unwrap().unwrap().autoclear);
    drop(device);
    // Mounted.
    mkfs(&path, FsType::Ext4);
    let target = scratch.dir("m");
    scratch.mount(&path, FsType::Ext4, &target, &[]);
    let fault = loops.detach(number, backing(&image)).unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("mounted at"), "{fault}");
    assert!(!loops.info(number).unwrap().unwrap().autoclear);
    scratch.unmount(&target);
    loops.detach(number, backing(&image)).unwrap();
}

#[test]
fn an_autoclear_device_lives_as_long_as_its_mount() {
    let scratch = Scratch::new();
    let loops = &scratch.host.loops;
    let image = scratch.image("a.img", Bytes::mib(64));
    let device = loops.attach(&LoopRequest { autoclear: true, ..request(&image) }).unwrap();
    mkfs(&device.path, FsType::Ext4);
    let target = scratch.dir("m");
    scratch.mount(&device.path, FsType::Ext4, &target, &[]);
    let number = device.number;
    drop(device);
    assert!(loops.info(number).unwrap().unwrap().autoclear);
    scratch.unmount(&target);
    assert_eq!(loops.find(&image).unwrap(), vec![]);
}

#[test]
fn autoclear_can_be_changed_while_attached() {
    let scratch = Scratch::new();
    let loops = &scratch.host.loops;
    let image = scratch.image("a.img", Bytes::mib(1));
    let device = loops.attach(&LoopRequest { autoclear: true, ..request(&image) }).unwrap();
    loops.set_autoclear(device.number, false).unwrap();
    let number = device.number;
    drop(device);
    let info = loops.info(number).unwrap().unwrap();
    assert!(!info.autoclear);
    assert_eq!(loops.set_autoclear(9_999, true).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn sector_sizes_and_read_only_reach_the_kernel() {
    let scratch = Scratch::on_disk();
    let loops = &scratch.host.loops;
    let image = scratch.image("a.img", Bytes::mib(1));
    let wanted =
        LoopRequest { sector_size: 4096, read_only: true, direct_io: true, ..request(&image) };
    let device = loops.attach(&wanted).unwrap();
    let info = loops.info(device.number).unwrap().unwrap();
    assert_eq!((info.sector_size, info.read_only), (4096, true));
    assert!(info.direct_io, "the file system of the temporary directory must allow direct I/O");
    assert!(std::fs::write(&device.path, [1; 4096]).is_err());
    assert!(std::fs::read(&image).unwrap().iter().all(|b| *b == 0));
}

#[test]
fn direct_io_falls_back_where_the_file_system_below_refuses_it() {
    let scratch = Scratch::new();
    let tmpfs = scratch.dir("t");
    let mount = larder_host::MountRequest {
        fs_type: "ramfs".into(),
        source: "none".into(),
        target: tmpfs.clone(),
        ..Default::default()
    };
    scratch.host.mounts.mount(&mount).unwrap();
    let image = tmpfs.join("a.img");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let device =
        scratch.host.loops.attach(&LoopRequest { direct_io: true, ..request(&image) }).unwrap();
    assert!(!scratch.host.loops.info(device.number).unwrap().unwrap().direct_io);
}

#[test]
fn a_grown_image_is_taken_over_while_attached() {
    let scratch = Scratch::new();
    let loops = &scratch.host.loops;
    let image = scratch.image("a.img", Bytes::mib(1));
    let device = loops.attach(&request(&image)).unwrap();
    image::grow(&image, Bytes::mib(3)).unwrap();
    assert_eq!(loops.info(device.number).unwrap().unwrap().size, Bytes::mib(1));
    assert_eq!(loops.set_capacity(device.number).unwrap(), Bytes::mib(3));
}

#[test]
fn wrong_images_are_refused() {
    let scratch = Scratch::new();
    let loops = &scratch.host.loops;
    let odd = scratch.file("odd.img", &[0; 1000]);
    assert_eq!(loops.attach(&request(&odd)).unwrap_err().kind(), Kind::Precondition);
    let empty = scratch.file("empty.img", &[]);
    assert_eq!(loops.attach(&request(&empty)).unwrap_err().kind(), Kind::Precondition);
    assert_eq!(loops.attach(&request(&scratch.dir("d"))).unwrap_err().kind(), Kind::Internal);
    let absent = scratch.path().join("absent");
    assert_eq!(loops.attach(&request(&absent)).unwrap_err().kind(), Kind::NotFound);
    let image = scratch.image("a.img", Bytes::mib(1));
    let wrong = LoopRequest { sector_size: 1024, ..request(&image) };
    assert_eq!(loops.attach(&wrong).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(loops_below(&scratch.path()), Vec::<u32>::new());
}

#[test]
fn many_images_are_attached_at_the_same_time_each_to_its_own_device() {
    let scratch = Scratch::new();
    let count = 24;
    let images: Vec<_> =
        (0..count).map(|n| scratch.image(&format!("{n}.img"), Bytes::mib(1))).collect();
    // One instance each: nothing but the kernel keeps them apart, as with separate processes.
    let numbers: BTreeSet<u32> = std::thread::scope(|scope| {
        let attach = |image| {
            move || {
                let loops: Arc<dyn Loops> = Arc::new(RealLoops::new());
                let device = loops.attach(&request(image)).unwrap();
                let info = loops.info(device.number).unwrap().unwrap();
                assert_eq!(info.backing_inode, inode(image));
                device.number
            }
        };
        let threads: Vec<_> = images.iter().map(|image| scope.spawn(attach(image))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(numbers.len(), count);
    std::thread::scope(|scope| {
        for (image, number) in images.iter().flat_map(|i| {
            scratch.host.loops.find(i).unwrap().into_iter().map(move |info| (i, info.number))
        }) {
            let loops = scratch.host.loops.clone();
            scope.spawn(move || loops.detach(number, backing(image)).unwrap());
        }
    });
    assert_eq!(loops_below(&scratch.path()), Vec::<u32>::new());
}
