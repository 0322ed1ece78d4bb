//! Whether calls are let in.
//!
//! ```text
//!   Starting ──start──▶ Ready ──shutdown──▶ Stopping ──nothing runs──▶ Stopped
//!      │  ▲ start again                        ▲
//!      └─▶ Failed ─────────────────────────────┘
//! ```
//! While it stops, a driver still lets calls in: equal repeats join running operations and readers
//! are answered; new operations are refused by the engines. Once it has stopped its pools belong to
//! a successor, and nothing is let in.

use larder_model::{Fault, Kind, Result};
use tokio::sync::watch;

/// What a driver is doing.
#[derive(Debug, Clone, Default)]
pub enum State {
    /// Its backend is starting: waiting for a predecessor, mending what it left.
    #[default]
    Starting,
    /// It serves.
    Ready,
    /// Its backend could not start, and why.
    Failed(Fault),
    /// It finishes what is running and takes on nothing new.
    Stopping,
    /// It is done.
    Stopped,
}

impl State {
    /// Where a state stands in the life of a driver, which has one direction.
    fn age(&self) -> u8 {
        match self {
            Self::Starting | Self::Ready | Self::Failed(_) => 0,
            Self::Stopping => 1,
            Self::Stopped => 2,
        }
    }
}

/// The state, watched by whoever likes.
#[derive(Debug, Default)]
pub(crate) struct Gate(watch::Sender<State>);

impl Gate {
    pub(crate) fn set(&self, state: State) {
        self.0.send_if_modified(|now| {
            let change = state.age() >= now.age();
            if change {
                *now = state;
            }
            change
        });
    }

    pub(crate) fn state(&self) -> State {
        self.0.borrow().clone()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.0.subscribe()
    }

    /// # Errors
    /// `Unavailable` while the driver is not ready to work.
    pub(crate) fn check(&self) -> Result<()> {
        match &*self.0.borrow() {
            State::Ready | State::Stopping => Ok(()),
            State::Starting => {
                Err(Fault::unavailable("take the call: the driver is still starting")
                    .hint("wait until Probe says that it is ready, and repeat the call"))
            }
            State::Stopped => Err(Fault::unavailable("take the call: the driver has stopped")
                .hint("its successor takes the call")),
            State::Failed(fault) => Err(fault
                .clone()
                .with_kind(Kind::Unavailable)
                .during("take the call: the driver could not start")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_wait_outside_until_the_driver_has_started() {
        let gate = Gate::default();
        let fault = gate.check().unwrap_err();
        assert_eq!(fault.kind(), Kind::Unavailable);
        assert!(fault.hint_text().is_some());
        gate.set(State::Failed(Fault::precondition("find volume group data")));
        let fault = gate.check().unwrap_err();
        assert_eq!(fault.kind(), Kind::Unavailable);
        assert!(fault.to_string().contains("find volume group data"), "{fault}");
        gate.set(State::Ready);
        gate.check().unwrap();
    }

    #[test]
    fn a_stopping_driver_lets_repeats_in_and_never_becomes_ready_again() {
        let gate = Gate::default();
        gate.set(State::Stopping);
        gate.set(State::Ready);
        assert!(matches!(gate.state(), State::Stopping));
        gate.check().unwrap();
        gate.set(State::Stopped);
        gate.set(State::Stopping);
        assert_eq!(gate.check().unwrap_err().kind(), Kind::Unavailable);
    }
}
