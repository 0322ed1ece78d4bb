//! The configured pools: which are open, which are away, and opening them again.

use crate::{
    config::PoolConfig,
    medium::Medium,
    owner::OwnerNote,
    pool::{Opener, Opening, Pool, answers},
    recover,
};
use larder_host::Host;
use larder_model::{Cx, Fault, Kind, PoolName, Result};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use uuid::Uuid;

/// How often a start looks whether the predecessor has let go, and how often it says so.
const HANDOVER_POLL: Duration = Duration::from_millis(50);
const HANDOVER_LOG: Duration = Duration::from_secs(5);

pub(crate) struct Places<M> {
    medium: Arc<M>,
    host: Host,
    note: OwnerNote,
    places: BTreeMap<PoolName, Place>,
}

struct Place {
    config: PoolConfig,
    state: Mutex<State>,
    /// Held while the pool is opened, so that it is opened once.
    opening: Mutex<()>,
}

struct State {
    /// The last opening. Kept, with its lock, while the pool is away.
    pool: Option<Pool>,
    /// The id it had when it was first opened by this process.
    known: Option<Uuid>,
    /// Between start and stop calls may open it again.
    serving: bool,
    /// Why it cannot be used now.
    away: Option<Fault>,
}

impl Place {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Medium> Places<M> {
    pub(crate) fn new(
        medium: Arc<M>,
        host: Host,
        note: OwnerNote,
        pools: BTreeMap<PoolName, PoolConfig>,
    ) -> Result<Self> {
        let mut places = BTreeMap::new();
        for (name, config) in pools {
            config.check().map_err(|fault| fault.during(format!("pool {name}")))?;
            let twin = places.iter().find(|(_, p): &(_, &Place)| p.config.path == config.path);
            if let Some((twin, _)) = twin {
                return Err(Fault::invalid(format!(
                    "use {} for the pools {twin} and {name}: each needs its own directory",
                    config.path.display()
                )));
            }
            let away = Fault::unavailable(format!("use pool {name}: the driver is starting"));
            let state =
                Mutex::new(State { pool: None, known: None, serving: false, away: Some(away) });
            places.insert(name, Place { config, state, opening: Mutex::new(()) });
        }
        Ok(Self { medium, host, note, places })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &PoolName> {
        self.places.keys()
    }

    pub(crate) fn config(&self, name: &PoolName) -> Option<&PoolConfig> {
        self.places.get(name).map(|place| &place.config)
    }

    /// In the order of the ids of their volumes: `a-b/…` comes before `a/…`.
    pub(crate) fn names_by_id(&self) -> Vec<&PoolName> {
        let mut names: Vec<_> = self.places.keys().collect();
        names.sort_by_cached_key(|name| format!("{name}/"));
        names
    }

    /// The pool, proven to be there; opened again when it is back.
    ///
    /// # Errors
    /// `Unavailable`: not configured, away, owned by another process.
    pub(crate) fn get(&self, name: &PoolName) -> Result<Pool> {
        let place = self.places.get(name).ok_or_else(|| {
            let names: Vec<_> = self.places.keys().map(PoolName::as_str).collect();
            Fault::unavailable(format!("use pool {name}: it is not configured here"))
                .hint(format!("configured are: {}", names.join(", ")))
        })?;
        // Before any lock is waited for: its holder may hang in the same dead server.
        answers(&self.host, name, &place.config.path)?;
        if let Some(pool) = current(place) {
            return Ok(pool);
        }
        let _once = place.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = current(place) {
            return Ok(pool);
        }
        {
            let state = place.state();
            // Neither before the start (which waits for the predecessor) nor after the stop.
            if let (false, Some(fault)) = (state.serving, &state.away) {
                return Err(fault.clone());
            }
        }
        match self.open(name, place, false, &Cx::new()) {
            Ok(Opening::Open(pool)) => Ok(pool),
            Ok(Opening::Busy(note)) => {
                let fault = Fault::unavailable(format!(
                    "use pool {name}: {} owns it",
                    note.unwrap_or_default()
                ));
                place.state().away = Some(fault.clone());
                Err(fault.hint("stop that process, or talk to it"))
            }
            Err(fault) => Err(fault),
        }
    }

    /// Whether the pool can be used, as far as that is known without waiting for anybody.
    ///
    /// # Errors
    /// As [`Places::get`].
    pub(crate) fn known(&self, name: &PoolName) -> Result<()> {
        let Some(place) = self.places.get(name) else { return self.get(name).map(drop) };
        match self.host.filesystems.last_answer(&place.config.path) {
            // It is of a kind that answers.
            None => self.get(name).map(drop),
            Some(Err(fault)) => Err(fault.during(format!("use pool {name}"))),
            Some(Ok(())) if place.state().away.is_none() => Ok(()),
            // Perhaps it is back.
            Some(Ok(())) => self.get(name).map(drop),
        }
    }

    /// One pool under two names (a symlink, a bind mount, a copy of its directory): each volume
    /// would have two ids.
    fn refuse_second(&self, name: &PoolName, id: Uuid) -> Result<()> {
        let same = |place: &Place| place.state().pool.as_ref().is_some_and(|pool| pool.id() == id);
        match self.places.iter().find(|(other, place)| *other != name && same(place)) {
            None => Ok(()),
            Some((other, _)) => Err(Fault::unavailable(format!(
                "use pool {name}: it is the same as pool {other} (id {id})"
            ))
            .hint("configure it once; a copy of a pool needs an id of its own")),
        }
    }

    /// One attempt to open; notes the outcome in the place.
    fn open(&self, name: &PoolName, place: &Place, create: bool, cx: &Cx) -> Result<Opening> {
        let known = place.state().known;
        let opener = Opener {
            medium: &*self.medium,
            host: &self.host,
            note: &self.note,
            name,
            config: &place.config,
        };
        let attempt = || -> Result<Opening> {
            answers(&self.host, name, &place.config.path)?;
            let (identity, file) = opener.prove(known, create)?;
            self.refuse_second(name, identity.id)?;
            let former = place.state().pool.clone();
            if let Some(former) = former {
                if former.accept(file) {
                    return Ok(Opening::Open(former));
                }
                former.retire();
                place.state().pool = None;
            }
            let opening = opener.open(identity, file)?;
            if let Opening::Open(pool) = &opening {
                recover::begin(&self.medium, pool, cx)?;
            }
            Ok(opening)
        };
        match attempt() {
            Ok(opening) => {
                if let Opening::Open(pool) = &opening {
                    let mut state = place.state();
                    if state.known.is_some() && state.away.is_some() {
                        tracing::info!(pool = %name, "the pool is back");
                    }
                    state.known = Some(pool.id());
                    state.pool = Some(pool.clone());
                    state.away = None;
                }
                Ok(opening)
            }
            Err(fault) => {
                if fault.is_simulated_crash() {
                    return Err(fault);
                }
                let fault = fault.with_kind(Kind::Unavailable);
                let mut state = place.state();
                if state.away.as_ref().map(Fault::to_string) != Some(fault.to_string()) {
                    tracing::warn!(pool = %name, "{fault}");
                }
                state.away = Some(fault.clone());
                Err(fault)
            }
        }
    }

    /// One attempt of the start to open a pool: `Some(owner)` while another process has it.
    fn try_start(&self, name: &PoolName, cx: &Cx) -> Result<Option<OwnerNote>> {
        let Some(place) = self.places.get(name) else { return Ok(None) };
        let _once = place.opening.lock().unwrap_or_else(PoisonError::into_inner);
        match self.open(name, place, place.config.create, cx) {
            Ok(Opening::Busy(note)) => return Ok(Some(note.unwrap_or_default())),
            Err(fault) if fault.is_simulated_crash() => return Err(fault),
            // What is away now is opened by the first call after it came back.
            Ok(Opening::Open(_)) | Err(_) => {}
        }
        place.state().serving = true;
        Ok(None)
    }

    /// Opens every pool, waiting for predecessors to let go.
    pub(crate) async fn start(self: &Arc<Self>, cx: &Cx) -> Result<()> {
        let names: Vec<_> = self.names().cloned().collect();
        for name in names {
            let begun = Instant::now();
            let mut said: Option<Instant> = None;
            loop {
                let (this, pool, cx) = (self.clone(), name.clone(), cx.clone());
                let attempt = larder_host::blocking(move || this.try_start(&pool, &cx));
                let Some(owner) = attempt.await? else { break };
                if said.is_none_or(|said| said.elapsed() >= HANDOVER_LOG) {
                    said = Some(Instant::now());
                    let waited = begun.elapsed().as_secs();
                    tracing::info!(pool = %name, "waiting for {owner} to let go ({waited} s)");
                }
                tokio::time::sleep(HANDOVER_POLL).await;
            }
        }
        Ok(())
    }

    /// Tells what works in the background that it shall end.
    pub(crate) fn tell_to_stop(&self) {
        for place in self.places.values() {
            if let Some(pool) = &place.state().pool {
                pool.stopping().tell();
            }
        }
    }

    /// Lets go of every pool. An operation that is still running keeps its pool's lock to its end.
    pub(crate) fn stop(&self) {
        for (name, place) in &self.places {
            let answers = answers(&self.host, name, &place.config.path).is_ok();
            // What hangs there keeps its lock until it ends, or this process does.
            let _once =
                answers.then(|| place.opening.lock().unwrap_or_else(PoisonError::into_inner));
            let mut state = place.state();
            if let Some(pool) = state.pool.take()
                && answers
            {
                pool.close();
            }
            state.serving = false;
            state.away =
                Some(Fault::unavailable(format!("use pool {name}: the driver is stopping")));
        }
    }
}

/// The open pool, when it is still there.
fn current(place: &Place) -> Option<Pool> {
    let pool = {
        let state = place.state();
        state.pool.clone()?
    };
    if !pool.still_there() {
        return None;
    }
    let mut state = place.state();
    if state.pool.is_some() && state.away.take().is_some() {
        tracing::info!(pool = %pool.name(), "the pool is back");
    }
    state.pool.is_some().then_some(pool)
}
