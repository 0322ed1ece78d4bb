//! A real server under load of several clients, killed with SIGKILL at random moments, again and
//! again: whatever it acknowledged is there with every byte, and in the end nothing is left.
//!
//! `LARDER_LIVES` is how many volumes live and die (30), `LARDER_SEED` what is drawn from: it is
//! printed with every failure. Lives are the same for the same seed; when the kills hit is the
//! machine's affair.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]
#![allow(clippy::print_stdout, reason = "seeds and figures belong into the log")]

mod support;

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use larder_lives::{Book, Caller, Random, State, World, live};
use std::{
    collections::BTreeSet,
    str::FromStr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};
use support::{Server, Site, leaks};

/// So many volumes live at a time.
const CLIENTS: usize = 4;
/// How long a call is repeated: kills hold it up, and so does a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

fn variable<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// What a run came to.
#[derive(Debug, Default)]
struct Figures {
    kills: u64,
    /// Of these, before it was ready.
    starts: u64,
    listings: u64,
}

/// Everything acknowledged is listed, nothing deleted is. Lives go on meanwhile: what changed while
/// it was looked is not looked at.
async fn compare(world: &World) -> Result<()> {
    for volumes in [true, false] {
        let told = |state| world.book.ledger().named(state, volumes);
        let (here, removed) = (told(State::Here), told(State::Removed));
        let listed: BTreeSet<_> = match volumes {
            true => world.caller.volumes().await?.into_iter().collect(),
            false => world.caller.snapshots().await?.into_iter().map(|(name, _)| name).collect(),
        };
        let (still, gone) = (told(State::Here), told(State::Removed));
        let lost: Vec<_> = here.intersection(&still).filter(|n| !listed.contains(*n)).collect();
        ensure!(lost.is_empty(), "lost: {lost:?}");
        let back: Vec<_> = removed.intersection(&gone).filter(|n| listed.contains(*n)).collect();
        ensure!(back.is_empty(), "deleted, and back: {back:?}");
    }
    Ok(())
}

/// Kills the server and starts it again until all lives are over; the one that runs then.
async fn kill_at_random(
    site: &Site,
    world: &World,
    over: &AtomicBool,
    figures: &mut Figures,
) -> Result<Server> {
    let mut random = Random::new(!world.seed);
    loop {
        let mut server = site.server();
        let in_start = random.below(5) == 0 && !over.load(Ordering::Relaxed);
        if in_start {
            tokio::time::sleep(Duration::from_millis(random.below(60))).await;
        } else {
            let patient = Instant::now() + PATIENCE;
            while !world.caller.is_ready().await {
                ensure!(!server.has_ended(), "the server ended by itself");
                ensure!(Instant::now() < patient, "the server does not get ready");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            if random.below(2) == 0 {
                compare(world).await?;
                figures.listings += 1;
            }
            // Short ones hit what a start left to do, long ones what takes its time. Now and then
            // something gets done first: on a busy machine a mkfs takes longer than any of them.
            let longest = if random.below(2) == 0 { 100 } else { 1500 };
            // The first comes soon: on a fast machine a few lives are over in a second.
            let longest = if figures.kills == 0 { 100 } else { longest };
            let until = Instant::now() + Duration::from_millis(random.below(longest));
            let later = figures.kills > 0 && random.below(4) == 0;
            let enough = world.book.len() + if later { 2 * CLIENTS } else { 0 };
            let patient = Instant::now() + PATIENCE / 4;
            while (Instant::now() < until
                || (world.book.len() < enough && Instant::now() < patient))
                && !over.load(Ordering::Relaxed)
            {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        if over.load(Ordering::Relaxed) {
            return Ok(server);
        }
        server.kill();
        figures.kills += 1;
        figures.starts += u64::from(in_start);
    }
}

async fn lives_survive_kills(backend: &'static str, trash: bool) {
    let (lives, seed) =
        (variable("LARDER_LIVES").unwrap_or(32_u64).div_ceil(4), variable("LARDER_SEED"));
    let clock = std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos();
    let seed: u64 = seed.unwrap_or_else(|| u64::from(clock));
    println!("{backend}, trash {trash}: {lives} lives, LARDER_SEED={seed}");
    let site = Site::new(backend, "xfs");
    if trash {
        let config = std::fs::read_to_string(site.config()).unwrap();
        let config = config.replace("create: true", "create: true, trash: 24h");
        std::fs::write(site.config(), config).unwrap();
    }
    let world = World {
        caller: Caller::new(site.endpoint().path(), PATIENCE).unwrap(),
        book: Book::default(),
        folder: site.path("node"),
        images: backend == "loop",
        trash,
        // Not every machine gives us CAP_SYS_RESOURCE.
        grows_ext4: false,
        seed,
    };
    let (next, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let client = async || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= lives {
                return Ok(());
            }
            live(&world, number).await?;
        }
    };
    let clients = async {
        let result = try_join_all((0..CLIENTS).map(|_| client())).await;
        over.store(true, Ordering::Relaxed);
        result
    };
    let mut figures = Figures::default();
    let began = Instant::now();
    let (lived, server) = tokio::join!(clients, kill_at_random(&site, &world, &over, &mut figures));
    let seconds = began.elapsed().as_secs();
    if let Err(error) = lived.and(server.as_ref().map(|_| ()).map_err(|e| anyhow::anyhow!("{e:#}")))
    {
        let log = std::fs::read_to_string(site.config().with_extension("log")).unwrap();
        let end: Vec<_> = log.lines().rev().take(60).collect();
        let end: Vec<_> = end.into_iter().rev().collect();
        panic!("LARDER_SEED={seed}: {error:#}\n{figures:?}\n{}", end.join("\n"));
    }
    let mut server = server.unwrap();
    assert!(server.ready().await);
    assert_eq!(world.caller.volumes().await.unwrap(), [""; 0]);
    assert_eq!(world.caller.trash().await.unwrap(), []);
    assert!(server.stop().success());
    let left = leaks::find(site.dir.path(), site.pool.path());
    assert!(left.is_empty(), "LARDER_SEED={seed}: left behind: {left:#?}");
    println!("{backend}, trash {trash}: {lives} lives in {seconds} s, {figures:?}");
    assert!(figures.kills > 0, "it was never killed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_on_loop_devices_survive_random_kills() {
    lives_survive_kills("loop", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_on_loop_devices_and_their_trash_survive_random_kills() {
    lives_survive_kills("loop", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_in_directories_survive_random_kills() {
    lives_survive_kills("dir", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_in_directories_and_their_trash_survive_random_kills() {
    lives_survive_kills("dir", true).await;
}
