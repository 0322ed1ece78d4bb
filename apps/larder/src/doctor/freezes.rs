//! Freezes that nobody took back.

use super::{
    contents::plain,
    finding::{Finding, Severity, Sort},
    fix::Fix,
    scene::Scene,
};
use larder_host::freeze;
use larder_model::Result;

pub(crate) const LEFT: Sort = Sort {
    name: "freeze-left",
    severity: Severity::Critical,
    why: "whoever writes to a frozen file system hangs, until it is thawed",
};
pub(crate) const UNREADABLE: Sort = Sort {
    name: "freeze-record-unreadable",
    severity: Severity::Critical,
    why: "what it is about may be frozen, and the driver does not start before that is known",
};
pub(crate) const OTHER_BOOT: Sort = Sort {
    name: "freeze-of-another-boot",
    severity: Severity::Note,
    why: "the reboot has thawed it; only the record is left",
};

/// Looks.
pub(crate) fn look(scene: &Scene) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for record in freeze::recorded(&scene.settings.state_dir.join("freezes"))? {
        let path = &record.path;
        found.push(match record.mounts {
            Err(fault) => Finding::new(&UNREADABLE, path, format!("cannot {}", plain(&fault)))
                .by_hand(format!(
                    "thaw what hangs (fsfreeze --unfreeze MOUNTPOINT), then remove {}",
                    path.display()
                )),
            Ok(_) if !record.this_boot => {
                let what = "it was written before the reboot";
                Finding::new(&OTHER_BOOT, path, what).by(Fix::Thaw)
            }
            // Before that its watchdog may be waiting for the copy to end.
            Ok(_) if !record.overdue => continue,
            Ok(mounts) => {
                let mounts: Vec<_> = mounts.iter().map(|m| m.display().to_string()).collect();
                let what =
                    format!("recorded as frozen, and nobody will thaw it: {}", mounts.join(", "));
                Finding::new(&LEFT, path, what).by(Fix::Thaw)
            }
        });
    }
    Ok(found)
}
