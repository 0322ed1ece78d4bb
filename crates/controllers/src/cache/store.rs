//! The objects of one kind.

use crate::api::{Key, Object};
use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
};
use tokio::sync::watch;

/// Deletions that are remembered: until the watch has told of them, an answer that was on its way
/// must not bring the object back.
const REMEMBERED: usize = 4096;

/// What has changed.
#[derive(Debug, Clone)]
pub struct Change<T> {
    /// Before; None: it is new.
    pub old: Option<Arc<T>>,
    /// Now; None: it is gone.
    pub new: Option<Arc<T>>,
}

impl<T: Object> Change<T> {
    /// The object in its last known state.
    pub fn object(&self) -> Option<&Arc<T>> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

/// What of an object it is found by.
pub type Index<T> = (&'static str, fn(&T) -> Vec<String>);

type Tell<T> = Box<dyn Fn(&Change<T>) + Send + Sync>;

/// Who hears of changes, as long as there is somebody.
struct Listener<T> {
    owner: Weak<dyn Any + Send + Sync>,
    tell: Tell<T>,
}

/// The objects of one kind. Cheap to clone; clones share everything.
pub struct Store<T>(Arc<Inner<T>>);

impl<T> Clone for Store<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> std::fmt::Debug for Store<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

struct Inner<T> {
    indexes: Vec<Index<T>>,
    state: RwLock<State<T>>,
    /// Held while a change is made and told of, so that changes of one object are told in order.
    telling: Mutex<()>,
    listeners: RwLock<Vec<Listener<T>>>,
    listed: watch::Sender<bool>,
}

struct State<T> {
    objects: HashMap<Key, Arc<T>>,
    indexes: Vec<BTreeMap<String, BTreeSet<Key>>>,
    /// Up to which version an object is known to be gone.
    gone: HashMap<Key, u64>,
    gone_order: VecDeque<Key>,
}

impl<T: Object> Store<T> {
    /// An empty one.
    pub fn new(indexes: &[Index<T>]) -> Self {
        let state = State {
            objects: HashMap::new(),
            indexes: vec![BTreeMap::new(); indexes.len()],
            gone: HashMap::new(),
            gone_order: VecDeque::new(),
        };
        Self(Arc::new(Inner {
            indexes: indexes.to_vec(),
            state: RwLock::new(state),
            telling: Mutex::new(()),
            listeners: RwLock::default(),
            listed: watch::Sender::new(false),
        }))
    }

    /// An object.
    pub fn get(&self, key: &Key) -> Option<Arc<T>> {
        self.read(|state| state.objects.get(key).cloned())
    }

    /// The objects that have `value` in the index of that name.
    pub fn by(&self, index: &'static str, value: &str) -> Vec<Arc<T>> {
        let Some(at) = self.0.indexes.iter().position(|(name, _)| *name == index) else {
            return Vec::new();
        };
        self.read(|state| {
            let keys = state.indexes[at].get(value).into_iter().flatten();
            keys.filter_map(|key| state.objects.get(key).cloned()).collect()
        })
    }

    /// All objects, in no order.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.read(|state| state.objects.values().cloned().collect())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.read(|state| state.objects.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `listener` at each change from now on, as long as somebody holds `owner`: a store outlives
    /// a controller that has lost its lease. It only notes what to look at.
    pub fn subscribe<O: Send + Sync + 'static>(
        &self,
        owner: &Arc<O>,
        listener: impl Fn(&Arc<O>, &Change<T>) + Send + Sync + 'static,
    ) {
        let owner = Arc::downgrade(owner);
        let to = owner.clone();
        let tell = Box::new(move |change: &Change<T>| {
            if let Some(owner) = to.upgrade() {
                listener(&owner, change);
            }
        });
        let mut listeners = self.0.listeners.write().unwrap_or_else(PoisonError::into_inner);
        // Those of former terms of leadership.
        listeners.retain(|listener| listener.owner.strong_count() > 0);
        listeners.push(Listener { owner, tell });
    }

    /// Waits until everything was listed once.
    pub async fn ready(&self) {
        // The sender lives as long as the store.
        let _ = self.0.listed.subscribe().wait_for(|listed| *listed).await;
    }

    /// Whether everything was listed once.
    pub fn is_ready(&self) -> bool {
        *self.0.listed.borrow()
    }

    /// An object as it is now, or was: from a watch, or the answer of a write. What is older than
    /// what is known changes nothing.
    pub fn apply(&self, object: T) {
        let (key, version) = (object.key(), object.meta().version());
        self.change(|state| {
            let known = state.objects.get(&key).map_or(0, |o| o.meta().version());
            let gone = state.gone.get(&key).copied().unwrap_or(0);
            if version <= known.max(gone) && version > 0 {
                return None;
            }
            let new = Arc::new(object);
            let old = state.objects.insert(key.clone(), new.clone());
            Some((key, old, Some(new)))
        });
    }

    /// An object is gone, as of that version; 0: as of what is known.
    pub fn remove(&self, key: &Key, version: u64) {
        self.change(|state| {
            let known = state.objects.get(key).map(|o| o.meta().version());
            if version != 0 && known.is_some_and(|known| known > version) {
                return None;
            }
            state.bury(key, version.max(known.unwrap_or(0)));
            let old = state.objects.remove(key)?;
            Some((key.clone(), Some(old), None))
        });
    }

    /// An object is not for us any more, as of that version.
    pub(super) fn leave_out(&self, key: &Key, version: u64) {
        self.change(|state| {
            if state.objects.get(key)?.meta().version() > version {
                return None;
            }
            let old = state.objects.remove(key)?;
            Some((key.clone(), Some(old), None))
        });
    }

    /// Everything was listed as of `version`: what was not among it is gone, unless it is newer.
    ///
    /// `before` is what was told last. An API server whose versions are less was restored from a
    /// backup: what was known is of a history that has not happened, and the list counts, whatever the
    /// versions. A server that is merely behind does not answer so: a list asks for the newest state.
    pub(super) fn listed(&self, list: Vec<T>, version: u64, before: u64) {
        let restored = 0 < version && version < before;
        if restored {
            tracing::warn!(
                kind = T::PLACE.plural,
                "the API server has gone back in time (restored?): everything is taken anew"
            );
            self.forget_versions();
        }
        let mut keys = BTreeSet::new();
        for object in list {
            keys.insert(object.key());
            match restored {
                true => self.replace(object),
                false => self.apply(object),
            }
        }
        let absent: Vec<Key> = self.read(|state| {
            let absent = state.objects.iter().filter(|(key, object)| {
                !keys.contains(*key) && (restored || object.meta().version() <= version)
            });
            absent.map(|(key, _)| key.clone()).collect()
        });
        for key in absent {
            self.remove(&key, if restored { 0 } else { version });
        }
        if restored {
            self.forget_versions();
        }
        self.0.listed.send_replace(true);
    }

    /// An object as it is now, whatever was known.
    fn replace(&self, object: T) {
        let key = object.key();
        self.change(|state| {
            let new = Arc::new(object);
            let old = state.objects.insert(key.clone(), new.clone());
            Some((key, old, Some(new)))
        });
    }

    fn forget_versions(&self) {
        self.write(|state| {
            state.gone.clear();
            state.gone_order.clear();
        });
    }

    fn write(&self, change: impl FnOnce(&mut State<T>)) {
        change(&mut self.0.state.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn read<R>(&self, look: impl FnOnce(&State<T>) -> R) -> R {
        look(&self.0.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(
        &self,
        change: impl FnOnce(&mut State<T>) -> Option<(Key, Option<Arc<T>>, Option<Arc<T>>)>,
    ) {
        let _telling = self.0.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let change = {
            let mut state = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
            let Some((key, old, new)) = change(&mut state) else { return };
            state.index(&self.0.indexes, &key, old.as_deref(), new.as_deref());
            Change { old, new }
        };
        for listener in self.0.listeners.read().unwrap_or_else(PoisonError::into_inner).iter() {
            (listener.tell)(&change);
        }
    }
}

impl<T: Object> State<T> {
    fn index(&mut self, indexes: &[Index<T>], key: &Key, old: Option<&T>, new: Option<&T>) {
        for ((_, values), index) in indexes.iter().zip(&mut self.indexes) {
            for value in old.map(values).unwrap_or_default() {
                if let Some(keys) = index.get_mut(&value) {
                    keys.remove(key);
                    if keys.is_empty() {
                        index.remove(&value);
                    }
                }
            }
            for value in new.map(values).unwrap_or_default() {
                if !value.is_empty() {
                    index.entry(value).or_default().insert(key.clone());
                }
            }
        }
    }

    fn bury(&mut self, key: &Key, version: u64) {
        if self.gone.insert(key.clone(), version).is_none() {
            self.gone_order.push_back(key.clone());
        }
        while self.gone_order.len() > REMEMBERED {
            if let Some(oldest) = self.gone_order.pop_front() {
                self.gone.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Claim;
    use serde_json::json;

    fn claim(name: &str, version: u64, volume: &str) -> Claim {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "a", "uid": name, "resourceVersion": version.to_string()},
            "spec": {"volumeName": volume},
        }))
        .unwrap()
    }

    fn store() -> (Store<Claim>, Arc<Mutex<Vec<String>>>) {
        let store = Store::new(&[("volume", |c: &Claim| vec![c.spec.volume_name.clone()])]);
        let told = Arc::new(Mutex::new(Vec::new()));
        store.subscribe(&told, |log, change| {
            let version = |c: &Option<Arc<Claim>>| {
                c.as_ref().map_or("-".to_owned(), |c| c.metadata.resource_version.clone())
            };
            let text = format!("{}>{}", version(&change.old), version(&change.new));
            log.lock().unwrap().push(text);
        });
        (store, told)
    }

    #[test]
    fn who_is_gone_hears_nothing_and_makes_room_for_the_next() {
        let (store, told) = store();
        for _ in 0..20 {
            store.subscribe(&Arc::new(()), |_, _| panic!("it is gone"));
        }
        store.apply(claim("c", 5, ""));
        assert_eq!(*told.lock().unwrap(), ["->5"]);
        assert!(store.0.listeners.read().unwrap().len() <= 2);
    }

    #[test]
    fn the_newest_version_wins_whoever_tells_it() {
        let (store, told) = store();
        store.apply(claim("c", 5, ""));
        store.apply(claim("c", 9, "v")); // the answer of our own write
        store.apply(claim("c", 7, "")); // the watch, behind
        store.apply(claim("c", 9, "v"));
        let key = Key::new("a", "c");
        assert_eq!(store.get(&key).unwrap().spec.volume_name, "v");
        assert_eq!(*told.lock().unwrap(), ["->5", "5>9"]);
    }

    #[test]
    fn what_is_deleted_does_not_come_back_by_an_answer_that_was_on_its_way() {
        let (store, told) = store();
        let key = Key::new("a", "c");
        store.apply(claim("c", 5, ""));
        store.remove(&key, 8);
        store.apply(claim("c", 6, ""));
        assert_eq!(store.get(&key), None);
        store.apply(claim("c", 12, "")); // another of the same name
        assert!(store.get(&key).is_some());
        store.remove(&key, 8); // told late
        assert!(store.get(&key).is_some());
        assert_eq!(*told.lock().unwrap(), ["->5", "5>-", "->12"]);
    }

    #[test]
    fn a_new_list_removes_what_it_does_not_have_unless_that_is_newer() {
        let (store, _) = store();
        store.apply(claim("old", 5, ""));
        store.apply(claim("kept", 6, ""));
        store.apply(claim("new", 20, "")); // made by us after the list
        assert!(!store.is_ready());
        store.listed(vec![claim("kept", 6, "")], 10, 5);
        assert!(store.is_ready());
        let mut names: Vec<_> = store.all().iter().map(|c| c.metadata.name.clone()).collect();
        names.sort();
        assert_eq!(names, ["kept", "new"]);
    }

    #[test]
    fn after_a_restore_of_the_cluster_its_list_counts_whatever_the_versions() {
        let (store, told) = store();
        store.apply(claim("a", 50, "late"));
        store.apply(claim("b", 60, ""));
        store.apply(claim("c", 70, ""));
        store.remove(&Key::new("a", "c"), 80);
        // Restored to version 40: a is as it was, b is not there yet, and c still is.
        store.listed(vec![claim("a", 20, "early"), claim("c", 30, "")], 40, 80);
        let volume =
            |name: &str| store.get(&Key::new("a", name)).map(|c| c.spec.volume_name.clone());
        assert_eq!(volume("a").as_deref(), Some("early"));
        assert_eq!((volume("b"), volume("c").as_deref()), (None, Some("")));
        assert_eq!(store.by("volume", "early").len(), 1);
        // From there it goes on as ever.
        store.apply(claim("b", 45, ""));
        assert!(volume("b").is_some());
        assert!(told.lock().unwrap().contains(&"50>20".to_owned()));
    }

    #[test]
    fn indexes_follow_the_objects() {
        let (store, _) = store();
        store.apply(claim("a", 1, "v"));
        store.apply(claim("b", 2, "v"));
        assert_eq!(store.by("volume", "v").len(), 2);
        store.apply(claim("a", 3, "w"));
        assert_eq!(store.by("volume", "v")[0].metadata.name, "b");
        store.remove(&Key::new("a", "b"), 0);
        assert!(store.by("volume", "v").is_empty());
        assert_eq!(store.by("volume", "w").len(), 1);
        assert!(store.by("volume", "").is_empty() && store.by("nothing", "v").is_empty());
    }
}
