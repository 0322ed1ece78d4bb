//! Rules about the files under version control.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use super::Findings;
use crate::proc;

/// A Rust file longer than this is divided.
const MOST_LINES: usize = 600;

/// Marks of work that was put off. In parts, so that this file has none.
const UNFINISHED: [&str; 5] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("to", "do!("),
    concat!("unimpl", "emented!("),
    concat!("#[ig", "nore"),
];

/// A file's name and text.
pub(super) struct TextFile {
    name: String,
    text: String,
}

/// The text files under version control, as they are in the folder.
pub(super) fn tracked() -> Result<Vec<TextFile>> {
    let root = crate::root();
    let mut git = std::process::Command::new("git");
    let list = proc::output(git.arg("-C").arg(&root).args(["ls-files", "-z"]))
        .context("failed to list the files under version control")?;
    let mut files = Vec::new();
    for name in list.split_terminator('\0') {
        let path: PathBuf = root.join(name);
        // A file that was deleted and not yet committed, or that is no text.
        if let Ok(text) = fs::read_to_string(path) {
            files.push(TextFile { name: name.to_owned(), text });
        }
    }
    Ok(files)
}

/// Rust files that nobody can keep in mind.
pub(super) fn too_long(files: &[TextFile]) -> Findings {
    let rust = files.iter().filter(|file| file.name.ends_with(".rs"));
    rust.filter_map(|file| {
        let lines = file.text.lines().count();
        (lines > MOST_LINES)
            .then(|| format!("{} has {lines} lines, {MOST_LINES} at most", file.name))
    })
    .collect()
}

/// Places in code and scripts that say they are not done.
pub(super) fn unfinished(files: &[TextFile]) -> Findings {
    let code = |name: &str| [".rs", ".sh", ".toml", ".proto"].iter().any(|end| name.ends_with(end));
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| code(&file.name)) {
        for (index, line) in file.text.lines().enumerate() {
            if let Some(mark) = UNFINISHED.iter().find(|mark| line.contains(**mark)) {
                findings.push(format!("{}:{}: {mark}", file.name, index + 1));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: impl Into<String>) -> TextFile {
        TextFile { name: name.to_owned(), text: text.into() }
    }

    #[test]
    fn a_rust_file_over_the_limit_is_found_and_a_table_is_not() {
        let files = [
            file("a.rs", "x\n".repeat(601)),
            file("b.rs", "x\n".repeat(600)),
            file("c.tsv", "x\n".repeat(9999)),
        ];
        assert_eq!(too_long(&files), ["a.rs has 601 lines, 600 at most"]);
    }

    #[test]
    fn work_that_was_put_off_is_found_with_its_line() {
        let text = format!("fn a() {{\n    {}\n}}", UNFINISHED[2]);
        let found = unfinished(&[file("a.rs", text), file("a.md", UNFINISHED[0])]);
        assert_eq!(found, [format!("a.rs:2: {}", UNFINISHED[2])]);
    }
}
