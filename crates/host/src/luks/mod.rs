//! Encrypted devices: LUKS2 headers and the device-mapper devices that opening them gives.
//!
//! `cryptsetup` does the work, because it knows how to write a header that survives a power cut; the
//! kernel's sysfs tells what is open. Invariants:
//! - a passphrase reaches `cryptsetup` through a pipe: never an argument, a variable or a file;
//! - nothing here decides whether a header may be made: [`format`] overwrites what is there;
//! - an open device is known by its name, and proven by the device below it and the header's UUID,
//!   which the kernel keeps with it;
//! - udev is not waited for: in a container it may be on the other side of a wall, and waiting would
//!   never end. The device's node is made by `cryptsetup` itself.

mod keys;
mod opened;

pub use keys::{add_key, data_offset, header, opens, remove_slot, unlocked_slots};
pub use opened::{Opened, find, interrupted, is_mapped, is_smaller, list, on};

use crate::command::{Command, Output};
use larder_model::{Bytes, Encryption, Fault, Kind, Passphrase, Result};
use std::{collections::BTreeMap, fs::File, path::Path, time::Duration};
use uuid::Uuid;

/// The beginning of the names of all our devices.
pub const PREFIX: &str = "larder-";
/// As long as a name may be.
pub const LONGEST_NAME: usize = 127;

/// Deriving a key with a gibibyte of memory on a busy machine takes many seconds.
const DEADLINE: Duration = Duration::from_secs(5 * 60);
/// Rounds over the memory, as RFC 9106 has it for 64 MiB, and one more: the least that cryptsetup takes.
const ROUNDS: &str = "4";
const LANES: &str = "4";

/// A header, as far as it concerns us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its UUID.
    pub uuid: Uuid,
    /// Where the data begins.
    pub offset: u64,
    /// The places of its keys that are in use, with the memory that deriving each takes.
    pub slots: BTreeMap<u32, Bytes>,
}

impl Header {
    /// Refuses a header that takes more memory to open than allowed.
    ///
    /// # Errors
    /// `Precondition`.
    pub fn check_memory(&self, most: Bytes) -> Result<()> {
        match self.slots.values().max() {
            Some(needs) if *needs > most => Err(Fault::precondition(format!(
                "open the encrypted device: deriving its key takes {needs} of memory, and {most} are allowed"
            ))
            .hint(format!(
                "set encryptionMemory to {needs} in the volume's attributes, and give the node's pod that \
                 much more"
            ))),
            _ => Ok(()),
        }
    }
}

/// The command `cryptsetup ACTION`. Not asking and not waiting: nobody is there to answer.
fn cryptsetup(action: &str) -> Command {
    Command::new("cryptsetup")
        .args([action, "--batch-mode"])
        .env("DM_DISABLE_UDEV", "1")
        .deadline(DEADLINE)
}

/// How a new key is derived.
fn derivation(command: Command, memory: Bytes) -> Command {
    let kib = (memory.get() / 1024).to_string();
    command.args(["--pbkdf", "argon2id", "--pbkdf-force-iterations", ROUNDS]).args([
        "--pbkdf-parallel",
        LANES,
        "--pbkdf-memory",
        &kib,
    ])
}

/// No passphrase that was given opens the volume.
pub fn wrong_passphrase(what: &str) -> Fault {
    Fault::new(Kind::Unauthenticated, format!("{what}: the passphrase does not open it"))
        .hint("the secret's key passphrase must hold the volume's passphrase, byte for byte")
}

/// What the exit code says (cryptsetup(8), "RETURN CODES").
fn judge(what: String, output: &Output) -> Result<()> {
    let said = output.stderr.trim().lines().collect::<Vec<_>>().join("; ");
    let fault = |kind| Fault::new(kind, format!("{what}: {said}"));
    match output.code() {
        Some(0) => Ok(()),
        Some(2) => Err(wrong_passphrase(&what)),
        Some(3) => Err(fault(Kind::Exhausted)
            .hint("there is not enough memory to derive the key: give the node's pod more, or use a \
                   smaller encryptionMemory for new volumes")),
        Some(5) => Err(fault(Kind::Precondition).hint("see who uses it: dmsetup info, lsblk")),
        _ if said.contains("device-mapper") || said.contains("dm_crypt") || said.contains("dm-crypt") => {
            Err(fault(Kind::Precondition).hint(
                "the kernel needs dm-crypt: modprobe dm_crypt on the node; the node's pod needs the \
                 host's /dev",
            ))
        }
        Some(4) => Err(fault(Kind::Precondition)),
        _ => Err(fault(Kind::Internal)),
    }
}

fn run(what: String, command: Command) -> Result<()> {
    let output = command.run_any().map_err(|fault| {
        let killed = fault.what().contains("signal 9");
        let fault = fault.during(&what);
        if killed { fault.hint("was there too little memory? see encryptionMemory") } else { fault }
    })?;
    judge(what, &output)
}

/// Makes a header with one key. Overwrites whatever is there: the caller has proven that it may.
///
/// # Errors
/// `Precondition` (cryptsetup or dm-crypt is missing, device in use), `OutOfRange` (too small).
pub fn format(device: &Path, uuid: Uuid, like: &Encryption, key: &Passphrase) -> Result<()> {
    let what = format!("make the encryption header of {}", device.display());
    let command = cryptsetup("luksFormat")
        .args(["--type", "luks2", "--uuid", &uuid.to_string()])
        .args(["--cipher", like.cipher.as_str(), "--key-size", &like.key_size.to_string()])
        .args(["--key-file", "-"]);
    let command = derivation(command, like.memory).arg(device).stdin(key.bytes());
    let output = command.run_any().map_err(|fault| fault.during(&what))?;
    let said = output.stderr.to_lowercase();
    if output.code() != Some(0) && (said.contains("too small") || said.contains("too big")) {
        return Err(Fault::out_of_range(format!("{what}: {}", output.stderr.trim()))
            .hint(format!("the header takes {}", larder_model::encryption::HEADER)));
    }
    judge(what.clone(), &output)?;
    sync(device, &what)
}

/// What is recorded, or taken away, after this relies on the header.
fn sync(device: &Path, what: &str) -> Result<()> {
    let synced = File::open(device).and_then(|device| device.sync_all());
    synced.map_err(|e| Fault::io(what, e))
}

/// Opens `device` as `name`.
///
/// # Errors
/// `Unauthenticated` for a wrong passphrase; `Precondition`; `Exhausted` (memory).
pub fn open(
    device: &Path,
    name: &str,
    key: &Passphrase,
    read_only: bool,
    discard: bool,
) -> Result<Opened> {
    let what = format!("open the encrypted device {}", device.display());
    let attempt = || {
        let mut command = cryptsetup("open").args(["--type", "luks2", "--key-file", "-"]);
        if read_only {
            command = command.arg("--readonly");
        }
        if discard {
            command = command.arg("--allow-discards");
        }
        run(what.clone(), command.arg(device).arg(name).stdin(key.bytes()))
    };
    match attempt() {
        // A cryptsetup that was killed before it told what the device decrypts: then it is a name and
        // nothing else, which sysfs does not show.
        Err(fault) if fault.what().contains("already exists") && find(name)?.is_none() => {
            remove(name).map_err(|second| second.during(&what))?;
            attempt()?;
        }
        done => done?,
    }
    find(name)?.ok_or_else(|| Fault::internal(format!("{what}: it is not there afterwards")))
}

/// Closes what is open as `name`; not open: done.
///
/// # Errors
/// `Precondition` while it is in use.
pub fn close(name: &str) -> Result<()> {
    let Some(opened) = find(name)? else { return Ok(()) };
    let what = format!("close the encrypted device {name}");
    let closed = if opened.below.is_some() {
        run(what, cryptsetup("close").arg(name))
    } else {
        // Its opening was cut before it decrypted anything, and cryptsetup does not know it as its own.
        remove(name).map_err(|fault| fault.during(what))
    };
    // Somebody else may have closed it at this moment.
    if find(name)?.is_none() { Ok(()) } else { closed }
}

/// Removes what an interrupted cryptsetup left; refused by the kernel while one works with it.
///
/// # Errors
/// `Internal`.
pub fn clear(left: &Opened) -> Result<()> {
    remove(&left.name)
}

fn remove(name: &str) -> Result<()> {
    Command::new("dmsetup").args(["remove", "--noudevsync", name]).run().map(drop)
}

/// Makes the open device as large as the one below it. The passphrase is needed where the kernel keeps
/// the key in its keyring, which is the rule.
///
/// # Errors
/// `Unauthenticated` for a wrong passphrase; `Invalid` where one is needed and none was given.
pub fn resize(name: &str, key: Option<&Passphrase>) -> Result<()> {
    let what = format!("resize the encrypted device {name}");
    let command = cryptsetup("resize");
    let Some(key) = key else {
        let output = command.arg(name).run_any().map_err(|fault| fault.during(&what))?;
        return match output.code() {
            Some(1 | 2) => Err(Fault::invalid(format!(
                "{what}: the kernel needs its passphrase for that, and the request has no secrets"
            ))
            .hint(
                "set csi.storage.k8s.io/node-expand-secret-name and -namespace in the StorageClass; \
                 otherwise the volume has its new size when it is next staged",
            )),
            _ => judge(what, &output),
        };
    };
    run(what, command.args(["--key-file", "-"]).arg(name).stdin(key.bytes()))
}
