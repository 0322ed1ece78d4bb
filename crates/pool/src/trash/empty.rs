//! Removal for good: what is due, what is asked for, and what stands in the way of something new.

use super::{
    Stop,
    bin::{Taken, is_absent},
    record::{TrashRecord, Watch},
    yielding::{Room, Want},
};
use crate::{
    backend::Core,
    layout::{DELETING, TRASH},
    medium::Medium,
    pool::Pool,
    recover,
};
use larder_host::{clock::Moment, durable};
use larder_model::{Bytes, Cx, Fault, Period, PoolName, Result, trash::Removed};
use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Weak},
    time::Duration,
};

/// How long a stop waits for the emptier, which goes on where it was at the next start.
const STOP_WITHIN: Duration = Duration::from_secs(5);

impl<M: Medium> Core<M> {
    /// Removes something in the trash for good.
    pub(super) fn expunge(&self, pool: &Pool, taken: &Taken<'_>, cx: &Cx) -> Result<()> {
        pool.refuse_read_only()?;
        let folder = taken.folder();
        let grave = pool.path().join(DELETING).join(taken.record.folder());
        taken.refuse_another()?;
        let _removal = pool.bin().removal();
        cx.step("take it from the trash for good")?;
        pool.while_current(|| match std::fs::rename(&folder, &grave) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && is_absent(&folder) => {
                if pool.still_there() {
                    return Ok(());
                }
                Err(Fault::unavailable(format!("move {} aside", folder.display())).because(e))
            }
            moved => moved.map_err(|e| Fault::io(format!("move {} aside", folder.display()), e)),
        })?;
        taken.gone();
        cx.step("make its removal durable")?;
        durable::sync_dir(&pool.path().join(DELETING))?;
        durable::sync_dir(&pool.path().join(TRASH))?;
        cx.step("remove the trash's record")?;
        taken.forget()?;
        cx.step("remove its data")?;
        recover::bury(&*self.medium, pool, &grave, cx)
    }

    pub(super) fn remove_from_trash(&self, id: &str, cx: &Cx) -> Result<()> {
        let Some(pool) = self.pool_with(id)? else { return Ok(()) };
        let remove = || match pool.take_from_trash(id)? {
            Some(taken) => self.expunge(&pool, &taken, cx),
            None => Ok(()),
        };
        remove().map_err(|fault| pool.explain(fault).during(format!("remove {id} for good")))
    }

    pub(super) fn empty_trash(&self, older_than: Option<Period>, cx: &Cx) -> Result<Removed> {
        let least = older_than.map_or(Duration::ZERO, Period::as_duration);
        let mut removed = Removed::default();
        // One thing that cannot be removed, or a pool that is away, keeps no other from going.
        let mut first = None;
        for name in self.places.names() {
            let old = |record: &TrashRecord, now: &Moment| record.age(now) >= least;
            let part = self.places.get(name).and_then(|pool| {
                self.empty_pool(&pool, old, cx, |record, fault| {
                    if fault.is_simulated_crash() {
                        return Err(fault);
                    }
                    let fault = pool.explain(fault).during(format!("remove {}", record.id));
                    first.get_or_insert(fault);
                    Ok(())
                })
            });
            match part {
                Ok(part) => {
                    removed.count += part.count;
                    removed.allocated = removed.allocated.saturating_add(part.allocated);
                }
                Err(fault) if fault.is_simulated_crash() => return Err(fault),
                Err(fault) => {
                    first.get_or_insert(fault);
                }
            }
        }
        let so_far = removed.count;
        let told = |fault: Fault| {
            Err(fault.during(format!("empty the trash ({so_far} things are removed)")))
        };
        first.map_or(Ok(removed), told)
    }

    /// Removes those that are `old`, the oldest first. `failed` says whether to go on after one could
    /// not be removed.
    fn empty_pool(
        &self,
        pool: &Pool,
        old: impl Fn(&TrashRecord, &Moment) -> bool,
        cx: &Cx,
        mut failed: impl FnMut(&TrashRecord, Fault) -> Result<()>,
    ) -> Result<Removed> {
        let now = Moment::now();
        let mut removed = Removed::default();
        for record in pool.bin().all(&now).into_iter().filter(|record| old(record, &now)) {
            if pool.stopping().is_told() {
                break;
            }
            let work = || match pool.take_from_trash(&record.id)? {
                Some(taken) => self.expunge(pool, &taken, cx).map(|()| true),
                None => Ok(false),
            };
            match work() {
                Ok(true) => {
                    removed.count += 1;
                    removed.allocated = removed.allocated.saturating_add(record.allocated);
                }
                Ok(false) => {}
                Err(fault) => failed(&record, fault)?,
            }
        }
        Ok(removed)
    }

    /// What the emptier does each time: removes what is due, and what the reserve needs.
    fn tend(&self, name: &PoolName, watch: &mut Watch, said: &mut HashSet<String>) -> Result<()> {
        let Some(retention) = self.places.config(name).and_then(|config| config.trash) else {
            return Ok(());
        };
        let now = Moment::now();
        let clock = watch.look(&now, retention);
        let pool = self.places.get(name)?;
        if pool.is_read_only() {
            return Ok(());
        }
        let cx = Cx::new();
        let old = |record: &TrashRecord, now: &Moment| record.is_due(retention, now, &clock);
        let removed = self.empty_pool(&pool, old, &cx, |record, fault| {
            if !pool.stopping().is_told() && said.insert(record.id.clone()) {
                tracing::warn!(pool = %pool.name(), "{fault}; it is tried again");
            }
            Ok(())
        })?;
        if removed.count > 0 {
            tracing::info!(pool = %name, "removed {} from the trash, deleted {retention} ago", removed.count);
        }
        let reserve = pool.config().reserve;
        // What gave nothing, or not yet, is waited for until the next time.
        while reserve > Bytes::ZERO
            && !pool.stopping().is_told()
            && pool.host().filesystems.usage(pool.path())?.available < reserve
            && self.make_room(&pool, Want::Reserve(reserve), None, &cx)?
                == (Room::Made { helped: true })
        {}
        Ok(())
    }
}

/// The thread that removes what is due. It holds neither pool nor lock while it waits, and ends when it
/// is dropped.
pub(crate) struct Emptier {
    stop: Arc<Stop>,
    ended: Arc<Stop>,
}

impl Emptier {
    /// Starts it; None where no pool has a trash.
    pub(crate) fn start<M: Medium>(core: &Arc<Core<M>>) -> Result<Option<Self>> {
        let configs = core.places.names().filter_map(|name| core.places.config(name));
        let Some(shortest) = configs.filter_map(|config| config.trash).min() else {
            return Ok(None);
        };
        let every = (shortest.as_duration() / 10)
            .clamp(Duration::from_millis(100), Duration::from_secs(60));
        let (stop, ended) = (Arc::<Stop>::default(), Arc::<Stop>::default());
        let (core, told, over) = (Arc::downgrade(core), stop.clone(), ended.clone());
        std::thread::Builder::new()
            .name("larder-trash".to_owned())
            .spawn(move || {
                run(&core, &told, every);
                over.tell();
            })
            .map_err(|e| Fault::internal("start the emptier of the trash").because(e))?;
        Ok(Some(Self { stop, ended }))
    }

    /// Tells it to stop.
    pub(crate) fn tell(&self) {
        self.stop.tell();
    }

    /// Waits until it has stopped, for a while.
    pub(crate) fn wait(&self) {
        if !self.ended.wait(STOP_WITHIN) {
            tracing::warn!("the trash is still being emptied; the next start goes on with it");
        }
    }
}

impl Drop for Emptier {
    fn drop(&mut self) {
        self.tell();
    }
}

fn run<M: Medium>(core: &Weak<Core<M>>, stop: &Stop, every: Duration) {
    let mut watches: BTreeMap<PoolName, Watch> = BTreeMap::new();
    let mut said = HashSet::new();
    loop {
        let Some(core) = core.upgrade() else { return };
        let names: Vec<_> = core.places.names().cloned().collect();
        for name in names {
            if stop.is_told() {
                return;
            }
            let watch = watches.entry(name.clone()).or_default();
            if let Err(fault) = core.tend(&name, watch, &mut said) {
                tracing::debug!(pool = %name, "leave the trash as it is for now: {fault}");
            }
        }
        drop(core);
        if stop.wait(every) {
            return;
        }
    }
}
