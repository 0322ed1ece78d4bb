//! Larder through power cuts: what it said is done is there afterwards with every byte, what it was
//! doing can be done again, and everything can be removed without a trace.
//!
//! ```text
//! machine 1   larder serve on a recorded disk, under load of several clients (`larder-lives work`);
//!             what is acknowledged is marked on the same disk ── cut at a random moment
//! host        the disk as it was left, and disks that cuts at random moments of the record could
//!             have left: nothing unflushed survives, or a random part; the marks up to that moment
//!             tell what must be there
//! machine 2   boots with all of them; serves and checks each (`larder-lives check`)
//! ```
//! `LARDER_CUTS` is the number of cuts of each backend (12), `LARDER_SEED` what is drawn from.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]
#![allow(clippy::print_stdout, reason = "which cuts there were belongs into the log")]

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use larder_lives::{Random, events};
use larder_vm::{Cache, Disk, End, Machine};

/// Of the disk: the file system with pool and node records, and behind it the marks.
const FILES: u64 = 6 << 30;
const MARKS: u64 = 256 << 20;
/// Cuts of one record; each has a disk of its own in the machine that checks them.
const CUTS_OF_A_RECORD: usize = 10;
/// How long a machine works before it is cut, in seconds: as emulation goes, one to a few lives.
const WORK_AT_LEAST: u64 = 15;
const WORK_AT_MOST: u64 = 90;

/// What both machines do first.
const SERVE: &str = r#"
    # Over 9p every start of it would be slow.
    cp "$LARDER" /opt/larder
    cp "$LIVES" /opt/lives
    modprobe -a loop ext4 xfs quota_v2
    mkdir -p /run/csi /run/lives
    cat > /run/config.yaml << END
node: n1
stateDir: /mnt/state
drivers:
- name: test.csi.larder.dev
  backend: $BACKEND
  endpoint: unix:///run/csi/csi.sock
  pools:
    default: { path: /mnt/pool, create: true, trash: 24h }
END
    serve() {
        mkdir -p /mnt/state
        /opt/larder serve --config /run/config.yaml > /run/log 2>&1 &
        server=$!
    }
    lives() {
        local command=$1
        shift
        /opt/lives $command --socket /run/csi/csi.sock --folder /run/lives --backend $BACKEND \
            --trash --seed $SEED "$@"
    }
"#;

const WORK: &str = r#"
    mount -o prjquota /dev/larder/data /mnt
    serve
    echo working.
    lives work --disk /dev/larder/data --from $FROM || { cat /run/log; echo failed.; sleep 600; }
"#;

/// For each disk `good NAME` or `bad NAME`, with what is wrong.
const CHECK: &str = r#"
    for disk in /dev/larder/*; do
        name=${disk##*/}
        mount -o prjquota $disk /mnt
        serve
        if lives check --ledger $LEDGERS/$name 2> /run/wrong; then
            verdict=good
        else
            verdict=bad
            cat /run/wrong
            tail -n 40 /run/log
        fi
        kill $server
        wait $server || true
        if [ $verdict = good ]; then
            left=$(
                for folder in volumes snapshots groups trash creating deleting .larder/scratch; do
                    [ ! -d /mnt/pool/$folder ] || find /mnt/pool/$folder -mindepth 1
                done
                find /mnt/state -mindepth 2 ! -name .lock ! -name '*.lock' ! -name inline
                losetup -ln
                grep /run/lives /proc/self/mounts || true
            )
            [ -z "$left" ] || { verdict=bad; echo "left: $left"; }
        fi
        echo "$verdict $name"
        # What a failed check left mounted.
        [ $verdict = good ] || umount $(grep -o '/run/lives[^ ]*' /proc/self/mounts) || true
        umount /mnt || umount -l /mnt
    done
"#;

/// A binary that was built beside the one under test.
fn built(name: &str) -> PathBuf {
    let folder = match std::env::var_os("LARDER_BIN") {
        Some(larder) => PathBuf::from(larder).parent().unwrap().to_owned(),
        None => {
            let own = std::env::current_exe().unwrap();
            own.parent().and_then(Path::parent).unwrap().to_owned()
        }
    };
    let binary = folder.join(name);
    assert!(binary.exists(), "no {} (hint: cargo build --package {name})", binary.display());
    binary
}

fn variable<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

fn machine(backend: &str, seed: u64) -> Machine {
    let (larder, lives) = (built("larder"), built("larder-lives"));
    Machine::new()
        .memory(2048)
        .timeout(Duration::from_secs(1500))
        .share(larder.parent().unwrap())
        .env("LARDER", &larder)
        .env("LIVES", &lives)
        .env("BACKEND", backend)
        .env("SEED", seed.to_string())
        .env("FROM", FILES.to_string())
}

/// One machine that was cut, and what is to be checked: names of disks, and a word on each.
fn cut(dir: &Path, backend: &str, cuts: usize, seed: u64) -> Vec<(Disk, String)> {
    let mut random = Random::new(seed);
    let disk = Disk::new("data", dir.join("disk"), FILES + MARKS).unwrap().cache(Cache::Writeback);
    let mkfs = format!(
        "mkfs.xfs -q -m reflink=1 -d size={FILES} /dev/larder/data \
         && mount /dev/larder/data /mnt && umount /mnt"
    );
    Machine::new().disk(&disk).run(["sh", "-ec", &mkfs]).unwrap().checked().unwrap();
    let base = disk.copy_to(dir.join("base")).unwrap();
    let recorded = disk.recorded(dir.join("log"));

    let work = format!("{SERVE}{WORK}");
    let running = machine(backend, seed).disk(&recorded).spawn(["bash", "-ec", &work]).unwrap();
    running.wait_for("working.", Duration::from_secs(300)).unwrap();
    let seconds = WORK_AT_LEAST + random.below(WORK_AT_MOST - WORK_AT_LEAST);
    let failed = running.wait_for("failed.", Duration::from_secs(seconds)).is_ok();
    let output = running.power_cut().unwrap();
    let said = format!("{}{}", output.text(), String::from_utf8_lossy(&output.stderr));
    assert!(!failed && output.end == End::PowerCut, "seed {seed}: {said}{}", output.console);

    let log = recorded.write_log().unwrap();
    let end = log.len();
    let marked = |entries| events(&log.appended(FILES, entries).unwrap()).unwrap();
    // Before the first mark nothing was promised.
    let first = (0..end).find(|entries| !marked(*entries).is_empty());
    let first = first.unwrap_or_else(|| panic!("nothing was acknowledged: {said}"));
    let mut states = Vec::new();
    for index in 0..cuts {
        let name = format!("cut-{index}");
        let mut ledger = String::new();
        let (entries, kept, state) = match index {
            // The real one: what the host has of it.
            0 => (end, "all".to_owned(), recorded.copy_to(dir.join(&name)).unwrap()),
            _ => {
                let entries = if index == 1 {
                    end
                } else {
                    first + usize::try_from(random.below((end - first) as u64)).unwrap()
                };
                let some = (random.below(3) > 0).then(|| random.draw());
                let state = base.copy_to(dir.join(&name)).unwrap();
                log.crash_state(entries, some).apply_to(&state).unwrap();
                (entries, format!("{some:?}"), state)
            }
        };
        let told = marked(entries);
        told.iter().for_each(|event| writeln!(ledger, "{event}").unwrap());
        std::fs::write(dir.join("ledgers").join(&name), ledger).unwrap();
        let word = format!(
            "{backend}, seed {seed}: cut after {entries} of {end} writes, {} events, kept {kept}",
            told.len()
        );
        println!("{name}: {word}");
        states.push((state.renamed(&name).unwrap(), word));
    }
    states
}

fn survives_power_cuts(backend: &str) {
    let clock = u64::from(std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos());
    let seed = variable("LARDER_SEED").unwrap_or(clock);
    let mut left = variable("LARDER_CUTS").unwrap_or(12_usize);
    let mut wrong = String::new();
    for round in 0_u64.. {
        let cuts = left.min(CUTS_OF_A_RECORD);
        left -= cuts;
        if cuts == 0 {
            break;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("ledgers")).unwrap();
        let states = cut(dir.path(), backend, cuts, seed + round);
        let ledgers = dir.path().join("ledgers");
        let mut checker = machine(backend, seed + round).share(&ledgers).env("LEDGERS", &ledgers);
        for (disk, _) in &states {
            checker = checker.disk(disk);
        }
        let output = checker.run(["bash", "-ec", &format!("{SERVE}{CHECK}")]).unwrap();
        let text = format!("{}{}", output.text(), String::from_utf8_lossy(&output.stderr));
        let bad = states.iter().filter(|(disk, _)| {
            let good = format!("good {}", disk.path().file_name().unwrap().to_string_lossy());
            !text.lines().any(|line| line == good)
        });
        let bad: Vec<_> = bad.map(|(_, word)| word.as_str()).collect();
        if !bad.is_empty() {
            writeln!(wrong, "{bad:#?}\n{:?}\n{text}{}", output.end, output.console).unwrap();
        }
    }
    assert!(wrong.is_empty(), "LARDER_SEED={seed}: {wrong}");
}

#[test]
fn volumes_on_loop_devices_survive_power_cuts() {
    survives_power_cuts("loop");
}

#[test]
fn volumes_in_directories_survive_power_cuts() {
    survives_power_cuts("dir");
}
