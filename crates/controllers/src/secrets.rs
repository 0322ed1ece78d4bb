//! Which Secret a call gets: the templates of a StorageClass, and reading the Secret.
//!
//! ```text
//! csi.storage.k8s.io/provisioner-secret-name: ${pvc.name}-key      ┐ both or none; else
//! csi.storage.k8s.io/provisioner-secret-namespace: ${pvc.namespace} ┘ secret-name, secret-namespace
//! ```

use crate::{
    api::{Key, Secret, SecretRef},
    client::{Kube, Priority},
};
use base64::Engine;
use larder_model::{Fault, Result, Secrets, id::quoted};
use std::collections::BTreeMap;

/// What a Secret is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Use {
    /// CreateVolume and DeleteVolume.
    Provisioner,
    /// ControllerPublishVolume.
    ControllerPublish,
    /// NodeStageVolume.
    NodeStage,
    /// NodePublishVolume.
    NodePublish,
    /// ControllerExpandVolume.
    ControllerExpand,
    /// NodeExpandVolume.
    NodeExpand,
    /// ControllerModifyVolume.
    ControllerModify,
}

/// What stands before the keys of a class that are for controllers and not for the driver.
pub const PREFIX: &str = "csi.storage.k8s.io/";

impl Use {
    /// Every one.
    pub const ALL: [Self; 7] = [
        Self::Provisioner,
        Self::ControllerPublish,
        Self::NodeStage,
        Self::NodePublish,
        Self::ControllerExpand,
        Self::NodeExpand,
        Self::ControllerModify,
    ];

    /// Its part of the keys.
    pub fn word(self) -> &'static str {
        match self {
            Self::Provisioner => "provisioner",
            Self::ControllerPublish => "controller-publish",
            Self::NodeStage => "node-stage",
            Self::NodePublish => "node-publish",
            Self::ControllerExpand => "controller-expand",
            Self::NodeExpand => "node-expand",
            Self::ControllerModify => "controller-modify",
        }
    }

    /// The keys of name and namespace.
    fn keys(self) -> [String; 2] {
        ["name", "namespace"].map(|end| format!("{PREFIX}{}-secret-{end}", self.word()))
    }

    /// The keys from before there was a prefix.
    fn former_keys(self) -> Option<[String; 2]> {
        let word = match self {
            Self::Provisioner => "Provisioner",
            Self::ControllerPublish => "ControllerPublish",
            Self::NodeStage => "NodeStage",
            Self::NodePublish => "NodePublish",
            Self::ControllerExpand | Self::NodeExpand | Self::ControllerModify => return None,
        };
        Some(["Name", "Namespace"].map(|end| format!("csi{word}Secret{end}")))
    }
}

/// Whether a key with [`PREFIX`] is about a Secret.
pub fn is_key(key: &str) -> bool {
    let default = ["secret-name", "secret-namespace"];
    key.strip_prefix(PREFIX).is_some_and(|k| default.contains(&k))
        || Use::ALL.iter().any(|of| of.keys().iter().any(|k| k == key))
}

/// What templates may refer to.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// The volume.
    pub volume: &'a str,
    /// The claim's namespace.
    pub namespace: &'a str,
    /// The claim.
    pub claim: &'a str,
    /// The claim's annotations; None: it is gone.
    pub annotations: Option<&'a BTreeMap<String, String>>,
}

/// The Secret that `parameters` of a class name for that use.
///
/// # Errors
/// `Invalid` for half a pair, a former and a new key together, empty values, unknown tokens, and
/// names that no Secret can have.
pub fn resolve(
    parameters: &BTreeMap<String, String>,
    of: Use,
    names: Names<'_>,
) -> Result<Option<SecretRef>> {
    let Some([name, namespace]) = templates(parameters, of)? else { return Ok(None) };
    let word = of.word();
    let full = |token: &str| match token {
        "pvc.name" => Some(names.claim.to_owned()),
        _ => token
            .strip_prefix("pvc.annotations['")
            .and_then(|rest| rest.strip_suffix("']"))
            .and_then(|key| names.annotations?.get(key).cloned()),
    };
    let short = |token: &str| match token {
        "pv.name" => Some(names.volume.to_owned()),
        "pvc.namespace" => Some(names.namespace.to_owned()),
        _ => None,
    };
    let refuse = |what: &str, template: &str, why: String| {
        Fault::invalid(format!(
            "use {} as the {what} of the {word} secret: {why}",
            quoted(template)
        ))
    };
    let result = SecretRef {
        name: expand(&name, |t| short(t).or_else(|| full(t))).map_err(|tokens| {
            refuse("name", &name, format!("nothing is called {}", tokens.join(", "))).hint(
                "use ${pv.name}, ${pvc.name}, ${pvc.namespace} or ${pvc.annotations['KEY']} with an annotation that the claim has",
            )
        })?,
        namespace: expand(&namespace, short).map_err(|tokens| {
            refuse("namespace", &namespace, format!("nothing is called {}", tokens.join(", ")))
                .hint("use ${pv.name} or ${pvc.namespace}")
        })?,
    };
    if !is_subdomain(&result.name) {
        return Err(refuse("name", &name, format!("{} is no name", quoted(&result.name))));
    }
    if !is_label(&result.namespace) {
        let why = format!("{} is no namespace", quoted(&result.namespace));
        return Err(refuse("namespace", &namespace, why));
    }
    Ok(Some(result))
}

/// The templates of name and namespace.
fn templates(parameters: &BTreeMap<String, String>, of: Use) -> Result<Option<[String; 2]>> {
    let word = of.word();
    let pair = |keys: &[String; 2]| keys.each_ref().map(|key| parameters.get(key).cloned());
    let half = || {
        Fault::invalid(format!(
            "use the {word} secret: only its name or only its namespace is given"
        ))
        .hint("give both keys in the StorageClass, or none")
    };
    let new = pair(&of.keys());
    let former = of.former_keys().map_or([None, None], |keys| pair(&keys));
    let doubled = (0..2).any(|i| new[i].is_some() && former[i].is_some());
    if doubled {
        return Err(Fault::invalid(format!(
            "use the {word} secret: it is named by a former key and by a new one"
        ))
        .hint("take the keys without csi.storage.k8s.io/ out of the StorageClass"));
    }
    let [name, namespace] = new;
    let [former_name, former_namespace] = former;
    let found = match (name.or(former_name), namespace.or(former_namespace)) {
        (None, None) => pair(&["name", "namespace"].map(|end| format!("{PREFIX}secret-{end}"))),
        found => found.into(),
    };
    match found {
        [None, None] => Ok(None),
        [Some(name), Some(namespace)] => match [&name, &namespace].iter().any(|t| t.is_empty()) {
            true => Err(Fault::invalid(format!(
                "use the {word} secret: its name or namespace is empty"
            ))),
            false => Ok(Some([name, namespace])),
        },
        _ => Err(half()),
    }
}

/// `$name` and `${name}`, with the rules of Go's `os.Expand`; or the names that nothing has.
fn expand(
    template: &str,
    value: impl Fn(&str) -> Option<String>,
) -> std::result::Result<String, Vec<String>> {
    let special = |b: u8| b"*#$@!?-".contains(&b) || b.is_ascii_digit();
    let (bytes, mut out, mut unknown, mut at) = (template.as_bytes(), String::new(), Vec::new(), 0);
    while let Some(found) = template[at..].find('$') {
        let dollar = at + found;
        out.push_str(&template[at..dollar]);
        let rest = &bytes[dollar + 1..];
        // The name and how many bytes it takes; an empty one of some bytes is bad syntax, and eaten.
        let (name, taken) = match rest.first() {
            None => ("", 0),
            Some(b'{') => match rest.iter().position(|b| *b == b'}') {
                None => ("", 1),
                Some(1) => ("", 2),
                Some(end) => (&template[dollar + 2..dollar + 1 + end], end + 1),
            },
            Some(b) if special(*b) => (&template[dollar + 1..dollar + 2], 1),
            Some(_) => {
                let word = |b: &u8| *b == b'_' || b.is_ascii_alphanumeric();
                let end = rest.iter().position(|b| !word(b)).unwrap_or(rest.len());
                (&template[dollar + 1..dollar + 1 + end], end)
            }
        };
        match (name, taken) {
            ("", 0) => out.push('$'),
            ("", _) => {}
            (name, _) => match value(name) {
                Some(value) => out.push_str(&value),
                None => unknown.push(quoted(name)),
            },
        }
        at = dollar + 1 + taken;
    }
    out.push_str(&template[at..]);
    if unknown.is_empty() { Ok(out) } else { Err(unknown) }
}

fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_word(text)
}

fn is_word(text: &str) -> bool {
    let end = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    end(bytes.first())
        && end(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

fn is_subdomain(text: &str) -> bool {
    // Only the whole is bounded, not its parts.
    text.len() <= 253 && text.split('.').all(is_word)
}

/// What a Secret holds, for a request to the driver; nothing where none is named.
///
/// # Errors
/// As [`read`].
pub async fn values(kube: &Kube, of: Option<&SecretRef>) -> Result<BTreeMap<String, String>> {
    match of {
        None => Ok(BTreeMap::new()),
        Some(of) => Ok(read(kube, of).await?.into_map()),
    }
}

/// Reads a Secret: live, because a cache of Secrets is a treasure that nobody needs.
///
/// # Errors
/// `NotFound`, `Denied` with the rule that is missing, and whatever else the API server says.
pub async fn read(kube: &Kube, of: &SecretRef) -> Result<Secrets> {
    let key = Key::new(&of.namespace, &of.name);
    let secret: Secret = kube.get(&key, Priority::Fresh).await?.ok_or_else(|| {
        Fault::not_found(format!("read secret {key}: there is none"))
            .hint("make it, or correct the secret keys of the StorageClass")
    })?;
    let mut values = Vec::with_capacity(secret.data.len());
    for (name, value) in secret.data {
        // Neither error shows the value.
        let bytes = base64::engine::general_purpose::STANDARD.decode(value);
        let text = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| {
            Fault::invalid(format!("read {} of secret {key}: it is no text", quoted(&name)))
        })?;
        values.push((name, text));
    }
    Ok(Secrets::new(values))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn parameters(text: &[(&str, &str)]) -> BTreeMap<String, String> {
        text.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn resolved(text: &[(&str, &str)], of: Use) -> Result<Option<String>> {
        let annotations = parameters(&[("team/key", "blue")]);
        let names = Names {
            volume: "pvc-1",
            namespace: "shop",
            claim: "data",
            annotations: Some(&annotations),
        };
        let found = resolve(&parameters(text), of, names)?;
        Ok(found.map(|r| format!("{}/{}", r.namespace, r.name)))
    }

    const N: &str = "csi.storage.k8s.io/provisioner-secret-name";
    const NS: &str = "csi.storage.k8s.io/provisioner-secret-namespace";

    #[rstest]
    #[case(&[(N, "key"), (NS, "system")], Some("system/key"))]
    #[case(&[(N, "${pvc.name}.${pv.name}"), (NS, "${pvc.namespace}")], Some("shop/data.pvc-1"))]
    #[case(&[(N, "a-${pvc.annotations['team/key']}"), (NS, "x-${pv.name}")], Some("x-pvc-1/a-blue"))]
    #[case(&[("csiProvisionerSecretName", "old"), ("csiProvisionerSecretNamespace", "s")], Some("s/old"))]
    #[case(&[("csi.storage.k8s.io/secret-name", "d"), ("csi.storage.k8s.io/secret-namespace", "s")], Some("s/d"))]
    #[case(&[(N, "own"), (NS, "s"), ("csi.storage.k8s.io/secret-name", "d"), ("csi.storage.k8s.io/secret-namespace", "s")], Some("s/own"))]
    // One half by a former key is still a pair.
    #[case(&[("csiProvisionerSecretName", "old"), (NS, "s")], Some("s/old"))]
    #[case(&[], None)]
    fn secrets_are_named_by_templates(#[case] text: &[(&str, &str)], #[case] wanted: Option<&str>) {
        assert_eq!(resolved(text, Use::Provisioner).unwrap().as_deref(), wanted);
    }

    #[rstest]
    #[case(&[(N, "key")], "only its name")]
    #[case(&[(NS, "ns")], "only its name")]
    #[case(&[("csi.storage.k8s.io/secret-name", "d")], "only its name")]
    #[case(&[(N, ""), (NS, "s")], "empty")]
    #[case(&[(N, "k"), (NS, "")], "empty")]
    #[case(&[(N, "a"), (NS, "s"), ("csiProvisionerSecretName", "b")], "former key")]
    #[case(&[(N, "${pvc.uid}"), (NS, "s")], "pvc.uid")]
    #[case(&[(N, "$pv.name"), (NS, "s")], "pv")]
    #[case(&[(N, "${pvc.annotations['none']}"), (NS, "s")], "none")]
    #[case(&[(N, "k"), (NS, "${pvc.name}")], "pvc.name")]
    #[case(&[(N, "k"), (NS, "${pvc.annotations['team/key']}")], "team/key")]
    #[case(&[(N, "Upper"), (NS, "s")], "no name")]
    #[case(&[(N, "a..b"), (NS, "s")], "no name")]
    #[case(&[(N, "k"), (NS, "a.b")], "no namespace")]
    fn bad_templates_say_what_is_wrong(#[case] text: &[(&str, &str)], #[case] wanted: &str) {
        let fault = resolved(text, Use::Provisioner).unwrap_err();
        assert_eq!(fault.kind(), larder_model::Kind::Invalid);
        assert!(fault.to_string().contains(wanted), "{fault}");
    }

    #[test]
    fn each_use_has_its_keys() {
        for of in Use::ALL {
            let [name, namespace] = of.keys();
            assert!(is_key(&name) && is_key(&namespace));
            let found = resolved(&[(&name, "k"), (&namespace, "s")], of).unwrap();
            assert_eq!(found.as_deref(), Some("s/k"), "{of:?}");
        }
        assert!(is_key("csi.storage.k8s.io/secret-name"));
        assert!(!is_key("csi.storage.k8s.io/fstype") && !is_key("csi.storage.k8s.io/secret"));
    }

    #[rstest]
    #[case("a$", "a$")]
    #[case("a$-b", "a<->b")]
    #[case("${", "")]
    #[case("a${}b", "ab")]
    #[case("a${b", "ab")]
    #[case("$x.y", "<x>.y")]
    #[case("${x.y}z", "<x.y>z")]
    #[case("$ x", "$ x")]
    #[case("$1a", "<1>a")]
    #[case("ä$ä", "ä$ä")]
    fn templates_are_expanded_as_go_does(#[case] template: &str, #[case] wanted: &str) {
        assert_eq!(expand(template, |name| Some(format!("<{name}>"))).unwrap(), wanted);
    }
}
