//! Larder through power cuts: what it said is done is there afterwards, what it was
//! doing can be done again, and everything can be removed without a trace.
//!
//! ```text
//! machine 1   larder serve on a recorded disk; volumes are made, written, snapshotted,
//!             removed; each step is printed when Larder said it is done ── cut
//! host        disks that the cut could have left: nothing unflushed survives, a random
//!             part does, and cuts at earlier moments
//! machine 2   boots with all of them; serves and checks each
//! ```

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use larder_vm::{Cache, Disk, Machine};

/// What both machines do first: a server on the pool of the mounted disk, and `larder`
/// as a function that talks to it.
const SERVE: &str = r#"
    # Over 9p every start of it would be slow.
    cp "$LARDER" /opt/larder
    mkdir -p /run/csi /run/m
    socket=unix:///run/csi/csi.sock
    serve() {
        mkdir -p /mnt/pool /mnt/state
        /opt/larder serve --backend "$BACKEND" --pool /mnt/pool --state-dir /mnt/state \
            --node n1 --endpoint $socket > /run/log 2>&1 &
        server=$!
        for _ in {1..600}; do
            larder volume ls > /dev/null 2>&1 && return
            kill -0 $server 2> /dev/null || break
            sleep 0.1
        done
        cat /run/log
        return 1
    }
    larder() {
        local words=("$1" "$2")
        shift 2
        /opt/larder "${words[@]}" --socket $socket "$@"
    }
"#;

/// Says `KIND NAME.` when a step is done, and `removing NAME.` before it begins.
const WORK: &str = r#"
    mount /dev/larder/data /mnt
    serve
    for ((i = 0; ; i++)); do
        v=v$i
        larder volume create $v --size 64Mi > /dev/null
        echo "created $v."
        mkdir /run/m/$v
        larder volume mount $v /run/m/$v > /dev/null
        head -c 500000 /dev/urandom > /run/m/$v/data
        sha256sum < /run/m/$v/data > /run/m/$v/sum
        sync /run/m/$v/data /run/m/$v/sum /run/m/$v
        echo "written $v."
        if ((i % 3 == 1)); then
            larder snapshot create $v@s$i > /dev/null
            echo "snapshotted $v@s$i."
        fi
        if ((i % 3 == 2)); then
            echo "removing $v."
            larder volume unmount $v > /dev/null
            larder volume rm $v > /dev/null
            echo "removed $v."
        fi
    done
"#;

/// For each disk: `disk NAME`, what is there, `clean` when nothing is left in the end.
const CHECK: &str = r#"
    for disk in /dev/larder/*; do
        echo "disk ${disk##*/}"
        mount $disk /mnt
        serve
        volumes=$(larder volume ls -o json | sed -n 's/.*"id": "default.\(v[0-9]*\)",/\1/p')
        snapshots=$(larder snapshot ls -o json | sed -n 's/.*"snapshot": "\(v[0-9]*@s[0-9]*\)",/\1/p')
        for s in $snapshots; do echo "snapshot ${s#*@}"; done
        for v in $volumes; do
            echo "volume $v"
            # An equal repeat must find the volume, also a half-made one.
            larder volume create $v --size 64Mi > /dev/null
            mkdir -p /run/m/$v
            larder volume mount $v /run/m/$v > /dev/null
            if [ -s /run/m/$v/sum ]; then
                [ "$(sha256sum < /run/m/$v/data)" = "$(cat /run/m/$v/sum)" ] && echo "intact $v"
            fi
            larder volume unmount $v > /dev/null
        done
        [ -z "$snapshots" ] || larder snapshot rm $snapshots > /dev/null
        [ -z "$volumes" ] || larder volume rm $volumes > /dev/null
        kill $server
        wait $server
        left=$(find /mnt/pool -size +64k; find /mnt/pool -path '*v[0-9]*'; losetup -ln)
        [ -z "$left" ] && echo clean || echo "left: $left"
        umount /mnt
    done
"#;

/// The binary under test.
fn larder() -> PathBuf {
    let built = std::env::var_os("LARDER_BIN").map(PathBuf::from).unwrap_or_else(|| {
        let own = std::env::current_exe().unwrap();
        own.parent().and_then(Path::parent).unwrap().join("larder")
    });
    assert!(built.exists(), "no {} (hint: cargo build --package larder)", built.display());
    built
}

fn machine(backend: &str) -> Machine {
    let larder = larder();
    Machine::new()
        .memory(2048)
        .timeout(Duration::from_secs(900))
        .share(larder.parent().unwrap())
        .env("LARDER", &larder)
        .env("BACKEND", backend)
}

/// What machine 1 was told is done.
#[derive(Debug, Default)]
struct Said {
    written: BTreeSet<String>,
    snapshots: BTreeSet<String>,
    removing: BTreeSet<String>,
    removed: BTreeSet<String>,
}

impl Said {
    fn parse(text: &str) -> Self {
        let mut said = Self::default();
        for line in text.lines() {
            // A line without its point was cut.
            let Some((kind, name)) = line.strip_suffix('.').and_then(|line| line.split_once(' '))
            else {
                continue;
            };
            let set = match kind {
                "written" => &mut said.written,
                "snapshotted" => &mut said.snapshots,
                "removing" => &mut said.removing,
                "removed" => &mut said.removed,
                _ => continue,
            };
            set.insert(name.rsplit('@').next().unwrap().to_owned());
        }
        said
    }
}

/// What machine 2 found on one disk.
#[derive(Debug, Default)]
struct Found {
    volumes: BTreeSet<String>,
    intact: BTreeSet<String>,
    snapshots: BTreeSet<String>,
    clean: bool,
}

fn parse_check(text: &str) -> BTreeMap<String, Found> {
    let mut disks = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        let (kind, name) = line.split_once(' ').unwrap_or((line, ""));
        if kind == "disk" {
            name.clone_into(&mut current);
        }
        let found: &mut Found = disks.entry(current.clone()).or_default();
        match kind {
            "volume" => drop(found.volumes.insert(name.to_owned())),
            "intact" => drop(found.intact.insert(name.to_owned())),
            "snapshot" => drop(found.snapshots.insert(name.to_owned())),
            "clean" => found.clean = true,
            _ => {}
        }
    }
    disks
}

fn survives_power_cuts(backend: &str) {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new("data", dir.path().join("disk"), 4 << 30).unwrap().cache(Cache::Writeback);
    let mkfs =
        "mkfs.xfs -q -m reflink=1 /dev/larder/data && mount /dev/larder/data /mnt && umount /mnt";
    Machine::new().disk(&disk).run(["sh", "-ec", mkfs]).unwrap().checked().unwrap();
    let base = disk.copy_to(dir.path().join("base")).unwrap();
    let recorded = disk.recorded(dir.path().join("log"));

    let work = format!("{SERVE}{WORK}");
    let running = machine(backend).disk(&recorded).spawn(["bash", "-ec", &work]).unwrap();
    running.wait_for("written v4.", Duration::from_secs(800)).unwrap();
    let text = running.power_cut().unwrap().text();
    let said = Said::parse(&text);

    let log = recorded.write_log().unwrap();
    let end = log.len();
    let mut cuts = vec![(end, None), (end, Some(1)), (end, Some(2))];
    cuts.extend((1_usize..=3).map(|part| (end * part / 4, Some(part as u64))));
    let mut checker = machine(backend);
    for (index, &(entries, seed)) in cuts.iter().enumerate() {
        let name = format!("state-{index}");
        let state = base.copy_to(dir.path().join(&name)).unwrap().renamed(&name).unwrap();
        log.crash_state(entries, seed).apply_to(&state).unwrap();
        checker = checker.disk(&state);
    }
    let check = format!("{SERVE}{CHECK}");
    let output = checker.run(["bash", "-ec", &check]).unwrap();
    let report = format!("{}{}", output.text(), String::from_utf8_lossy(&output.stderr));
    assert!(output.success(), "{:?}\n{report}{}", output.end, output.console);

    let found = parse_check(&output.text());
    assert_eq!(found.len(), cuts.len(), "{report}");
    for (index, &(entries, seed)) in cuts.iter().enumerate() {
        let state = &found[&format!("state-{index}")];
        let which =
            format!("cut after {entries} of {end}, seed {seed:?}: {state:?}\n{said:?}\n{report}");
        assert!(state.clean, "something is left: {which}");
        if entries < end {
            continue;
        }
        let kept: BTreeSet<_> = said.written.difference(&said.removing).cloned().collect();
        assert!(state.intact.is_superset(&kept), "data is lost: {which}");
        assert!(state.snapshots.is_superset(&said.snapshots), "a snapshot is lost: {which}");
        assert!(state.volumes.is_disjoint(&said.removed), "a removed volume is back: {which}");
    }
}

#[test]
fn volumes_on_loop_devices_survive_power_cuts() {
    survives_power_cuts("loop");
}

#[test]
fn volumes_in_directories_survive_power_cuts() {
    survives_power_cuts("dir");
}
