//! SnapshotMetadata: allocated and changed blocks of snapshots, as streams.
//!
//! - **Paging**: the engine gives pages of at most `max_results` extents, one message each.
//! - **Back-pressure**: the next page is read when the caller has taken the one before; nothing
//!   piles up for a caller that stores slowly.
//! - **Resume**: a caller that lost its stream asks again from the byte after the last extent.
//! - **Cancel**: a caller that goes away drops the stream; at most one page is read for nobody, and no
//!   page takes longer than seconds.
//! - **Complete** is only a stream that ends without an error, so every fault ends it with one,
//!   also a panic.

use super::{Answer, Services};
use crate::{reply, request::Check, status::status};
use futures::{Stream, StreamExt, stream};
use larder_model::{Fault, Result};
use larder_proto::csi::{
    self, BlockMetadata, BlockMetadataType, snapshot_metadata_server::SnapshotMetadata,
};
use larder_volumes::control::{BlockPage, BlockStream, PluginCapability, QueryBlocks};
use std::sync::Arc;
use tonic::{Request, Response};
use tracing::Instrument;

type Messages<T> = tonic::codegen::BoxStream<T>;

impl Services {
    async fn blocks<R, T>(
        self: Arc<Self>,
        request: Request<R>,
        message: fn(i64, Vec<BlockMetadata>) -> T,
    ) -> Answer<Messages<T>>
    where
        R: Check<Typed = QueryBlocks>,
        T: Send + 'static,
    {
        let capabilities = self.control.plugin_capabilities();
        let offered = capabilities.contains(&PluginCapability::SnapshotMetadataService);
        self.offered_if(offered, "snapshot metadata")?;
        let query = self.accept(request)?;
        // The first page is read here: a refusal is the call's own answer.
        let pages = self.control.blocks(query).await.map_err(|fault| status(&fault))?;
        // Empty ones only give way: to a caller that has gone, and to a stop.
        let pages = self.clone().on_tasks(pages).filter(|page| {
            std::future::ready(page.as_ref().map_or(true, |page| !page.extents.is_empty()))
        });
        let messages = pages.map(move |page| match page {
            Ok(page) => {
                let (size, blocks) = reply::blocks(page);
                Ok(message(size, blocks))
            }
            Err(fault) => {
                tracing::warn!(%fault, "the stream of blocks ends early");
                Err(status(&fault))
            }
        });
        Ok(Response::new(Box::pin(messages)))
    }

    /// Reads each page on a task of its own, so that a panic ends this stream and not the
    /// connection with all its other calls. After a fault nothing follows. Each page is let in like
    /// a call: once the driver has stopped, its storage is not touched.
    fn on_tasks(self: Arc<Self>, pages: BlockStream) -> impl Stream<Item = Result<BlockPage>> {
        stream::unfold(Some(pages), move |pages| {
            let services = self.clone();
            let span = tracing::Span::current();
            async move {
                let mut pages = pages?;
                let tracker = services.tracker.clone();
                let read = async move {
                    match services.gate.check() {
                        Ok(()) => (pages.next().await, pages),
                        Err(fault) => (Some(Err(fault)), pages),
                    }
                };
                match tracker.spawn(read.instrument(span)).await {
                    Ok((Some(Ok(page)), pages)) => Some((Ok(page), Some(pages))),
                    Ok((Some(Err(fault)), _)) => Some((Err(fault), None)),
                    Ok((None, _)) => None,
                    Err(_) => Some((
                        Err(Fault::internal("read the blocks of the snapshot: the work panicked")
                            .hint("this is a bug of Larder; its log has the place")),
                        None,
                    )),
                }
            }
        })
    }
}

#[tonic::async_trait]
impl SnapshotMetadata for Services {
    async fn get_metadata_allocated(
        self: Arc<Self>,
        request: Request<csi::GetMetadataAllocatedRequest>,
    ) -> Answer<Messages<csi::GetMetadataAllocatedResponse>> {
        self.blocks(request, |volume_capacity_bytes, block_metadata| {
            csi::GetMetadataAllocatedResponse {
                block_metadata_type: BlockMetadataType::VariableLength.into(),
                volume_capacity_bytes,
                block_metadata,
            }
        })
        .await
    }

    async fn get_metadata_delta(
        self: Arc<Self>,
        request: Request<csi::GetMetadataDeltaRequest>,
    ) -> Answer<Messages<csi::GetMetadataDeltaResponse>> {
        self.blocks(request, |volume_capacity_bytes, block_metadata| {
            csi::GetMetadataDeltaResponse {
                block_metadata_type: BlockMetadataType::VariableLength.into(),
                volume_capacity_bytes,
                block_metadata,
            }
        })
        .await
    }
}
