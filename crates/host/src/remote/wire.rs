//! What is said through the pipe, one line of JSON at a time.

use larder_model::{Fault, Kind};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A question. Paths are relative to the root of the tree.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Are you there?
    Hello,
    Look {
        path: String,
    },
    IsEmpty {
        path: String,
    },
    Read {
        path: String,
    },
    Names {
        path: String,
    },
    Write {
        path: String,
        text: String,
        new: bool,
    },
    MakeDir {
        path: String,
        mode: u32,
        above: u32,
    },
    SetMode {
        path: String,
        mode: u32,
    },
    Rename {
        from: String,
        to: String,
    },
    RemoveFile {
        path: String,
    },
    RemoveDir {
        path: String,
    },
    RemoveTree {
        path: String,
    },
    CopyTree {
        from: String,
        to: String,
    },
    Usage,
}

impl Ask {
    /// For people, after "failed to".
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Hello => "wake a helper".to_owned(),
            Self::Look { path } => format!("look at {path}"),
            Self::Read { path } => format!("read {path}"),
            Self::Names { path } | Self::IsEmpty { path } => format!("list {path}"),
            Self::Write { path, .. } => format!("write {path}"),
            Self::MakeDir { path, .. } => format!("make directory {path}"),
            Self::SetMode { path, .. } => format!("set the permissions of {path}"),
            Self::Rename { from, to } => format!("rename {from} to {to}"),
            Self::RemoveFile { path } | Self::RemoveDir { path } => format!("remove {path}"),
            Self::RemoveTree { path } => format!("remove {path} and all in it"),
            Self::CopyTree { from, to } => format!("copy {from} to {to}"),
            Self::Usage => "tell the free space".to_owned(),
        }
    }
}

/// What comes back.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// Done, with what was found.
    Done(Value),
    /// It failed.
    Failed(Told),
    /// Still at it; so many more things are done.
    Going(u64),
}

/// A fault as text.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    kind: String,
    what: String,
    hint: Option<String>,
    errno: Option<i32>,
    cause: Option<String>,
}

const KINDS: [Kind; 14] = [
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

impl From<&Fault> for Told {
    fn from(fault: &Fault) -> Self {
        Self {
            kind: format!("{:?}", fault.kind()),
            what: fault.what().to_owned(),
            hint: fault.hint_text().map(str::to_owned),
            errno: fault.os_error(),
            cause: fault.cause().map(ToString::to_string),
        }
    }
}

impl From<Told> for Fault {
    fn from(told: Told) -> Self {
        let kind = KINDS.into_iter().find(|kind| format!("{kind:?}") == told.kind);
        let fault = match (told.errno, told.cause) {
            (Some(code), _) => Self::io(told.what, std::io::Error::from_raw_os_error(code)),
            (None, Some(cause)) => Self::internal(told.what).because(std::io::Error::other(cause)),
            (None, None) => Self::internal(told.what),
        };
        let fault = fault.with_kind(kind.unwrap_or(Kind::Internal));
        match told.hint {
            Some(hint) => fault.hint(hint),
            None => fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_the_same_on_the_other_side_of_the_pipe() {
        let full = Fault::io("write x", std::io::Error::from_raw_os_error(libc::ENOSPC));
        let faults = KINDS.map(|kind| Fault::new(kind, "do it").hint("do that"));
        for fault in faults.into_iter().chain([full]) {
            let text = serde_json::to_string(&Told::from(&fault)).unwrap();
            let back = Fault::from(serde_json::from_str::<Told>(&text).unwrap());
            assert_eq!(back.kind(), fault.kind());
            assert_eq!(back.to_string(), fault.to_string());
            assert_eq!(back.is_no_room(), fault.is_no_room());
        }
    }
}
