//! A table of the crates and their imports, for people.

use comfy_table::{CellAlignment, Table, presets};

use super::verdict::Verdict;

/// One row a crate.
pub fn table<'v>(verdicts: impl IntoIterator<Item = (&'v str, &'v Verdict)>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let head =
        ["crate", "files", "imports", "upward", "through parent", "circles", "known circles"];
    table.set_header(head);
    for (name, verdict) in verdicts {
        let Verdict { files, imports, upward, through, circles, known, .. } = verdict;
        let counts = [files, imports, upward, through, circles, known].map(usize::to_string);
        table.add_row([vec![name.to_owned()], counts.to_vec()].concat());
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
