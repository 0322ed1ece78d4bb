//! Why the API server did not do what it was asked.

use crate::api::{Key, Object, Place};
use larder_model::{Fault, Kind};
use std::{fmt, time::Duration};

/// A request that failed.
#[derive(Debug, Clone)]
pub struct ApiError {
    /// HTTP status; 0: there was no answer.
    pub code: u16,
    /// Kubernetes's word for it (`NotFound`, `AlreadyExists`, `Expired`).
    pub reason: String,
    /// What the server says.
    pub message: String,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// What was asked for.
    pub asked: Box<Asked>,
}

/// What was asked of the API server, as RBAC sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `get`, `list`, `watch`, `create`, `patch`, `delete`
    pub verb: &'static str,
    /// Of which kind.
    pub place: Place,
    /// `status` and the like, or empty.
    pub subresource: &'static str,
    /// Which object.
    pub key: Key,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.place.plural)?;
        if !self.subresource.is_empty() {
            write!(f, "/{}", self.subresource)?;
        }
        if self.key != Key::default() {
            write!(f, " {}", self.key)?;
        }
        Ok(())
    }
}

impl ApiError {
    /// Of a request that was given up.
    pub(crate) fn silent<T: Object>(verb: &'static str, key: &Key, after: Duration) -> Self {
        let (place, key) = (T::PLACE, key.clone());
        Self {
            code: 0,
            reason: String::new(),
            message: format!("the API server has not answered in {after:?}"),
            retry_after: None,
            asked: Box::new(Asked { verb, place, subresource: "", key }),
        }
    }

    /// There is no such object (or no such kind).
    pub fn is_not_found(&self) -> bool {
        self.code == 404
    }
    /// It exists already.
    pub fn is_already_exists(&self) -> bool {
        self.code == 409 && self.reason == "AlreadyExists"
    }
    /// Somebody else wrote in between, or a precondition does not hold.
    pub fn is_conflict(&self) -> bool {
        self.code == 409 && !self.is_already_exists() || self.is_failed_test()
    }
    /// A JSON patch whose `test` failed: the server says no more than this. An object that is not
    /// acceptable is named.
    fn is_failed_test(&self) -> bool {
        self.code == 422 && self.message.starts_with("the server rejected our request")
    }
    /// RBAC does not grant it.
    pub fn is_forbidden(&self) -> bool {
        self.code == 403
    }
    /// The state that a watch or list goes on from is compacted away.
    pub fn is_expired(&self) -> bool {
        self.code == 410 || self.reason == "Expired" || self.reason == "Gone"
    }
    /// The object is not acceptable to the API server.
    pub fn is_invalid(&self) -> bool {
        self.code == 422 && !self.is_failed_test()
    }

    /// The rule that is missing, where one is.
    fn missing_rule(&self) -> Option<String> {
        let Asked { verb, place, subresource, .. } = &*self.asked;
        let slash = if subresource.is_empty() { "" } else { "/" };
        // Admission refuses with 403, too; it does not say "cannot".
        (self.is_forbidden() && self.message.contains("cannot")).then(|| {
            format!(
                "grant the ServiceAccount {{apiGroups: [{:?}], resources: [{}{slash}{subresource}], verbs: [{verb}]}}",
                place.group, place.plural
            )
        })
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.asked, self.message)?;
        match self.missing_rule() {
            Some(rule) => write!(f, " (hint: {rule})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ApiError {}

impl From<ApiError> for Fault {
    fn from(error: ApiError) -> Self {
        let kind = match error.code {
            401 => Kind::Unauthenticated,
            403 => Kind::Denied,
            404 => Kind::NotFound,
            409 => Kind::Aborted,
            422 | 400 => Kind::Invalid,
            _ => Kind::Unavailable,
        };
        let fault = Self::new(kind, format!("{}: {}", error.asked, error.message));
        match error.missing_rule() {
            Some(rule) => fault.hint(rule),
            None => fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Attachment;

    #[test]
    fn a_failed_test_of_a_patch_is_a_conflict_and_an_unacceptable_object_is_not() {
        let error = |message: &str| error(422, "Invalid", message);
        let failed = error("the server rejected our request due to an error in our request");
        assert!(failed.is_conflict() && !failed.is_invalid());
        let invalid = error("PersistentVolume \"a\" is invalid: spec.capacity: Required value");
        assert!(invalid.is_invalid() && !invalid.is_conflict());
    }

    #[test]
    fn a_missing_rule_is_named() {
        let text =
            Fault::from(error(403, "Forbidden", "User \"x\" cannot patch resource")).to_string();
        assert_eq!(
            text,
            "patch volumeattachments/status a: User \"x\" cannot patch resource (hint: grant the \
             ServiceAccount {apiGroups: [\"storage.k8s.io\"], resources: \
             [volumeattachments/status], verbs: [patch]})"
        );
    }

    fn error(code: u16, reason: &str, message: &str) -> ApiError {
        ApiError {
            code,
            reason: reason.to_owned(),
            message: message.to_owned(),
            retry_after: None,
            asked: Box::new(Asked {
                verb: "patch",
                place: Attachment::PLACE,
                subresource: "status",
                key: Key::cluster("a"),
            }),
        }
    }
}
