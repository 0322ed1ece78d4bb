//! A backend of image files: the least that the node engine needs, over any host.

use async_trait::async_trait;
use larder_host::{Host, LoopRequest, durable, image};
use larder_model::{
    AccessMode, Backend, Bytes, Connect, Cx, Fault, FsType, Limits, LimitsChange, PoolName,
    Provision, Result, Secrets, Uses, VolumeId,
    backend::{Attachment, ConnectRequest, Expand, Modify, Parameter, Source},
    volume::{
        Attributes, Facts, FormatState, HealthEntry, HealthStatus, PoolStatus, Scope, Volume,
        VolumeSpec,
    },
};
use std::{fs::File, os::unix::fs::MetadataExt, path::PathBuf};

/// How volumes of a name show: by its first letters.
///
/// `dir…` is a directory, `net…` a "network" file system (a tmpfs; `net-same…` are one share), anything else an image.
pub(crate) struct ImageBackend {
    pub(crate) host: Host,
    pub(crate) root: PathBuf,
    pub(crate) facts: Facts,
}

impl ImageBackend {
    pub(crate) fn new(host: Host, root: PathBuf) -> Self {
        let facts = Facts {
            scope: Scope::Node("node-1".parse().unwrap()),
            access_modes: AccessMode::ALL.to_vec(),
            block: true,
            mount: true,
            file_systems: FsType::ALL.to_vec(),
            default_size: Bytes::mib(64),
            min_size: Bytes::mib(1),
            size_step: Bytes::new(4096),
            attach_required: false,
            fs_group_policy: "File",
            mount_group: true,
            online_expansion: true,
            node_expansion: true,
            ephemeral: true,
            snapshot_topology: false,
            max_volumes_per_node: Some(7),
        };
        Self { host, root, facts }
    }

    pub(crate) fn image(&self, id: &VolumeId) -> PathBuf {
        self.root.join(format!("{}.img", id.native()))
    }
    fn directory(&self, id: &VolumeId) -> PathBuf {
        self.root.join(id.native().as_str())
    }
    fn state(&self, id: &VolumeId) -> PathBuf {
        self.root.join(format!("{}.state", id.native()))
    }
    fn name(&self, id: &VolumeId) -> PathBuf {
        self.root.join(format!("{}.name", id.native()))
    }
    fn limits(&self, id: &VolumeId) -> PathBuf {
        self.root.join(format!("{}.limits", id.native()))
    }
    pub(crate) fn write_limits(&self, id: &VolumeId, limits: Limits) {
        durable::write_json(&self.limits(id), &limits).unwrap();
    }
    pub(crate) fn read_state(&self, id: &VolumeId) -> FormatState {
        durable::read_json(&self.state(id)).unwrap().unwrap_or(FormatState::Unformatted)
    }
    pub(crate) fn write_state(&self, id: &VolumeId, state: FormatState) {
        durable::write_json(&self.state(id), &state).unwrap();
    }
    fn is_image(id: &VolumeId) -> bool {
        !id.native().as_str().starts_with("dir") && !id.native().as_str().starts_with("net")
    }
    /// Of what is no image.
    fn source(&self, id: &VolumeId) -> Source {
        if id.native().as_str().starts_with("dir") {
            return Source::Directory { path: self.directory(id) };
        }
        Source::FileSystem {
            fs_type: "tmpfs".to_owned(),
            // Tests that run at the same time must not take each other's mounts for their own.
            source: match id.native().as_str() {
                same if same.starts_with("net-same") => format!("server:{}", self.root.display()),
                name => format!("server:{}/{name}", self.root.display()),
            },
            options: vec!["size=1m".to_owned()],
        }
    }
    fn missing(id: &VolumeId) -> Fault {
        Fault::not_found(format!("find volume {id}"))
    }
    fn exists(&self, id: &VolumeId) -> bool {
        if Self::is_image(id) { self.image(id).exists() } else { self.directory(id).exists() }
    }
}

fn attachment(number: u32, inode: u64) -> Attachment {
    Attachment::from([
        ("number".to_owned(), number.to_string()),
        ("inode".to_owned(), inode.to_string()),
    ])
}

fn number(attachment: &Attachment) -> (u32, u64) {
    (attachment["number"].parse().unwrap(), attachment["inode"].parse().unwrap())
}

#[async_trait]
impl Backend for ImageBackend {
    fn kind(&self) -> &'static str {
        "image"
    }
    fn facts(&self) -> &Facts {
        &self.facts
    }
    fn pools(&self) -> Vec<PoolName> {
        vec!["default".parse().unwrap(), "spare".parse().unwrap()]
    }
    fn parameters(&self) -> &'static [Parameter] {
        &[]
    }
    async fn start(&self, _: &Cx) -> Result<()> {
        Ok(())
    }
    async fn stop(&self) {}
    async fn pool_status(&self) -> Vec<PoolStatus> {
        Vec::new()
    }
    fn provision(&self) -> &dyn Provision {
        self
    }
    fn connect(&self) -> &dyn Connect {
        self
    }
}

#[async_trait]
impl Provision for ImageBackend {
    async fn ensure_volume(&self, spec: &VolumeSpec, _: &Cx) -> Result<Volume> {
        if let Some(unknown) = spec.parameters.keys().find(|key| *key != "fs") {
            return Err(Fault::invalid(format!("use unknown parameter {unknown}")));
        }
        let size = spec.capacity.pick(Bytes::mib(64), Bytes::mib(1), Bytes::new(4096))?;
        durable::write_json(&self.name(&spec.id), &(spec.name.as_str(), spec.ephemeral))?;
        if !self.image(&spec.id).exists() {
            image::create_sparse(&self.image(&spec.id), size)?;
        }
        self.get_volume(&spec.id).await
    }
    async fn delete_volume(&self, id: &VolumeId, _: &Secrets, _: &Cx) -> Result<()> {
        for path in [self.image(id), self.state(id), self.name(id)] {
            durable::remove_file(&path)?;
        }
        Ok(())
    }
    async fn get_volume(&self, id: &VolumeId) -> Result<Volume> {
        if id.pool().as_str() != "default" || !self.exists(id) {
            return Err(Self::missing(id));
        }
        let (name, ephemeral) = durable::read_json(&self.name(id))?
            .unwrap_or_else(|| (id.native().as_str().to_owned(), false));
        let size = if Self::is_image(id) { self.image(id).metadata().unwrap().len() } else { 0 };
        Ok(Volume {
            id: id.clone(),
            name,
            capacity: Bytes::new(size),
            context: Attributes::new(),
            source: None,
            topology: Vec::new(),
            created: "2026-01-01T00:00:00Z".parse().unwrap(),
            is_static: false,
            ephemeral,
            uses: match id.native().as_str() {
                "only-mount" => Uses { mount: true, block: false },
                "only-block" => Uses { mount: false, block: true },
                _ => Uses::ANY,
            },
            limits: durable::read_json(&self.limits(id))?.unwrap_or_default(),
        })
    }
    fn check_parameters(&self, _: &Attributes) -> Result<()> {
        Ok(())
    }
    fn expand(&self) -> Option<&dyn Expand> {
        Some(self)
    }
    fn modify(&self) -> Option<&dyn Modify> {
        Some(self)
    }
}

#[async_trait]
impl Modify for ImageBackend {
    fn check_mutable(&self, parameters: &Attributes) -> Result<()> {
        LimitsChange::parse(parameters).map(drop)
    }
    async fn modify_volume(
        &self,
        id: &VolumeId,
        parameters: &Attributes,
        _: &Secrets,
        _: &Cx,
    ) -> Result<()> {
        let now = self.get_volume(id).await?.limits;
        self.write_limits(id, LimitsChange::parse(parameters)?.over(now));
        Ok(())
    }
}

#[async_trait]
impl Expand for ImageBackend {
    async fn expand_volume(
        &self,
        id: &VolumeId,
        range: larder_model::CapacityRange,
        _: &Secrets,
        _: &Cx,
    ) -> Result<Bytes> {
        image::grow(&self.image(id), range.required)?;
        Ok(range.required)
    }
}

#[async_trait]
impl Connect for ImageBackend {
    async fn connect(&self, request: &ConnectRequest, cx: &Cx) -> Result<(Source, Attachment)> {
        let id = &request.id;
        if id.pool().as_str() != "default" || !self.exists(id) {
            return Err(Self::missing(id));
        }
        if !Self::is_image(id) {
            return Ok((self.source(id), Attachment::new()));
        }
        let image = self.image(id);
        let (number, path, hold) = match self.host.loops.find(&image)?.into_iter().next() {
            Some(there) if there.read_only && !request.readonly => {
                return Err(Fault::precondition("connect for writing: it is connected read-only"));
            }
            Some(there) => {
                let hold = File::open(&there.path).map_err(|e| Fault::io("open device", e))?;
                (there.number, there.path, hold.into())
            }
            None => {
                cx.step("attach the image")?;
                let made = self.host.loops.attach(&LoopRequest {
                    image: image.clone(),
                    read_only: request.readonly,
                    autoclear: !request.capability.is_block(),
                    direct_io: false,
                    sector_size: 512,
                })?;
                (made.number, made.path, made.hold)
            }
        };
        let inode = image.metadata().map_err(|e| Fault::io("look at image", e))?.ino();
        Ok((Source::Device { path, hold: Some(hold) }, attachment(number, inode)))
    }

    fn mounted_as(&self, id: &VolumeId) -> &'static [&'static str] {
        if id.native().as_str().starts_with("net") { &["tmpfs"] } else { &[] }
    }

    async fn find(&self, id: &VolumeId) -> Result<Option<(Source, Attachment)>> {
        if id.native().as_str().starts_with("net-lost") {
            return Err(Fault::unavailable("ask a server that is silent"));
        }
        if id.pool().as_str() != "default" || !self.exists(id) {
            return Err(Self::missing(id));
        }
        if !Self::is_image(id) {
            return Ok(Some((self.source(id), Attachment::new())));
        }
        Ok(self.host.loops.find(&self.image(id))?.pop().map(|there| {
            let attachment = attachment(there.number, there.backing_inode);
            (Source::Device { path: there.path, hold: None }, attachment)
        }))
    }

    async fn disconnect(
        &self,
        id: &VolumeId,
        attachment: Option<&Attachment>,
        cx: &Cx,
    ) -> Result<()> {
        if !Self::is_image(id) || !self.exists(id) {
            return Ok(());
        }
        cx.step("detach the image")?;
        match attachment {
            Some(attachment) => {
                let (number, inode) = number(attachment);
                match self.host.loops.info(number)?.filter(|info| info.backing_inode == inode) {
                    Some(info) => self.host.loops.detach(number, info.backing()),
                    None => Ok(()),
                }
            }
            None => {
                for there in self.host.loops.find(&self.image(id))? {
                    self.host.loops.detach(there.number, there.backing())?;
                }
                Ok(())
            }
        }
    }

    async fn is_connected(&self, id: &VolumeId, attachment: &Attachment) -> Result<bool> {
        if !Self::is_image(id) {
            return Ok(self.exists(id));
        }
        let (number, inode) = number(attachment);
        Ok(self.host.loops.info(number)?.is_some_and(|info| info.backing_inode == inode))
    }

    async fn format_state(&self, id: &VolumeId) -> Result<FormatState> {
        Ok(self.read_state(id))
    }

    async fn set_format_state(&self, id: &VolumeId, state: FormatState) -> Result<()> {
        durable::write_json(&self.state(id), &state)
    }

    async fn refresh_size(&self, id: &VolumeId, attachment: &Attachment, cx: &Cx) -> Result<Bytes> {
        if !Self::is_image(id) {
            return Ok(Bytes::mib(1));
        }
        cx.step("take over the image's size")?;
        self.host.loops.set_capacity(number(attachment).0)
    }

    async fn node_health(
        &self,
        id: &VolumeId,
        attachment: Option<&Attachment>,
    ) -> Result<Vec<HealthEntry>> {
        if !self.exists(id) {
            return Err(Self::missing(id));
        }
        let lost = match attachment {
            Some(attachment) => !self.is_connected(id, attachment).await?,
            None => false,
        };
        let entry = HealthEntry {
            status: HealthStatus::Inaccessible,
            reason: "LoopDeviceLost",
            message: "its loop device is gone".to_owned(),
        };
        Ok(lost.then_some(entry).into_iter().collect())
    }
}
