//! Encryption: between connecting a device and using it.
//!
//! ```text
//!            connect             header, keys, open              probe, mkfs, mount
//!  backend ──────────▶ device ────────────────────▶ opened ─────────────────────────▶ staging
//!          ◀──────────        ◀────────────────────        ◀─────────────────────────
//!            disconnect          close                           unmount, prove unused
//! ```
//! Whether a header may be made is decided like whether a file system may be made ([`super::format`]),
//! from the record kept with the volume and from what a probe found on the device that was connected:
//!
//! | record | blank | LUKS | anything else |
//! |---|---|---|---|
//! | `Unformatted` | **make** | refuse | refuse |
//! | `Encrypting` | **make again** | **make again**, if it is that one | **make again** over what has no name, refuse |
//! | `Encrypted` | refuse: data is gone | open, if it is that one | refuse |
//! | `Foreign` | **make**, once all of it was read as zeros | open | refuse |
//! | `Raw` | refuse | open | refuse |
//! | `Formatting`, `Formatted` | refuse | refuse | refuse |
//!
//! What a cut luksFormat leaves is a header with the UUID that was recorded before it began, or zeros and
//! noise. What anything else has put there since then is not ours.
//!
//! What is inside never is blank: what was never written reads as noise. So the record alone says that it
//! holds nothing yet, and it says so before the device is opened for the first time. A passphrase that
//! does not fit is an error and nothing else: no row of the table asks for it.

mod keys;
mod opened;

use super::{
    executor::Executor,
    format::{self, Over},
};
use keys::Keys;
use larder_host::{Found, filesystems::LUKS, luks};
use larder_model::{
    Cx, Encryption, Fault, FsType, Result, Secrets, VolumeId,
    volume::{FormatState, Inside},
};
use std::{path::PathBuf, sync::Arc};
use uuid::Uuid;

/// A device that shall be opened.
pub(super) struct Locked<'a> {
    pub(super) id: &'a VolumeId,
    /// The device that was connected.
    pub(super) device: PathBuf,
    pub(super) encryption: Encryption,
    /// It will be used raw.
    pub(super) block: bool,
    /// What will be made in it where it is new.
    pub(super) fs: FsType,
    /// Nothing may be written.
    pub(super) reader: bool,
    pub(super) secrets: &'a Secrets,
}

/// What is known of an opened device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unlocked {
    pub(super) luks: Uuid,
    pub(super) inside: Inside,
}

/// What to do with the device that was connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// Open it.
    Open {
        /// The header that it must have; None: any, and the record is to be told.
        luks: Option<Uuid>,
        inside: Inside,
    },
    /// Record it, make a header, record that.
    Make {
        /// The UUID of the header that was begun.
        luks: Option<Uuid>,
        over: Over,
    },
}

/// See the module's table. `header` is the UUID of the header that was found, where a header was begun.
fn decide(
    state: FormatState,
    found: &Found,
    header: Option<Uuid>,
    reader: bool,
) -> Result<Decision> {
    let make = |luks, over| {
        if reader {
            return Err(Fault::precondition("use the volume for reading: it is not encrypted yet")
                .hint("use it once with an access mode that may write"));
        }
        Ok(Decision::Make { luks, over })
    };
    let is_luks = matches!(found, Found::Other(what) if what == LUKS);
    match state {
        FormatState::Encrypting { luks }
            if *found == Found::Blank
                || found.is_nameless()
                || (is_luks && header == Some(luks)) =>
        {
            make(Some(luks), Over::Remains)
        }
        FormatState::Encrypted { luks, inside } if is_luks => {
            Ok(Decision::Open { luks: Some(luks), inside })
        }
        FormatState::Encrypted { .. } => Err(Fault::corrupt(format!(
            "open the encrypted volume: its header is gone, {} was found",
            format::named(found)
        ))
        .hint("it will not be made again; restore it from a snapshot or a backup of the header")),
        FormatState::Unformatted if *found == Found::Blank => make(None, Over::New),
        FormatState::Foreign if *found == Found::Blank => make(None, Over::Unread),
        FormatState::Foreign | FormatState::Raw if is_luks => {
            Ok(Decision::Open { luks: None, inside: Inside::Foreign })
        }
        FormatState::Raw if *found == Found::Blank => Err(Fault::precondition(
            "encrypt the volume: a workload has had it as a raw block device, unencrypted",
        )
        .hint("make an encrypted volume and copy the data")),
        _ => Err(Fault::precondition(format!(
            "encrypt the volume: its device is not blank, {} was found",
            format::named(found)
        ))
        .hint(
            "a volume is encrypted from the beginning or never: make an encrypted one and copy the \
             files, or leave encryption out",
        )),
    }
}

/// Refuses an encrypted volume where nobody asks for encryption: its device is not the volume.
///
/// # Errors
/// `Precondition`.
pub(super) fn refuse_encrypted(state: FormatState) -> Result<()> {
    match state {
        FormatState::Encrypted { .. } | FormatState::Encrypting { .. } => {
            Err(Fault::precondition("use the volume without encryption: it is encrypted")
                .hint("encryption: luks2 is missing in the volume's attributes"))
        }
        _ => Ok(()),
    }
}

impl Executor {
    /// Opens the device, and makes its header first where that is proven right. Returns the opened
    /// device.
    ///
    /// # Errors
    /// `Invalid` without a passphrase; `Unauthenticated` for a wrong one; `Precondition` and `Corrupt`,
    /// saying what was found.
    pub(super) async fn unlock(
        self: &Arc<Self>,
        locked: Locked<'_>,
        cx: &Cx,
    ) -> Result<(PathBuf, Unlocked)> {
        let keys = Keys::of(locked.secrets)?;
        cx.step("look whether the device is encrypted")?;
        let connect = self.backend.connect();
        let state = connect.format_state(locked.id).await?;
        let device = locked.device.clone();
        let (found, header) = self
            .blocking(move |this| {
                let found = this.host.filesystems.probe(&device)?;
                // Whose it is decides only over what was begun.
                let uuid = match state {
                    FormatState::Encrypting { .. } => this.host.filesystems.identity(&device)?.uuid,
                    _ => None,
                };
                Ok((found, uuid.and_then(|text| text.parse().ok())))
            })
            .await?;
        let (unlocked, is_new) = match decide(state, &found, header, locked.reader)? {
            Decision::Make { luks, over } => {
                (self.encrypt(&locked, &keys, luks, over, cx).await?, true)
            }
            Decision::Open { luks, inside } => {
                let device = locked.device.clone();
                let header = self.blocking(move |_| luks::header(&device)).await?;
                header.check_memory(locked.encryption.memory)?;
                if let Some(recorded) = luks.filter(|recorded| *recorded != header.uuid) {
                    return Err(Fault::corrupt(format!(
                        "open the encrypted volume: its header has UUID {}, and the volume was encrypted \
                         with {recorded}",
                        header.uuid
                    ))
                    .hint("another volume's data is in its place; put its own back"));
                }
                (Unlocked { luks: header.uuid, inside }, false)
            }
        };
        let path = self.open(&locked, keys, unlocked.luks, is_new, cx).await?;
        if !matches!(state, FormatState::Encrypted { .. }) && !is_new && !locked.reader {
            cx.step("record that the device is encrypted")?;
            let Unlocked { luks, inside } = unlocked;
            connect.set_format_state(locked.id, FormatState::Encrypted { luks, inside }).await?;
        }
        Ok((path, unlocked))
    }

    /// Makes the header.
    async fn encrypt(
        self: &Arc<Self>,
        locked: &Locked<'_>,
        keys: &Keys,
        begun: Option<Uuid>,
        over: Over,
        cx: &Cx,
    ) -> Result<Unlocked> {
        let connect = self.backend.connect();
        self.make_way(locked.id, cx).await?;
        if over == Over::Unread {
            cx.step("read all of the device")?;
            let (device, cx) = (locked.device.clone(), cx.clone());
            format::unread(
                self.blocking(move |this| this.host.filesystems.first_data(&device, &cx)).await?,
            )?;
        }
        let luks = begun.unwrap_or_else(Uuid::new_v4);
        cx.step("record that encryption begins")?;
        connect.set_format_state(locked.id, FormatState::Encrypting { luks }).await?;
        cx.step("make the encryption header")?;
        let (device, like, key) = (locked.device.clone(), locked.encryption, keys.now.clone());
        self.blocking(move |_| {
            luks::format(&device, luks, &like, &key)?;
            // What is recorded next must be true.
            let header = luks::header(&device)?;
            match header.uuid == luks && luks::opens(&device, &key)? {
                true => Ok(()),
                false => Err(Fault::internal("open the encryption header that was just made")),
            }
        })
        .await?;
        cx.step("record that the device is encrypted")?;
        let fs = locked.fs;
        let inside = if locked.block { Inside::Raw } else { Inside::Formatting { fs } };
        connect.set_format_state(locked.id, FormatState::Encrypted { luks, inside }).await?;
        Ok(Unlocked { luks, inside })
    }

    /// Opens the device, or takes what is open already; either way the passphrase must fit.
    async fn open(
        self: &Arc<Self>,
        locked: &Locked<'_>,
        keys: Keys,
        luks: Uuid,
        is_new: bool,
        cx: &Cx,
    ) -> Result<PathBuf> {
        let (name, device, reader) =
            (self.name_of(locked.id), locked.device.clone(), locked.reader);
        let there = {
            let (name, device) = (name.clone(), device.clone());
            self.blocking(move |this| {
                let below = Some(this.host.mounts.block_device(&device)?);
                let there = luks::find(&name)?;
                Ok(there
                    .filter(|o| o.below == below && o.luks == Some(luks) && o.read_only == reader))
            })
            .await?
        };
        if there.is_none() {
            // Opened in another way, or its opening was cut.
            self.make_way(locked.id, cx).await?;
        }
        let key = if is_new {
            keys.now
        } else {
            self.settle_keys(&device, keys, reader, locked.encryption, there.is_some(), cx).await?
        };
        let discard = locked.encryption.discard;
        if let Some(there) = there {
            let path = there.path.clone();
            let is_smaller = self.blocking(move |_| luks::is_smaller(&there)).await?;
            if is_smaller {
                cx.step("make the encrypted device larger")?;
                self.blocking(move |_| luks::resize(&name, Some(&key))).await?;
            }
            return Ok(path);
        }
        cx.step("open the encrypted device")?;
        let opened =
            self.blocking(move |_| luks::open(&device, &name, &key, reader, discard)).await?;
        Ok(opened.path)
    }
}

#[cfg(test)]
mod tests;
