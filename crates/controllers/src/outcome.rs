//! What an error of a driver means for growing and for changing a volume.
//!
//! | class | the volume | next |
//! |---|---|---|
//! | in progress | may be changed although nobody has heard | the same request until there is an answer |
//! | infeasible | is as before, and stays so | once in a long while, until the request is another |
//! | other | is as before | again; a new request may take the place of this one |

use tonic::Code;

/// A class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// The work may go on.
    InProgress,
    /// It fails each time.
    Infeasible,
    /// It has failed.
    Final,
}

fn in_progress(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unavailable
            | Code::ResourceExhausted
            | Code::Aborted
    )
}

/// Of an error of ControllerExpandVolume.
pub(crate) fn expand(code: Code) -> Class {
    match code {
        code if in_progress(code) => Class::InProgress,
        Code::InvalidArgument | Code::OutOfRange | Code::NotFound => Class::Infeasible,
        _ => Class::Final,
    }
}

/// Of an error of ControllerModifyVolume.
pub(crate) fn modify(code: Code) -> Class {
    match code {
        code if in_progress(code) => Class::InProgress,
        Code::InvalidArgument => Class::Infeasible,
        _ => Class::Final,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Class::{Final, InProgress, Infeasible};

    #[test]
    fn every_code_has_its_class() {
        let rows = [
            (Code::Ok, Final, Final),
            (Code::Cancelled, InProgress, InProgress),
            (Code::Unknown, Final, Final),
            (Code::InvalidArgument, Infeasible, Infeasible),
            (Code::DeadlineExceeded, InProgress, InProgress),
            (Code::NotFound, Infeasible, Final),
            (Code::AlreadyExists, Final, Final),
            (Code::PermissionDenied, Final, Final),
            (Code::ResourceExhausted, InProgress, InProgress),
            (Code::FailedPrecondition, Final, Final),
            (Code::Aborted, InProgress, InProgress),
            (Code::OutOfRange, Infeasible, Final),
            (Code::Unimplemented, Final, Final),
            (Code::Internal, Final, Final),
            (Code::Unavailable, InProgress, InProgress),
            (Code::DataLoss, Final, Final),
            (Code::Unauthenticated, Final, Final),
        ];
        assert_eq!(rows.len(), 17);
        for (code, of_expand, of_modify) in rows {
            assert_eq!(expand(code), of_expand, "growing: {code:?}");
            assert_eq!(modify(code), of_modify, "changing: {code:?}");
        }
    }
}
