//! What a failure means for what comes next.
//!
//! | state | the volume | next |
//! |---|---|---|
//! | finished | does not come to be of that call | again, as long as the claim is there |
//! | in background | may come to be | again, also when the claim is gone, until an answer is final |
//! | no change | as before: nothing was asked | again |
//! | reschedule | cannot come to be on that node | the scheduler chooses another |

use larder_model::Fault;
use tonic::{Code, Status};

/// What is known of the volume after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It does not come to be.
    Finished,
    /// It may come to be although nobody waits.
    InBackground,
    /// Nothing is known that was not known before.
    NoChange,
    /// It cannot come to be there.
    Reschedule,
}

/// Why a volume was not made.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What is known of the volume.
    pub state: State,
    /// It fails each time until somebody changes something: asked for seldom.
    pub infeasible: bool,
    /// For the event.
    pub message: String,
}

impl Failure {
    /// A request that cannot be made.
    pub fn finished(fault: &Fault) -> Self {
        Self { state: State::Finished, infeasible: false, message: fault.to_string() }
    }
    /// Something else must happen first.
    pub fn no_change(fault: &Fault) -> Self {
        Self { state: State::NoChange, infeasible: false, message: fault.to_string() }
    }
    /// Another node is needed.
    pub fn reschedule(fault: &Fault) -> Self {
        Self { state: State::Reschedule, infeasible: false, message: fault.to_string() }
    }
    /// CreateVolume said no. `elsewhere`: topology is in use, and a node was chosen.
    pub fn of_driver(status: &Status, elsewhere: bool) -> Self {
        Self {
            state: state(status.code(), elsewhere),
            infeasible: status.code() == Code::InvalidArgument,
            message: format!("failed to provision volume: {}", larder_csi::status::text(status)),
        }
    }
}

fn state(code: Code, elsewhere: bool) -> State {
    match code {
        Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::Aborted => {
            State::InBackground
        }
        Code::ResourceExhausted if elsewhere => State::Reschedule,
        _ => State::Finished,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use State::{Finished, InBackground, Reschedule};

    #[test]
    fn every_code_has_its_state() {
        let rows = [
            (Code::Ok, Finished, Finished),
            (Code::Cancelled, InBackground, InBackground),
            (Code::Unknown, Finished, Finished),
            (Code::InvalidArgument, Finished, Finished),
            (Code::DeadlineExceeded, InBackground, InBackground),
            (Code::NotFound, Finished, Finished),
            (Code::AlreadyExists, Finished, Finished),
            (Code::PermissionDenied, Finished, Finished),
            (Code::ResourceExhausted, Finished, Reschedule),
            (Code::FailedPrecondition, Finished, Finished),
            (Code::Aborted, InBackground, InBackground),
            (Code::OutOfRange, Finished, Finished),
            (Code::Unimplemented, Finished, Finished),
            (Code::Internal, Finished, Finished),
            (Code::Unavailable, InBackground, InBackground),
            (Code::DataLoss, Finished, Finished),
            (Code::Unauthenticated, Finished, Finished),
        ];
        for (code, here, elsewhere) in rows {
            assert_eq!(state(code, false), here, "{code:?}");
            assert_eq!(state(code, true), elsewhere, "{code:?} with a chosen node");
            let failure = Failure::of_driver(&Status::new(code, "why"), false);
            assert_eq!(failure.infeasible, code == Code::InvalidArgument);
        }
        assert_eq!(rows.len(), 17);
    }

    #[test]
    fn the_event_names_the_code_and_the_drivers_words() {
        let failure = Failure::of_driver(&Status::resource_exhausted("pool full"), false);
        let wanted =
            "failed to provision volume: rpc error: code = ResourceExhausted desc = pool full";
        assert_eq!(failure.message, wanted);
    }
}
