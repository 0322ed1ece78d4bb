//! The one place where a fault becomes a gRPC status.
//!
//! Callers of CSI steer by the code, so each [`Kind`] is exactly one (the table is in
//! docs/semantics.md). The message is the fault's whole line, because CSI wants readable text for
//! anything but OK and Kubernetes shows it in events; the details stay empty, because CSI says so.

use larder_model::{Fault, Kind};
use tonic::{Code, Status};

/// The code of a kind.
pub fn code(kind: Kind) -> Code {
    match kind {
        Kind::Invalid => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::Conflict => Code::AlreadyExists,
        Kind::Aborted => Code::Aborted,
        Kind::Precondition => Code::FailedPrecondition,
        Kind::OutOfRange => Code::OutOfRange,
        Kind::Exhausted => Code::ResourceExhausted,
        Kind::Denied => Code::PermissionDenied,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::Unavailable => Code::Unavailable,
        Kind::Deadline => Code::DeadlineExceeded,
        Kind::Unsupported => Code::Unimplemented,
        Kind::Corrupt => Code::DataLoss,
        Kind::Internal => Code::Internal,
    }
}

/// The kind that a driver's code means to us. The inverse of [`code`]; what has no kind of its own
/// goes to the nearest.
pub fn kind(code: Code) -> Kind {
    match code {
        Code::InvalidArgument => Kind::Invalid,
        Code::NotFound => Kind::NotFound,
        Code::AlreadyExists => Kind::Conflict,
        Code::Aborted => Kind::Aborted,
        Code::FailedPrecondition => Kind::Precondition,
        Code::OutOfRange => Kind::OutOfRange,
        Code::ResourceExhausted => Kind::Exhausted,
        Code::PermissionDenied => Kind::Denied,
        Code::Unauthenticated => Kind::Unauthenticated,
        Code::Unavailable => Kind::Unavailable,
        Code::DeadlineExceeded | Code::Cancelled => Kind::Deadline,
        Code::Unimplemented => Kind::Unsupported,
        Code::DataLoss => Kind::Corrupt,
        Code::Ok | Code::Unknown | Code::Internal => Kind::Internal,
    }
}

/// An error as gRPC for Go writes it: people search for that.
pub fn text(status: &Status) -> String {
    format!("rpc error: code = {} desc = {}", name(status.code()), status.message())
}

/// The code as Go spells it, and dashboards know it.
pub fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// Headers hold a status, and HTTP/2 peers bound them (Go's gRPC takes 16 MiB, others 8 KiB); three
/// quarters of what a percent-encoded message of this length can grow to stays below the latter.
const LONGEST: usize = 2048;

/// The status that tells a caller of `fault`.
pub fn status(fault: &Fault) -> Status {
    let mut message = fault.to_string();
    if message.trim().is_empty() {
        message = format!("{:?}", fault.kind()).to_lowercase();
    }
    if message.len() > LONGEST {
        message.truncate(message.floor_char_boundary(LONGEST));
        message.push('…');
    }
    Status::new(code(fault.kind()), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind; the match below fails to compile when one is added.
    pub(crate) const KINDS: [Kind; 14] = [
        Kind::Invalid,
        Kind::NotFound,
        Kind::Conflict,
        Kind::Aborted,
        Kind::Precondition,
        Kind::OutOfRange,
        Kind::Exhausted,
        Kind::Denied,
        Kind::Unauthenticated,
        Kind::Unavailable,
        Kind::Deadline,
        Kind::Unsupported,
        Kind::Corrupt,
        Kind::Internal,
    ];

    #[test]
    fn every_kind_has_a_code_of_its_own_and_comes_back_from_it() {
        for k in KINDS {
            assert_eq!(kind(code(k)), k);
            assert!(!matches!(code(k), Code::Ok | Code::Unknown | Code::Cancelled), "{k:?}");
        }
    }

    #[test]
    fn a_status_tells_the_whole_fault_and_nothing_in_its_details() {
        let fault = Fault::exhausted("make volume default/a")
            .because(std::io::Error::other("no space"))
            .hint("free some");
        let status = status(&fault);
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), "make volume default/a: no space (hint: free some)");
        assert!(status.details().is_empty());
    }

    #[test]
    fn a_message_is_never_empty_and_never_endless() {
        assert_eq!(status(&Fault::not_found("")).message(), "notfound");
        let long = status(&Fault::internal("ä".repeat(100_000)));
        assert!(long.message().len() <= LONGEST + "…".len());
        assert!(long.message().ends_with('…'));
    }
}
