//! Writes container images as OCI archives, without a container engine.
//!
//! ```text
//! oci-layout, index.json ─► manifest ─► config, layers     (blobs by their SHA-256)
//! ```
//! Equal contents give equal bytes: times are zero, owners root, nothing compressed.
//! `ctr images import` and `docker load` read the result, and so does `skopeo`.

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The files of one layer. A folder must be added before what is in it.
pub struct Layer {
    tar: Builder<Vec<u8>>,
}

impl Default for Layer {
    fn default() -> Self {
        Self { tar: Builder::new(Vec::new()) }
    }
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layer").field("bytes", &self.tar.get_ref().len()).finish()
    }
}

impl Layer {
    /// A layer without files.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder.
    ///
    /// # Errors
    /// The path does not fit into an archive.
    pub fn dir(&mut self, path: &str, mode: u32) -> Result<&mut Self> {
        self.entry(EntryType::Directory, path, mode, &[])
    }

    /// Adds a file with these contents.
    ///
    /// # Errors
    /// The path does not fit into an archive.
    pub fn file(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<&mut Self> {
        self.entry(EntryType::Regular, path, mode, contents)
    }

    /// Adds a file of this machine.
    ///
    /// # Errors
    /// It cannot be read, or the path does not fit into an archive.
    pub fn copy(&mut self, path: &str, mode: u32, from: &Path) -> Result<&mut Self> {
        let contents =
            fs::read(from).with_context(|| format!("failed to read {}", from.display()))?;
        self.file(path, mode, &contents)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// One of the paths does not fit into an archive.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<&mut Self> {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        let wrong = || format!("cannot archive the link {path} to {target}");
        self.tar.append_link(&mut header, path, target).with_context(wrong)?;
        Ok(self)
    }

    fn entry(&mut self, kind: EntryType, path: &str, mode: u32, data: &[u8]) -> Result<&mut Self> {
        let mut header = header(kind, mode, data.len() as u64);
        let wrong = || format!("cannot archive {path}");
        self.tar.append_data(&mut header, path, data).with_context(wrong)?;
        Ok(self)
    }
}

/// An image to be written.
#[derive(Debug, Default)]
pub struct Image {
    layers: Vec<Vec<u8>>,
    entrypoint: Vec<String>,
    command: Vec<String>,
    env: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    user: String,
}

impl Image {
    /// An image without layers, run as root.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a layer on top.
    ///
    /// # Errors
    /// The archive cannot be closed.
    pub fn layer(mut self, layer: Layer) -> Result<Self> {
        self.layers.push(layer.tar.into_inner()?);
        Ok(self)
    }

    /// Puts a layer on top that is an archive already.
    #[must_use]
    pub fn archive(mut self, tar: Vec<u8>) -> Self {
        self.layers.push(tar);
        self
    }

    /// The program, which arguments of a pod do not replace.
    #[must_use]
    pub fn entrypoint<I: IntoIterator<Item: Into<String>>>(mut self, words: I) -> Self {
        self.entrypoint = words.into_iter().map(Into::into).collect();
        self
    }

    /// The arguments when a pod gives none.
    #[must_use]
    pub fn command<I: IntoIterator<Item: Into<String>>>(mut self, words: I) -> Self {
        self.command = words.into_iter().map(Into::into).collect();
        self
    }

    /// An environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// A label.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// Who runs the program, such as `65532:65532`.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        self.user = user.into();
        self
    }

    /// Writes the archive under a full name, such as `example.org/larder:1.0`.
    ///
    /// # Errors
    /// The processor has no name in image formats, or writing failed.
    pub fn write(&self, reference: &str, out: impl Write) -> Result<()> {
        let mut blobs = BTreeMap::new();
        let mut layers = Vec::new();
        let mut diffs = Vec::new();
        for layer in &self.layers {
            let descriptor = store(&mut blobs, LAYER, layer.clone());
            diffs.push(descriptor["digest"].clone());
            layers.push(descriptor);
        }
        let env: Vec<_> = self.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let config = json!({
            "architecture": architecture()?,
            "os": "linux",
            "config": {
                "User": self.user,
                "Env": env,
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
                "Labels": self.labels,
            },
            "rootfs": { "type": "layers", "diff_ids": diffs },
        });
        let config = store(&mut blobs, CONFIG, serde_json::to_vec(&config)?);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        let mut manifest = store(&mut blobs, MANIFEST, serde_json::to_vec(&manifest)?);
        manifest["annotations"] = json!({
            // The first is containerd's, the second everybody's.
            "io.containerd.image.name": reference,
            "org.opencontainers.image.ref.name": reference,
        });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest] });

        let mut archive = Builder::new(out);
        let mut add = |path: &str, data: &[u8]| {
            let mut header = header(EntryType::Regular, 0o644, data.len() as u64);
            archive.append_data(&mut header, path, data)
        };
        add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add("index.json", &serde_json::to_vec(&index)?)?;
        for (digest, data) in &blobs {
            add(&format!("blobs/sha256/{digest}"), data)?;
        }
        archive.into_inner()?.flush()?;
        Ok(())
    }
}

/// Keeps a blob; what refers to it.
fn store(blobs: &mut BTreeMap<String, Vec<u8>>, media: &str, data: Vec<u8>) -> Value {
    let digest: String = Sha256::digest(&data).iter().map(|byte| format!("{byte:02x}")).collect();
    let descriptor =
        json!({ "mediaType": media, "digest": format!("sha256:{digest}"), "size": data.len() });
    blobs.insert(digest, data);
    descriptor
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// This machine's processor, as image formats call it.
fn architecture() -> Result<&'static str> {
    Ok(match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no image name for the processor {other}"),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn image() -> Image {
        let mut layer = Layer::new();
        layer.dir("bin", 0o755).unwrap().file("bin/x", 0o755, b"contents").unwrap();
        layer.symlink("bin/y", "x").unwrap();
        Image::new().layer(layer).unwrap().entrypoint(["/bin/x"]).env("A", "1").user("7:8")
    }

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), data);
        }
        files
    }

    #[test]
    fn every_blob_of_an_archive_is_what_its_digest_and_size_say() {
        let mut out = Vec::new();
        image().write("example.org/x:1", &mut out).unwrap();
        let files = files(&out);
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let data = &files[&format!("blobs/sha256/{digest}")];
            let real: String =
                Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(real, digest);
            assert_eq!(descriptor["size"], data.len());
            data.clone()
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let manifest = &index["manifests"][0];
        assert_eq!(manifest["annotations"]["io.containerd.image.name"], "example.org/x:1");
        let manifest: Value = serde_json::from_slice(&blob(manifest)).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["User"], "7:8");
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(self::files(&layer)["bin/x"], b"contents");
    }

    #[test]
    fn the_same_image_is_the_same_bytes_each_time() {
        let write = || {
            let mut out = Vec::new();
            image().write("example.org/x:1", &mut out).unwrap();
            out
        };
        assert_eq!(write(), write());
    }
}
