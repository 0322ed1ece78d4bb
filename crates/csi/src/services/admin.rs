//! What Larder's own tools ask: running operations, pools, the log level.

use super::{Answer, Services, answer};
use crate::{reply, status::status};
use larder_model::{Fault, id::quoted};
use larder_proto::larder::{self, admin_server::Admin};
use std::sync::Arc;
use tonic::{Request, Response};

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
