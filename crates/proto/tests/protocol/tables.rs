//! Reads the tables: tab-separated, `#` comments, then one row of column names.

use std::collections::BTreeSet;
use std::ops::Index;

/// `csi.v1`: the rows of both revisions, told apart by the column `revisions`.
pub(crate) const MESSAGES: &str = include_str!("../tables/csi-messages.tsv");
pub(crate) const ENUMS: &str = include_str!("../tables/csi-enums.tsv");
pub(crate) const RPCS: &str = include_str!("../tables/csi-rpcs.tsv");
pub(crate) const OPTIONS: &str = include_str!("../tables/csi-options.tsv");
/// The small packages have one table each, with a column `kind`.
pub(crate) const REGISTRATION: &str = include_str!("../tables/pluginregistration.tsv");
pub(crate) const SNAPSHOT_METADATA: &str = include_str!("../tables/snapshotmetadata.tsv");

/// One row; its cells are found by the name of the column.
pub(crate) struct Row {
    columns: Vec<&'static str>,
    cells: Vec<&'static str>,
}

impl Row {
    /// Whether a column that says yes or no says yes.
    pub(crate) fn yes(&self, column: &str) -> bool {
        match &self[column] {
            "yes" => true,
            "no" => false,
            other => panic!("{column} is {other:?}, neither yes nor no"),
        }
    }
}

impl Index<&str> for Row {
    type Output = str;

    fn index(&self, column: &str) -> &str {
        let at = self.columns.iter().position(|name| *name == column);
        self.cells[at.unwrap_or_else(|| panic!("no column {column:?} in {:?}", self.columns))]
    }
}

pub(crate) fn rows(table: &'static str) -> Vec<Row> {
    let mut lines = table.lines().filter(|line| !line.starts_with('#'));
    let columns: Vec<&str> = lines.next().expect("a row of column names").split('\t').collect();
    lines
        .map(|line| {
            let cells: Vec<&str> = line.split('\t').collect();
            assert_eq!(cells.len(), columns.len(), "cells in {line:?}");
            Row { columns: columns.clone(), cells }
        })
        .collect()
}

/// The full names of the fields whose content must never be printed.
pub(crate) fn secret_fields() -> BTreeSet<String> {
    let marked = rows(MESSAGES)
        .into_iter()
        .filter(|row| row.yes("csi_secret"))
        .map(|row| format!("csi.v1.{}.{}", &row["message"], &row["field"]));
    let unmarked = [
        "csi.v1.VolumeCapability.MountVolume.mount_flags",
        "snapshotmetadata.GetMetadataAllocatedRequest.security_token",
        "snapshotmetadata.GetMetadataDeltaRequest.security_token",
    ];
    marked.chain(unmarked.map(str::to_owned)).collect()
}
