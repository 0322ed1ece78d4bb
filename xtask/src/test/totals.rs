//! Reads what the runners say about themselves.

use std::{fmt, ops::Add};

/// What became of the tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
}

impl Add for Totals {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// The totals of a runner's output: its own closing line (ours), else the sum of the
/// lines that Rust's test runner closes each binary with; none when it has neither.
pub(crate) fn parse(text: &str) -> Option<Totals> {
    let plain = text.lines().rev().find_map(parse_plain);
    plain.or_else(|| {
        let closing = text.lines().filter_map(parse_cargo);
        closing.fold(None, |sum, totals| Some(sum.unwrap_or_default() + totals))
    })
}

/// `N passed, M failed, K skipped` alone on a line.
pub(crate) fn parse_plain(line: &str) -> Option<Totals> {
    let rest = line.trim().strip_suffix(" skipped")?;
    let (passed, rest) = rest.split_once(" passed, ")?;
    let (failed, skipped) = rest.split_once(" failed, ")?;
    Some(Totals {
        passed: passed.parse().ok()?,
        failed: failed.parse().ok()?,
        skipped: skipped.parse().ok()?,
    })
}

/// `test result: ok. N passed; M failed; K ignored; …`
fn parse_cargo(line: &str) -> Option<Totals> {
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut numbers = rest.split("; ").filter_map(|part| part.split_once(' ')?.0.parse().ok());
    Some(Totals { passed: numbers.next()?, failed: numbers.next()?, skipped: numbers.next()? })
}

/// The names of the tests that failed.
pub(crate) fn failures(text: &str) -> Vec<String> {
    let cargo = |line: &str| {
        let name = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
        Some(format!("{name} failed"))
    };
    let own = |line: &str| Some(line.strip_prefix("FAILED ")?.to_owned());
    text.lines().filter_map(|line| cargo(line).or_else(|| own(line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binaries_of_one_cargo_test_are_summed_up() {
        let text = "running 2 tests\n\
            test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            noise\n\
            test result: FAILED. 3 passed; 4 failed; 0 ignored; 0 measured; 9 filtered out\n";
        assert_eq!(parse(text), Some(Totals { passed: 5, failed: 4, skipped: 1 }));
    }

    #[test]
    fn a_closing_line_of_ours_is_the_last_word() {
        let text = "test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured\n\
            7 passed, 0 failed, 2 skipped\n";
        assert_eq!(parse(text), Some(Totals { passed: 7, failed: 0, skipped: 2 }));
        let totals = parse(text).unwrap();
        assert_eq!(parse_plain(&totals.to_string()), Some(totals));
    }

    #[test]
    fn output_without_tests_has_no_totals() {
        assert_eq!(parse("Finished `dev` profile\nit passed, nobody failed, all skipped\n"), None);
    }

    #[test]
    fn failed_tests_are_named() {
        let text = "test a::b ... ok\ntest a::c ... FAILED\nFAILED sanity: [Node] should x: why\n";
        assert_eq!(failures(text), ["a::c failed", "sanity: [Node] should x: why"]);
    }
}
