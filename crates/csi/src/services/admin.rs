//! What Larder's own tools ask: running operations, pools, the trash, limits, the log level.

use super::{Answer, Services, answer};
use crate::{reply, status::status};
use larder_model::{Cx, Fault, Period, RequestedName, Result, id::quoted, trash::Trash};
use larder_proto::larder::{self, admin_server::Admin};
use larder_volumes::node::NodeLimits;
use std::sync::Arc;
use tonic::{Request, Response};

impl Services {
    fn trash(&self) -> Result<&dyn Trash> {
        self.gate.check()?;
        let backend = self.control.backend();
        backend.trash().ok_or_else(|| {
            let kind = backend.kind();
            Fault::unsupported(format!("use a trash: the {kind} backend has none"))
        })
    }
}

#[tonic::async_trait]
impl Admin for Services {
    async fn list_operations(
        self: Arc<Self>,
        _: Request<larder::ListOperationsRequest>,
    ) -> Answer<larder::ListOperationsResponse> {
        let operations = self.control.claims().running();
        let operations = operations.into_iter().map(reply::operation).collect();
        Ok(Response::new(larder::ListOperationsResponse { operations }))
    }

    async fn list_pools(
        self: Arc<Self>,
        _: Request<larder::ListPoolsRequest>,
    ) -> Answer<larder::ListPoolsResponse> {
        self.gate.check().map_err(|fault| status(&fault))?;
        let pools = self.control.backend().pool_status().await;
        let pools = pools.into_iter().map(reply::pool).collect();
        Ok(Response::new(larder::ListPoolsResponse { pools }))
    }

    async fn list_trash(
        self: Arc<Self>,
        _: Request<larder::ListTrashRequest>,
    ) -> Answer<larder::ListTrashResponse> {
        let found = self.trash().map_err(|fault| status(&fault))?.list_trash().await;
        answer(found, |found| larder::ListTrashResponse {
            trash: found.into_iter().map(reply::trashed).collect(),
        })
    }

    async fn restore_trash(
        self: Arc<Self>,
        request: Request<larder::RestoreTrashRequest>,
    ) -> Answer<larder::RestoreTrashResponse> {
        let request = request.into_inner();
        let restore = async || {
            let name = match request.name.as_str() {
                "" => None,
                name => Some(name.parse::<RequestedName>()?),
            };
            self.trash()?.restore(&request.id, name.as_ref(), &Cx::new()).await
        };
        answer(restore().await, |id| larder::RestoreTrashResponse { id })
    }

    async fn remove_trash(
        self: Arc<Self>,
        request: Request<larder::RemoveTrashRequest>,
    ) -> Answer<larder::RemoveTrashResponse> {
        let trash = self.trash().map_err(|fault| status(&fault))?;
        let removed = trash.remove(&request.into_inner().id, &Cx::new()).await;
        answer(removed, |()| larder::RemoveTrashResponse {})
    }

    async fn empty_trash(
        self: Arc<Self>,
        request: Request<larder::EmptyTrashRequest>,
    ) -> Answer<larder::EmptyTrashResponse> {
        let empty = async || {
            let older_than = match request.into_inner().older_than_seconds {
                0 => None,
                seconds => Some(format!("{seconds}s").parse::<Period>()?),
            };
            self.trash()?.empty(older_than, &Cx::new()).await
        };
        answer(empty().await, |removed| larder::EmptyTrashResponse {
            removed: i64::try_from(removed.count).unwrap_or(i64::MAX),
            allocated_bytes: removed.allocated.as_i64(),
        })
    }

    async fn get_limits(
        self: Arc<Self>,
        request: Request<larder::GetLimitsRequest>,
    ) -> Answer<larder::GetLimitsResponse> {
        let id = request.into_inner().volume_id;
        let limits = async || {
            self.gate.check()?;
            match &self.node {
                Some(node) => node.limits(&id).await,
                None => {
                    let asked = self.control.get_volume(&id).await?.volume.limits;
                    Ok(NodeLimits { asked, ..NodeLimits::default() })
                }
            }
        };
        answer(limits().await, reply::limits)
    }

    async fn set_log_level(
        self: Arc<Self>,
        request: Request<larder::SetLogLevelRequest>,
    ) -> Answer<larder::SetLogLevelResponse> {
        let filter = request.into_inner().filter;
        let Some(set) = &self.set_log_level else {
            return Err(status(&Fault::unsupported("change the log level of this process")));
        };
        if filter.is_empty() || filter.len() > 4096 {
            let fault = Fault::invalid(format!("use log filter {}", quoted(&filter)))
                .hint("write a level (debug), or levels by module (info,larder_csi=trace)");
            return Err(status(&fault));
        }
        answer(set(&filter), |previous| {
            tracing::info!(filter = quoted(&filter), previous, "log level changed");
            larder::SetLogLevelResponse { previous }
        })
    }
}
