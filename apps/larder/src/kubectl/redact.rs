//! Takes out of objects and texts what nobody else may read, before they leave the cluster.
//!
//! Names stay, so that the parts of a bundle can be put together; values go: of environment
//! variables, of keys that are called like secrets, of tokens and passwords within texts.

use serde_json::Value;

/// What stands in the place of a secret.
pub(super) const REDACTED: &str = "(redacted)";

/// Parts of keys whose values are secret.
const KEYS: [&str; 13] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "apikey",
    "accesskey",
    "privatekey",
    "authorization",
    "cookie",
    "encryptionkey",
    "cabundle",
];

/// A key that names a Secret, or says how something is done with one, is no secret itself.
fn is_name(key: &str) -> bool {
    let ends = [
        "name",
        "namespace",
        "ref",
        "refs",
        "required",
        "policy",
        "period",
        "seconds",
        "path",
        "requests",
    ];
    ends.iter().any(|end| key.ends_with(end))
        || key.contains("automount")
        || key == "imagepullsecrets"
}

fn is_secret(key: &str) -> bool {
    let plain: String = key.chars().filter(char::is_ascii_alphanumeric).collect();
    let plain = plain.to_ascii_lowercase();
    KEYS.iter().any(|part| plain.contains(part)) && !is_name(&plain)
}

/// An object without its secrets.
pub(super) fn object(object: &mut Value) {
    match object {
        Value::Object(map) => {
            // It repeats the object as somebody wrote it, within a text.
            map.remove("kubectl.kubernetes.io/last-applied-configuration");
            map.remove("managedFields");
            for (key, value) in map.iter_mut() {
                if key == "env"
                    && let Some(variables) = value.as_array_mut()
                {
                    variables.iter_mut().for_each(variable);
                } else if is_secret(key) && (value.is_string() || value.is_number()) {
                    *value = Value::from(REDACTED);
                } else {
                    self::object(value);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(self::object),
        Value::String(words) => *words = text(words),
        _ => {}
    }
}

fn variable(variable: &mut Value) {
    if let Some(value) = variable.get_mut("value") {
        *value = Value::from(REDACTED);
    }
}

/// A text without its secrets.
pub(super) fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        redact_line(line, &mut out);
    }
    out
}

fn redact_line(line: &str, out: &mut String) {
    // The word after `password=`, `token:`, `Bearer` is secret, whatever it is.
    let mut hide = false;
    // A key by itself, as in `"password": "X"`: what follows a colon is secret.
    let mut key = false;
    let mut rest = line;
    while !rest.is_empty() {
        let space = rest.find(|c: char| !is_space(c)).unwrap_or(rest.len());
        out.push_str(&rest[..space]);
        rest = &rest[space..];
        let end = rest.find(is_space).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        if word.is_empty() {
            continue;
        }
        if hide && word != "=" && word != ":" {
            // `Authorization: Bearer X` has one word more.
            hide = word.eq_ignore_ascii_case("bearer") || word.eq_ignore_ascii_case("basic");
            out.push_str(if hide { word } else { REDACTED });
            continue;
        }
        let sign = matches!(word, "=" | ":");
        hide = redact_word(word, out) || hide || sign && key;
        key = is_secret(word);
    }
}

fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '{' | '}')
}

/// Writes one word; whether the next one is a secret.
fn redact_word(word: &str, out: &mut String) -> bool {
    if word.eq_ignore_ascii_case("bearer") {
        out.push_str(word);
        return true;
    }
    // JSON Web Tokens, ServiceAccount tokens among them.
    if word.starts_with("eyJ") && word.matches('.').count() >= 2 {
        out.push_str(REDACTED);
        return false;
    }
    // user:password@ in an address.
    if let Some((scheme, address)) = word.split_once("://")
        && let Some((user, host)) = address.split_once('@')
        && !user.contains('/')
    {
        out.push_str(&format!("{scheme}://{REDACTED}@{host}"));
        return false;
    }
    if let Some(at) = word.find(['=', ':'])
        && is_secret(word[..at].trim_start_matches('-'))
    {
        let (key, value) = word.split_at(at + 1);
        out.push_str(key);
        if value.is_empty() {
            return true;
        }
        out.push_str(REDACTED);
        return false;
    }
    out.push_str(word);
    // `--token X`
    word.starts_with("--") && !word.contains('=') && is_secret(word.trim_start_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case("login with password=hunter2 failed", "login with password=(redacted) failed")]
    #[case("Authorization: Bearer abc.def", "Authorization: Bearer (redacted)")]
    #[case("mount -o user=a,password=hunter2 //h/s", "mount -o user=a,password=(redacted) //h/s")]
    #[case("GET https://me:hunter2@host/path", "GET https://(redacted)@host/path")]
    #[case("run --token hunter2 --force", "run --token (redacted) --force")]
    #[case("run --token=hunter2", "run --token=(redacted)")]
    #[case("token eyJhbGciOi.eyJpc3Mi.c2ln is old", "token (redacted) is old")]
    #[case("{\"apiKey\":\"hunter2\"}", "{\"apiKey\":\"(redacted)\"}")]
    #[case("secretName: nfs-login", "secretName: nfs-login")]
    #[case("volume default/pvc-1 at 10:15:30", "volume default/pvc-1 at 10:15:30")]
    fn a_text_loses_its_secrets_and_nothing_else(#[case] given: &str, #[case] wanted: &str) {
        assert_eq!(text(given), wanted);
    }

    #[test]
    fn an_object_loses_values_of_variables_and_of_secret_keys() {
        let mut given = json!({
            "metadata": {
                "name": "a",
                "annotations": {
                    "kubectl.kubernetes.io/last-applied-configuration": "{hunter2}",
                    "example.org/api-token": "hunter2", "plain": "kept",
                },
                "managedFields": [],
            },
            "spec": {
                "csi": {
                    "nodeStageSecretRef": {"name": "s", "namespace": "n"},
                    "volumeAttributes": {"accessKey": "hunter2", "pool": "fast"},
                },
                "containers": [{
                    "args": ["--password=hunter2", "--v=5"],
                    "env": [
                        {"name": "PLAIN", "value": "hunter2"},
                        {"name": "FROM", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                    ],
                }],
            },
        });
        object(&mut given);
        let printed = given.to_string();
        assert!(!printed.contains("hunter2"), "{printed}");
        for kept in
            ["\"pool\":\"fast\"", "\"plain\":\"kept\"", "--v=5", "\"name\":\"s\"", "secretKeyRef"]
        {
            assert!(printed.contains(kept), "{kept}: {printed}");
        }
    }

    proptest! {
        #[test]
        fn a_random_secret_behind_its_key_is_gone_wherever_it_stands(
            before in "[ a-z0-9=:\"]{0,20}", key in "(password|--token|apiKey|client_secret)",
            between in "(=|: |:\"|\": \")", secret in "[A-Z0-9]{8,16}", after in "( [a-z ]{0,20})?",
        ) {
            let line = format!("{before} {key}{between}{secret}{after}");
            prop_assert!(!text(&line).contains(&secret), "{line} -> {}", text(&line));
        }

        #[test]
        fn a_random_line_without_secrets_stays_as_it_is(line in "[a-z0-9 ./\"{}-]{0,60}") {
            let harmless = !line.contains("eyj") && !line.contains("bearer") && !KEYS.iter().any(|k| line.replace(['-', '.', '/', '"', '{', '}', ' '], "").contains(k));
            if harmless {
                prop_assert_eq!(text(&line), line);
            }
        }
    }
}
