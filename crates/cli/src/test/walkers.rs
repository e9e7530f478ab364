//! The processor's page walker against the software one, and a software walker with a rule left
//! out, which must be noticed.

use std::{env, fs, process::Command};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    context::{Context, Length, Ran},
    tally::Tally,
};

/// Rules that can be left out, see `vmmu probe --help`.
const RULES: [&str; 5] = ["nx", "user", "writable", "width", "dirty"];
/// Ends of which each must have been met, or the cases did not try it.
const ENDS: [&str; 11] = [
    "access done",
    "nested fault, final address: user",
    "nested fault, final address: present write user",
    "nested fault, final address: present user fetch",
    "nested fault, guest's table: write user",
    "nested fault, guest's table: present write user",
    "page fault: none",
    "page fault: present write",
    "page fault: present user",
    "page fault: present fetch",
    "page fault: present user fetch",
];

/// All of them.
pub fn walkers(context: &Context) -> Result<Tally> {
    let (seeds, cases) = match context.length {
        Length::Usual => (1..=1, 20_000),
        Length::Long => (1..=5, 100_000),
    };
    let mut tally = Tally::default();
    for seed in seeds {
        let name = format!("walkers, {cases} cases of seed {seed}");
        let line = format!("--cases {cases} --seed {seed}");
        let (ran, report) = probe(context, &name, &line)?;
        let missed = ENDS.iter().find(|end| report["ends"][**end].as_u64().is_none());
        let verdict = match (ran.status, missed) {
            (Some(0), None) => Ok(()),
            (Some(0), Some(end)) => Err(format!("no case ended by {end}")),
            (status, _) => Err(format!("exit status {status:?} instead of 0")),
        };
        tally += context.check(&name, verdict, ran.took);
    }
    for rule in RULES {
        let name = format!("alarm: a walker without the rule {rule}");
        let (ran, report) = probe(context, &name, &format!("--cases 500 --bend {rule}"))?;
        let differ = report["differ"].as_array().map_or(0, Vec::len);
        let verdict = match (ran.status, differ) {
            (Some(1), 1..) => Ok(()),
            (status, _) => Err(format!("exit status {status:?}, {differ} differences")),
        };
        tally += context.check(&name, verdict, ran.took);
    }
    Ok(tally)
}

/// Runs the command as a user would type it.
fn probe(context: &Context, name: &str, line: &str) -> Result<(Ran, Value)> {
    let file = context.file(name, "json");
    fs::remove_file(&file).ok();
    let mut command = Command::new(env::current_exe().context("cannot find this program")?);
    command.arg("probe").arg("--json").arg(&file).args(line.split_whitespace());
    command.current_dir(context.project().root());
    let ran = context.run(name, command)?;
    let report = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Ok((ran, report.unwrap_or_default()))
}
