//! The corpus: every defect that can be put back, and who catches it.
//!
//! The library lists its defects; tests and models say which they caught. Both are lines of their
//! output:
//!
//! ```text
//! defect skips_after_restart [K16] A walk that is resumed goes on one table too far.
//! caught skips_after_restart by corpus::skips_after_restart: a zap in steps leaves [8, 0, 0]
//! ```

use std::{collections::BTreeMap, iter};

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};

use super::{context::Context, models, source::tests, tally::Tally, torture};

/// The tests that put one defect back each.
const CORPUS: &str = "corpus";

/// Whoever catches something and is called so, or begins so, has a column of his own.
const TORTURE: &str = "torture";

/// What the library must have a defect for.
const REQUIRED: &[&str] = &[
    "K3", "K4", "K5", "K6", "K11", "K16", "K18", "K23", "K26", "B1", "B2", "B3", "B7", "B8", "B10",
    "B11", "B13", "S2", "S3", "S5", "S6", "D-a2", "D-a3", "D-a5", "D-a6", "D-b1", "D-b3", "D-b4",
    "D-e2", "D-e4", "D-g1", "D-g3", "D-g6", "D-h1", "D-i2", "D-i3", "D-i5", "D-k1", "D-k3", "D-k5",
    "D-m1", "D-n1", "D-q2", "D-r2", "D-w2", "D-w3", "D-w4", "F-H1", "F-H2", "F-H6a", "F-H6b",
    "F-H6c", "F-M1", "F-M2", "F-M3", "F-M5a", "F-M5b", "F-M5c", "F-M5d", "F-M5e", "F-M5f", "F-M6",
    "F-M8", "F-M9", "F-M11", "F-M13", "F-M13b", "F-M14", "F-M14b", "F-a", "F-b", "F-c", "F-d",
    "F-e", "F-f", "F-g", "F-h", "F-i1", "F-i2", "F-i3", "F-i4",
];

/// A defect of the library.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    name: String,
    ids: Vec<String>,
    about: String,
    /// Who caught it, without repetitions.
    by: Vec<String>,
}

/// Runs what has not been run, and compares.
pub fn corpus(context: &Context) -> Result<Tally> {
    let arguments = [
        "test",
        "--package",
        "vmmu",
        "--features",
        "protocol,defects",
        "--test",
        "corpus",
        "--",
        "--nocapture",
    ];
    let mut tally = tests(context, CORPUS, context.cargo(&arguments))?;
    if models::names().iter().any(|name| context.output(name).is_none()) {
        tally += models::models(context)?;
    }
    let looked_through = iter::once(CORPUS).chain(models::names());
    let mut outputs: Vec<String> = looked_through.filter_map(|name| context.output(name)).collect();
    let (hunted, lines) = torture::hunts(context)?;
    tally += hunted;
    outputs.push(lines);
    let (rows, complaints) = compare(&outputs, REQUIRED);
    println!("{}", table(&rows));
    for row in &rows {
        tally += if row.by.is_empty() { Tally::FAILED } else { Tally::PASSED };
    }
    for complaint in &complaints {
        println!("     FAILED            {complaint}");
    }
    let uncaught = rows.iter().filter(|row| row.by.is_empty()).count();
    // What is not a row of the table.
    tally.failed += (complaints.len() - uncaught) as u64;
    Ok(tally)
}

/// The rows, and what is wrong: first of all a defect that nobody catches.
fn compare(outputs: &[String], required: &[&str]) -> (Vec<Row>, Vec<String>) {
    let lines = || outputs.iter().flat_map(|output| output.lines());
    let mut rows: Vec<Row> = lines().filter_map(defect).collect();
    let mut complaints = Vec::new();
    let places: BTreeMap<String, usize> =
        rows.iter().enumerate().map(|(n, row)| (row.name.clone(), n)).collect();
    for (name, by) in lines().filter_map(caught) {
        match places.get(name).and_then(|n| rows.get_mut(*n)) {
            Some(row) if row.by.iter().any(|known| known == by) => {}
            Some(row) => row.by.push(by.to_owned()),
            None => complaints.push(format!("{by} caught {name}, which is no defect")),
        }
    }
    if rows.is_empty() {
        complaints.push("no defect was listed".to_owned());
    }
    for row in rows.iter().filter(|row| row.by.is_empty()) {
        let ids = row.ids.join(", ");
        complaints.push(format!("nobody catches {ids} ({}): a test is missing", row.name));
    }
    for id in required {
        if !rows.iter().any(|row| row.ids.iter().any(|known| known == id)) {
            complaints.push(format!("no defect is {id}"));
        }
    }
    (rows, complaints)
}

/// `defect name [ids] about`
fn defect(line: &str) -> Option<Row> {
    // The harness may have begun the line with the name of a test.
    let (_, rest) = line.split_once("defect ")?;
    let (name, rest) = rest.split_once(" [")?;
    let (ids, about) = rest.split_once("] ")?;
    let ids = ids.split(", ").map(str::to_owned).collect();
    is_name(name).then(|| Row {
        name: name.to_owned(),
        ids,
        about: about.to_owned(),
        by: Vec::new(),
    })
}

/// `caught name by whom: why`
fn caught(line: &str) -> Option<(&str, &str)> {
    let (_, rest) = line.split_once("caught ")?;
    let (name, rest) = rest.split_once(" by ")?;
    let by = rest.split_whitespace().next()?.trim_end_matches(':');
    is_name(name).then_some((name, by))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c == '_')
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["id", "what", "test", TORTURE, ""]);
    for row in rows {
        let (torture, others): (Vec<&str>, Vec<&str>) =
            row.by.iter().map(String::as_str).partition(|by| by.starts_with(TORTURE));
        let verdict = if row.by.is_empty() { "NOT CAUGHT" } else { "caught" };
        table.add_row([
            row.ids.join(", "),
            row.about.clone(),
            others.join(", "),
            torture.join(", "),
            verdict.to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "defect a_b [K1, D-a1] One thing.\ndefect c [B2] Another.\n";

    #[test]
    fn a_defect_has_those_who_caught_it_once_each() {
        let caught = "test x ... caught a_b by corpus::a_b: why\ncaught c by loom::c1\n\
                      caught c by loom::c1\ncaught c by shuttle::four: in schedule 3\n";
        let (rows, complaints) = compare(&[LISTED.into(), caught.into()], &["K1", "B2"]);
        assert_eq!(complaints, Vec::<String>::new());
        assert_eq!(rows[0].by, ["corpus::a_b"]);
        assert_eq!(rows[1].by, ["loom::c1", "shuttle::four"]);
        assert_eq!(rows[0].ids, ["K1", "D-a1"]);
    }

    #[test]
    fn a_defect_that_nobody_catches_is_a_missing_test() {
        let (rows, complaints) = compare(&[LISTED.into(), "caught c by loom::c1".into()], &[]);
        assert!(rows[0].by.is_empty());
        assert_eq!(complaints, ["nobody catches K1, D-a1 (a_b): a test is missing"]);
    }

    #[test]
    fn what_is_required_must_be_listed_and_what_is_caught_too() {
        let caught = "caught a_b by t\ncaught c by t\ncaught gone by t\n";
        let (_, complaints) = compare(&[LISTED.into(), caught.into()], &["K1", "K9"]);
        assert_eq!(complaints, ["t caught gone, which is no defect", "no defect is K9"]);
        let (_, complaints) = compare(&[], &[]);
        assert_eq!(complaints, ["no defect was listed"]);
    }
}
