//! Where a volume's files are: in a folder, or one after the other on a device.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{FileExt as _, FileTypeExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::data::{LARGEST, content};

/// A published volume.
#[derive(Debug, Clone)]
pub(crate) struct Place(pub(crate) PathBuf);

impl Place {
    fn is_device(&self) -> Result<bool> {
        let meta = fs::metadata(&self.0);
        let meta = meta.with_context(|| format!("failed to look at {}", self.0.display()))?;
        Ok(meta.file_type().is_block_device())
    }

    /// Writes the file of this name and makes it durable.
    pub(crate) async fn write(&self, file: &str) -> Result<()> {
        let (place, file) = (self.clone(), file.to_owned());
        tokio::task::spawn_blocking(move || place.write_now(&file)).await?
    }

    fn write_now(&self, file: &str) -> Result<()> {
        let bytes = content(file);
        let context = || format!("failed to write {file} to {}", self.0.display());
        if self.is_device()? {
            let device = File::options().write(true).open(&self.0).with_context(context)?;
            device.write_all_at(&bytes, offset(file)?).with_context(context)?;
            return device.sync_all().with_context(context);
        }
        let mut made = File::create(self.0.join(file)).with_context(context)?;
        made.write_all(&bytes).with_context(context)?;
        made.sync_all().with_context(context)?;
        File::open(&self.0)?.sync_all().with_context(context)
    }

    /// Compares each of these files with what its name tells.
    pub(crate) async fn verify(&self, files: impl IntoIterator<Item = String>) -> Result<()> {
        let (place, files): (_, Vec<_>) = (self.clone(), files.into_iter().collect());
        tokio::task::spawn_blocking(move || {
            let device = place.is_device()?;
            files.iter().try_for_each(|file| place.verify_now(file, device))
        })
        .await?
    }

    fn verify_now(&self, file: &str, device: bool) -> Result<()> {
        let wanted = content(file);
        let read = if device {
            let mut bytes = vec![0; wanted.len()];
            read_at(&self.0, &mut bytes, offset(file)?).map(|()| bytes)
        } else {
            fs::read(self.0.join(file))
        };
        let read = read.with_context(|| format!("{file} is lost from {}", self.0.display()))?;
        ensure!(
            read == wanted,
            "{file} in {} has other bytes: {} instead of {}, the first difference at {:?}",
            self.0.display(),
            read.len(),
            wanted.len(),
            read.iter().zip(&wanted).position(|(a, b)| a != b)
        );
        Ok(())
    }
}

fn read_at(path: &Path, bytes: &mut [u8], at: u64) -> std::io::Result<()> {
    File::open(path)?.read_exact_at(bytes, at)
}

/// Files are named `fLIFE-NUMBER`, and each number has its own part of a device.
fn offset(file: &str) -> Result<u64> {
    let number: u64 = file.rsplit('-').next().context("no number")?.parse()?;
    Ok(number * (LARGEST as u64).next_power_of_two())
}
