//! The context of one running operation.
//!
//! A [`Cx`] travels with an operation through engine and backend. [`Cx::step`] names what comes
//! next; the name is shown to whoever asks what is going on (an `ABORTED` answer, `larder why`),
//! and each step boundary is a *crash point*: tests end the operation there as `kill -9` would, for
//! every step in turn, and prove that the next call mends everything. [`Cx::undoing`] runs steps
//! whose effects are taken back, in reverse, when a later one fails.

use crate::fault::Result;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// The context of one running operation. Cheap to clone; clones share everything.
#[derive(Clone, Default)]
pub struct Cx(Arc<Shared>);

#[derive(Default)]
struct Shared {
    step: Mutex<&'static str>,
    done: AtomicU64,
    total: AtomicU64,
    #[cfg(feature = "crash-points")]
    crash: crash::Plan,
}

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The step it is in; empty before the first.
    pub step: &'static str,
    /// Units (bytes, for copies) done in this step.
    pub done: u64,
    /// Units in all; 0 when unknown.
    pub total: u64,
}

impl Cx {
    /// A context for a new operation. With the feature `crash-points`, the environment variable
    /// `LARDER_CRASH_AT=N` kills the process with SIGKILL at its N-th step from start-up on.
    pub fn new() -> Self {
        #[cfg(feature = "crash-points")]
        {
            Self(Arc::new(Shared { crash: crash::Plan::from_env(), ..Shared::default() }))
        }
        #[cfg(not(feature = "crash-points"))]
        Self::default()
    }

    /// Begins the step `name` (a verb phrase: "write the volume's record").
    ///
    /// # Errors
    /// Only in tests: a simulated crash, after which nothing may be cleaned up. Pass it on with `?`.
    pub fn step(&self, name: &'static str) -> Result<()> {
        *self.0.step.lock().unwrap_or_else(PoisonError::into_inner) = name;
        self.0.done.store(0, Ordering::Relaxed);
        self.0.total.store(0, Ordering::Relaxed);
        #[cfg(feature = "crash-points")]
        self.0.crash.reach(name)?;
        Ok(())
    }

    /// Says how much this step has to do, in bytes or items.
    pub fn expect(&self, total: u64) {
        self.0.total.store(total, Ordering::Relaxed);
    }

    /// Says that `n` more are done.
    pub fn advance(&self, n: u64) {
        self.0.done.fetch_add(n, Ordering::Relaxed);
    }

    /// How far the operation is.
    pub fn progress(&self) -> Progress {
        Progress {
            step: *self.0.step.lock().unwrap_or_else(PoisonError::into_inner),
            done: self.0.done.load(Ordering::Relaxed),
            total: self.0.total.load(Ordering::Relaxed),
        }
    }

    /// Runs `work`; when it fails, takes back what it had registered with [`Undo::push`], last
    /// first. A failing undo does not stop the others; it is told in the fault.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn undoing<T, F>(&self, work: F) -> Result<T>
    where
        F: AsyncFnOnce(&mut Undo) -> Result<T>,
    {
        let mut undo = Undo { actions: Vec::new() };
        match work(&mut undo).await {
            Ok(value) => Ok(value),
            Err(fault) if fault.is_simulated_crash() => Err(fault),
            Err(mut fault) => {
                for (what, action) in undo.actions.into_iter().rev() {
                    if let Err(second) = action.await {
                        fault = fault.during(format!("(and could not {what}: {second})"));
                    }
                }
                Err(fault)
            }
        }
    }
}

impl fmt::Debug for Cx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cx").field(&self.progress()).finish()
    }
}

/// What to take back when a later step fails.
pub struct Undo {
    actions: Vec<(&'static str, Action)>,
}

type Action = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

impl Undo {
    /// Registers how to take back the step that was just done. `what` fits after "could not".
    pub fn push(
        &mut self,
        what: &'static str,
        action: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        self.actions.push((what, Box::pin(action)));
    }
}

impl fmt::Debug for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.actions.iter().map(|(what, _)| what)).finish()
    }
}

#[cfg(feature = "crash-points")]
pub mod crash {
    //! Crash points, for tests. A [`Plan`] counts the steps of the operations that share it.

    use super::{Arc, AtomicU64, Mutex, Ordering, PoisonError, Result, Shared};
    use crate::fault::Fault;
    use std::sync::atomic::AtomicBool;

    /// When to crash. The default never does.
    #[derive(Clone, Default)]
    pub(super) struct Plan(Option<Arc<Counter>>);

    #[derive(Default)]
    struct Counter {
        reached: AtomicU64,
        at: u64,
        kill: bool,
        names: Mutex<Vec<&'static str>>,
        meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
        goes_on: AtomicBool,
    }

    impl Plan {
        pub(super) fn from_env() -> Self {
            static PROCESS: std::sync::OnceLock<Plan> = std::sync::OnceLock::new();
            PROCESS
                .get_or_init(|| {
                    let at = std::env::var("LARDER_CRASH_AT").ok().and_then(|n| n.parse().ok());
                    Plan(at.map(|at| Arc::new(Counter { at, kill: true, ..Counter::default() })))
                })
                .clone()
        }

        pub(super) fn reach(&self, name: &'static str) -> Result<()> {
            let Some(counter) = &self.0 else { return Ok(()) };
            let n = counter.reached.fetch_add(1, Ordering::SeqCst) + 1;
            counter.names.lock().unwrap_or_else(PoisonError::into_inner).push(name);
            if counter.at == 0 || n < counter.at {
                return Ok(());
            }
            if n == counter.at {
                let meanwhile =
                    counter.meanwhile.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(meanwhile) = meanwhile {
                    meanwhile();
                    counter.goes_on.store(true, Ordering::SeqCst);
                }
            }
            if counter.goes_on.load(Ordering::SeqCst) {
                return Ok(());
            }
            if counter.kill {
                // The crash must be as hard as the real one: no destructor, no handler.
                let me = rustix::process::getpid();
                let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
            }
            Err(Fault::simulated_crash(name))
        }
    }

    /// A test's handle on a plan.
    #[derive(Clone, Default)]
    pub struct CrashAt(Plan);

    impl std::fmt::Debug for CrashAt {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_tuple("CrashAt").field(&self.steps()).finish()
        }
    }

    impl CrashAt {
        /// Crashes at the `n`-th step (counted from 1) and at every later one; 0 only counts.
        pub fn step(n: u64) -> Self {
            Self(Plan(Some(Arc::new(Counter { at: n, ..Counter::default() }))))
        }
        /// Crashes nowhere: before the `n`-th step `work` is done, on the thread that reached it, as
        /// another process might while this one is slow. Never reached: never done.
        pub fn meanwhile(n: u64, work: impl FnOnce() + Send + 'static) -> Self {
            let meanwhile = Mutex::new(Some(Box::new(work) as Box<dyn FnOnce() + Send>));
            Self(Plan(Some(Arc::new(Counter { at: n, meanwhile, ..Counter::default() }))))
        }
        /// A context that follows this plan.
        pub fn cx(&self) -> super::Cx {
            super::Cx(Arc::new(Shared { crash: self.0.clone(), ..Shared::default() }))
        }
        /// The steps that were reached so far.
        pub fn steps(&self) -> Vec<&'static str> {
            let names =
                self.0.0.as_ref().map(|c| c.names.lock().unwrap_or_else(PoisonError::into_inner));
            names.map(|n| n.clone()).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Fault;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        loop {
            if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
        }
    }

    #[test]
    fn a_failed_operation_is_taken_back_in_reverse() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let cx = Cx::new();
        let result: Result<()> = block_on(cx.undoing(async |undo| {
            for n in 1..=2 {
                let log = log.clone();
                undo.push("remove it", async move {
                    log.lock().unwrap().push(n);
                    Ok(())
                });
            }
            Err(Fault::internal("make the third"))
        }));
        assert_eq!(result.unwrap_err().what(), "make the third");
        assert_eq!(*log.lock().unwrap(), [2, 1]);
    }

    #[cfg(feature = "crash-points")]
    #[test]
    fn nothing_is_taken_back_after_a_crash() {
        let plan = crash::CrashAt::step(2);
        let cx = plan.cx();
        let result: Result<()> = block_on(cx.undoing(async |undo| {
            cx.step("one")?;
            undo.push("never", async { panic!("a dead process cannot clean up") });
            cx.step("two")?;
            Ok(())
        }));
        assert!(result.unwrap_err().is_simulated_crash());
        assert_eq!(plan.steps(), ["one", "two"]);
    }
}
