//! A real driver, and what it does to be compared with the model.

use crate::{
    Batch, End,
    call::{Call, Caller, RAW, Told},
    order::{Event, explain, told},
    state::{Is, State},
    support::{Server, Site, leaks},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tonic::{Code, Status};

pub(crate) struct World {
    site: Site,
    server: Server,
    caller: Caller,
    /// All that may be: one state, until something is killed.
    states: BTreeSet<State>,
    /// The last thing written.
    token: u64,
}

impl World {
    pub(crate) async fn new(backend: &'static str, fs: &str) -> Self {
        let site = Site::in_memory(backend, fs);
        for volume in 0..=RAW {
            std::fs::create_dir_all(site.path(&format!("staging-{volume}"))).unwrap();
        }
        std::fs::create_dir_all(site.path("pods")).unwrap();
        let mut server = site.server();
        assert!(server.ready().await);
        let mut caller = Caller {
            client: server.client.clone(),
            folder: site.dir.path().to_owned(),
            raw: backend == "loop",
            contexts: [BTreeMap::new(), BTreeMap::new()],
        };
        caller.learn().await;
        Self {
            site,
            server,
            caller,
            states: BTreeSet::from([State::new(backend == "loop")]),
            token: 0,
        }
    }

    /// Runs the batch's tasks at once and compares what they were told, and what there is then.
    pub(crate) async fn live(&mut self, batch: &Batch) -> Result<(), String> {
        let events = self.run(batch).await;
        self.judge(&events)?;
        match batch.end {
            End::Goes => {}
            End::Restarts => {
                if !self.server.stop().success() {
                    return Err("the driver did not stop in peace".to_owned());
                }
                self.start().await;
            }
            End::Dies(_) => self.start().await,
        }
        self.look().await?;
        self.read()?;
        if batch.write { self.write() } else { Ok(()) }
    }

    async fn start(&mut self) {
        self.server = self.site.server();
        assert!(self.server.ready().await, "the driver does not start again");
        self.caller.client = self.server.client.clone();
    }

    async fn run(&mut self, batch: &Batch) -> Vec<Event> {
        let killed = Arc::new(AtomicBool::new(false));
        let tasks: Vec<_> = batch.tasks.iter().cloned().enumerate().collect();
        let running: Vec<_> = tasks
            .into_iter()
            .map(|(n, calls)| {
                let (caller, killed) = (self.caller.clone(), killed.clone());
                tokio::spawn(async move { run_task(n, calls, &caller, &killed).await })
            })
            .collect();
        if let End::Dies(after) = batch.end {
            tokio::time::sleep(Duration::from_millis(after)).await;
            killed.store(true, Ordering::SeqCst);
            self.server.kill();
        }
        let mut events = Vec::new();
        for task in running {
            events.extend(task.await.unwrap());
        }
        events
    }

    /// Keeps the states that explain the calls.
    fn judge(&mut self, events: &[Event]) -> Result<(), String> {
        self.states = explain(&self.states, events).map_err(|why| {
            let before: Vec<_> = self.states.iter().take(3).collect();
            let log = self.log();
            format!("{why}\n{}before: {before:#?}\nthe driver's log ends:\n{log}", told(events))
        })?;
        Ok(())
    }

    fn log(&self) -> String {
        let log = std::fs::read_to_string(self.site.config().with_extension("log"));
        let log = log.unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Compares what is listed, and every volume by itself.
    async fn look(&mut self) -> Result<(), String> {
        let mut calls = vec![Call::Volumes, Call::Snapshots];
        calls.extend((0..=RAW).map(Call::Get));
        let never = AtomicBool::new(false);
        let events = run_task(0, calls, &self.caller, &never).await;
        self.judge(&events)
    }

    /// What is mounted for certain.
    fn mounted(&self) -> Vec<(u8, u8)> {
        let places = (0..=RAW).flat_map(|volume| [(volume, 0), (volume, 1)]);
        let whole = |state: &State, (volume, target): (u8, u8)| {
            let known = state.volumes.get(&volume);
            known.is_some_and(|known| known.targets[usize::from(target)] == Is::Whole)
        };
        places.filter(|place| self.states.iter().all(|state| whole(state, *place))).collect()
    }

    /// Compares the data of everything that is mounted.
    fn read(&mut self) -> Result<(), String> {
        for (volume, target) in self.mounted() {
            let place = self.caller.target(volume, target);
            let data = self.caller.read(&place, volume);
            let data = data.map_err(|e| format!("volume {volume} at target {target}: {e}"))?;
            let may = |state: &State| state.volumes.get(&volume).is_some_and(|v| v.data == data);
            if !self.states.iter().any(may) {
                let all = &self.states;
                return Err(format!("volume {volume} holds {data} at target {target}: {all:#?}"));
            }
            self.states.retain(may);
            let stack = larder_host::Host::real().mounts.mounts_at(&place).unwrap();
            if stack.len() != 1 {
                return Err(format!("{} mounts at {}", stack.len(), place.display()));
            }
        }
        Ok(())
    }

    /// Writes something new to all that is mounted.
    fn write(&mut self) -> Result<(), String> {
        for (volume, target) in self.mounted() {
            self.token += 1;
            let place = self.caller.target(volume, target);
            let written = self.caller.write(&place, volume, self.token);
            written.map_err(|e| format!("write to volume {volume}: {e}"))?;
            let states = std::mem::take(&mut self.states).into_iter();
            let write = |mut state: State| {
                state.volumes.get_mut(&volume).into_iter().for_each(|v| v.data = self.token);
                state
            };
            self.states = states.map(write).collect();
        }
        Ok(())
    }

    /// Takes everything down, which must go without a refusal, and looks for what is left.
    pub(crate) async fn end(&mut self) -> Result<(), String> {
        let mut calls = Vec::new();
        for volume in 0..=RAW {
            calls.extend([0, 1].map(|target| Call::Unpublish { volume, target }));
            calls.push(Call::Unstage(volume));
            calls.push(Call::Delete(volume));
        }
        calls.extend([0, 1].map(Call::DeleteSnapshot));
        let never = AtomicBool::new(false);
        let mut events = run_task(0, calls, &self.caller, &never).await;
        // One of them is right, or there is no group.
        let groups = [false, true].map(|both| Call::DeleteGroup { both }).to_vec();
        events.extend(run_task(0, groups, &self.caller, &never).await);
        self.judge(&events)?;
        self.look().await?;
        if !self.states.iter().any(State::is_empty) {
            return Err(format!("something stays: {:#?}", self.states));
        }
        if !self.server.stop().success() {
            return Err("the driver did not stop in peace".to_owned());
        }
        let left = leaks::find(self.site.dir.path(), self.site.pool.path());
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("left behind: {left:#?}\n{}", self.log()))
        }
    }
}

/// How long a test beside this one may keep what it got when it made a mount namespace of its own.
const NEIGHBOURS: Duration = Duration::from_secs(60);

/// Such a namespace holds a copy of every mount. The driver is right to delete nothing then.
fn is_of_a_neighbour(call: &Call, answer: &Result<Told, Status>) -> bool {
    let elsewhere = |status: &Status| {
        status.code() == Code::FailedPrecondition && status.message().contains("(as process")
    };
    matches!(call, Call::Delete(_)) && answer.as_ref().is_err_and(elsewhere)
}

/// One task: a call after the other, until the driver is killed.
async fn run_task(
    task: usize,
    calls: Vec<Call>,
    caller: &Caller,
    killed: &AtomicBool,
) -> Vec<Event> {
    let mut events = Vec::new();
    for call in calls {
        let began = Instant::now();
        let mut answer = caller.call(&call).await;
        while began.elapsed() < NEIGHBOURS && is_of_a_neighbour(&call, &answer) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            answer = caller.call(&call).await;
        }
        let ended = Instant::now();
        let lost = killed.load(Ordering::SeqCst)
            && answer.as_ref().is_err_and(|status| status.code() == Code::Unavailable);
        let text = answer.as_ref().err().map(|s| s.message().to_owned()).unwrap_or_default();
        let answer = (!lost).then(|| answer.map_err(|status| status.code()));
        events.push(Event { task, call, began, ended, answer, text });
        if lost {
            break;
        }
    }
    events
}
