//! Which directory is whose.
//!
//! Templates give any name, so two volumes could get one directory, or one within another's: deleting the
//! one would delete the other. So every directory that is a volume's has a twin under `.larder/places`,
//! with a file in it that says whose it is.
//!
//! ```text
//! .larder/places/team/data/.volume   "pvc-1": team/data is pvc-1's
//! ```
//! A directory is free when neither it nor any above it is a volume's, and nothing is below its twin.

use crate::place::{HOLDER, OURS, SubDir};
use larder_host::remote::Visit;
use larder_model::{Fault, Kind, Native, Result};

fn twin(directory: &str) -> String {
    format!("{OURS}/places/{directory}")
}

fn file(directory: &str) -> String {
    format!("{}/{HOLDER}", twin(directory))
}

/// Whose the directory is.
pub(crate) fn holder(visit: &Visit, directory: &SubDir) -> Result<Option<String>> {
    Ok(visit.read(&file(directory.as_str()))?.map(|text| text.trim().to_owned()))
}

/// Makes `directory` the volume's. Repeated: it is.
///
/// # Errors
/// `Precondition` when it, one above it or one below it is another volume's.
pub(crate) fn claim(visit: &Visit, directory: &SubDir, native: &Native) -> Result<()> {
    let taken = |what: &str, whose: &str| {
        Err(Fault::precondition(format!("use directory {directory}: {what} volume {whose}")).hint(
            "let subDir name one directory for each volume, as in \
             ${pvc.metadata.namespace}/${pvc.metadata.name}",
        ))
    };
    for above in directory.above() {
        if let Some(whose) = visit.read(&file(above))? {
            return taken(&format!("{above} is the directory of"), whose.trim());
        }
    }
    visit.make_dir(&twin(directory.as_str()), 0o700, 0o700)?;
    let below = visit.names(&twin(directory.as_str()))?;
    if let Some(name) = below.iter().find(|name| !name.starts_with('.')) {
        return taken("in it is the directory of a", &format!("({directory}/{name})"));
    }
    match visit.write_new(&file(directory.as_str()), &format!("{native}\n")) {
        Err(fault) if fault.kind() == Kind::Conflict => match holder(visit, directory)? {
            Some(whose) if whose == native.as_str() => Ok(()),
            Some(whose) => taken("it belongs to", &whose),
            None => Err(fault.with_kind(Kind::Aborted)),
        },
        done => done,
    }
}

/// Frees the directory, if it is the volume's.
pub(crate) fn release(visit: &Visit, directory: &SubDir, native: &Native) -> Result<()> {
    if holder(visit, directory)?.as_deref() == Some(native.as_str()) {
        visit.remove_file(&file(directory.as_str()))?;
    }
    let all: Vec<&str> = directory.above().chain([directory.as_str()]).collect();
    for directory in all.into_iter().rev() {
        if !visit.remove_dir(&twin(directory))? {
            break;
        }
    }
    Ok(())
}
