//! What is open: by which name, whose it is, and how it is closed.

use super::super::{
    executor::Executor,
    record::{Shows, Staged},
};
use larder_host::{
    DeviceId,
    luks::{self, Opened},
};
use larder_model::{
    Cx, DriverName, Fault, Kind, Result, Secrets, VolumeId,
    backend::Source,
    encryption::secret::{OLD_PASSPHRASE, PASSPHRASE},
    volume::FormatState,
};
use sha2::{Digest, Sha256};
use std::{fmt::Write, sync::Arc};

/// The name of what opening a volume gives: people see which volume it is, and the digest tells apart
/// what has one name in two drivers, or has characters that such a name cannot have.
pub(super) fn device_name(driver: &DriverName, id: &VolumeId) -> String {
    let mut name: String = luks::PREFIX.to_owned();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let room = luks::LONGEST_NAME - luks::PREFIX.len() - 17;
    name.extend(id.as_str().chars().map(plain).take(room));
    name.push('-');
    let digest = Sha256::new().chain_update(driver.as_str()).chain_update([0]);
    for byte in &digest.chain_update(id.as_str()).finalize()[..8] {
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// Whose the device is that has a volume's name.
enum Named {
    Nothing,
    Ours(Opened),
    Others(Opened),
}

impl Executor {
    /// The name of what opening the volume gives on this machine.
    pub(in super::super) fn name_of(&self, id: &VolumeId) -> String {
        device_name(&self.driver, id)
    }

    /// Whether that is what opening the volume gave.
    ///
    /// # Errors
    /// As [`luks::find`].
    pub(in super::super) fn is_opened_as(&self, id: &VolumeId, shows: &Shows) -> Result<bool> {
        let Shows::Device { number, .. } = shows else { return Ok(false) };
        let opened = luks::find(&self.name_of(id))?;
        Ok(opened.is_some_and(|opened| opened.device == DeviceId::from(*number)))
    }

    /// What mounts of a volume look like whose connected device is `shows`.
    ///
    /// # Errors
    /// As [`luks::find`].
    pub(in super::super) fn above(&self, id: &VolumeId, shows: Shows) -> Result<Shows> {
        let Shows::Device { number, .. } = &shows else { return Ok(shows) };
        let below = Some(DeviceId::from(*number));
        Ok(match luks::find(&self.name_of(id))?.filter(|opened| opened.below == below) {
            Some(Opened { path, device, .. }) => Shows::Device { path, number: device.into() },
            None => shows,
        })
    }

    /// Whether what was staged still stands: the attachment, and what was opened above it.
    ///
    /// # Errors
    /// Those of [`larder_model::Connect::is_connected`].
    pub(in super::super) async fn is_connected(
        &self,
        id: &VolumeId,
        staged: &Staged,
    ) -> Result<bool> {
        let Some(attachment) = &staged.attachment else { return Ok(false) };
        if !self.backend.connect().is_connected(id, attachment).await? {
            return Ok(false);
        }
        let (true, Some(Shows::Device { number, .. })) = (staged.encrypted, &staged.shows) else {
            return Ok(!staged.encrypted);
        };
        let (name, number) = (self.name_of(id), DeviceId::from(*number));
        larder_host::blocking(move || {
            Ok(luks::find(&name)?.is_some_and(|opened| opened.device == number))
        })
        .await
    }

    /// Makes the opened device as large as the one below it has become.
    ///
    /// # Errors
    /// `Invalid` where the kernel needs the passphrase and the request has none; `Unauthenticated`;
    /// `Precondition` where it is not open.
    pub(in super::super) async fn grow_opened(
        self: &Arc<Self>,
        id: &VolumeId,
        secrets: &Secrets,
        cx: &Cx,
    ) -> Result<()> {
        let name = self.name_of(id);
        let secrets = secrets.clone();
        let cx = cx.clone();
        self.blocking(move |_| {
            let opened = luks::find(&name)?.ok_or_else(|| {
                Fault::precondition("grow the encrypted device: it is not open")
                    .hint("stage the volume first")
            })?;
            if !luks::is_smaller(&opened)? {
                return Ok(());
            }
            cx.step("make the encrypted device larger")?;
            let old = secrets.passphrase(OLD_PASSPHRASE)?;
            match (luks::resize(&name, secrets.passphrase(PASSPHRASE)?.as_ref()), old) {
                // It is staged since before the rotation.
                (Err(fault), Some(old)) if fault.kind() == Kind::Unauthenticated => {
                    luks::resize(&name, Some(&old))
                }
                (done, _) => done,
            }
        })
        .await
    }

    /// Closes what is open for the volume. What others have given the volume's name to is left alone.
    ///
    /// # Errors
    /// `Precondition` while it is in use.
    pub(in super::super) async fn close_opened(
        self: &Arc<Self>,
        id: &VolumeId,
        shows: Option<&Shows>,
        cx: &Cx,
    ) -> Result<()> {
        if !self.backend.facts().block {
            return Ok(());
        }
        match self.named(id, shows).await? {
            Named::Nothing => {}
            Named::Others(opened) => {
                tracing::warn!(volume = %id, name = opened.name, "it is open, and not this volume's");
            }
            Named::Ours(opened) => {
                cx.step("close the encrypted device")?;
                self.blocking(move |_| luks::close(&opened.name)).await?;
            }
        }
        let left = self.blocking(|_| luks::interrupted()).await?;
        if left.is_empty() {
            return Ok(());
        }
        let Some(device) = self.connected_device(id).await? else { return Ok(()) };
        self.blocking(move |_| {
            left.iter().filter(|left| left.below == Some(device)).try_for_each(luks::clear)
        })
        .await
    }

    /// Makes sure that nothing has the name that the volume is about to be opened as.
    ///
    /// # Errors
    /// `Precondition` while it is in use, or another's.
    pub(super) async fn make_way(self: &Arc<Self>, id: &VolumeId, cx: &Cx) -> Result<()> {
        self.close_opened(id, None, cx).await?;
        let name = self.name_of(id);
        let Some(other) = self.blocking(move |_| luks::find(&name)).await? else { return Ok(()) };
        let below = other.below.map_or_else(|| "nothing".to_owned(), |below| below.to_string());
        Err(Fault::precondition(format!(
            "open the encrypted volume: its name {} is that of a device above {below}, which is not this \
             volume's",
            other.name
        ))
        .hint(format!(
            "see whose it is (dmsetup info {0}; dmsetup deps {0}), and close it when nobody needs it",
            other.name
        )))
    }

    /// Whose the device is that has the volume's name: ours, where it is the one that was recorded, is
    /// above the device that is connected, has the volume's header, or holds nothing.
    async fn named(self: &Arc<Self>, id: &VolumeId, shows: Option<&Shows>) -> Result<Named> {
        let name = self.name_of(id);
        let Some(opened) = self.blocking(move |_| luks::find(&name)).await? else {
            return Ok(Named::Nothing);
        };
        let recorded = matches!(shows, Some(Shows::Device { number, .. })
            if DeviceId::from(*number) == opened.device);
        if recorded || opened.below.is_none() {
            return Ok(Named::Ours(opened));
        }
        if self.connected_device(id).await? == opened.below {
            return Ok(Named::Ours(opened));
        }
        Ok(match self.backend.connect().format_state(id).await? {
            FormatState::Encrypted { luks, .. } if opened.luks == Some(luks) => Named::Ours(opened),
            _ => Named::Others(opened),
        })
    }

    /// The device that the backend has connected for the volume.
    async fn connected_device(self: &Arc<Self>, id: &VolumeId) -> Result<Option<DeviceId>> {
        match self.backend.connect().find(id).await? {
            Some((Source::Device { path, .. }, _)) => {
                self.blocking(move |this| this.host.mounts.block_device(&path)).await.map(Some)
            }
            _ => Ok(None),
        }
    }
}
