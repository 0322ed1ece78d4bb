//! Exit statuses that scripts can use. They are part of the interface: see `larder --help`.

use larder_model::{Fault, Kind};
use std::process::ExitCode;

/// Wrong configuration (EX_USAGE of sysexits.h, as service managers know it).
pub(crate) const CONFIG: u8 = 64;

/// `doctor` found something.
const FOUND: u8 = 8;

/// The status for an error: by the kind of the [`Fault`] in its chain, else 1.
pub(crate) fn code(error: &anyhow::Error) -> ExitCode {
    if error.is::<WrongConfig>() {
        return ExitCode::from(CONFIG);
    }
    if error.is::<Found>() {
        return ExitCode::from(FOUND);
    }
    let fault = error.chain().find_map(|e| e.downcast_ref::<Fault>());
    ExitCode::from(fault.map_or(1, |f| of_kind(f.kind())))
}

fn of_kind(kind: Kind) -> u8 {
    match kind {
        Kind::Internal
        | Kind::Corrupt
        | Kind::Denied
        | Kind::Unauthenticated
        | Kind::Unsupported => 1,
        Kind::Invalid => 2,
        Kind::NotFound => 3,
        Kind::Conflict => 4,
        Kind::Precondition => 5,
        Kind::OutOfRange | Kind::Exhausted => 6,
        Kind::Aborted | Kind::Unavailable | Kind::Deadline => 7,
    }
}

/// The configuration is wrong; the problems were printed.
#[derive(Debug)]
pub(crate) struct WrongConfig(pub String);

impl std::fmt::Display for WrongConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for WrongConfig {}

/// `doctor` found something, which was printed.
#[derive(Debug)]
pub(crate) struct Found;

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("find nothing wrong")
    }
}
impl std::error::Error for Found {}
