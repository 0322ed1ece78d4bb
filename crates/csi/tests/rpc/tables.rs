//! Reads the tables: tab-separated, `#` comments, then one row of column names.

pub(crate) const ERRORS: &str = include_str!("../tables/csi-errors.tsv");
pub(crate) const LIMITS: &str = include_str!("../tables/csi-limits.tsv");
pub(crate) const REQUIRED: &str = include_str!("../tables/csi-required-fields.tsv");

/// The rows as their cells.
pub(crate) fn rows<const N: usize>(table: &'static str) -> Vec<[&'static str; N]> {
    let lines = table.lines().filter(|line| !line.starts_with('#')).skip(1);
    lines
        .map(|line| {
            let cells: Vec<&str> = line.split('\t').collect();
            cells.try_into().unwrap_or_else(|cells| panic!("{N} cells expected: {cells:?}"))
        })
        .collect()
}
