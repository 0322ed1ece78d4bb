//! The kernel's NFS server, in a machine of its own.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::proc;

/// As `nfs-kernel-server` sets it up, with a short time of grace.
const START: &str = r"
modprobe -a nfsd nfs nfsv4
mount -t nfsd nfsd /proc/fs/nfsd
mkdir -p /run/rpcbind /var/lib/nfs/v4recovery /var/lib/nfs/rpc_pipefs /var/lib/nfs/nfsdcltrack
: > /var/lib/nfs/etab; : > /var/lib/nfs/rmtab
rpc.mountd --no-nfs-version 3
rpc.nfsd --no-udp --no-nfs-version 3 --grace-time 10 --lease-time 10 4
";

/// Lets go of what is exported.
pub(super) fn stop() -> Result<()> {
    proc::output(Command::new("bash").args(["-ec", "exportfs -ua; rpc.nfsd 0"])).map(drop)
}

/// Exports the folder; as `serve --pool` takes it.
pub(super) fn serve(folder: &Path) -> Result<String> {
    // The suite asks for volumes before it has made any, which makes no export a pool.
    let ours = folder.join(".larder");
    for name in ["volumes", "places", "deleting"] {
        std::fs::create_dir_all(ours.join(name))?;
    }
    let identity =
        r#"{"format": 1, "backend": "nfs", "id": "0b5ba0a5-4f4e-4b2c-9a4f-2a5a3b1c7d10"}"#;
    std::fs::write(ours.join("pool.json"), identity)?;
    let folder = folder.display();
    let script = format!(
        "{START}exportfs -o rw,no_root_squash,no_subtree_check,fsid=1 '127.0.0.1:{folder}'"
    );
    proc::output(Command::new("bash").args(["-ec", &script]))?;
    Ok(format!("127.0.0.1:{folder}"))
}
