//! Whose an open device is: ours, another's with our name, or nobody's.

use crate::{
    lab::{KEY, Lab, encrypted, key, map},
    support::{filled, shell},
};
use larder_host::luks;
use larder_proto::csi;
use std::{fs, io::Write};
use tonic::Code;

pub(crate) fn run(script: &str) -> String {
    let output = shell(&format!("set -e; {script}")).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_of_another_owner_with_the_volumes_name_is_named_and_left_alone() {
    let lab = Lab::new(false).await;
    lab.create("a").await;
    let (name, other) = (lab.name("a"), lab.site.path("other.img"));
    let device = run(&format!(
        "truncate -s 64M {0}; d=$(losetup -f --show {0}); dmsetup create {name} --noudevsync \
         --table \"0 1024 linear $d 0\"; echo $d",
        other.display()
    ));
    for opened_before in [false, true] {
        let refused = lab.stage("a", key(KEY)).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        let told = refused.message();
        assert!(told.contains(&name) && told.contains("not this volume's"), "{refused}");
        lab.unstage("a").await.unwrap();
        let there = luks::find(&name).unwrap().expect("it was closed");
        assert_eq!(there.luks, None);
        if !opened_before {
            // The same for a volume that has its header by now.
            run(&format!("dmsetup remove --noudevsync {name}"));
            lab.stage("a", key(KEY)).await.unwrap();
            lab.unstage("a").await.unwrap();
            run(&format!("dmsetup create {name} --noudevsync --table '0 1024 linear {device} 0'"));
        }
    }
    run(&format!("dmsetup remove --noudevsync {name}; losetup -d {device}"));
    lab.stage("a", key(KEY)).await.unwrap();
    lab.unstage("a").await.unwrap();
    lab.delete("a").await;
    assert!(lab.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_cryptsetup_left_over_the_volume_is_cleared() {
    for first in [true, false] {
        let lab = Lab::new(false).await;
        lab.create("a").await;
        if !first {
            lab.stage("a", key(KEY)).await.unwrap();
            lab.unstage("a").await.unwrap();
        }
        // As it maps the place of a key where the kernel has no other way; and an opening that was cut
        // before it had a table.
        let left = format!("temporary-cryptsetup-{}", 4_000_000 + u32::from(first));
        run(&format!(
            "d=$(losetup -f --show {image}); dmsetup create {left} --noudevsync --table \
             \"0 8 linear $d 64\"; dmsetup create {name} --noudevsync --notable",
            image = lab.image("a").display(),
            name = lab.name("a")
        ));
        lab.stage("a", key(KEY)).await.unwrap();
        assert!(luks::interrupted().unwrap().iter().all(|o| o.name != left), "it is still there");
        lab.unstage("a").await.unwrap();
        lab.delete("a").await;
        assert!(lab.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_opens_it_without_writing_a_byte_and_a_writer_takes_it_over() {
    use csi::volume_capability::access_mode::Mode;
    for block in [false, true] {
        let mut lab = Lab::new(block).await;
        let mut request = lab.request("a");
        lab.mode = Mode::SingleNodeReaderOnly;
        request.volume_capabilities.push(lab.capability());
        lab.make(request).await.unwrap();
        // Not encrypted yet, and a reader must not.
        let refused = lab.stage("a", key(KEY)).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        lab.mode = Mode::SingleNodeWriter;
        let target = lab.open("a", KEY).await;
        if !block {
            fs::write(target.join("data"), "precious").unwrap();
        }
        lab.close("a").await;

        let before = run(&format!("sha256sum < {}", lab.image("a").display()));
        lab.mode = Mode::SingleNodeReaderOnly;
        let rotating = map(&[("passphrase", "new one"), ("oldPassphrase", KEY)]);
        for secrets in [key(KEY), rotating] {
            lab.stage("a", secrets).await.unwrap();
            let target = lab.publish("a").await.unwrap();
            let opened = luks::find(&lab.name("a")).unwrap().unwrap();
            assert!(opened.read_only);
            if block {
                // The kernel may open it, and refuses what is written.
                let opened = fs::File::options().write(true).open(&target);
                assert!(opened.and_then(|mut file| file.write_all(&[7; 4096])).is_err());
            } else {
                assert_eq!(fs::read(target.join("data")).unwrap(), b"precious");
                assert!(fs::write(target.join("data"), "x").is_err());
            }
            lab.close("a").await;
        }
        let after = run(&format!("sha256sum < {}", lab.image("a").display()));
        assert_eq!(before, after, "a reader wrote");
        lab.mode = Mode::SingleNodeWriter;
        lab.open("a", KEY).await;
        assert!(!luks::find(&lab.name("a")).unwrap().unwrap().read_only);
        lab.close("a").await;
        lab.delete("a").await;
        assert!(lab.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_the_volume_did_not_get_from_us_is_not_opened() {
    let lab = Lab::new(false).await;
    let format = |image: &std::path::Path| {
        run(&format!(
            "printf '%s' '{KEY}' | cryptsetup luksFormat -q --type luks2 --pbkdf argon2id \
             --pbkdf-memory 4096 --pbkdf-force-iterations 4 --key-file - {}",
            image.display()
        ))
    };
    // Never staged, and somebody made a header on it.
    lab.create("a").await;
    format(&lab.image("a"));
    let refused = lab.stage("a", key(KEY)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("LUKS"), "{refused}");
    // Encrypted by us, and another header in place of ours, which the same passphrase opens.
    lab.create("b").await;
    lab.stage("b", key(KEY)).await.unwrap();
    lab.unstage("b").await.unwrap();
    format(&lab.image("b"));
    let before = luks::header(&lab.image("b")).unwrap();
    let refused = lab.stage_as("b", encrypted(), key(KEY)).await.unwrap_err();
    assert_eq!(refused.code(), Code::DataLoss, "{refused}");
    assert!(refused.message().contains("UUID"), "{refused}");
    assert_eq!(luks::header(&lab.image("b")).unwrap(), before, "it was changed");
    lab.delete("a").await;
    lab.delete("b").await;
    assert!(lab.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_whose_record_a_former_release_wrote_is_opened() {
    let sample = include_str!("../samples/format-1/loop-encryption.json");
    let sample: serde_json::Value = serde_json::from_str(sample).unwrap();
    let record = &sample["volumes/v/record.json"];
    let mut lab = Lab::new(false).await;
    lab.create("v").await;
    lab.server.kill();
    fs::write(lab.image("v").with_file_name("record.json"), record.to_string()).unwrap();
    run(&format!(
        "truncate -s {size} {image}; printf '%s' '{KEY}' | cryptsetup luksFormat -q --type luks2 --uuid \
         {uuid} --pbkdf argon2id --pbkdf-memory 4096 --pbkdf-force-iterations 4 --key-file - {image}; \
         printf '%s' '{KEY}' | cryptsetup open --key-file - {image} sample; \
         mkdir /scratch/sample; echo -n precious > /scratch/sample/data; \
         mkfs.ext4 -q -d /scratch/sample /dev/mapper/sample; cryptsetup close sample",
        size = record["size"],
        uuid = record["fileSystem"]["luks"].as_str().unwrap(),
        image = lab.image("v").display()
    ));
    lab.restart().await;
    let target = lab.open("v", KEY).await;
    assert_eq!(fs::read(target.join("data")).unwrap(), b"precious");
    // The same release's record of the node: what stands is what is asked for again.
    lab.server.kill();
    let sample = include_str!("../samples/format-1/node-loop-encryption.json");
    let sample: serde_json::Value = serde_json::from_str(sample).unwrap();
    let found = run(&format!("ls {}/*/*.json", lab.site.path("state").display()));
    let written: serde_json::Value = serde_json::from_slice(&fs::read(&found).unwrap()).unwrap();
    fs::write(&found, filled(&sample, &written, "the record").to_string()).unwrap();
    lab.restart().await;
    lab.stage("v", map(&[])).await.unwrap();
    lab.publish("v").await.unwrap();
    assert_eq!(fs::read(target.join("data")).unwrap(), b"precious");
    lab.close("v").await;
    lab.delete("v").await;
    assert!(lab.is_clean());
}

/// Killed between the record and the end of luksFormat: what that leaves has the recorded UUID, or no name.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_header_that_was_begun_is_made_again_after_a_crash() {
    const BEGUN: &str = "6f1f0b5e-2c3d-4f0a-9d5e-51a4c1c2b7aa";
    let theirs = "printf theirs | cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 \
                  --pbkdf-force-iterations 1000 --key-file - \"$IMAGE\"";
    for (meanwhile, made) in [
        (theirs.to_owned(), false),
        ("mkfs.ext4 -q \"$IMAGE\"".to_owned(), false),
        (format!("{theirs} --uuid {BEGUN}"), true),
        ("head -c 1M /dev/urandom | dd of=\"$IMAGE\" bs=4k seek=8 conv=notrunc".to_owned(), true),
        (String::new(), true),
    ] {
        let mut lab = Lab::new(false).await;
        lab.create("a").await;
        lab.server.kill();
        let (record, image) = (lab.image("a").with_file_name("record.json"), lab.image("a"));
        let text = fs::read(&record).unwrap();
        let mut noted: serde_json::Value = serde_json::from_slice(&text).unwrap();
        noted["fileSystem"] = serde_json::json!({ "state": "encrypting", "luks": BEGUN });
        fs::write(&record, noted.to_string()).unwrap();
        run(&format!("IMAGE={}; {meanwhile}", image.display()));
        lab.restart().await;
        let before = run(&format!("sha256sum < {}", image.display()));
        let staged = lab.stage("a", key(KEY)).await;
        if made {
            staged.unwrap_or_else(|e| panic!("{meanwhile}: {e}"));
            lab.unstage("a").await.unwrap();
            assert_eq!(luks::header(&image).unwrap().uuid.to_string(), BEGUN);
        } else {
            let refused = staged.expect_err(&meanwhile);
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
            assert_eq!(before, run(&format!("sha256sum < {}", image.display())), "{meanwhile}");
        }
        lab.delete("a").await;
        assert!(lab.is_clean());
    }
}

/// Who has only the disk can make one, and any passphrase opens it.
#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_encrypts_nothing_is_not_opened() {
    let lab = Lab::new(true).await;
    lab.create("a").await;
    lab.stage("a", key(KEY)).await.unwrap();
    lab.unstage("a").await.unwrap();
    let image = lab.image("a");
    run(&format!(
        "printf x | cryptsetup luksFormat -q --type luks2 --uuid {} --cipher cipher_null-ecb \
         --key-size 256 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file - {}",
        luks::header(&image).unwrap().uuid,
        image.display()
    ));
    for passphrase in ["x", KEY] {
        let refused = lab.stage("a", key(passphrase)).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains("encrypts nothing"), "{refused}");
    }
    lab.delete("a").await;
    assert!(lab.is_clean());
}
