//! The flows in `docs/design` name the steps of the code.

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        fs,
        path::{Path, PathBuf},
    };

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
    }

    /// The text between every pair of `quote` in `text`.
    fn quoted(text: &str, quote: char) -> BTreeSet<&str> {
        text.lines().flat_map(|line| line.split(quote).skip(1).step_by(2)).collect()
    }

    fn sources(folder: &Path, text: &mut String) {
        for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "tests" && name != "target" {
                sources(&path, text);
            } else if name.ends_with(".rs") && name != "tests.rs" {
                text.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }

    /// What is in backticks and has a blank is a step, unless it is code.
    fn steps(flows: &str) -> Vec<&str> {
        let steps = quoted(flows, '`').into_iter();
        steps
            .filter(|s| s.contains(' ') && s.starts_with(|c: char| c.is_ascii_lowercase()))
            .collect()
    }

    #[test]
    fn every_step_in_the_flows_is_a_step_of_the_code() {
        let flows = fs::read_to_string(root().join("docs/design/flows.md")).unwrap();
        let mut code = String::new();
        for folder in ["crates/volumes/src", "crates/pool/src", "backends"] {
            sources(&root().join(folder), &mut code);
        }
        let steps = steps(&flows);
        assert!(steps.len() > 50, "the flows name only {} steps", steps.len());
        let unknown: Vec<_> =
            steps.into_iter().filter(|step| !code.contains(&format!("\"{step}\""))).collect();
        assert!(
            unknown.is_empty(),
            "the flows name steps that the code does not have: {unknown:#?}"
        );
    }

    /// The engines' own steps are all told; those of the backends are theirs to tell.
    #[test]
    fn every_step_of_the_engines_is_in_the_flows() {
        let flows = fs::read_to_string(root().join("docs/design/flows.md")).unwrap();
        let mut code = String::new();
        sources(&root().join("crates/volumes/src/control"), &mut code);
        sources(&root().join("crates/volumes/src/node"), &mut code);
        let named: Vec<&str> = code
            .split(".step(\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .filter(|step| !flows.contains(&format!("`{step}`")))
            .collect();
        assert!(named.is_empty(), "steps that no flow tells of: {named:#?}");
    }
}
