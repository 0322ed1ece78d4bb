//! Pages of volumes and snapshots over all pools.
//!
//! The order is that of the ids as text, which never changes while volumes come and go: a page
//! begins after an id, whether or not that one still exists. So a walk sees everything that was
//! there all the time exactly once. Whoever lists concludes from what is missing that it is gone, so a
//! pool that is away makes the call fail as soon as the page reaches it; it is never left out.

use crate::{backend::Core, medium::Medium, pool::Pool, record::SnapshotRecord, statics};
use larder_model::{
    Fault, Native, PoolName, Result, VolumeId,
    volume::{Listed, Page, Snapshot, Volume},
};

impl<M: Medium> Core<M> {
    pub(crate) fn list_volumes(&self, page: &Page) -> Result<Listed<Volume>> {
        self.walk(None, page, |pool, after, max| {
            let created = pool.catalog().page(after, max, None)?;
            let mut entries: Vec<_> =
                created.into_iter().map(|(native, record)| pool.entry(native, record)).collect();
            let last = (entries.len() == max)
                .then(|| entries.last().map(|entry| entry.id.native().clone()))
                .flatten();
            let mut statics = statics::names(&*self.medium, pool)?;
            statics.retain(|native| {
                after.is_none_or(|after| native > after)
                    && last.as_ref().is_none_or(|last| native < last)
                    && !pool.catalog().contains(crate::layout::Shelf::Volumes, native)
            });
            // As many as can be read: a page that comes back short would be taken for the last one.
            let found = statics.into_iter().filter_map(|native| {
                statics::find(&*self.medium, pool, &native).unwrap_or_else(|fault| {
                    tracing::warn!("leave a static volume out of a list: {fault}");
                    None
                })
            });
            entries.extend(found.take(max));
            entries.sort_by(|a, b| a.id.native().cmp(b.id.native()));
            entries.truncate(max);
            Ok(entries.iter().map(|entry| self.describe(entry)).collect())
        })
    }

    pub(crate) fn list_snapshots(
        &self,
        source: Option<&VolumeId>,
        page: &Page,
    ) -> Result<Listed<Snapshot>> {
        self.walk(source.map(|source| source.pool()), page, |pool, after, max| {
            let cut_from = source.map(|source| source.native());
            let found = pool.catalog().page::<SnapshotRecord>(after, max, cut_from)?;
            let describe =
                |(native, record)| self.describe_snapshot(&pool.snapshot_entry(native, record));
            Ok(found.into_iter().map(describe).collect())
        })
    }

    /// Collects one item more than asked for, to know whether there are more; from pool `only` where
    /// given.
    fn walk<T>(
        &self,
        only: Option<&PoolName>,
        page: &Page,
        list: impl Fn(&Pool, Option<&Native>, usize) -> Result<Vec<T>>,
    ) -> Result<Listed<T>> {
        let wanted = page.max.map_or(usize::MAX, |max| max.saturating_add(1));
        let mut items = Vec::new();
        for name in self.places.names_by_id() {
            if only.is_some_and(|only| only != name) {
                continue;
            }
            if items.len() >= wanted {
                break;
            }
            let prefix = format!("{name}/");
            let after = match page.after.as_deref() {
                Some(after) => match after.strip_prefix(&prefix) {
                    Some(native) => match native.parse::<Native>() {
                        Ok(native) => Some(native),
                        Err(_) => return Err(not_ours(after)),
                    },
                    None if after > prefix.as_str() => continue,
                    None => None,
                },
                None => None,
            };
            let pool = self.places.get(name).map_err(|fault| fault.during("list all there is"))?;
            let found = list(&pool, after.as_ref(), wanted - items.len());
            items.extend(found.map_err(|fault| pool.explain(fault))?);
        }
        let more = items.len() == wanted;
        if more {
            items.truncate(wanted - 1);
        }
        Ok(Listed { items, more })
    }
}

fn not_ours(token: &str) -> Fault {
    Fault::aborted(format!("continue a list after {}", larder_model::id::quoted(token)))
        .hint("begin again without a token")
}
