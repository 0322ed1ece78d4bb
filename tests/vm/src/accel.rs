//! Whether the processor can run guests itself.
//!
//! `/dev/kvm` may exist and not work (nested hosts, containers), so the only proof is
//! a guest that booted. The answer is cached per host kernel, QEMU and image.

use std::{
    fs::{self, File},
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Result, bail};
use sha2::{Digest as _, Sha256};

use crate::{
    image::{self, Image},
    machine::Machine,
};

/// Who runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// QEMU translates them: works everywhere, about eight times slower.
    Tcg,
    /// The processor.
    Kvm,
}

impl Accel {
    /// The fastest one that works here. `LARDER_VM_ACCEL=tcg` or `=kvm` decides
    /// without a look.
    ///
    /// # Errors
    /// The variable has another value, or the cache cannot be written.
    pub fn detect(image: &Image) -> Result<Self> {
        match std::env::var("LARDER_VM_ACCEL").as_deref() {
            Ok("tcg") => return Ok(Self::Tcg),
            Ok("kvm") => return Ok(Self::Kvm),
            Ok(other) => bail!("LARDER_VM_ACCEL={other} is neither tcg nor kvm"),
            Err(_) => {}
        }
        if File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return Ok(Self::Tcg);
        }
        let root = image::cache_dir()?;
        let answer = root.join(format!("kvm-{}", host_key(image)));
        if let Some(known) = read_answer(&answer) {
            return Ok(known);
        }
        let _lock = image::lock(&root)?;
        if let Some(known) = read_answer(&answer) {
            return Ok(known);
        }
        let probe = Machine::new().accel(Self::Kvm).cpus(1).timeout(Duration::from_secs(20));
        let works = probe.run(["true"]).is_ok_and(|output| output.success());
        eprintln!("vm: KVM {}", if works { "works" } else { "does not work here; using TCG" });
        fs::write(&answer, if works { "kvm" } else { "tcg" })?;
        Ok(if works { Self::Kvm } else { Self::Tcg })
    }
}

fn read_answer(path: &Path) -> Option<Accel> {
    match fs::read_to_string(path).ok()?.as_str() {
        "kvm" => Some(Accel::Kvm),
        "tcg" => Some(Accel::Tcg),
        // Cut while it was written: ask again.
        _ => None,
    }
}

fn host_key(image: &Image) -> String {
    let qemu = larder_needs::find_command("qemu-system-x86_64")
        .and_then(|path| fs::metadata(path).ok())
        .and_then(|meta| meta.modified().ok())
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default();
    let kernel = rustix::system::uname();
    let mut hash = Sha256::new();
    hash.update(kernel.release().to_bytes());
    hash.update(kernel.version().to_bytes());
    hash.update(qemu.as_nanos().to_le_bytes());
    hash.update(image.key());
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}
