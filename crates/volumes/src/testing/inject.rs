//! What a test does to a method's next call.

use larder_model::{Fault, Result};
use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Semaphore;

/// What a call meets.
#[derive(Debug, Clone)]
pub enum Inject {
    /// It fails and has no effect.
    Fail(Fault),
    /// It has its effect, and then fails.
    LoseAnswer(Fault),
    /// It panics before it has an effect.
    Panic,
    /// It takes that much longer.
    Sleep(Duration),
    /// It waits for a permit.
    Hold(Arc<Semaphore>),
}

/// What is to be met, and what was called.
#[derive(Debug, Default)]
pub(super) struct Injections(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    queues: HashMap<&'static str, VecDeque<Inject>>,
    calls: HashMap<&'static str, usize>,
}

impl Injections {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, method: &'static str, what: Inject) {
        self.inner().queues.entry(method).or_default().push_back(what);
    }

    pub(super) fn calls(&self, method: &str) -> usize {
        self.inner().calls.get(method).copied().unwrap_or(0)
    }

    /// Runs the body of `method`, with whatever was injected.
    pub(super) async fn call<T>(
        &self,
        method: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let next = {
            let mut inner = self.inner();
            *inner.calls.entry(method).or_default() += 1;
            inner.queues.get_mut(method).and_then(VecDeque::pop_front)
        };
        match next {
            None => work.await,
            Some(Inject::Fail(fault)) => Err(fault),
            Some(Inject::LoseAnswer(fault)) => {
                work.await?;
                Err(fault)
            }
            #[allow(clippy::panic, reason = "the test asked for it")]
            Some(Inject::Panic) => panic!("a test asked {method} to panic"),
            Some(Inject::Sleep(time)) => {
                tokio::time::sleep(time).await;
                work.await
            }
            Some(Inject::Hold(gate)) => {
                let _open = gate.acquire().await;
                work.await
            }
        }
    }
}
