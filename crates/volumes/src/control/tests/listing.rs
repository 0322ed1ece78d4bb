//! Listing and paging.

use super::*;
use crate::control::token::Listing;
use larder_model::{Handle, PoolName};

async fn walk(engine: &ControlEngine, max_entries: i32) -> Vec<String> {
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let paging = Paging { max_entries, starting_token: token };
        let page = engine.list_volumes(paging).await.unwrap();
        seen.extend(page.volumes.into_iter().map(|e| e.volume.id.to_string()));
        token = page.next_token;
        if token.is_empty() {
            return seen;
        }
        assert!(token.len() <= 128, "{token}");
    }
}

#[tokio::test]
async fn pages_of_any_size_show_every_volume_once_in_order() {
    let (engine, _) = engine().await;
    for n in 0..10 {
        let pool = if n % 3 == 0 { "other" } else { "default" };
        let name = format!("v{n}-{}", "x".repeat(n * 6));
        let request = CreateVolume { parameters: map(&[("pool", pool)]), ..create(&name) };
        engine.create_volume(request).await.unwrap();
    }
    let all = walk(&engine, 0).await;
    assert_eq!(all.len(), 10);
    assert!(all.is_sorted());
    for max in [1, 2, 3, 9, 10, 11] {
        assert_eq!(walk(&engine, max).await, all, "{max} a page");
    }
}

#[tokio::test]
async fn a_walk_sees_what_stays_while_volumes_come_and_go() {
    let (engine, _) = engine().await;
    for name in ["b", "d", "f", "h"] {
        make(&engine, name).await;
    }
    let page = async |token: &str| {
        let paging = Paging { max_entries: 2, starting_token: token.into() };
        let page = engine.list_volumes(paging).await.unwrap();
        let ids: Vec<_> = page.volumes.iter().map(|e| e.volume.id.native().to_string()).collect();
        (ids, page.next_token)
    };
    let (ids, token) = page("").await;
    assert_eq!(ids, ["b", "d"]);
    // The last of the page goes, one comes before it and one after it.
    delete(&engine, "default/d").await.unwrap();
    make(&engine, "a").await;
    make(&engine, "e").await;
    let (ids, token) = page(&token).await;
    assert_eq!(ids, ["e", "f"]);
    let (ids, token) = page(&token).await;
    assert_eq!((ids, token.as_str()), (vec!["h".to_owned()], ""));
}

#[tokio::test]
async fn tokens_that_are_not_ours_are_aborted_and_negative_pages_invalid() {
    let (engine, backend) = engine().await;
    for name in ["a", "b"] {
        make(&engine, name).await;
        engine
            .create_snapshot(snapshot(&format!("s{name}"), &format!("default/{name}")))
            .await
            .unwrap();
    }
    let paging = |token: &str| Paging { max_entries: 1, starting_token: token.into() };
    let good = engine.list_volumes(paging("")).await.unwrap().next_token;
    assert!(!good.is_empty() && !good.contains("default"), "{good}");
    let changed = good.replace('a', "b");
    let cut = &good[..good.len() - 1];
    let newer = format!("2{}", &good[1..]);
    for bad in ["1", "invalid-token", &changed, cut, &newer, "1v000000.00000000/a", "ü", "1v."] {
        assert_eq!(kind(engine.list_volumes(paging(bad)).await), Kind::Aborted, "{bad:?}");
        assert_eq!(kind(engine.list_volume_health(paging(bad)).await), Kind::Aborted, "{bad:?}");
        let request = ListSnapshots { paging: paging(bad), ..ListSnapshots::default() };
        assert_eq!(kind(engine.list_snapshots(request).await), Kind::Aborted, "{bad:?}");
    }
    // A token is good for its own listing and filter.
    let snapshots = async |token: &str, source: &str| {
        let request = ListSnapshots {
            paging: paging(token),
            source_volume_id: source.into(),
            snapshot_id: String::new(),
        };
        engine.list_snapshots(request).await
    };
    assert_eq!(kind(snapshots(&good, "").await), Kind::Aborted);
    let of_all = snapshots("", "").await.unwrap().next_token;
    assert_eq!(snapshots(&of_all, "").await.unwrap().snapshots[0].id.as_str(), "default/sb");
    assert_eq!(kind(snapshots(&of_all, "default/a").await), Kind::Aborted);
    assert_eq!(kind(engine.list_volumes(paging(&of_all)).await), Kind::Aborted);

    let negative = || Paging { max_entries: -1, starting_token: String::new() };
    assert_eq!(kind(engine.list_volumes(negative()).await), Kind::Invalid);
    assert_eq!(kind(engine.list_volume_health(negative()).await), Kind::Invalid);
    let request = ListSnapshots { paging: negative(), ..ListSnapshots::default() };
    assert_eq!(kind(engine.list_snapshots(request).await), Kind::Invalid);

    // It outlives the process, but not its pool.
    let (restarted, _) = over(backend.restarted()).await;
    assert_eq!(restarted.list_volumes(paging(&good)).await.unwrap().volumes.len(), 1);
    let pools = vec!["other".parse().unwrap()];
    let (without, _) = engine_of(Memory { pools, ..Memory::default() }).await;
    assert_eq!(kind(without.list_volumes(paging(&good)).await), Kind::Aborted);
}

#[test]
fn every_id_of_our_form_fits_into_a_token_and_foreign_ids_come_back_whole() {
    let pools: Vec<PoolName> = vec!["p".repeat(63).parse().unwrap(), "default".parse().unwrap()];
    let backend = Memory { pools: pools.clone(), ..Memory::default() }.build();
    let longest = Handle::new(pools[0].clone(), "n".repeat(63).parse().unwrap());
    let token = Listing::Volumes.token(&longest);
    assert!(token.len() <= 128, "{token}");
    let after = Listing::Volumes.after(&token, &backend).unwrap();
    assert_eq!(after.as_deref(), Some(longest.as_str()));

    let raw = "nfs.example.org#export/path#sub.dir#uuid#";
    let foreign = Handle::foreign(raw.into(), pools[1].clone(), "sub".parse().unwrap());
    let token = Listing::Volumes.token(&foreign);
    assert_eq!(Listing::Volumes.after(&token, &backend).unwrap().as_deref(), Some(raw));
}

#[tokio::test]
async fn a_volume_that_goes_during_the_listing_is_left_out_and_other_faults_are_told() {
    let (engine, backend) = engine().await;
    make(&engine, "a").await;
    make(&engine, "b").await;
    backend.inject("attached_nodes", Inject::Fail(Fault::not_found("find volume default/a")));
    assert_eq!(walk(&engine, 0).await, ["default/b"]);
    backend.inject("attached_nodes", Inject::Fail(Fault::unavailable("reach the server")));
    let result = engine.list_volumes(Paging::default()).await;
    assert_eq!(kind(result), Kind::Unavailable, "attached nowhere would be a lie");
}

#[tokio::test]
async fn snapshots_are_filtered_and_unknown_filters_match_nothing() {
    let (engine, backend) = engine().await;
    for name in ["a", "b"] {
        make(&engine, name).await;
    }
    for (name, source) in [("s1", "default/a"), ("s2", "default/a"), ("s3", "default/b")] {
        engine.create_snapshot(snapshot(name, source)).await.unwrap();
    }
    let list = async |source: &str, id: &str| {
        let request = ListSnapshots {
            source_volume_id: source.into(),
            snapshot_id: id.into(),
            ..ListSnapshots::default()
        };
        let page = engine.list_snapshots(request).await?;
        assert_eq!(page.next_token, "");
        Ok::<_, Fault>(page.snapshots.iter().map(|s| s.id.native().to_string()).collect::<Vec<_>>())
    };
    assert_eq!(list("", "").await.unwrap(), ["s1", "s2", "s3"]);
    assert_eq!(list("default/a", "").await.unwrap(), ["s1", "s2"]);
    assert_eq!(list("", "default/s3").await.unwrap(), ["s3"]);
    assert_eq!(list("default/b", "default/s3").await.unwrap(), ["s3"]);
    for (source, id) in [
        ("default/a", "default/s3"),
        ("default/none", ""),
        ("what?", ""),
        ("", "default/none"),
        ("", "none-exist-id"),
        ("what?", "default/s1"),
    ] {
        assert!(list(source, id).await.unwrap().is_empty(), "{source:?} {id:?}");
    }
    assert_eq!(kind(list("", "gone/s1").await), Kind::Unavailable);
    assert_eq!(kind(list("gone/a", "").await), Kind::Unavailable);
    backend.lose_pool("default", true);
    assert_eq!(kind(list("", "default/s1").await), Kind::Unavailable);
}

#[tokio::test]
async fn snapshots_of_one_volume_are_paged() {
    let (engine, _) = engine().await;
    make(&engine, "a").await;
    make(&engine, "b").await;
    for n in 0..6 {
        let source = if n % 2 == 0 { "default/a" } else { "default/b" };
        engine.create_snapshot(snapshot(&format!("s{n}"), source)).await.unwrap();
    }
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let paging = Paging { max_entries: 2, starting_token: token };
        let request = ListSnapshots {
            paging,
            source_volume_id: "default/a".into(),
            snapshot_id: String::new(),
        };
        let page = engine.list_snapshots(request).await.unwrap();
        seen.extend(page.snapshots.into_iter().map(|s| s.id.native().to_string()));
        token = page.next_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["s0", "s2", "s4"]);
}
