//! What is made of the command line: help, completions, man pages.

use crate::support::{program, shell};

fn printed(arguments: &[&str]) -> String {
    let output = program().args(arguments).output().unwrap();
    assert!(output.status.success(), "larder {}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

/// The rows of the table in docs/cli.md: `volume create`, `pool ls`, `demo`.
fn documented() -> Vec<String> {
    let page = include_str!("../../../../docs/cli.md");
    let section = page.split("## Commands").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut found = Vec::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cell = row.replace("\\|", "/");
        let cell = cell.split('|').nth(1).unwrap().to_owned();
        for code in cell.split('`').skip(1).step_by(2) {
            let lower = |word: &&str| {
                let letters = word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
                letters && !word.starts_with('-')
            };
            found.push(code.split(' ').take_while(lower).collect::<Vec<_>>().join(" "));
        }
    }
    found
}

#[test]
fn every_documented_command_has_help_and_a_man_page() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man");
    printed(&["man", folder.to_str().unwrap()]);
    let commands = documented();
    assert!(commands.len() > 15, "{commands:?}");
    for command in &commands {
        let words: Vec<_> = command.split(' ').chain(["--help"]).collect();
        let help = printed(&words);
        assert!(help.contains("Usage:"), "{command}");
        let page = folder.join(format!("larder-{}.1", command.replace(' ', "-")));
        let page = std::fs::read_to_string(&page).unwrap_or_else(|e| panic!("{command}: {e}"));
        assert!(page.contains(".SH SYNOPSIS") && page.contains(".SH OPTIONS"), "{command}");
    }
    let page = std::fs::read_to_string(folder.join("larder.1")).unwrap();
    assert!(page.contains("Exit status"), "{page}");
    assert!(!folder.join("larder-internal.1").exists(), "helpers are nobody's business");
}

#[test]
fn every_command_of_the_program_is_documented() {
    let documented = documented();
    let page = include_str!("../../../../docs/cli.md");
    let groups = [
        "volume",
        "snapshot",
        "snapshot group",
        "pool",
        "driver",
        "config",
        "kubectl",
        "kubectl get",
    ];
    for group in groups {
        let words: Vec<_> = group.split(' ').chain(["--help"]).collect();
        let help = printed(&words);
        let commands = help.split("Commands:").nth(1).unwrap().split("\n\n").next().unwrap();
        for line in
            commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        {
            let command = line.split_whitespace().next().unwrap();
            let whole = format!("{group} {command}");
            let known = documented.contains(&whole) || groups.contains(&whole.as_str());
            assert!(command == "help" || known, "{whole}: {documented:?}");
        }
    }
    for command in ["serve", "man", "completions", "demo"] {
        assert!(
            page.contains(&format!("larder {command}")) || page.contains(&format!("`{command}"))
        );
    }
}

#[test]
fn completions_are_made_for_each_shell_and_bash_takes_its_own() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = printed(&["completions", shell]);
        assert!(script.contains("larder") && script.contains("snapshot"), "{shell}");
    }
    let script = printed(&["completions", "bash"]);
    // It is longer than one argument may be.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("larder.bash");
    std::fs::write(&file, script).unwrap();
    let asked = format!(
        ". '{}'\nCOMP_WORDS=(larder volume cr)\nCOMP_CWORD=2\n_larder larder cr volume\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        file.display()
    );
    let output = shell(&asked).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "create");
}

#[test]
fn the_version_is_told_and_wrong_usage_is_status_2() {
    assert!(printed(&["--version"]).starts_with("larder 0."));
    for wrong in [&["nonsense"][..], &["volume", "nonsense"], &["volume", "ls", "--nonsense"], &[]]
    {
        assert_eq!(program().args(wrong).output().unwrap().status.code(), Some(2), "{wrong:?}");
    }
}
