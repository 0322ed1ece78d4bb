//! Headers and their keys.

use super::{Header, cryptsetup, derivation, judge, run};
use larder_model::{Bytes, Fault, Passphrase, Result};
use serde::Deserialize;
use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt, path::Path};
use uuid::Uuid;

/// `struct luks2_hdr_disk`: magic, version (big-endian), …, UUID as text.
const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
const UUID: std::ops::Range<usize> = 168..208;
/// The second copy begins with this, at one of these places: where the first one ends.
const SECOND_MAGIC: &[u8; 6] = b"SKUL\xba\xbe";
const SECOND_AT: std::ops::RangeInclusive<u32> = 14..=22;
/// The metadata follows the binary part.
const BINARY: u64 = 4096;
const LARGEST: u64 = 4 << 20;

/// The part of the header's JSON that we read.
#[derive(Deserialize)]
struct Metadata {
    keyslots: BTreeMap<u32, Keyslot>,
    segments: BTreeMap<u32, Segment>,
}
#[derive(Deserialize)]
struct Keyslot {
    kdf: Derivation,
    #[serde(default)]
    area: Cipher,
}
#[derive(Deserialize, Default)]
struct Cipher {
    #[serde(default)]
    encryption: String,
}
#[derive(Deserialize)]
struct Derivation {
    /// In KiB; PBKDF2 takes none.
    #[serde(default)]
    memory: u64,
}
#[derive(Deserialize)]
struct Segment {
    #[serde(default, rename = "type")]
    kind: String,
    offset: String,
    #[serde(default)]
    encryption: String,
}

/// The header on a device.
///
/// # Errors
/// `Precondition` where there is none of version 2, or it is being encrypted anew; `Corrupt`.
pub fn header(device: &Path) -> Result<Header> {
    let what = format!("read the encryption header of {}", device.display());
    let uuid = uuid(device, &what)?;
    let command = cryptsetup("luksDump").arg("--dump-json-metadata").arg(device);
    let output = command.run_any().map_err(|fault| fault.during(&what))?;
    judge(what.clone(), &output)?;
    parse(&output.stdout, uuid).map_err(|fault| fault.during(what))
}

fn parse(json: &[u8], uuid: Uuid) -> Result<Header> {
    let metadata: Metadata = serde_json::from_slice(json)
        .map_err(|e| Fault::corrupt("understand its metadata").because(e))?;
    let [segment] = metadata.segments.values().collect::<Vec<_>>()[..] else {
        return Err(Fault::precondition("use it: it is being encrypted anew")
            .hint("finish that first: cryptsetup reencrypt --resume-only"));
    };
    // Such a header can be made without the passphrase, and any opens it: whoever put it in the place of the
    // volume's own would read all that is written from then on.
    let keys = metadata.keyslots.values().map(|slot| &slot.area.encryption);
    let is_nothing = |cipher: &String| cipher.starts_with("cipher_null");
    if segment.kind != "crypt" || keys.chain([&segment.encryption]).any(is_nothing) {
        return Err(Fault::precondition("use it: its header encrypts nothing").hint(
            "it was made for tests, or by somebody who wants to read the volume: put its own back",
        ));
    }
    let offset = segment.offset.parse();
    let offset = offset.map_err(|e| Fault::corrupt("understand its metadata").because(e))?;
    let memory = |slot: Keyslot| Bytes::new(slot.kdf.memory.saturating_mul(1024));
    let slots = metadata.keyslots.into_iter().map(|(n, slot)| (n, memory(slot))).collect();
    Ok(Header { uuid, offset, slots })
}

/// Where the data begins in `file`, without cryptsetup: the metadata is plain text.
///
/// # Errors
/// As [`header`].
pub fn data_offset(file: &Path) -> Result<u64> {
    let what = || format!("look for the data in {}", file.display());
    let open = File::open(file).map_err(|e| Fault::io(what(), e))?;
    let first = metadata(&open, 0, MAGIC).map_err(|e| Fault::io(what(), e))?;
    if let Some(Ok(header)) = first.as_deref().map(|json| parse(json, Uuid::nil())) {
        return Ok(header.offset);
    }
    for place in SECOND_AT {
        let second = metadata(&open, 1 << place, SECOND_MAGIC).map_err(|e| Fault::io(what(), e))?;
        if let Some(json) = second {
            return Ok(parse(&json, Uuid::nil()).map_err(|fault| fault.during(what()))?.offset);
        }
    }
    match first {
        Some(json) => Ok(parse(&json, Uuid::nil()).map_err(|fault| fault.during(what()))?.offset),
        None => Err(Fault::corrupt(format!("{}: it has no encryption header", what()))),
    }
}

/// The metadata of the copy of the header at `place`; None: there is no copy.
fn metadata(file: &File, place: u64, magic: &[u8; 6]) -> io::Result<Option<Vec<u8>>> {
    let mut start = [0; 16];
    match file.read_exact_at(&mut start, place) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    let [m0, m1, m2, m3, m4, m5, 0, 2, size @ ..] = start else { return Ok(None) };
    let size = u64::from_be_bytes(size);
    if [m0, m1, m2, m3, m4, m5] != *magic || !(BINARY + 1..=LARGEST).contains(&size) {
        return Ok(None);
    }
    let mut json = vec![0; usize::try_from(size - BINARY).unwrap_or(0)];
    file.read_exact_at(&mut json, place + BINARY)?;
    let end = json.iter().position(|byte| *byte == 0).unwrap_or(json.len());
    json.truncate(end);
    Ok(Some(json))
}

fn uuid(device: &Path, what: &str) -> Result<Uuid> {
    let mut start = [0; UUID.end];
    File::open(device)
        .and_then(|file| file.read_exact_at(&mut start, 0))
        .map_err(|e| Fault::io(what, e))?;
    let text = if start.starts_with(MAGIC) {
        if start[6..8] != [0, 2] {
            return Err(Fault::precondition(format!("{what}: it is not of version 2"))
                .hint("back it up, then: cryptsetup convert --type luks2 DEVICE"));
        }
        String::from_utf8_lossy(&start[UUID]).trim_end_matches('\0').to_owned()
    } else {
        // The first copy is damaged; cryptsetup knows where the second one is.
        let output = cryptsetup("luksUUID").arg(device).run_any().map_err(|f| f.during(what))?;
        judge(what.to_owned(), &output)?;
        output.text()
    };
    text.parse().map_err(|e| Fault::corrupt(format!("{what}: its UUID is none")).because(e))
}

/// Whether `key` opens the device, in whatever place it is.
///
/// # Errors
/// All but a wrong key.
pub fn opens(device: &Path, key: &Passphrase) -> Result<bool> {
    test(device, key, None)
}

fn test(device: &Path, key: &Passphrase, slot: Option<u32>) -> Result<bool> {
    let what = format!("try a passphrase on {}", device.display());
    let mut command =
        cryptsetup("open").args(["--test-passphrase", "--type", "luks2", "--key-file", "-"]);
    if let Some(slot) = slot {
        command = command.args(["--key-slot", &slot.to_string()]);
    }
    let output =
        command.arg(device).stdin(key.bytes()).run_any().map_err(|fault| fault.during(&what))?;
    match output.code() {
        Some(2) => Ok(false),
        _ => judge(what, &output).map(|()| true),
    }
}

/// In which places of the header `key` is.
///
/// # Errors
/// All but a wrong key.
pub fn unlocked_slots(device: &Path, header: &Header, key: &Passphrase) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for slot in header.slots.keys() {
        if test(device, key, Some(*slot))? {
            found.push(*slot);
        }
    }
    Ok(found)
}

/// Adds `new` to the keys that open the device; `old` is one of them.
///
/// # Errors
/// `Unauthenticated` where `old` opens nothing; `Precondition` where no place is left.
pub fn add_key(device: &Path, old: &Passphrase, new: &Passphrase, memory: Bytes) -> Result<()> {
    let what = format!("add a passphrase to {}", device.display());
    let command = cryptsetup("luksAddKey").args(["--key-file", "-"]);
    let command = derivation(command, memory).arg(device).stdin(old.bytes());
    run(what.clone(), command.secret_file_arg(new.bytes())?)?;
    super::sync(device, &what)
}

/// Takes away the key in one place. The caller knows that another one opens the device.
///
/// # Errors
/// `Precondition`, `Internal`.
pub fn remove_slot(device: &Path, slot: u32) -> Result<()> {
    let what = format!("remove passphrase {slot} from {}", device.display());
    run(what, cryptsetup("luksKillSlot").arg(device).arg(slot.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::Kind;

    const JSON: &str = r#"{"keyslots":{"0":{"type":"luks2","key_size":64,"kdf":{"type":"argon2id",
        "time":4,"memory":65536,"cpus":4,"salt":"x"}},"2":{"type":"luks2","kdf":{"type":"pbkdf2",
        "hash":"sha256","iterations":1000,"salt":"x"}}},"tokens":{},"segments":{"0":{"type":"crypt",
        "offset":"16777216","size":"dynamic","encryption":"aes-xts-plain64","sector_size":512}},
        "digests":{},"config":{}}"#;

    #[test]
    fn the_metadata_of_a_header_is_understood() {
        let header = parse(JSON.as_bytes(), Uuid::nil()).unwrap();
        assert_eq!(header.offset, 16 << 20);
        assert_eq!(header.slots, BTreeMap::from([(0, Bytes::mib(64)), (2, Bytes::ZERO)]));
        header.check_memory(Bytes::mib(64)).unwrap();
        let fault = header.check_memory(Bytes::mib(63)).unwrap_err();
        assert_eq!(fault.kind(), Kind::Precondition);
        assert!(fault.to_string().contains("encryptionMemory to 64Mi"), "{fault}");
        let two = JSON.replace("\"segments\":{", "\"segments\":{\"1\":{\"offset\":\"0\"},");
        assert_eq!(parse(two.as_bytes(), Uuid::nil()).unwrap_err().kind(), Kind::Precondition);
        assert_eq!(parse(b"{}", Uuid::nil()).unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn a_header_that_encrypts_nothing_is_refused() {
        let slot = r#""type":"luks2","area":{"type":"raw","encryption":"cipher_null-ecb"},"kdf""#;
        for (sound, null) in [
            ("\"type\":\"luks2\",\"kdf\"", slot),
            ("aes-xts-plain64", "cipher_null-ecb"),
            ("\"type\":\"crypt\"", "\"type\":\"linear\""),
        ] {
            let json = JSON.replace(sound, null);
            assert_ne!(json, JSON);
            let fault = parse(json.as_bytes(), Uuid::nil()).unwrap_err();
            assert_eq!(fault.kind(), Kind::Precondition);
            assert!(fault.to_string().contains("encrypts nothing"), "{fault}");
        }
    }

    #[test]
    fn the_place_of_the_data_is_told_by_whichever_copy_of_the_header_is_sound() {
        let copy = |magic: &[u8; 6], offset: &str| {
            let mut copy = magic.to_vec();
            copy.extend([0, 2]);
            copy.extend(0x4000_u64.to_be_bytes());
            copy.resize(4096, 7);
            copy.extend(JSON.replace("16777216", offset).bytes());
            copy.resize(0x4000, 0);
            copy
        };
        let (first, second) = (copy(MAGIC, "16777216"), copy(SECOND_MAGIC, "8192"));
        let damaged = [MAGIC.as_slice(), &vec![7; 0x4000 - 6]].concat();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("image");
        for (image, offset) in [
            ([first.clone(), second.clone()].concat(), Some(16 << 20)),
            ([damaged.clone(), second].concat(), Some(8192)),
            ([first, vec![0; 0x4000]].concat(), Some(16 << 20)),
            ([damaged, vec![0; 0x4000]].concat(), None),
            (Vec::new(), None),
        ] {
            std::fs::write(&file, image).unwrap();
            match (data_offset(&file), offset) {
                (Ok(found), Some(offset)) => assert_eq!(found, offset),
                (Err(fault), None) => assert_eq!(fault.kind(), Kind::Corrupt),
                (found, wanted) => panic!("{found:?} instead of {wanted:?}"),
            }
        }
    }
}
