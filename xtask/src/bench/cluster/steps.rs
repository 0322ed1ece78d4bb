//! What is measured.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    Args, Row,
    counts::Used,
    scene::{HERE, LATE, NOW, Scene, claim, pod},
};

#[allow(clippy::cast_precision_loss, reason = "counts of objects are small")]
pub(super) fn number(count: usize) -> f64 {
    count as f64
}

/// With a controller manager as Kubernetes ships it.
pub(super) fn stock(scene: &Scene, args: &Args, rows: &mut Vec<Row>) -> Result<()> {
    eprintln!("bench: idle");
    let idle = Used::now(scene)?;
    rows.push(
        memory("resident memory, idle, a node's process (there is no other)", &idle)
            .at_most(25.0)
            .go("365 MB (nine processes)"),
    );
    eprintln!("bench: 100 claims, stock controller manager");
    let (took, made) = bind(scene, NOW, 100)?;
    rows.push(
        Row::new("100 claims Bound, stock controller manager", took, "s")
            .at_most(17.0)
            .go("23.6 s"),
    );
    let each = made.each_since(&idle, 100);
    rows.push(
        Row::new("Larder's API requests for a claim that is made", each.ours, "")
            .at_most(3.0)
            .go("3")
            .note(each.text),
    );
    rows.push(Row::new("of these, conflicts between nodes", each.conflicts, ""));
    rows.push(
        Row::new("requests of all others for it (controller manager and client)", each.others, "")
            .at_most(5.0)
            .go("7"),
    );
    eprintln!("bench: 100 resizes");
    rows.push(
        Row::new("100 resizes, controller's part", grow(scene, 100)?, "s")
            .at_most(0.7)
            .go("63.8 s stock, 0.85 s tuned"),
    );
    let before = Used::now(scene)?;
    let gone = delete(scene)?;
    let each = Used::now(scene)?.each_since(&before, 100);
    rows.push(Row::new("100 claims deleted, until all volumes are gone", gone, "s"));
    rows.push(
        Row::new("Larder's API requests for a claim that is deleted", each.ours, "")
            .at_most(2.5)
            .go("2.65")
            .note(each.text),
    );
    eprintln!("bench: single pods");
    singles(scene, args.rounds, rows)?;
    eprintln!("bench: {} pods on one node", args.pods);
    crowd(scene, args.pods, rows)
}

/// With a controller manager that is not held back.
pub(super) fn fast(scene: &Scene, args: &Args, rows: &mut Vec<Row>) -> Result<()> {
    let count = args.claims;
    eprintln!("bench: {count} claims, fast controller manager");
    let idle = Used::now(scene)?;
    let (took, made) = bind(scene, NOW, count)?;
    rows.push(
        Row::new(format!("{count} claims Bound, fast controller manager"), took, "s")
            .at_most(12.0)
            .go("202 s stock, 12.6–13.1 s tuned"),
    );
    let thousands = number(count) / 1000.0;
    rows.push(
        Row::new(
            "processor time for 1000 claims, both nodes",
            (made.seconds - idle.seconds) / thousands,
            "s",
        )
        .at_most(2.0)
        .go("5.7–6.5 s"),
    );
    rows.push(
        memory(&format!("resident memory after {count} claims, a node's process"), &made)
            .at_most(45.0)
            .go("489 MB (nine processes)"),
    );
    let each = made.each_since(&idle, count);
    rows.push(
        Row::new(format!("Larder's API requests for a claim, {count} at once"), each.ours, "")
            .at_most(3.0)
            .note(each.text),
    );
    let gone = delete(scene)?;
    rows.push(
        Row::new(format!("{count} claims deleted, until all volumes are gone"), gone, "s")
            .go("406 s stock, 12.4–14.9 s tuned"),
    );
    Ok(())
}

fn memory(what: &str, used: &Used) -> Row {
    let most = used.memory.iter().copied().fold(0.0, f64::max);
    let all: f64 = used.memory.iter().sum();
    Row::new(what, most, "MB").note(format!("{all:.1} MB on all nodes together"))
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("bench-{i}")).collect()
}

/// Makes so many claims; seconds until all are Bound, and what had been used then.
fn bind(scene: &Scene, class: &str, count: usize) -> Result<(f64, Used)> {
    let claims: Vec<_> = names(count).iter().map(|name| claim(name, class, "1Mi")).collect();
    let mut watch = scene
        .watch(&["pvc", "--namespace", "default"], "NAME:.metadata.name,PHASE:.status.phase")?;
    let began = Instant::now();
    scene.create(&claims)?;
    let mut bound = BTreeSet::new();
    watch.until("claims are bound", |words| {
        if let [_, name, "Bound"] = words {
            bound.insert((*name).to_owned());
        }
        bound.len() == count
    })?;
    let took = began.elapsed().as_secs_f64();
    // Events are written after everything else.
    std::thread::sleep(Duration::from_secs(5));
    Ok((took, Used::now(scene)?))
}

/// Deletes the claims; seconds until their volumes are gone.
fn delete(scene: &Scene) -> Result<f64> {
    let began = Instant::now();
    let words = ["delete", "pvc", "--all", "--namespace", "default", "--wait=false"];
    scene.cluster.kubectl(words)?;
    scene.no_volumes()?;
    Ok(began.elapsed().as_secs_f64())
}

/// Asks for more; seconds from the first request until all volumes have it.
fn grow(scene: &Scene, count: usize) -> Result<f64> {
    let mut watch = scene.watch(&["pv"], "NAME:.metadata.name,SIZE:.spec.capacity.storage")?;
    let names = names(count);
    let patch = r#"{"spec":{"resources":{"requests":{"storage":"2Mi"}}}}"#;
    let began = Instant::now();
    let words = ["patch", "--namespace", "default", "--patch", patch, "pvc"];
    // Several kubectl at once: one waits for each answer.
    std::thread::scope(|scope| {
        let parts: Vec<_> = names
            .chunks(names.len().div_ceil(8).max(1))
            .map(|part| {
                let words = words.into_iter().chain(part.iter().map(String::as_str));
                scope.spawn(move || scene.cluster.kubectl(words).map(drop))
            })
            .collect();
        parts.into_iter().try_for_each(|part| match part.join() {
            Ok(patched) => patched,
            Err(_) => anyhow::bail!("kubectl patch panicked"),
        })
    })?;
    let mut grown = BTreeSet::new();
    watch.until("volumes grow", |words| {
        if let [_, name, "2Mi"] = words {
            grown.insert((*name).to_owned());
        }
        grown.len() == count
    })?;
    Ok(began.elapsed().as_secs_f64())
}

/// One pod at a time, with a new claim and with an emptyDir in turns.
fn singles(scene: &Scene, rounds: usize, rows: &mut Vec<Row>) -> Result<()> {
    let (mut with, mut late, mut without, mut gone) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        for class in [Some(HERE), Some(LATE), None] {
            let volume = class.is_some();
            let name = format!("single-{round}-{}", class.unwrap_or("none"));
            let mut watch = scene.watch(
                &["pods", "--namespace", "default"],
                "NAME:.metadata.name,PHASE:.status.phase",
            )?;
            let mut objects = Vec::new();
            if let Some(class) = class {
                objects.push(claim(&name, class, "1Mi"));
            }
            objects.push(pod(&name, volume.then_some(name.as_str())));
            let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": objects });
            scene.cluster.apply(&list.to_string())?;
            let is = |words: &[&str]| words.get(1) == Some(&name.as_str());
            let began = watch.until("a pod is there", is)?;
            let runs = |words: &[&str]| is(words) && words.get(2) == Some(&"Running");
            let took = (watch.until("a pod runs", runs)? - began).as_secs_f64();
            match class {
                Some(HERE) => with.push(took),
                Some(_) => late.push(took),
                None => without.push(took),
            }
            scene.cluster.kubectl(["delete", "pod", &name, "--namespace", "default"])?;
            if volume {
                gone.push(goes(scene, &name)?);
            }
        }
    }
    let spread = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        let (low, high) =
            (times.first().copied().unwrap_or(0.0), times.last().copied().unwrap_or(0.0));
        (
            times.get(times.len() / 2).copied().unwrap_or(0.0),
            format!("{low:.2} to {high:.2} in {} rounds", times.len()),
        )
    };
    let (time, note) = spread(&mut with);
    rows.push(
        Row::new("claim and pod until Running, from the pod's creation, median", time, "s")
            .at_most(0.6)
            .go("0.48 s (3.3–4.4 s with attachments)")
            .note(note),
    );
    let (time, note) = spread(&mut late);
    rows.push(
        Row::new("the same, and the volume is made where the scheduler wants it", time, "s")
            .note(note),
    );
    let (time, note) = spread(&mut without);
    rows.push(Row::new("the same pod with emptyDir", time, "s").go("0.44–0.50 s").note(note));
    let (time, note) = spread(&mut gone);
    rows.push(
        Row::new("claim deleted after its pod until the volume is gone, median", time, "s")
            .at_most(0.2)
            .go("0.02 s (15.0 s with attachments)")
            .note(note),
    );
    Ok(())
}

/// Deletes a claim; seconds from the deletion in the API until its volume is gone.
fn goes(scene: &Scene, name: &str) -> Result<f64> {
    let mut claims = scene.watch(
        &["pvc", "--namespace", "default"],
        "NAME:.metadata.name,GOES:.metadata.deletionTimestamp",
    )?;
    let mut volumes = scene.watch(&["pv"], "NAME:.metadata.name")?;
    scene.cluster.kubectl(["delete", "pvc", name, "--namespace", "default", "--wait=false"])?;
    let deleted = |words: &[&str]| {
        words.get(1) == Some(&name) && words.get(2).is_some_and(|time| *time != "<none>")
    };
    let began = claims.until("a claim is deleted", deleted)?;
    let gone = volumes.until("a volume is gone", |words| words.first() == Some(&"DELETED"))?;
    Ok(gone.saturating_duration_since(began).as_secs_f64())
}

/// Many pods on one node, with emptyDir and with claims that are bound.
fn crowd(scene: &Scene, count: usize, rows: &mut Vec<Row>) -> Result<()> {
    let mut times = Vec::new();
    // Twice, in turns: the first pods of a node warm it up for the others.
    for volumes in [false, true, false, true] {
        let names = names(count);
        if volumes {
            bind(scene, HERE, count)?;
        }
        let pods: Vec<_> =
            names.iter().map(|name| pod(name, volumes.then_some(name.as_str()))).collect();
        let mut watch = scene.watch(
            &["pods", "--namespace", "default"],
            "NAME:.metadata.name,PHASE:.status.phase",
        )?;
        let began = Instant::now();
        scene.create(&pods)?;
        let mut running = BTreeSet::new();
        watch.until("pods run", |words| {
            if let [_, name, "Running"] = words {
                running.insert((*name).to_owned());
            }
            running.len() == count
        })?;
        times.push(began.elapsed().as_secs_f64());
        scene.cluster.kubectl(["delete", "pods", "--all", "--namespace", "default"])?;
        if volumes {
            delete(scene)?;
        }
    }
    let (empty, claims) = (times[0].min(times[2]), times[1].min(times[3]));
    rows.push(
        Row::new(
            format!("{count} pods with bound claims on one node, against emptyDir"),
            claims / empty,
            "×",
        )
        .at_most(1.15)
        .note(format!("{claims:.1} s against {empty:.1} s, the better of two each")),
    );
    Ok(())
}
