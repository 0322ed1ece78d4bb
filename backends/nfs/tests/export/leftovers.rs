//! What killed calls, servers that restart and other people have left.

use crate::{
    bench::{Bench, spec, with},
    crashes::nothing,
    two::interleaved,
};
use larder_model::{Kind, cx::crash::CrashAt};
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt};

fn change(bench: &Bench, volume: &str, change: impl FnOnce(&mut Value)) {
    let path = bench.export().join(format!(".larder/volumes/{volume}.json"));
    let mut record = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut record);
    fs::write(&path, record.to_string()).unwrap();
}

#[tokio::test]
async fn an_archive_never_deletes_and_gets_another_name_where_its_own_was_taken() {
    let bench = Bench::new();
    let nfs = bench.backend();
    for (archive, taken, there) in
        [(None, None, "archived-v"), (Some("archived-v"), Some("archived-v"), "archived-v-2")]
    {
        nfs.make(&with("p/v", &[("onDelete", "archive")])).await.unwrap();
        fs::write(bench.export().join("v/file"), "precious").unwrap();
        change(&bench, "v", |record| {
            record["state"] = "deleting".into();
            if let Some(archive) = archive {
                record["archive"] = archive.into();
            }
        });
        if let Some(taken) = taken {
            fs::create_dir(bench.export().join(taken)).unwrap();
            fs::write(bench.export().join(taken).join("file"), "somebody's").unwrap();
        }
        nfs.delete("p/v").await.unwrap();
        let text = fs::read_to_string(bench.export().join(there).join("file")).unwrap();
        assert_eq!(text, "precious");
        if let Some(taken) = taken {
            let text = fs::read_to_string(bench.export().join(taken).join("file")).unwrap();
            assert_eq!(text, "somebody's");
        }
        for name in ["archived-v", "archived-v-2"] {
            let _ = fs::remove_dir_all(bench.export().join(name));
        }
        nothing(&bench);
    }
}

#[tokio::test]
async fn a_name_that_leaves_no_room_for_an_archives_is_refused_before_there_is_data() {
    let bench = Bench::new();
    let nfs = bench.backend();
    let long = "x".repeat(245);
    let archived = with("p/v", &[("subDir", &long), ("onDelete", "archive")]);
    let fault = nfs.make(&archived).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Invalid, "{fault}");
    assert!(fault.to_string().contains("shorter"), "{fault}");
    nfs.make(&with("p/v", &[("subDir", &long)])).await.unwrap();
    nfs.delete("p/v").await.unwrap();
    nothing(&bench);
}

#[tokio::test]
async fn what_is_archived_never_comes_to_be_a_new_volumes_directory() {
    let bench = Bench::new();
    interleaved(
        &bench,
        async |nfs, cx| {
            nfs.make(&with("p/v", &[("onDelete", "archive")])).await?;
            fs::write(bench.export().join("v/file"), "another tenant's").unwrap();
            nfs.delete_in("p/v", cx).await
        },
        async |nfs| nfs.make(&with("p/w", &[("subDir", "archived-v")])).await.map(drop),
        async |deleted, made| {
            deleted.unwrap();
            let nfs = bench.backend();
            if made.is_ok() {
                let record =
                    fs::read_to_string(bench.export().join(".larder/volumes/w.json")).unwrap();
                let record: Value = serde_json::from_str(&record).unwrap();
                let foreign = bench.export().join("archived-v/file").exists();
                assert_eq!(foreign, record["found"] == true, "it has what it did not find");
            }
            nfs.delete("p/w").await.unwrap();
            let mut archives = 0;
            for name in ["archived-v", "archived-v-2"] {
                archives += u32::from(fs::remove_dir_all(bench.export().join(name)).is_ok());
            }
            assert_eq!(archives, 1);
            nothing(&bench);
        },
    )
    .await;
}

/// As where a server restarts and gets the message that makes the directory twice.
#[tokio::test]
async fn a_directory_that_a_cut_creation_made_is_its_volumes_whoever_asks_for_it_then() {
    let bench = Bench::new();
    let directory = bench.export().join("v");
    for foreign in [false, true] {
        let nfs = bench.backend();
        // Everything but the last step.
        for step in 1.. {
            let plan = CrashAt::step(step);
            let made = nfs.0.provision().ensure_volume(&spec("p/v"), &plan.cx()).await;
            assert!(made.unwrap_err().is_simulated_crash());
            if plan.steps().last() == Some(&"write that the volume is complete") {
                break;
            }
            nfs.delete("p/v").await.unwrap();
        }
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
        if foreign {
            fs::write(directory.join("file"), "somebody's").unwrap();
            let fault = nfs.make(&spec("p/v")).await.unwrap_err();
            assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
        }
        nfs.make(&spec("p/v")).await.unwrap();
        let mode = fs::metadata(&directory).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, if foreign { 0o700 } else { 0o777 });
        nfs.delete("p/v").await.unwrap();
        assert_eq!(directory.exists(), foreign);
    }
    assert_eq!(fs::read_to_string(directory.join("file")).unwrap(), "somebody's");
}

#[tokio::test]
async fn what_killed_calls_have_left_holds_no_directory() {
    let bench = Bench::new();
    let nfs = bench.backend();
    let places = bench.export().join(".larder/places");
    for wanted in ["team/data", "team", "team/data/deep"] {
        // A claim whose record is gone; a creation that nobody asks for any more; a file in the making.
        let left = || {
            fs::create_dir_all(places.join("team/data")).unwrap();
            fs::write(places.join("team/data/.volume"), "old\n").unwrap();
        };
        nfs.make(&spec("p/other")).await.unwrap();
        left();
        nfs.make(&with("p/v", &[("subDir", wanted)])).await.unwrap();
        nfs.delete("p/v").await.unwrap();

        nfs.make(&with("p/old", &[("subDir", "team/data")])).await.unwrap();
        change(&bench, "old", |record| record["state"] = "creating".into());
        let fault = nfs.make(&with("p/v", &[("subDir", wanted)])).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition, "it may be under way: {fault}");
        change(&bench, "old", |record| record["created"] = "2026-01-02T03:04:05Z".into());
        nfs.make(&with("p/v", &[("subDir", wanted)])).await.unwrap();
        nfs.delete("p/v").await.unwrap();

        nfs.make(&with("p/old", &[("subDir", "team/data")])).await.unwrap();
        fs::write(places.join("team/data/.tmp-7-abc"), "half").unwrap();
        nfs.delete("p/old").await.unwrap();
        nfs.make(&with("p/v", &[("subDir", wanted)])).await.unwrap();
        nfs.delete("p/v").await.unwrap();
        nfs.delete("p/other").await.unwrap();
        let _ = fs::remove_dir_all(bench.export().join("team"));
        nothing(&bench);
    }
}

/// A pod of another user makes directories of its own, in which nobody else may remove anything.
#[tokio::test]
async fn where_root_is_squashed_a_deletion_that_the_server_refuses_says_what_to_do() {
    let bench = Bench::squashed();
    let nfs = bench.backend();
    nfs.make(&spec("p/v")).await.unwrap();
    let inner = bench.export().join("v/of-a-pod");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("file"), "x").unwrap();
    let fault = nfs.delete("p/v").await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition, "{fault}");
    assert!(fault.to_string().contains("no_root_squash"), "{fault}");
    // Nor may a helper see what is in a volume to tell that it is there.
    nfs.make(&spec("p/w")).await.unwrap();
    fs::set_permissions(bench.export().join("w"), fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(bench.export().join("w"), Some(1000), Some(1000)).unwrap();
    let health = nfs.0.provision().health().unwrap();
    assert_eq!(health.volume_health(&spec("p/w").id).await.unwrap(), []);
}

#[tokio::test]
async fn a_killed_helper_or_one_bad_file_is_no_silent_server() {
    let bench = Bench::scripted("echo $$ >> $1; shift; exec $0 $@");
    let nfs = bench.backend();
    nfs.make(&spec("p/v")).await.unwrap();
    let pids = fs::read_to_string(bench.path().join("noted")).unwrap();
    for pid in pids.lines() {
        let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    nfs.0.provision().get_volume(&spec("p/v").id).await.unwrap();

    // Every file but the identity is in a bad sector.
    let broken = r#"{"Failed":{"kind":"Unavailable","what":"read a sector","hint":null,"errno":5,"cause":null}}"#;
    let identity = r#"{"Done":"{\"format\":1,\"backend\":\"nfs\",\"id\":\"0b5ba0a5-4f4e-4b2c-9a4f-2a5a3b1c7d10\"}"}"#;
    let bench = Bench::scripted(&format!(
        "while read -r line; do case $line in *pool.json*) printf '%s\\n' '{identity}';; *volumes*) \
         printf '%s\\n' '{broken}';; *) echo '{{\"Done\":null}}';; esac; done"
    ));
    let nfs = bench.backend();
    for _ in 0..3 {
        let fault = nfs.delete("p/v").await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Unavailable, "{fault}");
        assert!(fault.to_string().contains("read a sector"), "{fault}");
        assert!(nfs.0.storage_health().await.is_empty(), "its server answers");
    }
}
