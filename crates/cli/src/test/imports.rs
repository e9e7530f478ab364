//! The step that looks for imports upwards or in circles, one test a crate.

use std::time::Instant;

use anyhow::Result;

use super::{context::Context, tally::Tally};
use crate::imports::{report, workspace::crates};

/// Every crate of the workspace.
pub fn imports(context: &Context) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut verdicts = Vec::new();
    for package in crates(context.project().root())? {
        let began = Instant::now();
        let name = format!("imports of {}", package.name);
        let outcome = match package.judge() {
            Ok(verdict) => {
                for complaint in &verdict.complaints {
                    println!("       {complaint}");
                }
                let outcome = match verdict.complaints.len() {
                    0 => Ok(()),
                    count => Err(format!("{count} to mend, named above")),
                };
                verdicts.push((package.name, verdict));
                outcome
            }
            Err(e) => Err(format!("{e:#}")),
        };
        tally += context.check(&name, outcome, began.elapsed());
    }
    println!("{}", report::table(verdicts.iter().map(|(name, verdict)| (&**name, verdict))));
    Ok(tally)
}
