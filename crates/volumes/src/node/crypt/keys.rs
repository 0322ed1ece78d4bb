//! Passphrases: which one opens a volume, and how one replaces another.

use super::super::executor::{Asked, Executor};
use larder_host::luks;
use larder_model::{
    Cx, Encryption, Fault, Passphrase, Result, Secrets, VolumeId,
    backend::Source,
    encryption::secret::{OLD_PASSPHRASE, PASSPHRASE},
};
use std::{path::Path, sync::Arc};

/// The passphrases of a request.
pub(super) struct Keys {
    pub(super) now: Passphrase,
    old: Option<Passphrase>,
}

impl Keys {
    /// # Errors
    /// `Invalid` without a passphrase.
    pub(super) fn of(secrets: &Secrets) -> Result<Self> {
        let now = secrets.passphrase(PASSPHRASE)?.ok_or_else(|| {
            Fault::invalid(format!(
                "open the encrypted volume: the request's secrets have no key {PASSPHRASE}"
            ))
            .hint(
                "name a Secret with that key in the StorageClass \
                 (csi.storage.k8s.io/node-stage-secret-name and -namespace), or in nodeStageSecretRef of \
                 the PersistentVolume; nodePublishSecretRef for an inline volume",
            )
        })?;
        let old = secrets.passphrase(OLD_PASSPHRASE)?.filter(|old| *old != now);
        Ok(Self { now, old })
    }
}

/// What is refused where no passphrase fits.
const OPEN: &str = "open the encrypted volume";

impl Executor {
    /// Makes the new passphrase the one that opens the device and the old one one that does not; returns
    /// what opens it. At every moment one of the two does.
    ///
    /// # Errors
    /// `Unauthenticated`, and those of the header.
    pub(super) async fn settle_keys(
        self: &Arc<Self>,
        device: &Path,
        keys: Keys,
        reader: bool,
        encryption: Encryption,
        verify: bool,
        cx: &Cx,
    ) -> Result<Passphrase> {
        let Keys { now, old } = keys;
        let (device, cx) = (device.to_owned(), cx.clone());
        let Some(old) = old else {
            // Opening verifies it; what is open already does not.
            let fits = {
                let now = now.clone();
                self.blocking(move |_| Ok(!verify || luks::opens(&device, &now)?)).await?
            };
            return if fits { Ok(now) } else { Err(luks::wrong_passphrase(OPEN)) };
        };
        self.blocking(move |_| {
            let header = luks::header(&device)?;
            // While it is in use, somebody may have added one that takes more.
            header.check_memory(encryption.memory)?;
            let places = |key| luks::unlocked_slots(&device, &header, key);
            let (of_now, of_old) = (places(&now)?, places(&old)?);
            if of_now.is_empty() && of_old.is_empty() {
                return Err(luks::wrong_passphrase(OPEN));
            }
            if reader {
                // Nothing is written for a reader.
                return Ok(if of_now.is_empty() { old } else { now });
            }
            if of_now.is_empty() {
                cx.step("add the new passphrase")?;
                luks::add_key(&device, &old, &now, encryption.memory)?;
                cx.step("try the new passphrase")?;
                if !luks::opens(&device, &now)? {
                    return Err(Fault::internal(
                        "open the volume with the passphrase that was just added",
                    )
                    .hint("the old one still opens it"));
                }
            }
            for slot in of_old {
                cx.step("remove the old passphrase")?;
                luks::remove_slot(&device, slot)?;
            }
            Ok(now)
        })
        .await
    }

    /// A staged volume that is asked for again with an old and a new passphrase gets the new one. It may
    /// be in use.
    ///
    /// # Errors
    /// As [`Self::unlock`].
    pub(in super::super) async fn rotate_staged(
        self: &Arc<Self>,
        id: &VolumeId,
        asked: &Asked,
        secrets: &Secrets,
        cx: &Cx,
    ) -> Result<()> {
        let Some(encryption) = asked.encryption.filter(|_| secrets.get(OLD_PASSPHRASE).is_some())
        else {
            return Ok(());
        };
        let keys = Keys::of(secrets)?;
        match self.backend.connect().find(id).await? {
            Some((Source::Device { path, .. }, _)) if !asked.reader => {
                self.settle_keys(&path, keys, false, encryption, true, cx).await.map(drop)
            }
            _ => Ok(()),
        }
    }
}
