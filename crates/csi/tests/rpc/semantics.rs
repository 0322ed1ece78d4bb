//! docs/semantics.md names tests; they exist.

use std::{collections::BTreeSet, fs, path::Path};

const PAGE: &str = include_str!("../../../../docs/semantics.md");

/// Text in backquotes that has the form of a test's path: `module::name` in this folder, or a longer
/// one of the engines' sources.
fn named() -> BTreeSet<(&'static str, &'static str)> {
    let quoted = PAGE.split('`').skip(1).step_by(2);
    quoted
        .filter_map(|text| text.rsplit_once("::"))
        .filter(|(module, name)| {
            let is_name = |part: &str| {
                part.bytes().all(|b| b.is_ascii_lowercase() || b"_0123456789".contains(&b))
            };
            module.split("::").all(is_name) && is_name(name)
        })
        .collect()
}

#[test]
fn every_test_that_the_documentation_names_exists() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named = named();
    assert!(named.len() > 25, "{}", named.len());
    for (module, name) in named {
        let file = match module.contains("::") {
            false => format!("tests/rpc/{module}.rs"),
            true => format!("../volumes/src/{}.rs", module.replace("::", "/")),
        };
        let source = fs::read_to_string(here.join(file));
        let source = source.unwrap_or_else(|e| panic!("{module}::{name}: {e}"));
        let test = format!("fn {name}()");
        let at = source.find(&test).unwrap_or_else(|| panic!("{module}::{name} does not exist"));
        let before = &source[..at];
        let attribute = before.rfind("#[").map_or("", |from| &before[from..]);
        let is_test = attribute.starts_with("#[tokio::test]") || attribute.starts_with("#[test]");
        assert!(is_test, "{module}::{name} is no test: {attribute}");
    }
}

#[test]
fn every_deviation_has_a_reason_and_a_test() {
    let rows = PAGE.split("## Where we deviate").nth(1).unwrap();
    let rows: Vec<&str> = rows.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() >= 11, "{}", rows.len());
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 4, "{row}");
        assert!(cells.iter().all(|cell| !cell.is_empty()), "{row}");
        assert!(cells[3].starts_with('`') && cells[3].contains("::"), "{row}");
    }
}

/// The table of codes is that of the code.
#[test]
fn the_codes_are_those_of_the_documentation() {
    use larder_csi::status;
    use larder_model::Kind;
    for line in PAGE.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let kind = match cells[1].trim_matches('`') {
            "Invalid" => Kind::Invalid,
            "NotFound" => Kind::NotFound,
            "Conflict" => Kind::Conflict,
            "Aborted" => Kind::Aborted,
            "Precondition" => Kind::Precondition,
            "OutOfRange" => Kind::OutOfRange,
            "Exhausted" => Kind::Exhausted,
            "Denied" => Kind::Denied,
            "Unauthenticated" => Kind::Unauthenticated,
            "Unavailable" => Kind::Unavailable,
            "Deadline" => Kind::Deadline,
            "Unsupported" => Kind::Unsupported,
            "Corrupt" => Kind::Corrupt,
            "Internal" => Kind::Internal,
            other => panic!("no kind {other}"),
        };
        // `FailedPrecondition` and `FAILED_PRECONDITION` are one word.
        let plain = |text: &str| text.replace('_', "").to_lowercase();
        let code = plain(&format!("{:?}", status::code(kind)));
        assert_eq!(code, plain(cells[2]), "{line}");
    }
}
