//! Sockets that nobody serves, and paths that cannot become one.

use super::{
    finding::{Finding, Severity, Sort},
    fix::Fix,
    pools,
    scene::Scene,
};
use larder_host::sockets::{self, SocketFile};
use larder_model::Result;
use larder_pool::look::Open;
use std::os::unix::fs::MetadataExt;

pub(crate) const STALE: Sort = Sort {
    name: "socket-stale",
    severity: Severity::Note,
    why: "nobody serves it: callers fail instead of waiting, and kubelet keeps trying a registration",
};
pub(crate) const TAKEN: Sort = Sort {
    name: "socket-path-taken",
    severity: Severity::Critical,
    why: "the driver cannot be served at a path that something else has",
};

/// Looks.
pub(crate) fn look(scene: &Scene) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for driver in &scene.drivers {
        let settings = &driver.settings;
        let mut paths = vec![settings.endpoint.path().to_owned()];
        if settings.register {
            let folder = scene.settings.kubelet_dir.join("plugins_registry");
            paths.push(folder.join(format!("{}-reg.sock", settings.name)));
        }
        for path in paths {
            let finding = match sockets::look(&path)? {
                SocketFile::Absent => None,
                SocketFile::Dead => {
                    let what = "the process that served it is gone";
                    Some(Finding::new(&STALE, &path, what).by(Fix::RemoveSocket(path.clone())))
                }
                SocketFile::Other => Some(
                    Finding::new(&TAKEN, &path, "what is there is not a socket")
                        .by_hand("look what it is, and move it away; or choose another endpoint"),
                ),
                SocketFile::Served => path.symlink_metadata().ok().and_then(|meta| {
                    let mode = meta.mode() & 0o7777;
                    let wide =
                        Open { path: path.clone(), mode, right: mode & !0o077, stranger: None };
                    // Whoever may connect may do everything that the driver can.
                    (mode & 0o077 != 0).then(|| pools::permissions(&wide))
                }),
            };
            found.extend(finding.map(|finding| finding.of(driver.name())));
        }
    }
    Ok(found)
}
