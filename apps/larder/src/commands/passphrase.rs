//! Passphrases by hand: from a file, a pipe or a person, never from the command line.

use larder_host::terminal;
use larder_model::{
    Encryption, Fault, Passphrase, Result,
    encryption::secret::{OLD_PASSPHRASE, PASSPHRASE},
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{IsTerminal, Read},
    path::Path,
};

/// Whether the node encrypts the volume with that context.
pub(crate) fn is_encrypted(context: &BTreeMap<String, String>) -> bool {
    !matches!(Encryption::of_context(context), Ok(None))
}

/// The secrets of a request that opens the volume.
///
/// # Errors
/// As [`get`].
pub(crate) fn secrets(file: Option<&Path>) -> Result<BTreeMap<String, String>> {
    Ok(BTreeMap::from([(PASSPHRASE.to_owned(), get(file, "--passphrase-file", "Passphrase")?)]))
}

/// Those of a request that replaces its passphrase.
///
/// # Errors
/// As [`get`].
pub(crate) fn replacing(
    old: Option<&Path>,
    new: Option<&Path>,
) -> Result<BTreeMap<String, String>> {
    let old = get(old, "--old-passphrase-file", "Old passphrase")?;
    let asked = new.is_none();
    let new = get(new, "--passphrase-file", "New passphrase")?;
    if asked && get(None, "--passphrase-file", "New passphrase again")? != new {
        return Err(Fault::invalid("replace the passphrase: the two new ones differ"));
    }
    Ok(BTreeMap::from([(PASSPHRASE.to_owned(), new), (OLD_PASSPHRASE.to_owned(), old)]))
}

fn get(file: Option<&Path>, flag: &str, prompt: &str) -> Result<String> {
    let what = || format!("read the passphrase of {flag}");
    // One byte more than it may have, so that more is noticed: a device has no end.
    let all = |source: &mut dyn Read| {
        let mut bytes = Vec::new();
        source.take(Passphrase::LONGEST as u64 + 1).read_to_end(&mut bytes).map(|_| bytes)
    };
    let bytes = match file {
        Some(file) if file == Path::new("-") => {
            all(&mut std::io::stdin().lock()).map_err(|e| Fault::io(what(), e))?
        }
        Some(file) => File::open(file)
            .and_then(|mut open| all(&mut open))
            .map_err(|e| Fault::io(format!("{} from {}", what(), file.display()), e))?,
        None if std::io::stdin().is_terminal() => terminal::ask_secret(&format!("{prompt}: "))?,
        None => {
            return Err(Fault::invalid("open an encrypted volume: no passphrase is given")
                .hint(format!("{flag} FILE, or - for standard input")));
        }
    };
    Passphrase::new(&bytes).map_err(|fault| fault.during(what()))?;
    String::from_utf8(bytes).map_err(|_| {
        Fault::invalid(format!("{}: it is not UTF-8", what()))
            .hint("CSI carries passphrases as text: encode it, as with base64")
    })
}
