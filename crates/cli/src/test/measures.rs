//! Steps that measure: cache lines written, instructions executed.

use std::{fs::File, process::Stdio, time::Instant};

use anyhow::Result;

use super::{context::Context, source::tests, tally::Tally};
use crate::bench::{self, Bounds};

/// The cache lines that a fault writes.
pub fn lines(context: &Context) -> Result<Tally> {
    let arguments =
        ["test", "--package", "vmmu", "--features", "protocol,record", "--test", "lines"];
    tests(context, "cache lines", context.cargo(&arguments))
}

/// Instructions of the library's operations: each within 2 % of what is stored.
pub fn counts(context: &Context) -> Result<Tally> {
    let name = "instruction counts";
    let rustc = bench::rustc()?;
    let bounds = Bounds::load(context.project())?;
    if bounds.rustc != rustc {
        let why = format!("the bounds are those of {}, and this is {rustc}", bounds.rustc);
        return Ok(context.ignore(name, &why));
    }
    let began = Instant::now();
    let log = Stdio::from(File::create(context.file(name, "log"))?);
    let counts = match bench::count(context.project(), log) {
        Ok(counts) => counts,
        Err(e) => return Ok(context.check(name, Err(format!("{e:#}")), began.elapsed())),
    };
    println!("{}", bench::table(&counts, &bounds));
    let mut tally = Tally::default();
    for count in &counts {
        tally += match bounds.judge(count).complaint(count) {
            None => Tally::PASSED,
            Some(complaint) => {
                println!("     FAILED            {}: {complaint}", count.name);
                Tally::FAILED
            }
        };
    }
    for name in bounds.lost(&counts) {
        println!("     FAILED            {name}: has a bound and was not counted");
        tally += Tally::FAILED;
    }
    Ok(tally)
}
