//! Printing: tables for people, JSON and YAML for scripts.

use anyhow::Result;
use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;
use std::io::Write;

/// Output formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns that fit a terminal.
    Table,
    /// All columns.
    Wide,
    /// JSON: a list of objects, or an object where there is one.
    Json,
    /// The same as YAML.
    Yaml,
}

/// A row of a table.
pub(crate) trait Row: Serialize {
    /// Headings; the first [`Row::NARROW`] are shown without `-o wide`.
    const HEADINGS: &'static [&'static str];
    /// How many columns the narrow table has.
    const NARROW: usize;
    /// The cells, one a heading.
    fn cells(&self) -> Vec<String>;
}

/// Prints a list.
pub(crate) fn list<R: Row>(format: Format, rows: &[R]) -> Result<()> {
    match format {
        Format::Json | Format::Yaml => value(format, &rows),
        Format::Table | Format::Wide => {
            let columns = if format == Format::Wide { R::HEADINGS.len() } else { R::NARROW };
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_header(&R::HEADINGS[..columns]);
            for row in rows {
                table.add_row(row.cells().into_iter().take(columns));
            }
            for column in table.column_iter_mut() {
                column.set_padding((0, 2));
            }
            line(table.trim_fmt())
        }
    }
}

/// Prints one object: its table form is `heading: value` lines.
pub(crate) fn one<R: Row>(format: Format, row: &R) -> Result<()> {
    match format {
        Format::Json | Format::Yaml => value(format, row),
        Format::Table | Format::Wide => {
            let width = R::HEADINGS.iter().map(|h| h.len()).max().unwrap_or(0) + 1;
            for (heading, cell) in R::HEADINGS.iter().zip(row.cells()) {
                if !cell.is_empty() {
                    line(format!("{:width$} {cell}", format!("{heading}:")))?;
                }
            }
            Ok(())
        }
    }
}

/// Prints any value as JSON or YAML.
pub(crate) fn value<T: Serialize + ?Sized>(format: Format, value: &T) -> Result<()> {
    match format {
        Format::Yaml => line(serde_yaml_ng::to_string(value)?.trim_end()),
        _ => line(serde_json::to_string_pretty(value)?),
    }
}

/// Prints a line. A closed pipe (`larder volume ls | head -1`) is not an error.
pub(crate) fn line(text: impl AsRef<str>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.as_ref()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Prints a line for people beside the output, on standard error.
pub(crate) fn note(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stderr().lock(), "{}", text.as_ref());
}
