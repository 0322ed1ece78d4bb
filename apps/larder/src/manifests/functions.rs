//! The functions of templates, and how values are printed.

use larder_model::{Fault, Result};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

/// Whether a condition takes it for true.
pub(super) fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is) => *is,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// As an action prints it.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Calls a function; the last argument is what came through the pipe.
pub(super) fn call(name: &str, arguments: &[Value]) -> Result<Value> {
    let wrong = || Fault::internal(format!("call {name} of the chart's templates: {arguments:?}"));
    let number = |value: &Value| match value {
        Value::String(text) => text.parse().unwrap_or(0),
        other => other.as_i64().unwrap_or(0),
    };
    Ok(match (name, arguments) {
        ("default", [fallback, value]) => {
            if is_true(value) {
                value.clone()
            } else {
                fallback.clone()
            }
        }
        ("quote", [value]) => Value::String(text(value)).to_string().into(),
        ("toYaml", [value]) => yaml(value).into(),
        ("nindent", [by, value]) => {
            let pad = " ".repeat(usize::try_from(number(by)).map_err(|_| wrong())?);
            format!("\n{pad}{}", text(value).replace('\n', &format!("\n{pad}"))).into()
        }
        ("printf", [Value::String(format), rest @ ..]) => {
            let mut parts = format.split("%s").flat_map(|part| part.split("%v"));
            let mut out = parts.next().unwrap_or_default().to_owned();
            let mut count = 0;
            for (part, value) in parts.zip(rest) {
                let shown = if value.is_null() { "<nil>".to_owned() } else { text(value) };
                out.push_str(&shown);
                out.push_str(part);
                count += 1;
            }
            if count != rest.len() {
                return Err(wrong());
            }
            out.into()
        }
        ("sha256sum", [value]) => {
            let mut out = String::new();
            for byte in Sha256::digest(text(value)) {
                let _ = write!(out, "{byte:02x}");
            }
            out.into()
        }
        ("contains", [part, whole]) => text(whole).contains(&text(part)).into(),
        ("fail", [why]) => return Err(Fault::invalid(format!("use these values: {}", text(why)))),
        ("int", [value]) => number(value).into(),
        ("not", [value]) => (!is_true(value)).into(),
        ("and", [.., last]) => arguments.iter().find(|v| !is_true(v)).unwrap_or(last).clone(),
        ("or", [.., last]) => arguments.iter().find(|v| is_true(v)).unwrap_or(last).clone(),
        ("eq", [first, rest @ ..]) if !rest.is_empty() => rest.contains(first).into(),
        ("ne", [first, second]) => (first != second).into(),
        ("gt", [first, second]) => (number(first) > number(second)).into(),
        _ => return Err(wrong()),
    })
}

/// As Helm prints it: keys in order, lists not indented, quotes where they must be.
fn yaml(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    out.trim_end_matches('\n').to_owned()
}

fn block(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let _ = write!(out, "{pad}{}:", scalar(key));
                let deeper = if value.is_array() { indent } else { indent + 2 };
                inner(value, deeper, out);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for value in list {
                let mut item = String::new();
                block(value, indent + 2, &mut item);
                let _ = write!(out, "{pad}- {}", item.get(indent + 2..).unwrap_or_default());
            }
        }
        other => {
            let _ = writeln!(out, "{pad}{}", flow(other));
        }
    }
}

fn inner(value: &Value, indent: usize, out: &mut String) {
    let empty = |value: &Value| match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => true,
    };
    if empty(value) {
        let _ = writeln!(out, " {}", flow(value));
    } else {
        out.push('\n');
        block(value, indent, out);
    }
}

fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        Value::Object(_) => "{}".to_owned(),
        Value::Array(_) => "[]".to_owned(),
        other => other.to_string(),
    }
}

/// A string: plain where it is read back as the same.
fn scalar(text: &str) -> String {
    const WORDS: [&str; 11] =
        ["", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    let looks_like_a_number = text.parse::<f64>().is_ok() || text.starts_with("0x");
    if WORDS.contains(&text.to_ascii_lowercase().as_str()) || looks_like_a_number {
        return Value::from(text).to_string();
    }
    if text.chars().any(char::is_control) {
        return Value::from(text).to_string();
    }
    let first = text.starts_with(|c: char| "-?:,[]{}#&*!|>'\"%@` ".contains(c));
    // A dash is a mark only before a blank.
    let first = first && !(text.starts_with('-') && !text.starts_with("- ") && text.len() > 1);
    if first || text.contains(": ") || text.contains(" #") || text.ends_with([':', ' ']) {
        return format!("'{}'", text.replace('\'', "''"));
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn yaml_is_read_back_as_the_same_value() {
        let value = json!({
            "list": [1, "2", {"a": [], "b": {}}, [true, "true"], {"k": ["x", {"y": null}]}],
            "words": ["yes", "no", "", "- x", "-x", "a: b", "it's", "*", "#", "a #b", "x:", "0x1", "1e3", "\n"],
            "map": {"1": "2", "on": 1.5, "a b": false},
        });
        let text = yaml(&value);
        let read: Value = serde_yaml_ng::from_str(&text).unwrap();
        assert_eq!(read, value, "{text}");
    }
}
