//! What fuzzing kept and what it found, tried again without fuzzing tools.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on says where")]

use larder_fuzz::{TARGETS, Target, requests};
use larder_proto::csi;
use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

/// Files of a target in `corpus` or `regressions`.
fn inputs(folder: &str, target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(target);
    let Ok(files) = fs::read_dir(folder) else { return Vec::new() };
    let read = |path: &Path| (path.display().to_string(), fs::read(path).unwrap());
    files.map(|file| read(&file.unwrap().path())).collect()
}

fn holds((name, check): Target, path: &str, bytes: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| check(bytes))).is_err() {
        panic!("{name} does not hold for {path}: {:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn what_fuzzing_found_stays_mended() {
    for target in TARGETS {
        for (path, bytes) in inputs("regressions", target.0) {
            holds(target, &path, &bytes);
        }
    }
}

#[test]
fn the_kept_corpus_holds() {
    for target in TARGETS {
        let inputs = inputs("corpus", target.0);
        assert!(inputs.len() > 3, "the corpus of {} is not there", target.0);
        for (path, bytes) in inputs {
            holds(target, &path, &bytes);
        }
    }
}

/// Each input cut short and with each of its bytes flipped: damage as a disk or a wire does it.
#[test]
fn damaged_inputs_hold() {
    for target in TARGETS {
        for (path, bytes) in inputs("corpus", target.0).into_iter().take(40) {
            let step = bytes.len() / 64 + 1;
            for at in (0..bytes.len()).step_by(step) {
                holds(target, &path, &bytes[..at]);
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << (at % 8);
                holds(target, &path, &flipped);
            }
        }
    }
}

#[test]
fn every_request_with_fields_is_a_target() {
    for method in csi::METHODS {
        let known = larder_csi::fuzzing::REQUESTS.iter().any(|(name, _)| *name == method.request);
        let fields = requests::descriptor(method.request).fields().count();
        assert_eq!(known, fields > 0, "{}", method.request);
    }
}

#[test]
fn the_corpus_is_small() {
    let size = |folder: &str| -> usize {
        TARGETS.iter().flat_map(|(name, _)| inputs(folder, name)).map(|(_, b)| b.len()).sum()
    };
    assert!(size("corpus") + size("regressions") < 1 << 20);
}
