//! One rate limiter for everything that a process asks of the API server.
//!
//! Requests wait in lanes: what a person waits for goes before what is tried again, and that before
//! what may come late (events, capacity). Within a lane it is first come, first served.
//!
//! There is no task behind it: one of those who wait hands out the tokens until it has its own.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

/// What goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// Leases: late ones stop everything.
    Urgent,
    /// Work on what has just changed.
    #[default]
    Fresh,
    /// Work that failed before.
    Retry,
    /// What may come late.
    Background,
}

const LANES: usize = 4;

/// Tokens, and who waits for them.
#[derive(Debug)]
pub(super) struct Limiter {
    per_second: f64,
    burst: f64,
    state: Mutex<State>,
    /// Held by the one who hands out.
    hand_out: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    tokens: f64,
    at: Instant,
    lanes: [VecDeque<oneshot::Sender<()>>; LANES],
}

impl Limiter {
    pub(super) fn new(per_second: f64, burst: u32) -> Self {
        let burst = f64::from(burst.max(1));
        let state = State { tokens: burst, at: Instant::now(), lanes: Default::default() };
        Self {
            per_second: per_second.max(0.001),
            burst,
            state: Mutex::new(state),
            hand_out: tokio::sync::Mutex::default(),
        }
    }

    /// Waits for its turn.
    pub(super) async fn turn(&self, priority: Priority) {
        let mut mine = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            self.fill(&mut state);
            if state.tokens >= 1.0 && state.lanes.iter().all(VecDeque::is_empty) {
                state.tokens -= 1.0;
                return;
            }
            let (sender, mine) = oneshot::channel();
            state.lanes[priority as usize].push_back(sender);
            mine
        };
        tokio::select! {
            biased;
            _ = &mut mine => {}
            _role = self.hand_out.lock() => loop {
                let wait = self.give();
                tokio::select! {
                    biased;
                    _ = &mut mine => return,
                    () = tokio::time::sleep(wait) => {}
                }
            },
        }
    }

    /// Gives what there is to those who wait; returns how long until there is more.
    fn give(&self) -> Duration {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.fill(&mut state);
        while state.tokens >= 1.0 {
            let Some(next) = state.lanes.iter_mut().find_map(VecDeque::pop_front) else { break };
            // Who has given up in the meantime takes no token.
            if next.send(()).is_ok() {
                state.tokens -= 1.0;
            }
        }
        Duration::from_secs_f64(((1.0 - state.tokens).max(0.0) / self.per_second).min(60.0))
    }

    fn fill(&self, state: &mut State) {
        let now = Instant::now();
        let passed = now.saturating_duration_since(state.at).as_secs_f64();
        state.tokens = (state.tokens + passed * self.per_second).min(self.burst);
        state.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_the_rest_comes_at_the_rate() {
        let limiter = Limiter::new(10.0, 5);
        let start = Instant::now();
        for _ in 0..5 {
            limiter.turn(Priority::Fresh).await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        for _ in 0..10 {
            limiter.turn(Priority::Fresh).await;
        }
        let passed = start.elapsed();
        assert!((950..=1100).contains(&passed.as_millis()), "{passed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_urgent_overtake_those_who_can_wait() {
        let limiter = Arc::new(Limiter::new(10.0, 1));
        limiter.turn(Priority::Fresh).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let tasks = tokio_util::task::TaskTracker::new();
        for (i, priority) in [
            Priority::Background,
            Priority::Background,
            Priority::Retry,
            Priority::Fresh,
            Priority::Urgent,
        ]
        .into_iter()
        .enumerate()
        {
            let (limiter, order) = (limiter.clone(), order.clone());
            tasks.spawn(async move {
                limiter.turn(priority).await;
                order.lock().unwrap().push(i);
            });
            tokio::task::yield_now().await;
        }
        tasks.close();
        tasks.wait().await;
        assert_eq!(*order.lock().unwrap(), [4, 3, 2, 0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_gives_up_takes_nothing_and_holds_up_nobody() {
        let limiter = Arc::new(Limiter::new(10.0, 1));
        limiter.turn(Priority::Fresh).await;
        let gone =
            tokio::time::timeout(Duration::from_millis(1), limiter.turn(Priority::Urgent)).await;
        assert!(gone.is_err());
        let start = Instant::now();
        limiter.turn(Priority::Background).await;
        assert!(start.elapsed() <= Duration::from_millis(101), "{:?}", start.elapsed());
    }
}
