//! What a pool costs: `cargo run --release -p larder-pool --example measure -- DIR [COUNT]`.
//!
//! Prints the cost of one durable record on the disk of DIR (write, fsync, rename, fsync of the
//! folder), of a creation in a pool of few and of COUNT (10000) volumes, of a page of a list, of a
//! start, and the memory that it takes. The medium makes a bare directory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "a measurement; shares the medium of the tests"
)]

#[path = "../tests/pool/support.rs"]
mod support;

use larder_model::{Backend, Provision, volume::Page};
use std::{
    io::Write,
    time::{Duration, Instant},
};
use support::{Bench, Calls, spec};

fn rss() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn say(what: &str, value: impl std::fmt::Debug) {
    let _ = writeln!(std::io::stdout(), "{what:<44} {value:?}");
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().expect("a directory");
    let count: usize = arguments.next().map_or(10_000, |n| n.parse().unwrap());
    let bench = Bench::within(tempfile::tempdir_in(dir).unwrap(), &["a"]);
    bench.knobs().bare = true;
    let backend = bench.start().await;
    let idle = rss();
    let mut made = 0;
    for target in [100, count] {
        while made < target {
            let backend = &backend;
            backend.create(&spec(&format!("a/pvc-{made:08}"))).await.unwrap();
            made += 1;
        }
        // In turns, so that both see the same disk.
        let record = bench.path().join("record");
        let (mut times, mut records) = (Vec::new(), Vec::new());
        for n in 0..200 {
            let asked = spec(&format!("a/new-{n}"));
            let begun = Instant::now();
            backend.create(&asked).await.unwrap();
            times.push(begun.elapsed());
            let begun = Instant::now();
            larder_host::durable::write(&record, &[b'x'; 400]).unwrap();
            records.push(begun.elapsed());
        }
        say(&format!("create, p50, with {made} volumes"), median(times));
        say("one durable record, p50", median(records));
        let mut times = Vec::new();
        for _ in 0..200 {
            let page = Page { after: Some("a/p".to_owned()), max: Some(100) };
            let begun = Instant::now();
            backend.list().unwrap().list_volumes(&page).await.unwrap();
            times.push(begun.elapsed());
        }
        say(&format!("page of 100, p50, with {made} volumes"), median(times));
        let mut times = Vec::new();
        for n in 0..200 {
            let begun = Instant::now();
            backend.delete(&format!("a/new-{n}")).await.unwrap();
            times.push(begun.elapsed());
        }
        say(&format!("delete, p50, with {made} volumes"), median(times));
        let mut times = Vec::new();
        for _ in 0..1000 {
            let begun = Instant::now();
            backend.probe().await.unwrap();
            times.push(begun.elapsed());
        }
        say("probe, p50", median(times));
    }
    say("memory for them, KiB", rss() - idle);
    drop(backend);
    let before = rss();
    let begun = Instant::now();
    let backend = bench.start().await;
    say(&format!("start with {made} volumes"), begun.elapsed());
    say("memory after the start, KiB (and before)", (rss(), before));
    assert_eq!(backend.ids().await.len(), made);
}
