//! Finalizers of other people's objects: one is added or taken off, and no other is touched.
//!
//! By JSON patches that name what they expect to find. A merge patch would write the whole list, and
//! bring back what somebody has taken off meanwhile.

use crate::{
    api::{Meta, Object},
    client::{ApiError, Kube, Patch, Priority},
};
use serde_json::{Value, json};

const LIST: &str = "/metadata/finalizers";

/// The operations that add one to the list as we know it.
pub(crate) fn added(meta: &Meta, name: &str) -> Vec<Value> {
    match meta.finalizers.is_empty() {
        true => vec![
            json!({"op": "test", "path": LIST, "value": null}),
            json!({"op": "add", "path": LIST, "value": [name]}),
        ],
        false => vec![
            json!({"op": "test", "path": LIST, "value": meta.finalizers}),
            json!({"op": "add", "path": format!("{LIST}/-"), "value": name}),
        ],
    }
}

/// The operations that take one off the list as we know it; None: it is not on it.
fn taken_off(meta: &Meta, name: &str) -> Option<Vec<Value>> {
    let at = meta.finalizers.iter().position(|f| f == name)?;
    let path = format!("{LIST}/{at}");
    Some(vec![
        json!({"op": "test", "path": path, "value": name}),
        json!({"op": "remove", "path": path}),
    ])
}

/// Puts a finalizer on an object. None: it is on it already.
///
/// # Errors
/// A conflict where the finalizers have changed meanwhile.
pub(crate) async fn add<T: Object>(
    kube: &Kube,
    object: &T,
    name: &str,
) -> Result<Option<T>, ApiError> {
    if object.meta().has_finalizer(name) {
        return Ok(None);
    }
    let patch = Patch::Json(json!(added(object.meta(), name)));
    kube.patch(&object.key(), "", &patch, Priority::Fresh).await.map(Some)
}

/// Takes a finalizer off an object. None: it is not on it, or the object is gone.
///
/// # Errors
/// A conflict where the finalizers have changed meanwhile.
pub(crate) async fn release<T: Object>(
    kube: &Kube,
    object: &T,
    name: &str,
) -> Result<Option<T>, ApiError> {
    let Some(operations) = taken_off(object.meta(), name) else { return Ok(None) };
    let patch = Patch::Json(json!(operations));
    match kube.patch(&object.key(), "", &patch, Priority::Fresh).await {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_not_as_known_is_left_alone() {
        let mut meta = Meta::default();
        assert_eq!(
            json!(added(&meta, "a")),
            json!([
                {"op": "test", "path": "/metadata/finalizers", "value": null},
                {"op": "add", "path": "/metadata/finalizers", "value": ["a"]},
            ])
        );
        meta.finalizers = vec!["x".to_owned(), "a".to_owned()];
        assert_eq!(added(&meta, "b")[0]["value"], json!(["x", "a"]));
        assert_eq!(
            json!(taken_off(&meta, "a")),
            json!([
                {"op": "test", "path": "/metadata/finalizers/1", "value": "a"},
                {"op": "remove", "path": "/metadata/finalizers/1"},
            ])
        );
        assert_eq!(taken_off(&meta, "b"), None);
    }
}
