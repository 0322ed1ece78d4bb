//! Lists in pages, static volumes among them.

use crate::support::{Bench, Calls, copied, snapshot, spec, volume};
use larder_model::{
    Bytes, Connect, Kind, Provision,
    volume::{ContentSource, FormatState, Page},
};

#[tokio::test]
async fn a_walk_through_pages_sees_what_was_there_all_the_time_once() {
    let bench = Bench::new(&["a", "a-b", "b"]);
    let backend = bench.start().await;
    let mut wanted = Vec::new();
    for pool in ["a", "a-b", "b"] {
        for n in 0..7 {
            let id = format!("{pool}/{}-{n}", pool.replace('-', "x"));
            backend.create(&spec(&id)).await.unwrap();
            wanted.push(id);
        }
    }
    std::fs::create_dir(bench.pool("a-b").join("static/axb-3x")).unwrap();
    wanted.push("a-b/axb-3x".to_owned());
    wanted.sort();
    for size in [1, 2, 5, 100] {
        let mut seen = Vec::new();
        let mut page = Page { after: None, max: Some(size) };
        let mut round = 0;
        loop {
            let listed = backend.list().unwrap().list_volumes(&page).await.unwrap();
            assert!(listed.items.len() <= size);
            seen.extend(listed.items.iter().map(|v| v.id.to_string()));
            // Others come and go, also the one that the next page begins after.
            let passing = format!("a/passing-{size}-{round}");
            backend.create(&spec(&passing)).await.unwrap();
            if round % 2 == 0 {
                backend.delete(&passing).await.unwrap();
            }
            round += 1;
            if !listed.more {
                break;
            }
            page.after = seen.last().cloned();
        }
        seen.retain(|id| !id.contains("passing"));
        assert_eq!(seen, wanted, "in pages of {size}");
    }
    let bad = Page { after: Some("a/../x".to_owned()), max: None };
    let fault = backend.list().unwrap().list_volumes(&bad).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Aborted);
}

#[tokio::test]
async fn static_volumes_that_cannot_be_read_end_no_list() {
    let bench = Bench::default();
    let backend = bench.start().await;
    let folder = bench.pool("a").join("static");
    for n in 0..3 {
        std::os::unix::fs::symlink("/", folder.join(format!("broken-{n}"))).unwrap();
        std::fs::create_dir(folder.join(format!("whole-{n}"))).unwrap();
    }
    let mut page = Page { after: None, max: Some(1) };
    let mut seen = Vec::new();
    loop {
        let listed = backend.list().unwrap().list_volumes(&page).await.unwrap();
        seen.extend(listed.items.iter().map(|v| v.id.to_string()));
        if !listed.more {
            break;
        }
        page.after = seen.last().cloned();
    }
    assert_eq!(seen, ["a/whole-0", "a/whole-1", "a/whole-2"]);
}

#[tokio::test]
async fn snapshots_are_listed_by_source_in_pages() {
    let bench = Bench::default();
    let backend = bench.start().await;
    for id in ["a/v", "a/w", "b/x"] {
        backend.create(&spec(id)).await.unwrap();
    }
    for n in 0..6 {
        let source = ["a/v", "a/w"][n % 2];
        backend.cut(&format!("a/s{n}"), source).await.unwrap();
    }
    backend.cut("b/t", "b/x").await.unwrap();
    assert_eq!(backend.snapshot_ids().await.len(), 7);
    let snapshots = backend.snapshots().unwrap();
    let of = |source: &str, after: Option<&str>, max| {
        let page = Page { after: after.map(str::to_owned), max };
        let source = volume(source);
        async move {
            let listed = snapshots.list_snapshots(Some(&source), &page).await.unwrap();
            let ids: Vec<_> = listed.items.iter().map(|s| s.id.to_string()).collect();
            (ids, listed.more)
        }
    };
    assert_eq!(of("a/v", None, Some(2)).await, (vec!["a/s0".into(), "a/s2".into()], true));
    assert_eq!(of("a/v", Some("a/s2"), Some(2)).await, (vec!["a/s4".into()], false));
    assert_eq!(of("a/none", None, None).await, (vec![], false));
    assert_eq!(of("b/x", None, None).await, (vec!["b/t".into()], false));
}

#[tokio::test]
async fn static_volumes_are_found_used_and_never_deleted() {
    let bench = Bench::default();
    let backend = bench.start().await;
    let folder = bench.pool("a").join("static");
    std::fs::create_dir(folder.join("old")).unwrap();
    std::fs::write(folder.join("old/content"), "theirs").unwrap();
    let found = backend.get("a/old").await.unwrap();
    assert!(found.is_static);
    assert_eq!((found.capacity, found.name.as_str()), (Bytes::mib(5), "old"));
    assert_eq!(backend.ids().await, ["a/old"]);
    assert_eq!(backend.format_state(&volume("a/old")).await.unwrap(), FormatState::Foreign);
    let formatted = FormatState::Formatted { fs: larder_model::FsType::Xfs };
    backend.set_format_state(&volume("a/old"), formatted).await.unwrap();
    assert_eq!(backend.format_state(&volume("a/old")).await.unwrap(), formatted);
    assert!(folder.join("old.larder.json").exists());
    assert_eq!(backend.ids().await, ["a/old"], "its record is no volume");
    assert_eq!(backend.get("a/old.larder.json").await.unwrap_err().kind(), Kind::NotFound);

    let fault = backend.delete("a/old").await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Precondition);
    assert!(fault.to_string().contains("static"), "{fault}");
    assert_eq!(backend.create(&spec("a/old")).await.unwrap_err().kind(), Kind::Conflict);
    backend.create(&copied("a/new", ContentSource::Volume(volume("a/old")))).await.unwrap();
    backend.cut("a/s", "a/old").await.unwrap();
    backend.create(&copied("a/too", ContentSource::Snapshot(snapshot("a/s")))).await.unwrap();
    assert_eq!(backend.ids().await, ["a/new", "a/old", "a/too"]);

    std::os::unix::fs::symlink("/etc", folder.join("escape")).unwrap();
    assert_eq!(backend.get("a/escape").await.unwrap_err().kind(), Kind::Precondition);
    std::fs::write(folder.join("file"), "").unwrap();
    assert_eq!(backend.get("a/file").await.unwrap_err().kind(), Kind::Precondition);
    assert_eq!(backend.ids().await, ["a/new", "a/old", "a/too"]);
    assert_eq!(std::fs::read_to_string(folder.join("old/content")).unwrap(), "theirs");
}

#[tokio::test]
async fn what_was_noted_of_a_static_volume_is_not_said_of_another_file_in_its_place() {
    let bench = Bench::default();
    let mut backend = bench.start().await;
    let old = bench.pool("a").join("static/old");
    let xfs = larder_model::FsType::Xfs;
    let id = volume("a/old");
    for state in
        [FormatState::Formatting { fs: xfs }, FormatState::Formatted { fs: xfs }, FormatState::Raw]
    {
        std::fs::create_dir(&old).unwrap();
        std::fs::write(old.join("content"), "theirs").unwrap();
        backend.set_format_state(&id, state).await.unwrap();
        // A process killed in the middle of mkfs, and an administrator who writes over the file:
        // nothing could tell, so it is nobody's remains but somebody's data.
        let formatting = matches!(state, FormatState::Formatting { .. });
        let expected = if formatting { FormatState::Foreign } else { state };
        drop(backend);
        backend = bench.start().await;
        assert_eq!(backend.format_state(&id).await.unwrap(), expected);
        // Another file in its place, right away: it may get the same inode.
        std::fs::remove_dir_all(&old).unwrap();
        std::fs::create_dir(&old).unwrap();
        std::fs::write(old.join("content"), "restored").unwrap();
        assert_eq!(backend.format_state(&id).await.unwrap(), FormatState::Foreign, "{state:?}");
        backend.create(&copied("a/new", ContentSource::Volume(id.clone()))).await.unwrap();
        let copy = backend.format_state(&volume("a/new")).await.unwrap();
        assert_eq!(copy, FormatState::Foreign);
        backend.delete("a/new").await.unwrap();
        // What is noted now is noted of the new one.
        let formatted = FormatState::Formatted { fs: xfs };
        backend.set_format_state(&id, formatted).await.unwrap();
        assert_eq!(backend.format_state(&id).await.unwrap(), formatted);
        std::fs::remove_dir_all(&old).unwrap();
    }
}

#[tokio::test]
async fn a_created_volume_whose_data_was_replaced_is_taken_for_somebody_elses() {
    let bench = Bench::default();
    let mut backend = bench.start().await;
    let id = volume("a/v");
    let formatting = FormatState::Formatting { fs: larder_model::FsType::Ext4 };
    for state in [FormatState::Unformatted, formatting] {
        backend.create(&spec("a/v")).await.unwrap();
        if state == formatting {
            backend.set_format_state(&id, state).await.unwrap();
        }
        drop(backend);
        backend = bench.start().await;
        assert_eq!(backend.format_state(&id).await.unwrap(), state);
        let data = bench.pool("a").join("volumes/v/data");
        let other = data.with_extension("restored");
        larder_host::command::Command::new("cp").arg("-a").arg(&data).arg(&other).run().unwrap();
        std::fs::remove_dir_all(&data).unwrap();
        std::fs::rename(&other, &data).unwrap();
        assert_eq!(backend.format_state(&id).await.unwrap(), FormatState::Foreign, "{state:?}");
        backend.delete("a/v").await.unwrap();
    }
}

#[tokio::test]
async fn a_start_removes_from_the_static_folder_only_what_it_wrote_itself() {
    let bench = Bench::new(&["a"]);
    drop(bench.start().await);
    let folder = bench.pool("a").join("static");
    let long = format!("{}-{}", "x".repeat(40), "y".repeat(20));
    // As a killed write of a record leaves them.
    let ours = [".old.larder.json.tmp-7-0-18a".to_owned(), {
        let record = format!("{long}.larder.json");
        format!(".{}.tmp-4194304-12-18a7c0ffee", &record[record.len() - 48..])
    }];
    let theirs = [
        ".restore.tmp-upload",
        ".a.img.tmp-7-0-18a",
        ".old.larder.json.tmp-7-0-18a.img",
        ".old.larder.json.tmp-7-0-18a-1",
        "old.larder.json.tmp-7-0-18a",
        ".old.larder.json.tmp-7-0-later",
    ];
    for name in ours.iter().map(String::as_str).chain(theirs) {
        std::fs::write(folder.join(name), "data").unwrap();
    }
    std::fs::create_dir(folder.join(".dir.larder.json.tmp-7-0-18b")).unwrap();
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    let left = crate::support::file_names(&folder);
    for name in ours {
        assert!(!left.contains(&name), "{name} is left");
    }
    assert_eq!(left.len(), theirs.len() + 1, "{left:?}");
}

#[tokio::test]
async fn a_created_volume_hides_a_static_one_and_the_pool_says_so() {
    use larder_model::Backend;
    let bench = Bench::default();
    let backend = bench.start().await;
    backend.create(&spec("a/v")).await.unwrap();
    std::fs::create_dir(bench.pool("a").join("static/v")).unwrap();
    assert!(!backend.get("a/v").await.unwrap().is_static);
    assert_eq!(backend.ids().await, ["a/v"]);
    let status = &backend.pool_status().await[0];
    assert!(status.warnings.iter().any(|w| w.contains("hidden")), "{status:?}");
    assert_eq!((status.volumes, status.storage.as_str()), (1, "fake storage"));
}
