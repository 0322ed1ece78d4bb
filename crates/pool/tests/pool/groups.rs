//! Groups of snapshots: all members or none, whatever happens.

use crate::support::{
    Bench, Calls, FakeMedium, copied, crash_at, file_names, settled, snapshot, snapshot_spec, spec,
};
use larder_model::{
    Backend as _, Cx, Fault, Kind, Provision, Result, SnapshotId,
    volume::{ContentSource, GroupSnapshot},
};
use larder_pool::LocalBackend;
use std::{collections::BTreeMap, fs};

type Backend = LocalBackend<FakeMedium>;

const MEMBERS: [(&str, &str); 3] = [("a/g-1", "a/u"), ("a/g-2", "a/v"), ("a/g-3", "a/w")];

async fn cut(backend: &Backend, cx: &Cx) -> Result<GroupSnapshot> {
    let members = MEMBERS.map(|(id, source)| snapshot_spec(id, source));
    backend.groups().unwrap().ensure_group(&snapshot("a/g"), "g", &members, cx).await
}

async fn uncut(backend: &Backend, cx: &Cx) -> Result<()> {
    let members: Vec<SnapshotId> = MEMBERS.iter().map(|(id, _)| snapshot(id)).collect();
    backend.groups().unwrap().delete_group(&snapshot("a/g"), &members, cx).await
}

async fn get(backend: &Backend) -> Result<GroupSnapshot> {
    backend.groups().unwrap().get_group(&snapshot("a/g")).await
}

/// Three volumes with contents of their own, and a snapshot that belongs to nobody.
async fn prepared() -> (Bench, Backend) {
    let bench = Bench::default();
    let backend = bench.start().await;
    for name in ["u", "v", "w"] {
        backend.create(&spec(&format!("a/{name}"))).await.unwrap();
        let content = bench.pool("a").join("volumes").join(name).join("data/content");
        fs::write(content, format!("of {name}")).unwrap();
    }
    backend.cut("a/alone", "a/u").await.unwrap();
    (bench, backend)
}

#[tokio::test]
async fn a_group_is_made_found_restored_and_deleted_as_a_whole() {
    let (bench, backend) = prepared().await;
    assert_eq!(get(&backend).await.unwrap_err().kind(), Kind::NotFound);
    let group = cut(&backend, &Cx::new()).await.unwrap();
    assert!(group.ready);
    assert_eq!(group.id, snapshot("a/g"));
    let members: Vec<_> =
        group.snapshots.iter().map(|s| (s.id.as_str(), s.source.as_str())).collect();
    assert_eq!(members, MEMBERS);
    assert!(group.snapshots.iter().all(|s| s.ready && s.group.as_deref() == Some("a/g")));
    assert!(group.snapshots.iter().all(|s| s.created == group.created));
    // Again, by another process as well.
    assert_eq!(cut(&backend, &Cx::new()).await.unwrap().snapshots, group.snapshots);
    drop(backend);
    let backend = bench.start().await;
    assert_eq!(get(&backend).await.unwrap().snapshots, group.snapshots);
    assert_eq!(backend.snapshot_ids().await, ["a/alone", "a/g-1", "a/g-2", "a/g-3"]);
    // Its volumes may go; each member can be restored.
    for name in ["u", "v", "w"] {
        backend.delete(&format!("a/{name}")).await.unwrap();
    }
    for (member, source) in MEMBERS {
        let id = format!("a/r-{}", &source[2..]);
        let from = ContentSource::Snapshot(snapshot(member));
        backend.create(&copied(&id, from)).await.unwrap();
        let content = bench.pool("a").join("volumes").join(&id[2..]).join("data/content");
        assert_eq!(fs::read_to_string(content).unwrap(), format!("of {}", &source[2..]));
    }
    for (member, _) in MEMBERS {
        let fault = backend.uncut(member).await.unwrap_err();
        assert_eq!(fault.kind(), Kind::Invalid);
        assert!(fault.to_string().contains("a/g"), "{fault}");
    }
    let groups = backend.groups().unwrap();
    let some = [snapshot("a/g-1"), snapshot("a/g-2")];
    let fault = groups.delete_group(&snapshot("a/g"), &some, &Cx::new()).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Invalid);
    uncut(&backend, &Cx::new()).await.unwrap();
    uncut(&backend, &Cx::new()).await.unwrap();
    assert_eq!(get(&backend).await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(backend.snapshot_ids().await, ["a/alone"]);
    assert_eq!(bench.state().len(), 4, "three restores and a snapshot");
}

#[tokio::test]
async fn what_cannot_be_cut_leaves_nothing() {
    let (bench, backend) = prepared().await;
    backend.create(&spec("b/far")).await.unwrap();
    let before = bench.state();
    let groups = backend.groups().unwrap();
    let g = snapshot("a/g");
    let refused = async |members: &[(&str, &str)]| {
        let members: Vec<_> = members.iter().map(|(id, of)| snapshot_spec(id, of)).collect();
        let fault = groups.ensure_group(&g, "g", &members, &Cx::new()).await.unwrap_err();
        assert_eq!(bench.state(), before, "{fault}");
        fault.kind()
    };
    assert_eq!(refused(&[]).await, Kind::Invalid);
    assert_eq!(refused(&[("a/g-1", "a/u"), ("a/g-1", "a/v")]).await, Kind::Invalid);
    assert_eq!(refused(&[("a/g-1", "a/u"), ("b/g-2", "b/far")]).await, Kind::Precondition);
    assert_eq!(refused(&[("a/g-1", "a/u"), ("a/g-2", "a/none")]).await, Kind::NotFound);
    assert_eq!(refused(&[("a/g-1", "a/u"), ("a/alone", "a/v")]).await, Kind::Conflict);
    // What has the place of a member and is not ours: found when everything else is done.
    let foreign = bench.pool("a").join("snapshots/g-2");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("file"), "precious").unwrap();
    let fault = cut(&backend, &Cx::new()).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Corrupt);
    assert_eq!(fs::read_to_string(foreign.join("file")).unwrap(), "precious");
    fs::remove_dir_all(&foreign).unwrap();
    assert_eq!(bench.state(), before);
    assert_eq!(backend.snapshot_ids().await, ["a/alone"]);
    cut(&backend, &Cx::new()).await.unwrap();
    // The name is taken by a group of others.
    let others = [snapshot_spec("a/g-1", "a/u")];
    let fault = groups.ensure_group(&g, "g", &others, &Cx::new()).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Conflict);
}

#[tokio::test]
async fn a_group_that_lost_a_member_says_so_and_can_be_deleted() {
    let (bench, backend) = prepared().await;
    cut(&backend, &Cx::new()).await.unwrap();
    drop(backend);
    let ticket = bench.pool("a").join("snapshots/g-2/data/ticket");
    fs::remove_file(bench.path().join("tickets").join(fs::read_to_string(ticket).unwrap()))
        .unwrap();
    fs::remove_dir_all(bench.pool("a").join("snapshots/g-2")).unwrap();
    let backend = bench.start().await;
    // Somebody else's snapshot got that name: it is not the member.
    backend.cut("a/g-2", "a/u").await.unwrap();
    let fault = get(&backend).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Corrupt);
    assert!(fault.to_string().contains("g-2 is missing"), "{fault}");
    uncut(&backend, &Cx::new()).await.unwrap();
    assert_eq!(backend.snapshot_ids().await, ["a/alone", "a/g-2"]);
    assert_eq!(bench.state().len(), 5);
}

#[tokio::test]
async fn a_foreign_file_in_a_group_keeps_no_pool_away() {
    let (bench, backend) = prepared().await;
    cut(&backend, &Cx::new()).await.unwrap();
    drop(backend);
    let members = bench.pool("a").join("groups/g/members");
    fs::create_dir(&members).unwrap();
    let foreign = members.join("Foreign File");
    fs::write(&foreign, "precious").unwrap();
    let backend = bench.start().await;
    assert_eq!(backend.ids().await.len(), 3);
    assert_eq!(get(&backend).await.unwrap().snapshots.len(), 3);
    let fault = uncut(&backend, &Cx::new()).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Corrupt);
    assert!(fault.to_string().contains("Foreign File"), "{fault}");
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "precious");
    fs::remove_file(&foreign).unwrap();
    uncut(&backend, &Cx::new()).await.unwrap();
    assert_eq!(bench.state().len(), 4);
}

#[tokio::test]
async fn members_whose_group_was_removed_by_hand_can_be_deleted() {
    let (bench, backend) = prepared().await;
    cut(&backend, &Cx::new()).await.unwrap();
    drop(backend);
    fs::remove_dir_all(bench.pool("a").join("groups/g")).unwrap();
    let backend = bench.start().await;
    assert_eq!(get(&backend).await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(backend.snapshot_ids().await.len(), 4);
    let groups = backend.groups().unwrap();
    let named = [snapshot("a/g-1"), snapshot("a/g-2"), snapshot("a/g-3"), snapshot("a/alone")];
    groups.delete_group(&snapshot("a/g"), &named, &Cx::new()).await.unwrap();
    assert_eq!(backend.snapshot_ids().await, ["a/alone"], "it never belonged to the group");
    assert_eq!(bench.state().len(), 4);
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Operation {
    Cut,
    Uncut,
}

impl Operation {
    async fn prepared(self) -> (Bench, Backend) {
        let (bench, backend) = prepared().await;
        if self == Self::Uncut {
            cut(&backend, &Cx::new()).await.unwrap();
        }
        (bench, backend)
    }
    async fn run(self, backend: &Backend, cx: &Cx) -> Result<()> {
        match self {
            Self::Cut => cut(backend, cx).await.map(drop),
            Self::Uncut => uncut(backend, cx).await,
        }
    }
    async fn clean(self) -> (BTreeMap<String, String>, Vec<&'static str>) {
        let (bench, backend) = self.prepared().await;
        let plan = crash_at(0);
        self.run(&backend, &plan.cx()).await.unwrap();
        (bench.state(), plan.steps())
    }
    async fn crashed(self, n: usize) -> (Bench, Backend, Fault) {
        let (bench, backend) = self.prepared().await;
        let fault = self.run(&backend, &crash_at(n as u64).cx()).await.unwrap_err();
        assert!(fault.is_simulated_crash(), "{self:?} at {n}: {fault}");
        drop(backend);
        let backend = bench.start().await;
        (bench, backend, fault)
    }
}

#[tokio::test]
async fn a_crash_at_any_step_leaves_all_members_or_none() {
    for operation in [Operation::Cut, Operation::Uncut] {
        let (wanted, steps) = operation.clean().await;
        assert!(steps.len() >= 10, "{operation:?} has but the steps {steps:?}");
        for n in 1..=steps.len() {
            let (bench, backend, fault) = operation.crashed(n).await;
            // At once, also before the thread that removes is done.
            let seen = backend.snapshot_ids().await;
            assert!([1, 4].contains(&seen.len()), "{operation:?}: {fault}: {seen:?}");
            match get(&backend).await {
                Ok(group) => assert_eq!(group.snapshots.len() + 1, seen.len(), "{fault}"),
                Err(none) => {
                    assert_eq!((none.kind(), seen.len()), (Kind::NotFound, 1), "{fault}");
                }
            }
            settled(&bench).await;
            let left = bench.state();
            assert!(
                left == wanted || left == operation.prepared().await.0.state(),
                "{operation:?}: {fault}: {left:?}"
            );
            operation.run(&backend, &Cx::new()).await.unwrap();
            settled(&bench).await;
            assert_eq!(bench.state(), wanted, "{operation:?}: {fault}");
        }
    }
}

#[tokio::test]
async fn a_crashed_group_is_deleted_by_its_name() {
    let (_, steps) = Operation::Cut.clean().await;
    for n in 1..=steps.len() {
        let (bench, backend, fault) = Operation::Cut.crashed(n).await;
        uncut(&backend, &Cx::new()).await.unwrap();
        settled(&bench).await;
        assert_eq!(bench.state().len(), 4, "{fault}");
    }
}

/// The names of the members are the same each time: what a deletion left must not be in the way.
#[tokio::test]
async fn a_group_is_made_anew_after_a_deletion_that_was_cut() {
    let (wanted, _) = Operation::Cut.clean().await;
    let (_, steps) = Operation::Uncut.clean().await;
    for n in 1..=steps.len() {
        let (bench, backend, fault) = Operation::Uncut.crashed(n).await;
        cut(&backend, &Cx::new()).await.unwrap();
        settled(&bench).await;
        assert_eq!(bench.state(), wanted, "{fault}");
        // By the process that failed itself, too.
        let (bench, backend) = Operation::Uncut.prepared().await;
        uncut(&backend, &crash_at(n as u64).cx()).await.unwrap_err();
        let again = cut(&backend, &Cx::new()).await;
        assert!(again.is_ok(), "{fault}: {again:?}");
        settled(&bench).await;
        assert_eq!(bench.state(), wanted, "{fault}");
    }
}

#[tokio::test]
async fn a_start_that_mends_groups_and_is_killed_at_any_step_is_repeated() {
    for (operation, crash) in [
        (Operation::Cut, "make the group's members visible"),
        (Operation::Uncut, "make the group's deletion durable"),
    ] {
        let (wanted, steps) = operation.clean().await;
        let at = steps.iter().position(|step| *step == crash).unwrap() + 1;
        for step in 1.. {
            let (bench, backend) = operation.prepared().await;
            operation.run(&backend, &crash_at(at as u64).cx()).await.unwrap_err();
            drop(backend);
            let plan = crash_at(step);
            let backend = bench.stopped();
            let result = backend.start(&plan.cx()).await;
            tokio::time::sleep(std::time::Duration::from_millis(30)).await;
            let enough = result.is_ok() && plan.steps().len() < usize::try_from(step).unwrap();
            drop(backend);
            let backend = bench.start().await;
            settled(&bench).await;
            assert_eq!(bench.state(), wanted, "killed at {step} of {:?}", plan.steps());
            drop(backend);
            if enough {
                assert!(step > 3, "{:?}", plan.steps());
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_member_that_is_being_restored_is_not_deleted() {
    let (bench, backend) = prepared().await;
    cut(&backend, &Cx::new()).await.unwrap();
    let (other, runtime) = (backend.clone(), tokio::runtime::Handle::current());
    bench.knobs().while_copying = Some(Box::new(move || {
        let fault = runtime.block_on(uncut(&other, &Cx::new())).unwrap_err();
        assert_eq!(fault.kind(), Kind::Aborted);
        assert!(fault.to_string().contains("held by copy snapshot a/g-2 to volume a/r"), "{fault}");
    }));
    let from = ContentSource::Snapshot(snapshot("a/g-2"));
    backend.create(&copied("a/r", from)).await.unwrap();
    uncut(&backend, &Cx::new()).await.unwrap();
    assert!(file_names(&bench.pool("a").join("groups")).is_empty());
}
