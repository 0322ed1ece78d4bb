//! As much of JSON Schema as deploy/chart/values.schema.json uses, apart from patterns: names are the
//! API server's affair, paths that of `larder config check`.

use serde_json::{Map, Value};

/// What of `value` the schema does not allow, by path.
pub(super) fn problems(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(schema, value, "", &mut found);
    found
}

fn check(schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let mut say = |text: String| {
        found.push(format!("{}: {text}", if at.is_empty() { "the top level" } else { at }));
    };
    let named = match schema.get("type") {
        Some(Value::String(kind)) => vec![kind.as_str()],
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if !named.is_empty() && !named.iter().any(|kind| is(kind, value)) {
        say(format!("{value} is no {}", named.join(" or ")));
        return;
    }
    if let Some(Value::Array(choices)) = schema.get("enum")
        && !choices.contains(value)
    {
        let choices: Vec<_> = choices.iter().map(Value::to_string).collect();
        say(format!("{value} is not one of {}", choices.join(", ")));
    }
    let number = |key: &str| schema.get(key).and_then(Value::as_f64);
    if let Some(value) = value.as_f64() {
        if number("minimum").is_some_and(|least| value < least) {
            say(format!("{value} is too small"));
        }
        if number("maximum").is_some_and(|most| value > most) {
            say(format!("{value} is too large"));
        }
    }
    if value.as_str() == Some("") && number("minLength").is_some() {
        say("it is empty".to_owned());
    }
    match value {
        Value::Object(map) => object(schema, map, at, found),
        Value::Array(list) => {
            if let Some(items) = schema.get("items") {
                for (i, value) in list.iter().enumerate() {
                    check(items, value, &format!("{at}[{i}]"), found);
                }
            }
        }
        _ => {}
    }
}

fn object(schema: &Value, map: &Map<String, Value>, at: &str, found: &mut Vec<String>) {
    let place = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
    for key in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        let key = key.as_str().unwrap_or_default();
        if !map.contains_key(key) {
            found.push(format!("{}: it is missing", place(key)));
        }
    }
    if schema.get("minProperties").is_some() && map.is_empty() {
        found.push(format!("{at}: there is none"));
    }
    for (key, value) in map {
        let known = schema.get("properties").and_then(|known| known.get(key));
        match (known, schema.get("additionalProperties")) {
            (Some(schema), _) => check(schema, value, &place(key), found),
            (None, Some(Value::Bool(false))) => {
                found.push(format!("{}: there is no such value", place(key)));
            }
            (None, Some(schema)) => check(schema, value, &place(key), found),
            (None, None) => {}
        }
    }
}

fn is(kind: &str, value: &Value) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        _ => false,
    }
}
