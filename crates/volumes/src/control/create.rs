//! Volumes: create.
//!
//! ```text
//!  request ─▶ spec (needs only request and facts) ─▶ claim ─▶ exists? ── yes ─▶ the same? ─▶ backend
//!                                                               └─ no ─▶ name free elsewhere? source? ─┘
//! ```

use super::{
    ControlEngine, CreateVolume, Inner, SourceId,
    accept::{self, POOL},
    found,
    volumes::check_mutable,
};
use crate::claims::{Fingerprint, Key, Operation};
use larder_model::{
    Bytes, CapacityRange, Cx, Encryption, Fault, Kind, RequestedName, Result, VolumeId,
    id::quoted,
    topology::TopologyRequirement,
    volume::{ContentSource, Volume, VolumeSpec},
};
use std::{sync::Arc, time::Duration};

/// So long a creation waits for the pools that it is not for.
const ELSEWHERE: Duration = Duration::from_secs(5);

impl ControlEngine {
    /// CreateVolume: makes the volume, or returns the one that an equal call made.
    ///
    /// # Errors
    /// `Invalid` (name, capability, parameter, kind of source), `NotFound` (source), `Conflict`
    /// (the name is taken by a volume that differs; says in what), `Exhausted` (no space, or the
    /// wrong place), `OutOfRange` (size, also smaller than the source), `Aborted` (another call
    /// works on it), `Unavailable`.
    pub async fn create_volume(&self, request: CreateVolume) -> Result<Volume> {
        self.check_ready()?;
        let inner = &*self.0;
        let fingerprint = Fingerprint::of(&(
            (&request.name, &request.capacity, &request.capabilities, &request.source),
            (&request.parameters, &request.mutable_parameters),
            (&request.topology, &request.ephemeral),
        ));
        let spec = inner.volume_spec(request)?;
        let mut operation = Operation::new("create volume", fingerprint)
            .exclusive(Key::volume(&spec.id))
            .exclusive(Key::VolumeName(spec.id.native().clone()));
        match &spec.source {
            Some(ContentSource::Volume(id)) => operation = operation.shared(Key::volume(id)),
            Some(ContentSource::Snapshot(id)) => operation = operation.shared(Key::snapshot(id)),
            None => {}
        }
        self.run(operation, |inner, cx| async move { inner.ensure_volume(spec, &cx).await }).await
    }
}

impl Inner {
    fn content_source(&self, source: &SourceId) -> Result<ContentSource> {
        let provision = self.backend.provision();
        match source {
            SourceId::Snapshot(id) if provision.snapshots().is_some() => {
                self.snapshot_id(id).map(ContentSource::Snapshot)
            }
            SourceId::Volume(id) if provision.clones() => {
                self.volume_id(id).map(ContentSource::Volume)
            }
            SourceId::Snapshot(_) => Err(Fault::invalid("create a volume from a snapshot")
                .hint("this driver does not announce CREATE_DELETE_SNAPSHOT")),
            SourceId::Volume(_) => Err(Fault::invalid("create a volume from another volume")
                .hint("this driver does not announce CLONE_VOLUME")),
        }
    }

    /// The request as a spec, everything checked that needs only request and facts.
    fn volume_spec(&self, request: CreateVolume) -> Result<VolumeSpec> {
        let (facts, provision) = (self.backend.facts(), self.backend.provision());
        let name: RequestedName = request.name.parse()?;
        accept::map_size(&request.parameters, "parameters")?;
        accept::map_size(&request.mutable_parameters, "mutable_parameters")?;
        let mut parameters = accept::own(&request.parameters);
        let mutable_parameters = accept::own(&request.mutable_parameters);
        let encryption = accept::encryption(facts, &mut parameters)?;
        let about = accept::reserved(&request.parameters);
        if !mutable_parameters.is_empty() && provision.modify().is_none() {
            return Err(Fault::invalid("create a volume with mutable_parameters")
                .hint("this driver does not announce MODIFY_VOLUME"));
        }
        check_mutable(provision, &mutable_parameters)?;
        accept::capabilities(facts, &request.capabilities, &parameters)?;
        if request.ephemeral && !facts.ephemeral {
            return Err(Fault::invalid("create an inline volume")
                .hint("volumes of this driver cannot be ephemeral"));
        }
        let source = request.source.as_ref().map(|s| self.content_source(s)).transpose()?;
        let pool = match (parameters.remove(POOL), &source) {
            (Some(pool), _) => self.pool(&pool)?,
            // Beside its source a copy can share blocks with it.
            (None, Some(ContentSource::Snapshot(id))) => id.pool().clone(),
            (None, Some(ContentSource::Volume(id))) => id.pool().clone(),
            (None, None) => self.backend.default_pool()?,
        };
        request.capacity.pick(facts.default_size, facts.min_size, facts.size_step)?;
        self.check_place(request.topology.as_ref())?;
        Ok(VolumeSpec {
            id: VolumeId::new(pool, name.native()),
            name,
            capacity: request.capacity,
            capabilities: request.capabilities,
            parameters,
            mutable_parameters,
            encryption,
            about,
            source,
            topology: request.topology,
            secrets: request.secrets,
            ephemeral: request.ephemeral,
        })
    }

    async fn ensure_volume(self: Arc<Self>, mut spec: VolumeSpec, cx: &Cx) -> Result<Volume> {
        let provision = self.backend.provision();
        cx.step("look for the volume")?;
        // Nowhere else to look, and nothing to measure: the backend looks for it itself.
        let alone = spec.source.is_none() && self.backend.pools().len() == 1;
        let existing = match provision.get_volume(&spec.id) {
            _ if alone => None,
            looking => match looking.await {
                // The backend says it again where it is so: what is no pool yet may become one.
                Err(fault) if fault.kind() == Kind::Unavailable && spec.source.is_none() => None,
                looked => found(looked)?,
            },
        };
        match existing {
            // Compared before its source is looked for: the source may be gone by now, and the
            // volume that was made from it is still the answer to a repeated call.
            Some(existing) => self.check_existing(&spec, &existing)?,
            None => {
                self.check_name_elsewhere(&spec).await?;
                if let Some(least) = self.source_size(&spec).await? {
                    spec.capacity = from_source(spec.capacity, least, &spec)?;
                }
            }
        }
        let mut volume = provision.ensure_volume(&spec, cx).await?;
        self.check_existing(&spec, &volume)?;
        if volume.topology.is_empty() {
            volume.topology.extend(self.place());
        }
        Ok(volume)
    }

    /// Whether the volume is what the spec asks for, as far as the engine can tell; the backend
    /// compares the rest (file system, parameters).
    fn check_existing(&self, spec: &VolumeSpec, volume: &Volume) -> Result<()> {
        let differs = |what: String| {
            Err(Fault::conflict(format!("create volume {}: it exists {what}", spec.id))
                .hint("choose another name, or ask for what exists"))
        };
        if volume.is_static {
            return differs("already and was not created by this driver".into());
        }
        if volume.name != spec.name.as_str() {
            return differs(format!("under the name {}", quoted(&volume.name)));
        }
        // Size zero: unknown, as for shared file systems without quotas.
        if volume.capacity != Bytes::ZERO && !spec.capacity.contains(volume.capacity) {
            return differs(format!("with the size {}", volume.capacity));
        }
        // Also what a backend has just made: what shall be encrypted is never left plain unnoticed.
        if Encryption::of_context(&volume.context).ok() != Some(spec.encryption) {
            return differs("with another encryption, or none".into());
        }
        if volume.source != spec.source {
            return differs(match &volume.source {
                Some(source) => format!("as a copy of {source}"),
                None => "and is not a copy of anything".into(),
            });
        }
        if volume.ephemeral != spec.ephemeral {
            return differs("with another lifetime (inline or persistent)".into());
        }
        let allowed = |wanted: &TopologyRequirement| {
            let places = &volume.topology;
            places.is_empty() || places.iter().any(|place| wanted.allows(place))
        };
        if !spec.topology.as_ref().is_none_or(allowed) {
            return differs("in another place than was asked for".into());
        }
        Ok(())
    }

    /// CSI names are unique per driver: refuses one that a volume in another pool has.
    async fn check_name_elsewhere(&self, spec: &VolumeSpec) -> Result<()> {
        let others = self.backend.pools().into_iter().filter(|p| p != spec.id.pool());
        let looks = others.map(|pool| async move {
            let id = VolumeId::new(pool, spec.id.native().clone());
            let look = self.backend.provision().get_volume(&id);
            // A pool that cannot be read now must not stop work in the others.
            tokio::time::timeout(ELSEWHERE, look).await.ok()?.ok()
        });
        for other in futures::future::join_all(looks).await.into_iter().flatten() {
            if !other.is_static && other.name == spec.name.as_str() {
                return Err(Fault::conflict(format!(
                    "create volume {}: the name is taken by volume {}",
                    spec.id, other.id
                ))
                .hint("choose another name, or the pool of the existing volume"));
            }
        }
        Ok(())
    }

    /// The size of the source; None without one.
    async fn source_size(&self, spec: &VolumeSpec) -> Result<Option<Bytes>> {
        let provision = self.backend.provision();
        match &spec.source {
            None => Ok(None),
            Some(ContentSource::Volume(id)) => Ok(Some(provision.get_volume(id).await?.capacity)),
            Some(ContentSource::Snapshot(id)) => {
                let snapshots =
                    provision.snapshots().ok_or_else(|| self.unsupported("read snapshots"))?;
                let snapshot = snapshots.get_snapshot(id).await?;
                if !snapshot.ready {
                    return Err(Fault::unavailable(format!(
                        "create volume {}: snapshot {id} is not ready yet",
                        spec.id
                    ))
                    .hint("repeat the call when it is"));
                }
                Ok(Some(snapshot.size))
            }
        }
    }
}

/// The range for a copy: CSI refuses one that is smaller than its source; unset becomes its size.
fn from_source(range: CapacityRange, least: Bytes, spec: &VolumeSpec) -> Result<CapacityRange> {
    let small = range.required > Bytes::ZERO && range.required < least;
    if small || range.limit.is_some_and(|limit| limit < least) {
        let source = spec.source.as_ref().map(ToString::to_string).unwrap_or_default();
        return Err(Fault::out_of_range(format!(
            "create volume {}: {source} needs at least {least}",
            spec.id
        ))
        .hint("ask for at least the size of the source"));
    }
    Ok(CapacityRange { required: range.required.max(least), ..range })
}
