//! Crash at every step, then a new process: the retry equals a clean run, the opposite call leaves
//! nothing.

use crate::world::{On, Snapshot, World, block, mount, mount_as, with_group};
use larder_model::{Bytes, Cx, Limits, Result, VolumeCapability, cx::crash::CrashAt};
use larder_volumes::node::HealthRequest;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Stage,
    Publish,
    Unpublish,
    Unstage,
    Expand,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    how: fn() -> VolumeCapability,
}

const FILE_SYSTEM: Case = Case { name: "image", how: mount };
const GROUPED: Case = Case { name: "image-group", how: || with_group(4321) };
const BLOCK: Case = Case { name: "raw", how: block };
const DIRECTORY: Case = Case { name: "dir-a", how: mount };
const NETWORK: Case = Case { name: "net-a", how: mount };
/// Which the kernel shows otherwise than it was asked for.
const LINKED: Case = Case { name: "net-link", how: mount };

const LIMITED: Case = Case { name: "limited", how: mount };
const LIMITED_BLOCK: Case = Case { name: "limited-raw", how: block };

/// Growing ext4 while it is mounted takes CAP_SYS_RESOURCE, which a container may lack; xfs grows
/// without, and the fake kernel grows them all.
const GROWABLE: Case =
    Case { name: "xfs", how: || mount_as("xfs", larder_model::AccessMode::SingleNodeWriter) };

const GROWTH: Bytes = Bytes::mib(32);

impl Case {
    async fn prepare(self, world: &World, op: Op) {
        // Small ones are formatted quickly.
        let size = if self.name == "xfs" { 400 } else { 16 };
        world.volume_of(self.name, Bytes::mib(size));
        if self.name.starts_with("limited") {
            let limits = Limits { max_write_bps: 50 << 20, ..Limits::NONE };
            world.backend.write_limits(&world.id(self.name), limits);
        }
        if op == Op::Stage {
            return;
        }
        world.stage(self.name, (self.how)()).await.unwrap();
        if matches!(op, Op::Unpublish | Op::Expand) {
            world.publish(self.name, 1, (self.how)()).await.unwrap();
        }
        if op == Op::Expand && self.grows() {
            let image = world.backend.image(&world.id(self.name));
            let size = Bytes::new(image.metadata().unwrap().len());
            larder_host::image::grow(&image, size.saturating_add(GROWTH)).unwrap();
        }
    }

    fn grows(self) -> bool {
        !self.name.contains('-')
    }

    async fn run(self, world: &World, op: Op, cx: &Cx) -> Result<()> {
        match op {
            Op::Stage => world.stage_with(self.name, (self.how)(), cx).await,
            Op::Publish => world.publish_with(self.name, 1, (self.how)(), cx).await,
            Op::Unpublish => world.unpublish_with(self.name, 1, cx).await,
            Op::Unstage => world.unstage_with(self.name, cx).await,
            Op::Expand => {
                let size = match std::fs::metadata(world.backend.image(&world.id(self.name))) {
                    Ok(image) => Bytes::new(image.len()),
                    Err(_) => Bytes::ZERO,
                };
                world.expand_with(self.name, size, cx).await.map(|_| ())
            }
        }
    }

    async fn end(self, world: &World) {
        world.unpublish(self.name, 1).await.unwrap();
        world.unstage(self.name).await.unwrap();
        world.assert_nothing_left();
    }
}

/// Runs `op` cut at step `n`. None: it has fewer steps.
async fn cut(on: On, case: Case, op: Op, n: u64) -> Option<World> {
    let world = World::new(on);
    case.prepare(&world, op).await;
    let plan = CrashAt::step(n);
    match case.run(&world, op, &plan.cx()).await {
        Ok(()) => {
            let steps = plan.steps();
            assert!(u64::try_from(steps.len()).unwrap() < n, "{op:?} swallowed a crash: {steps:?}");
            None
        }
        Err(fault) => {
            assert!(fault.is_simulated_crash(), "{case:?} {op:?} step {n}: {fault}");
            Some(world)
        }
    }
}

/// The same at a step that there was before. How often an operation looks again for what the kernel does
/// in its own time is not the same in each run, and with it the number of the last step; None: it looked
/// once more than it ever does again.
async fn cut_again(on: On, case: Case, op: Op, n: u64) -> Option<World> {
    for _ in 0..20 {
        if let Some(world) = cut(on, case, op, n).await {
            return Some(world);
        }
    }
    None
}

async fn clean(on: On, case: Case, op: Op) -> Snapshot {
    let world = World::new(on);
    case.prepare(&world, op).await;
    case.run(&world, op, &Cx::new()).await.unwrap();
    let snapshot = world.snapshot();
    case.end(&world).await;
    snapshot
}

async fn sweep(on: On, case: Case, op: Op) {
    let expected = clean(on, case, op).await;
    let mut steps = 0;
    for n in 1.. {
        // Once with what `recover` mends first, once without, and once with the opposite call.
        let Some(mut world) = cut(on, case, op, n).await else { break };
        steps = n;
        world.restart();
        let told = world.engine.recover(&Cx::new()).await.unwrap();
        assert_eq!(told.left, Vec::<String>::new(), "{case:?} {op:?} step {n}");
        if op == Op::Publish || op == Op::Unpublish || op == Op::Expand {
            // Nothing that was there before is disturbed.
            let staging = world.staging(case.name);
            let mounted = world.host.mounts.is_mount_point(&staging).unwrap();
            assert_eq!(mounted, !(case.how)().is_block(), "{case:?} {op:?} step {n}");
        }
        case.run(&world, op, &Cx::new()).await.unwrap();
        assert_eq!(world.snapshot(), expected, "{case:?} {op:?} step {n}, recovered");
        case.end(&world).await;

        let Some(mut world) = cut_again(on, case, op, n).await else { break };
        world.restart();
        case.run(&world, op, &Cx::new()).await.unwrap();
        assert_eq!(world.snapshot(), expected, "{case:?} {op:?} step {n}, not recovered");
        case.end(&world).await;

        let Some(mut world) = cut_again(on, case, op, n).await else { break };
        world.restart();
        case.end(&world).await;

        // And the records are gone as well.
        let Some(mut world) = cut_again(on, case, op, n).await else { break };
        std::fs::remove_dir_all(world.state_dir()).ok();
        world.restart();
        case.end(&world).await;
    }
    let least = if op == Op::Expand { 1 } else { 3 };
    assert!(steps >= least, "{case:?} {op:?} has only {steps} steps");
}

async fn sweep_all(on: On, case: Case) {
    for op in [Op::Stage, Op::Publish, Op::Unpublish, Op::Unstage, Op::Expand] {
        sweep(on, case, op).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_survives_a_crash_at_every_step_on_the_fake_kernel() {
    sweep_all(On::Fake, FILE_SYSTEM).await;
    sweep_all(On::Fake, GROUPED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_device_survives_a_crash_at_every_step_on_the_fake_kernel() {
    sweep_all(On::Fake, BLOCK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_survive_a_crash_at_every_step_and_never_outlive_their_volume() {
    sweep_all(On::Fake, LIMITED).await;
    sweep_all(On::Fake, LIMITED_BLOCK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_and_network_mounts_survive_a_crash_at_every_step_on_the_fake_kernel() {
    sweep_all(On::Fake, DIRECTORY).await;
    sweep_all(On::Fake, NETWORK).await;
    sweep_all(On::Fake, LINKED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_survives_a_crash_at_every_step() {
    for op in [Op::Stage, Op::Publish, Op::Unpublish, Op::Unstage] {
        sweep(On::Real, FILE_SYSTEM, op).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn growth_survives_a_crash_at_every_step() {
    sweep(On::Real, GROWABLE, Op::Expand).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_with_a_group_survives_a_crash_at_every_step() {
    sweep(On::Real, GROUPED, Op::Stage).await;
    sweep(On::Real, GROUPED, Op::Publish).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_device_survives_a_crash_at_every_step() {
    sweep_all(On::Real, BLOCK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_and_network_mounts_survive_a_crash_at_every_step() {
    sweep_all(On::Real, DIRECTORY).await;
    sweep_all(On::Real, NETWORK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_is_replaced_under_mounted_volumes_and_nothing_moves() {
    let mut world = World::new(On::Real);
    for case in [FILE_SYSTEM, BLOCK, DIRECTORY, NETWORK] {
        world.volume(case.name);
        world.stage(case.name, (case.how)()).await.unwrap();
        world.publish(case.name, 1, (case.how)()).await.unwrap();
    }
    let ids = |world: &World| -> Vec<u64> {
        let table = world.host.mounts.table().unwrap();
        table.iter().filter(|e| e.target.starts_with(&world.root)).map(|e| e.id).collect()
    };
    let (before, mounts) = (world.snapshot(), ids(&world));
    for _ in 0..3 {
        world.restart();
        let told = world.engine.recover(&Cx::new()).await.unwrap();
        assert_eq!((told.live, told.mended.len(), told.left.len()), (4, 0, 0), "{told:?}");
        assert_eq!((world.snapshot(), ids(&world)), (Snapshot::clone(&before), mounts.clone()));
    }
    for case in [FILE_SYSTEM, BLOCK, DIRECTORY, NETWORK] {
        let volume = world.id(case.name).as_str().to_owned();
        let request = HealthRequest { volume, publish_path: None, staging_path: None };
        assert_eq!(world.engine.volume_health(request).await.unwrap(), []);
        // Kubelet repeats both calls after its own restart.
        world.stage(case.name, (case.how)()).await.unwrap();
        world.publish(case.name, 1, (case.how)()).await.unwrap();
        world.unpublish(case.name, 1).await.unwrap();
        world.unstage(case.name).await.unwrap();
    }
    world.assert_nothing_left();
}
