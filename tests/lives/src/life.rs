//! One life of a volume, with all that belongs to it: what happens in which order is drawn from the
//! seed and the number of the life.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use tonic::Code;

use crate::{
    caller::{Caller, Use},
    data::Random,
    ledger::{Event, Ledger, State},
    marks::Marks,
    place::Place,
};

const MIB: i64 = 1 << 20;

/// The ledger that many lives write to.
#[derive(Debug, Default)]
pub struct Book {
    ledger: Mutex<Ledger>,
    marks: Option<Mutex<Marks>>,
}

impl Book {
    /// A ledger whose events are marked on a disk, too.
    #[must_use]
    pub fn marked(marks: Marks) -> Self {
        Self { ledger: Mutex::default(), marks: Some(Mutex::new(marks)) }
    }

    /// What was told so far.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often it was told something.
    pub fn len(&self) -> usize {
        self.ledger().len
    }

    /// Whether it was told nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells it something.
    pub fn note(&self, event: &Event) -> Result<()> {
        // The order of marks is the order of events of each life; between lives it is free.
        self.ledger().note(event)?;
        let Some(marks) = &self.marks else { return Ok(()) };
        marks.lock().unwrap_or_else(PoisonError::into_inner).write(event)
    }
}

/// Where lives are lived.
#[derive(Debug)]
pub struct World {
    /// Who is called.
    pub caller: Caller,
    /// What is told.
    pub book: Book,
    /// A folder for staging and targets.
    pub folder: PathBuf,
    /// Volumes are images with a file system, or raw devices; else folders.
    pub images: bool,
    /// The pool has a trash.
    pub trash: bool,
    /// A mounted ext4 can be grown (that takes a capability).
    pub grows_ext4: bool,
    /// What is drawn from.
    pub seed: u64,
}

/// Lives that life; with an error it says what was not as it must be.
pub async fn live(world: &World, number: u64) -> Result<()> {
    let life = Life::new(world, number);
    let context = || format!("life {number} with seed {}", world.seed);
    life.run().await.with_context(context)
}

/// A volume, and where it is used.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// What for.
    pub usage: Use,
    /// Its size.
    pub bytes: i64,
    /// Where it is staged.
    pub staging: PathBuf,
    /// Where it is published.
    pub target: PathBuf,
}

impl World {
    /// The volume of that name, in this world's folder.
    pub fn volume(&self, name: &str, usage: Use, bytes: i64) -> Volume {
        Volume {
            name: name.to_owned(),
            usage,
            bytes,
            staging: self.folder.join("staging").join(name),
            target: self.folder.join("pods").join(name),
        }
    }

    /// Stages and publishes it, as kubelet does: the staging path is there before.
    pub async fn put_to_use(&self, volume: &Volume) -> Result<()> {
        std::fs::create_dir_all(&volume.staging)?;
        std::fs::create_dir_all(self.folder.join("pods"))?;
        self.caller.stage(&volume.name, volume.usage, &volume.staging).await?;
        self.publish(volume).await
    }

    async fn publish(&self, volume: &Volume) -> Result<()> {
        self.caller.publish(&volume.name, volume.usage, &volume.staging, &volume.target).await
    }

    /// Unpublishes and unstages it, and removes what kubelet made for it.
    pub async fn take_back(&self, volume: &Volume) -> Result<()> {
        self.caller.unpublish(&volume.name, &volume.target).await?;
        self.caller.unstage(&volume.name, &volume.staging).await?;
        // Larder leaves the folder to kubelet.
        match std::fs::remove_dir(&volume.staging) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{} is not empty", volume.staging.display()))
            }
            _ => Ok(()),
        }
    }

    /// Everything that must be in it is in it.
    pub async fn verify(&self, volume: &Volume) -> Result<()> {
        let files = self.book.ledger().thing(&volume.name)?.files.clone();
        let verified = Place(volume.target.clone()).verify(files).await;
        verified.with_context(|| format!("volume {}", volume.name))
    }
}

struct Life<'a> {
    world: &'a World,
    number: u64,
    random: Mutex<Random>,
}

impl Life<'_> {
    fn new(world: &World, number: u64) -> Life<'_> {
        let mut random = Random::new(world.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random.draw();
        Life { world, number, random: Mutex::new(random) }
    }

    fn below(&self, end: u64) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).below(end)
    }

    fn note(&self, event: &Event) -> Result<()> {
        self.world.book.note(event)
    }

    /// The name of its `n`-th thing.
    fn name(&self, kind: &str, n: u64) -> String {
        format!("{kind}{}-{n}", self.number)
    }

    async fn run(&self) -> Result<()> {
        let (world, caller) = (self.world, &self.world.caller);
        let (usage, bytes) = match self.below(8) {
            _ if !world.images => (Use::Folder, 64 * MIB),
            0 | 1 => (Use::Block, 64 * MIB),
            2 | 3 => (Use::Xfs, 320 * MIB),
            _ => (Use::Ext4, 64 * MIB),
        };
        let mut volume = world.volume(&self.name("v", 0), usage, bytes);
        let mut next = 0;
        caller.create(&volume.name, bytes, usage, None).await?;
        self.made(&volume, None)?;
        world.put_to_use(&volume).await?;
        self.write(&volume, &mut next).await?;

        let mut snapshots: Vec<String> = Vec::new();
        let mut child: Option<Volume> = None;
        let mut group: Option<(String, Vec<String>)> = None;
        for n in 1..=3 + self.below(5) {
            match self.below(10) {
                0 => self.write(&volume, &mut next).await?,
                1 | 2 if snapshots.len() < 2 => {
                    let snapshot = self.name("s", n);
                    caller.cut(&snapshot, &volume.name).await?;
                    let of = volume.name.clone();
                    self.note(&Event::Cut { snapshot: snapshot.clone(), volume: of })?;
                    snapshots.push(snapshot);
                    self.write(&volume, &mut next).await?;
                }
                3 | 4 if child.is_none() => {
                    let from = snapshots.last().map(String::as_str);
                    let made = self.copy(&self.name("c", n), &volume, from).await?;
                    self.write(&made, &mut next).await?;
                    child = Some(made);
                }
                5 => self.expand(&mut volume).await?,
                6 => {
                    caller.unpublish(&volume.name, &volume.target).await?;
                    ensure!(!volume.target.exists(), "{} is left", volume.target.display());
                    world.publish(&volume).await?;
                }
                7 => {
                    world.take_back(&volume).await?;
                    world.put_to_use(&volume).await?;
                }
                8 if group.is_none() && world.images && usage != Use::Block => {
                    let mut of = vec![volume.name.as_str()];
                    of.extend(child.as_ref().map(|child| child.name.as_str()));
                    let name = self.name("g", n);
                    let members = caller.group(&name, &of).await?;
                    let names = members.iter().map(|(snapshot, _)| snapshot.clone()).collect();
                    self.note(&Event::Grouped { group: name.clone(), members })?;
                    group = Some((name, names));
                    self.write(&volume, &mut next).await?;
                }
                9 => {
                    if let Some(snapshot) = snapshots.pop() {
                        self.remove_snapshot(&snapshot).await?;
                        let comes_back = world.trash && self.below(2) == 0;
                        if comes_back && self.restore(&snapshot).await? {
                            snapshots.push(snapshot);
                        }
                    }
                }
                _ => self.write(&volume, &mut next).await?,
            }
            world.verify(&volume).await?;
        }
        self.end(volume, child, snapshots, group).await
    }

    /// A copy is checked from each kind of source; then everything goes.
    async fn end(
        &self,
        volume: Volume,
        child: Option<Volume>,
        snapshots: Vec<String>,
        group: Option<(String, Vec<String>)>,
    ) -> Result<()> {
        let (world, caller) = (self.world, &self.world.caller);
        let member = group.as_ref().and_then(|(_, members)| members.first());
        for (n, from) in snapshots.iter().chain(member).enumerate() {
            let check = self.copy(&self.name("r", n as u64), &volume, Some(from)).await?;
            world.take_back(&check).await?;
            self.remove_volume(&check).await?;
        }
        if let Some(child) = &child {
            world.verify(child).await?;
            world.take_back(child).await?;
            self.remove_volume(child).await?;
        }
        for snapshot in &snapshots {
            self.remove_snapshot(snapshot).await?;
        }
        if let Some((name, members)) = &group {
            self.note(&Event::Removing(name.clone()))?;
            caller.remove_group(name, members).await?;
            self.note(&Event::Removed(name.clone()))?;
        }
        world.verify(&volume).await?;
        world.take_back(&volume).await?;
        self.remove_volume(&volume).await?;
        if !world.trash {
            return Ok(());
        }
        if self.below(3) == 0 && self.restore(&volume.name).await? {
            world.put_to_use(&volume).await?;
            world.verify(&volume).await?;
            world.take_back(&volume).await?;
            self.remove_volume(&volume).await?;
        }
        self.empty_own_trash().await
    }

    fn made(&self, volume: &Volume, from: Option<&str>) -> Result<()> {
        self.note(&Event::Made {
            volume: volume.name.clone(),
            bytes: volume.bytes,
            usage: volume.usage,
            from: from.map(str::to_owned),
        })
    }

    async fn write(&self, volume: &Volume, next: &mut u64) -> Result<()> {
        let file = self.name("f", *next);
        *next += 1;
        Place(volume.target.clone()).write(&file).await?;
        self.note(&Event::Wrote { volume: volume.name.clone(), file })
    }

    /// A copy of the volume, or of a snapshot of it, in use and with everything in it.
    async fn copy(&self, name: &str, of: &Volume, snapshot: Option<&str>) -> Result<Volume> {
        let copy = self.world.volume(name, of.usage, of.bytes);
        let from = (snapshot.unwrap_or(&of.name), snapshot.is_some());
        self.world.caller.create(name, of.bytes, of.usage, Some(from)).await?;
        self.made(&copy, Some(from.0))?;
        self.world.put_to_use(&copy).await?;
        self.world.verify(&copy).await?;
        Ok(copy)
    }

    async fn expand(&self, volume: &mut Volume) -> Result<()> {
        if volume.usage == Use::Ext4 && !self.world.grows_ext4 {
            return Ok(());
        }
        let bytes = volume.bytes + 32 * MIB;
        let caller = &self.world.caller;
        if caller.expand(&volume.name, bytes).await? {
            let (staging, target) = (&volume.staging, &volume.target);
            caller.expand_on_node(&volume.name, volume.usage, staging, target).await?;
        }
        volume.bytes = bytes;
        self.note(&Event::Grew { volume: volume.name.clone(), bytes })
    }

    async fn remove_volume(&self, volume: &Volume) -> Result<()> {
        self.note(&Event::Removing(volume.name.clone()))?;
        self.world.caller.remove_volume(&volume.name).await?;
        self.note(&Event::Removed(volume.name.clone()))
    }

    async fn remove_snapshot(&self, name: &str) -> Result<()> {
        self.note(&Event::Removing(name.to_owned()))?;
        self.world.caller.remove_snapshot(name).await?;
        self.note(&Event::Removed(name.to_owned()))
    }

    /// Puts it back from the trash.
    async fn restore(&self, name: &str) -> Result<bool> {
        let trash = self.world.caller.trash().await?;
        let Some((_, id)) = trash.iter().find(|(origin, _)| origin == name) else {
            anyhow::bail!("{name} was deleted and is not in the trash: {trash:?}");
        };
        self.note(&Event::Restoring(name.to_owned()))?;
        match self.world.caller.restore(id).await {
            // The answer of a former attempt was lost.
            Err(status) if status.code() == Code::NotFound => {}
            other => other?,
        }
        self.note(&Event::Restored(name.to_owned()))?;
        Ok(true)
    }

    async fn empty_own_trash(&self) -> Result<()> {
        let own: BTreeSet<_> = {
            let ledger = self.world.book.ledger();
            let mut own = ledger.named(State::Removed, true);
            own.extend(ledger.named(State::Removed, false));
            let mine = |name: &String| {
                let number = name.trim_start_matches(char::is_alphabetic).split('-').next();
                number == Some(&self.number.to_string())
            };
            own.into_iter().filter(mine).collect()
        };
        let trash = self.world.caller.trash().await?;
        for name in own {
            let found: Vec<_> = trash.iter().filter(|(origin, _)| *origin == name).collect();
            ensure!(!found.is_empty(), "{name} was deleted and is not in the trash: {trash:?}");
            self.note(&Event::Dropping(name.clone()))?;
            for (_, id) in found {
                self.world.caller.drop_trash(id).await?;
            }
            self.note(&Event::Dropped(name))?;
        }
        Ok(())
    }
}
