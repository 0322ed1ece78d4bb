//! A table of what can be stuck: one whole, working cluster, one thing changed in it, and what is
//! said then.

mod listing;
mod table;
mod world;

use super::{Report, Snapshot, State, Subject, explain};
use rstest::rstest;

pub(super) fn asked(see: &Snapshot, subject: &str) -> Report {
    explain(see, &subject.parse().unwrap()).unwrap()
}

#[test]
fn in_a_cluster_where_all_is_well_nothing_is_stuck() {
    let see = world::works();
    for subject in ["pvc/data", "pod/web", "pv/pv-1"] {
        let report = asked(&see, subject);
        assert_eq!(report.state, State::Ok, "{subject}: {report:#?}");
        assert_eq!(report.cause, None);
        assert!(report.chain.len() > 3, "{subject}: {report:#?}");
    }
    let links: Vec<_> = asked(&see, "pod/web").chain.iter().map(|step| step.link).collect();
    assert_eq!(
        links,
        [
            "pod",
            "claim",
            "volume",
            "driver",
            "registration",
            "node",
            "registration",
            "secrets",
            "attachment",
            "mount"
        ]
    );
}

#[rstest]
#[case("pvc/data", Some(Subject::Claim("data".into())))]
#[case("pod/a", Some(Subject::Pod("a".into())))]
#[case("pods/a", Some(Subject::Pod("a".into())))]
#[case("persistentvolume/a", Some(Subject::Volume("a".into())))]
#[case("pv/", None)]
#[case("data", None)]
#[case("node/a", None)]
#[case("pvc/a/b", None)]
fn a_subject_is_kind_and_name(#[case] text: &str, #[case] wanted: Option<Subject>) {
    assert_eq!(text.parse::<Subject>().ok(), wanted);
}

#[test]
fn what_is_not_there_is_not_found() {
    let see = world::works();
    for subject in ["pvc/none", "pod/none", "pv/none"] {
        let fault = explain(&see, &subject.parse().unwrap()).unwrap_err();
        assert_eq!(fault.kind(), larder_model::Kind::NotFound, "{fault}");
    }
}

#[test]
fn values_of_secrets_are_in_no_report() {
    // A snapshot cannot even hold them: keys are all there is.
    let report = asked(&world::pending(), "pvc/data");
    let step = report.chain.iter().find(|step| step.link == "secrets").unwrap();
    assert_eq!(step.what, "the provisioner secret, with keys user");
}

#[test]
fn events_are_told_from_the_last_one() {
    let mut see = world::pending();
    see.events = vec![
        world::event(
            "PersistentVolumeClaim",
            "data",
            "ProvisioningFailed",
            "first",
            "2026-01-01T00:01:00Z",
        ),
        world::event(
            "PersistentVolumeClaim",
            "data",
            "ExternalProvisioning",
            "second",
            "2026-01-01T00:02:00Z",
        ),
        world::event(
            "PersistentVolumeClaim",
            "other",
            "ProvisioningFailed",
            "third",
            "2026-01-01T00:03:00Z",
        ),
    ];
    let report = asked(&see, "pvc/data");
    let told: Vec<_> = report.events.iter().map(|said| said.message.as_str()).collect();
    assert_eq!(told, ["second", "first"]);
}
