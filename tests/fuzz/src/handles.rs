//! Ids and names, and other single words.

use crate::well_refused;
use larder_csi::Endpoint;
use larder_model::{
    Bytes, DriverName, Fault, FsType, Handle, Kind, Native, NodeName, Period, PoolName,
    RequestedName,
};
use std::{
    fmt::{Debug, Display},
    path::{Component, Path},
    str::FromStr,
};

/// Whatever a word is parsed as, it is printed as it was or as something that is parsed as the same;
/// and what becomes part of a path is one plain name in it.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let invalid = &[Kind::Invalid];
    if let Some(native) = verbatim::<Native>(text, invalid) {
        is_one_name(native.as_str());
        stays_inside(&native);
    }
    if let Some(pool) = verbatim::<PoolName>(text, invalid) {
        is_one_name(pool.as_str());
    }
    if let Some(driver) = verbatim::<DriverName>(text, invalid) {
        is_one_name(driver.as_str());
    }
    verbatim::<NodeName>(text, invalid);
    again::<Bytes>(text, &[Kind::Invalid, Kind::OutOfRange]);
    again::<Period>(text, invalid);
    again::<FsType>(text, invalid);
    if let Some(endpoint) = again::<Endpoint>(text, invalid) {
        absolute(endpoint.path());
    }
    if let Some(handle) = verbatim::<Handle>(text, &[Kind::NotFound]) {
        is_one_name(handle.native().as_str());
        is_one_name(handle.pool().as_str());
        let rebuilt = Handle::new(handle.pool().clone(), handle.native().clone());
        assert_eq!(rebuilt, handle);
        stays_inside(handle.native());
    }
    if let Some(name) = verbatim::<RequestedName>(text, invalid) {
        requested(&name);
    }
    for (native, site) in larder_pool::fuzzing::work(text) {
        is_one_name(native.as_str());
        assert!(site.starts_with("/pool/creating"), "{}", site.display());
        assert_eq!(site.components().count(), 4, "{}", site.display());
    }
    two_names(text);
    // A name in a file is held to the same rules as one in a request.
    let quoted = serde_json::to_string(text).expect("text is JSON");
    let read = serde_json::from_str::<Native>(&quoted).ok();
    assert_eq!(read, text.parse().ok());
    let read = serde_json::from_str::<PoolName>(&quoted).ok();
    assert_eq!(read, text.parse().ok());
}

/// Parsed, it is printed as it was written.
fn verbatim<T: FromStr<Err = Fault> + Display + Debug + PartialEq>(
    text: &str,
    kinds: &[Kind],
) -> Option<T> {
    let value = again::<T>(text, kinds)?;
    assert_eq!(value.to_string(), text);
    Some(value)
}

/// Parsed, it is printed as something that is parsed as the same.
fn again<T: FromStr<Err = Fault> + Display + Debug + PartialEq>(
    text: &str,
    kinds: &[Kind],
) -> Option<T> {
    match text.parse::<T>() {
        Ok(value) => {
            let printed = value.to_string();
            assert_eq!(printed.parse::<T>().ok().as_ref(), Some(&value), "{printed}");
            Some(value)
        }
        Err(fault) => {
            well_refused(&fault, kinds);
            None
        }
    }
}

fn requested(name: &RequestedName) {
    let native = name.native();
    assert_eq!(native.as_str().parse::<Native>().ok().as_ref(), Some(&native));
    is_one_name(native.as_str());
    stays_inside(&native);
    let again: RequestedName = native.as_str().parse().expect("a native name can be asked for");
    assert_eq!(again.native(), native, "asking for what came out is asking for the same");
}

/// Two names that differ are two volumes.
fn two_names(text: &str) {
    let Some((one, other)) = text.split_once('\n') else { return };
    let (Ok(one), Ok(other)) = (one.parse::<RequestedName>(), other.parse::<RequestedName>())
    else {
        return;
    };
    if one != other {
        assert_ne!(one.native(), other.native());
    }
}

/// Joined to a folder it leads to something right in that folder.
fn is_one_name(name: &str) {
    let root = Path::new("/root/folder");
    let joined = root.join(name);
    let mut added = joined.components().skip(root.components().count());
    assert!(matches!(added.next(), Some(Component::Normal(part)) if part == name), "{name:?}");
    assert!(added.next().is_none() && joined.starts_with(root), "{name:?}");
    assert!(!name.contains('\0') && name.len() <= 255, "{name:?}");
}

/// Nothing that is done under the name is done outside of the pool.
fn stays_inside(native: &Native) {
    let pool = Path::new("/pool");
    for place in larder_pool::fuzzing::places(pool, native) {
        let inside = place.strip_prefix(pool).expect("inside of the pool");
        let plain = inside.components().all(|part| matches!(part, Component::Normal(_)));
        assert!(plain && place.parent() != Some(pool), "{}", place.display());
        let name = place.file_name().and_then(|name| name.to_str()).expect("a name");
        // Room for what locks and removal put behind it.
        assert!(name.len() <= 255 - 20, "{name}");
    }
}

pub(crate) fn absolute(path: &Path) {
    assert!(path.is_absolute(), "{}", path.display());
    let up = path.components().any(|part| part == Component::ParentDir);
    assert!(!up && path.file_name().is_some(), "{}", path.display());
}
