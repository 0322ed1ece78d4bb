//! A cluster's certificates and kubeconfigs: one authority, a certificate for each
//! component, in which its user and group are, as kubeadm makes them.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::json;

/// The folder of all of it, and the authority's key.
pub(crate) struct Pki {
    dir: PathBuf,
    server: String,
    authority: Issuer<'static, KeyPair>,
}

/// A component by name, its user and its group.
pub(crate) struct User<'a> {
    pub(crate) file: &'a str,
    pub(crate) name: &'a str,
    pub(crate) group: Option<&'a str>,
}

impl Pki {
    /// Makes the authority, and the key of service accounts, for an API server at this URL.
    pub(crate) fn create(dir: &Path, server: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = named("larder-test-ca", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
        write(&dir.join("ca.crt"), &params.self_signed(&key)?.pem())?;
        write(&dir.join("ca.key"), &key.serialize_pem())?;
        let accounts = KeyPair::generate()?;
        write(&dir.join("sa.key"), &accounts.serialize_pem())?;
        write(&dir.join("sa.pub"), &accounts.public_key_pem())?;
        let authority = Issuer::new(params, key);
        Ok(Self { dir: dir.into(), server: server.into(), authority })
    }

    /// A file of this folder.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// A server's certificate for these names and addresses: FILE.crt and FILE.key.
    pub(crate) fn serving(&self, file: &str, name: &str, alternatives: &[&str]) -> Result<()> {
        let names: Vec<_> = alternatives.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = named(name, None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(file, params)
    }

    /// A client's certificate: FILE.crt and FILE.key.
    pub(crate) fn client(&self, user: &User<'_>) -> Result<()> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = named(user.name, user.group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(user.file, params)
    }

    /// A client's certificate, and FILE.kubeconfig which uses it.
    pub(crate) fn kubeconfig(&self, user: &User<'_>) -> Result<()> {
        self.client(user)?;
        // JSON is YAML.
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "larder",
            "clusters": [{ "name": "larder", "cluster": {
                "server": self.server, "certificate-authority": self.path("ca.crt") } }],
            "users": [{ "name": user.file, "user": {
                "client-certificate": self.path(&format!("{}.crt", user.file)),
                "client-key": self.path(&format!("{}.key", user.file)) } }],
            "contexts": [{ "name": "larder", "context": {
                "cluster": "larder", "user": user.file } }],
        });
        let path = self.dir.join(format!("{}.kubeconfig", user.file));
        write(&path, &serde_json::to_string_pretty(&config)?)
    }

    fn issue(&self, file: &str, mut params: CertificateParams) -> Result<()> {
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?;
        write(&self.dir.join(format!("{file}.crt")), &certificate.pem())?;
        write(&self.dir.join(format!("{file}.key")), &key.serialize_pem())
    }
}

fn named(name: &str, group: Option<&str>) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    if let Some(group) = group {
        distinguished.push(DnType::OrganizationName, group);
    }
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))?;
    Ok(fs::set_permissions(path, Permissions::from_mode(0o600))?)
}
