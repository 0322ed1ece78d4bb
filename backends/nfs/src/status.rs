//! How an export is.

use crate::{
    copies,
    export::Export,
    record::{self, State},
    snapshots, volumes,
};
use larder_model::{Bytes, Result, volume::PoolStatus};

/// Asks its server.
pub(crate) fn of(export: &Export) -> PoolStatus {
    let mut status = PoolStatus {
        name: export.name.to_string(),
        location: export.source(),
        identity: None,
        storage: "NFS".to_owned(),
        total: Bytes::ZERO,
        free: Bytes::ZERO,
        provisioned: Bytes::ZERO,
        volumes: 0,
        snapshots: 0,
        warnings: vec!["sizes are not enforced: volumes share what the server has".to_owned()],
        fault: None,
    };
    let look = |status: &mut PoolStatus| -> Result<()> {
        let visit = export.visit()?;
        let usage = visit.usage()?;
        (status.total, status.free) = (usage.total, usage.available);
        for file in visit.names(&record::folder())? {
            let Some(native) = file.strip_suffix(".json").and_then(|n| n.parse().ok()) else {
                continue;
            };
            if let Some(record) = volumes::read(&visit, &native)?
                && record.state == State::Ready
            {
                status.volumes += 1;
                status.provisioned = status.provisioned.saturating_add(record.size);
            }
        }
        for native in snapshots::names(&visit)? {
            let found = snapshots::read(&visit, &native)?;
            status.snapshots += u64::from(found.is_some_and(|record| record.state == State::Ready));
        }
        export.confirm(&visit)?;
        let unfinished = copies::unfinished(&visit)?;
        if unfinished > 0 {
            status.warnings.push(format!(
                "{unfinished} copies were begun and are not complete: they go on when they are asked \
                 for again, and deletion removes them"
            ));
        }
        Ok(())
    };
    status.fault = look(&mut status).err().map(|fault| fault.to_string());
    status.identity = export.identity().map(|id| id.to_string());
    status
}
