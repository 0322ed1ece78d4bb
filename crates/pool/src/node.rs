//! The node's half: finding the volume for the medium, and the record of its file system.

use crate::{backend::Core, health::unreadable, medium::Medium, record::FileMark};
use larder_model::{
    Bytes, Cx, Fault, Kind, Result, VolumeId,
    backend::{Attachment, ConnectRequest, Source},
    volume::{FormatState, HealthEntry},
};

impl<M: Medium> Core<M> {
    pub(crate) fn connect_volume(
        &self,
        request: &ConnectRequest,
        cx: &Cx,
    ) -> Result<(Source, Attachment)> {
        let (pool, entry) = self.find(&request.id)?;
        // The node works on a volume once at a time: whatever a former attempt began is over.
        self.formatting.ends(&request.id);
        self.medium
            .connect(&pool, &entry, request, cx)
            .map_err(|fault| pool.explain(fault).during(format!("connect volume {}", entry.id)))
    }

    pub(crate) fn find_connected(&self, id: &VolumeId) -> Result<Option<(Source, Attachment)>> {
        let (pool, entry) = self.find(id)?;
        self.medium.find(&pool, &entry).map_err(|fault| {
            pool.explain(fault).during(format!("find what is connected for volume {}", entry.id))
        })
    }

    /// With an attachment the device can be released although volume or pool are gone; without one
    /// it must be looked for, and not being able to look is not the same as nothing being there.
    pub(crate) fn disconnect_volume(
        &self,
        id: &VolumeId,
        attachment: Option<&Attachment>,
        cx: &Cx,
    ) -> Result<()> {
        self.formatting.ends(id);
        let entry = match self.find(id) {
            Ok((_, entry)) => Some(entry),
            Err(fault) if fault.kind() == Kind::NotFound => None,
            Err(_) if attachment.is_some() => None,
            Err(fault) => return Err(fault),
        };
        if entry.is_none() && attachment.is_none() {
            return Ok(());
        }
        self.medium.disconnect(id, entry.as_ref(), attachment, cx)
    }

    pub(crate) fn is_connected(&self, id: &VolumeId, attachment: &Attachment) -> Result<bool> {
        let entry = self.find(id).ok().map(|(_, entry)| entry);
        self.medium.is_connected(id, entry.as_ref(), attachment)
    }

    pub(crate) fn format_state(&self, id: &VolumeId) -> Result<FormatState> {
        let (_, entry) = self.find(id)?;
        // Nothing recorded is nothing known.
        let state = entry.record.file_system.unwrap_or(FormatState::Foreign);
        if state != FormatState::Unformatted && !state.is_begun() {
            return Ok(state);
        }
        // They allow to format, so they must be about this very file, and about one that nobody but
        // us writes to.
        let ours = !entry.is_static
            && match entry.record.noted_of {
                Some(noted) => noted == FileMark::of(&entry.data)?,
                None => true,
            };
        Ok(if ours { state } else { FormatState::Foreign })
    }

    pub(crate) fn set_format_state(&self, id: &VolumeId, state: FormatState) -> Result<()> {
        let (pool, entry) = self.find(id)?;
        let note = || {
            let noted = FileMark::of(&entry.data)?;
            pool.update_record(&entry, |record| {
                record.file_system = Some(state);
                record.noted_of = Some(noted);
                Ok(())
            })
        };
        // Never later than the record says it.
        let begins = state.is_begun();
        if begins {
            self.formatting.begins(id);
        }
        let noted = note();
        if !begins || noted.is_err() {
            self.formatting.ends(id);
        }
        noted.map(drop).map_err(|fault| {
            pool.explain(fault).during(format!("note the file system of volume {id}"))
        })
    }

    pub(crate) fn refresh_size(
        &self,
        id: &VolumeId,
        attachment: &Attachment,
        cx: &Cx,
    ) -> Result<Bytes> {
        let (pool, entry) = self.find(id)?;
        self.medium.refresh_size(&pool, &entry, attachment, cx)
    }

    pub(crate) fn node_health(
        &self,
        id: &VolumeId,
        attachment: Option<&Attachment>,
    ) -> Result<Vec<HealthEntry>> {
        match self.find(id) {
            Ok((pool, entry)) => {
                let mut found = self.findings(&pool, &entry, attachment);
                found.extend(self.medium.node_health(&pool, &entry, attachment));
                Ok(found)
            }
            Err(fault) => unreadable(fault),
        }
    }

    /// The bytes that a volume's data takes on the pool's file system.
    pub(crate) fn allocated(&self, id: &VolumeId) -> Result<Bytes> {
        let (pool, entry) = self.find(id)?;
        self.medium
            .allocated(&pool, &entry.data)
            .map_err(|fault: Fault| fault.during(format!("measure volume {id}")))
    }
}
