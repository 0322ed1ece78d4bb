//! Whether a device is formatted, used as it is, or refused.
//!
//! The decision is a pure function of the record kept with the volume and of what a probe found.
//! Only two cells of the table lead to mkfs without a record that it was ours: nothing is ever
//! formatted that was formatted before, or that is not proven blank.
//!
//! | record | blank | a file system | anything else |
//! |---|---|---|---|
//! | `Unformatted` | **make** | refuse | refuse |
//! | `Formatting` | **make again** | **make again** (remains of our own mkfs) | **make again** |
//! | `Formatted` | refuse: data is gone | use, if it is that one | refuse |
//! | `Foreign` | **make**, once all of it was read as zeros | use | refuse |
//! | `Raw` | refuse | use | refuse |
//!
//! *Blank* is what a probe says that looks for signatures and at both ends. That is enough for a
//! device that we made empty. A foreign one may hold anything in between, so every byte of it is
//! read before it is formatted ([`unread`]).
//!
//! A mount that only reads never formats.

use larder_host::Found;
use larder_model::{Fault, FsType, Result, volume::FormatState};

/// What to do with a device that shall be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Mount what is there; where `note` is set, first record that it is formatted.
    Use {
        /// The file system.
        fs: FsType,
        /// The record does not know it yet.
        note: bool,
    },
    /// Record `Formatting`, make it, record `Formatted`.
    Make {
        /// The file system.
        fs: FsType,
        /// What it is made over.
        over: Over,
    },
}

/// What a file system is made over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// A device that was made empty for this volume.
    New,
    /// Somebody else's device: [`unread`] must say that nothing is on it.
    Unread,
    /// The remains of our own mkfs.
    Remains,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// The file system that the caller named.
    pub(super) asked: Option<FsType>,
    /// What to make where none was named.
    pub(super) default: FsType,
    /// Nothing may be written.
    pub(super) reader: bool,
}

/// See the module's table.
///
/// # Errors
/// `Precondition` or `Corrupt`, saying what was found.
pub(super) fn decide(state: FormatState, found: &Found, wanted: Wanted) -> Result<Decision> {
    let make = |over| {
        if wanted.reader {
            return Err(Fault::precondition(
                "mount the volume for reading: it holds no file system yet",
            )
            .hint("use it once with an access mode that may write"));
        }
        Ok(Decision::Make { fs: wanted.asked.unwrap_or(wanted.default), over })
    };
    let mount = |fs: FsType, note| match wanted.asked {
        Some(asked) if asked != fs => Err(Fault::precondition(format!(
            "mount the volume as {asked}: it holds {fs} with data"
        ))
        .hint(format!("ask for {fs}, or leave the file system open"))),
        _ => Ok(Decision::Use { fs, note: note && !wanted.reader }),
    };
    let refuse = |whose: &str| Err(occupied(&named(found), whose));
    match (state, found) {
        (FormatState::Formatting { .. }, _) => make(Over::Remains),
        (FormatState::Unformatted, Found::Blank) => make(Over::New),
        (FormatState::Foreign, Found::Blank) => make(Over::Unread),
        (FormatState::Unformatted, _) => {
            refuse("nobody was to write here before it was formatted")
        }
        (FormatState::Foreign | FormatState::Raw, Found::FileSystem(fs)) => mount(*fs, true),
        (FormatState::Foreign | FormatState::Raw, Found::Other(_)) => refuse(FOREIGN),
        // Opening it is asked for first, and what is decided here is about what that gives.
        (FormatState::Encrypting { .. } | FormatState::Encrypted { .. }, _) => {
            refuse("the volume is encrypted")
        }
        (FormatState::Raw, Found::Blank) => Err(Fault::precondition(
            "format the volume: a workload has had it as a raw block device",
        )
        .hint(
            "its data may lie where no probe looks; make a file system on it yourself, or use a new \
             volume",
        )),
        (FormatState::Formatted { fs }, Found::FileSystem(there)) if fs == *there => {
            mount(fs, false)
        }
        (FormatState::Formatted { fs }, _) => Err(Fault::corrupt(format!(
            "mount the volume: it was formatted with {fs}, but {} was found",
            named(found)
        ))
        .hint("it will not be formatted again; restore it from a snapshot or look at the device")),
    }
}

/// Refuses a device of which all was read, with the place of the first byte that is not zero.
///
/// # Errors
/// `Precondition`.
pub(super) fn unread(first_data: Option<u64>) -> Result<()> {
    match first_data {
        None => Ok(()),
        Some(at) => Err(occupied(&format!("data at byte {at}"), FOREIGN)),
    }
}

/// Whose the data on a foreign device is.
const FOREIGN: &str = "somebody else's data may be on it, or a piece of a mkfs that was cut";

fn occupied(found: &str, whose: &str) -> Fault {
    Fault::precondition(format!("format the volume: its device is not blank, {found} was found"))
        .hint(format!("{whose}; look at it, and empty it yourself if it is of no use"))
}

/// What was found, in words.
pub(super) fn named(found: &Found) -> String {
    match found {
        Found::Blank => "nothing".to_owned(),
        Found::FileSystem(fs) => format!("a file system ({fs})"),
        Found::Other(what) => what.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::Kind;
    use larder_model::volume::FormatState as S;

    const EXT4: FsType = FsType::Ext4;
    const XFS: FsType = FsType::Xfs;

    fn all_states() -> [S; 7] {
        [
            S::Unformatted,
            S::Formatting { fs: EXT4 },
            S::Formatting { fs: XFS },
            S::Formatted { fs: EXT4 },
            S::Formatted { fs: XFS },
            S::Foreign,
            S::Raw,
        ]
    }
    fn all_found() -> [Found; 4] {
        [
            Found::Blank,
            Found::FileSystem(EXT4),
            Found::FileSystem(XFS),
            Found::Other("LUKS".to_owned()),
        ]
    }

    #[test]
    fn mkfs_runs_only_on_proven_blank_devices_that_nobody_had_or_over_our_own_remains() {
        let mut made = 0;
        for state in all_states() {
            for found in all_found() {
                for asked in [None, Some(EXT4), Some(XFS)] {
                    for reader in [false, true] {
                        let wanted = Wanted { asked, default: EXT4, reader };
                        let Ok(Decision::Make { fs, over }) = decide(state, &found, wanted) else {
                            continue;
                        };
                        made += 1;
                        assert!(!reader, "{state:?} {found:?}: a reader formats");
                        assert_eq!(fs, asked.unwrap_or(EXT4));
                        match state {
                            S::Formatting { .. } => assert_eq!(over, Over::Remains),
                            S::Unformatted | S::Foreign => {
                                let proof =
                                    if state == S::Foreign { Over::Unread } else { Over::New };
                                assert_eq!((over, &found), (proof, &Found::Blank), "{state:?}");
                            }
                            _ => {
                                panic!("{state:?} {found:?} is formatted")
                            }
                        }
                    }
                }
            }
        }
        // Two states on blank, two over any of four findings, times three ways of asking.
        assert_eq!(made, (2 + 2 * 4) * 3);
    }

    #[test]
    fn one_byte_anywhere_on_a_foreign_device_forbids_formatting_it() {
        unread(None).unwrap();
        let fault = unread(Some(5 << 20)).unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition);
        assert!(fault.to_string().contains("data at byte 5242880"), "{fault}");
        assert!(fault.hint_text().is_some());
    }

    #[test]
    fn what_is_there_is_used_unless_another_file_system_was_asked_for() {
        let decide = |state, found: &Found, asked, reader| {
            decide(state, found, Wanted { asked, default: EXT4, reader })
        };
        let xfs = Found::FileSystem(XFS);
        for (state, note) in [(S::Foreign, true), (S::Raw, true), (S::Formatted { fs: XFS }, false)]
        {
            for asked in [None, Some(XFS)] {
                let used = decide(state, &xfs, asked, false).unwrap();
                assert_eq!(used, Decision::Use { fs: XFS, note }, "{state:?}");
                let read = decide(state, &xfs, asked, true).unwrap();
                assert_eq!(read, Decision::Use { fs: XFS, note: false }, "{state:?}");
            }
            let fault = decide(state, &xfs, Some(EXT4), false).unwrap_err();
            assert_eq!(fault.kind(), Kind::Precondition);
            assert!(fault.to_string().contains("it holds xfs"), "{fault}");
        }
    }

    #[test]
    fn a_refusal_says_what_was_found() {
        let wanted = Wanted { asked: None, default: EXT4, reader: false };
        let luks = Found::Other("LUKS".to_owned());
        for (state, found, kind, word) in [
            (S::Unformatted, &luks, Kind::Precondition, "LUKS"),
            (S::Unformatted, &Found::FileSystem(EXT4), Kind::Precondition, "ext4"),
            (S::Foreign, &luks, Kind::Precondition, "LUKS"),
            (S::Raw, &luks, Kind::Precondition, "LUKS"),
            (S::Raw, &Found::Blank, Kind::Precondition, "raw block device"),
            (S::Formatted { fs: XFS }, &Found::Blank, Kind::Corrupt, "nothing was found"),
            (S::Formatted { fs: XFS }, &luks, Kind::Corrupt, "LUKS"),
            (S::Formatted { fs: XFS }, &Found::FileSystem(EXT4), Kind::Corrupt, "ext4"),
        ] {
            let fault = decide(state, found, wanted).unwrap_err();
            assert_eq!(fault.kind(), kind, "{state:?} {found:?}");
            assert!(fault.to_string().contains(word), "{fault}");
        }
        let reader = Wanted { reader: true, ..wanted };
        for state in [S::Unformatted, S::Foreign, S::Formatting { fs: EXT4 }] {
            let fault = decide(state, &Found::Blank, reader).unwrap_err();
            assert!(fault.to_string().contains("no file system yet"), "{fault}");
        }
    }
}
