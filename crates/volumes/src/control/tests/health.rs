//! Health of volumes.

use super::*;
use larder_model::volume::{HealthEntry, HealthStatus};

fn finding(reason: &'static str, message: &str) -> HealthEntry {
    HealthEntry { status: HealthStatus::Degraded, reason, message: message.into() }
}

#[tokio::test]
async fn findings_are_told_once_per_status_and_reason() {
    let (engine, backend) = engine().await;
    let id = make(&engine, "a").await.id;
    assert!(engine.volume_health("default/a").await.unwrap().findings.is_empty());
    let findings = vec![finding("Slow", "1"), finding("Slow", "2"), finding("Old", "3")];
    backend.set_health(&id, findings);
    let health = engine.volume_health("default/a").await.unwrap();
    assert_eq!(health.volume_id, id);
    assert_eq!(health.findings, [finding("Slow", "1"), finding("Old", "3")]);
    assert_eq!(kind(engine.volume_health("default/none").await), Kind::NotFound);
    assert_eq!(kind(engine.volume_health("what?").await), Kind::NotFound);
    assert_eq!(kind(engine.volume_health("").await), Kind::Invalid);
}

#[tokio::test]
async fn only_volumes_with_findings_are_listed_page_by_page() {
    let (engine, backend) = engine().await;
    for n in 0..150 {
        let id = make(&engine, &format!("v{n:03}")).await.id;
        if n % 10 == 3 {
            backend.set_health(&id, vec![finding("Slow", "x")]);
        }
    }
    let expected: Vec<_> = (0..15).map(|n| format!("default/v{:03}", n * 10 + 3)).collect();
    for max_entries in [0, 1, 4, 7, 15, 100] {
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let paging = Paging { max_entries, starting_token: token };
            let page = engine.list_volume_health(paging).await.unwrap();
            let full = usize::try_from(max_entries).unwrap();
            assert!(max_entries == 0 || page.volumes.len() <= full);
            assert!(page.next_token.is_empty() || page.volumes.len() == full, "a short page");
            seen.extend(page.volumes.into_iter().map(|v| v.volume_id.to_string()));
            token = page.next_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, expected, "{max_entries} a page");
    }
}

#[tokio::test]
async fn a_volume_whose_health_cannot_be_told_hides_no_other() {
    let (engine, backend) = engine().await;
    for name in ["a", "b", "c"] {
        make(&engine, name).await;
    }
    backend.inject("volume_health", Inject::Fail(Fault::unavailable("reach the server")));
    backend.inject("volume_health", Inject::Fail(Fault::not_found("find it")));
    backend.inject("volume_health", Inject::Fail(Fault::corrupt("read its record")));
    let page = engine.list_volume_health(Paging::default()).await.unwrap();
    let seen: Vec<_> = page
        .volumes
        .iter()
        .map(|v| (v.volume_id.as_str(), v.findings[0].status, v.findings[0].reason))
        .collect();
    assert_eq!(
        seen,
        [
            ("default/a", HealthStatus::Inaccessible, "StorageUnavailable"),
            ("default/c", HealthStatus::Degraded, "HealthUnknown"),
        ]
    );
}
