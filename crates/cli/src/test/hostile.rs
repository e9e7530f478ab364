//! Guests that mean harm: each must end as its own table says, and afterwards another guest boots
//! in the same hypervisor.

use std::time::Duration;

use anyhow::Result;
use guest::case::{CASES, Case, Outcome};
use serde_json::Value;

use super::{context::Context, runs::boot, tally::Tally};

/// Hostile guests in one hypervisor; after them the peaceful one.
const TOGETHER: usize = 8;

/// All of them.
pub fn guests(context: &Context) -> Result<Tally> {
    let cases: Vec<&Case> = CASES.iter().filter(|c| c.name.starts_with("hostile-")).collect();
    let mut tally = Tally::default();
    for (number, batch) in cases.chunks(TOGETHER).enumerate() {
        tally += together(context, number, batch)?;
    }
    Ok(tally)
}

fn together(context: &Context, number: usize, cases: &[&Case]) -> Result<Tally> {
    let name = format!("hostile guests, hypervisor {number}");
    let mut arguments = vec!["--append".to_owned()];
    arguments.push(format!("test={}", cases[0].name));
    for case in &cases[1..] {
        arguments.extend(["--then".to_owned(), format!("test={}", case.name)]);
    }
    arguments.extend(["--then".to_owned(), "test=builtin".to_owned()]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let line = "--guest builtin --memory 128M --timeout 90";
    let booted = boot(&name, line).with(&arguments).run(context)?;

    let mut tally = Tally::default();
    let guests = booted.report["guests"].as_array().cloned().unwrap_or_default();
    for (case, report) in
        cases.iter().zip(guests.iter().map(Some).chain([None].into_iter().cycle()))
    {
        let verdict = match report.and_then(|guest| end(&guest["end"])) {
            Some(end) if case.allows(end) => Ok(()),
            Some(end) => Err(format!("ended by {end:?}, not {:?}", case.may)),
            None => Err(format!("did not end ({})", booted.report["outcome"])),
        };
        tally += context.check(case.name, verdict, Duration::ZERO);
    }
    // The last guest is the peaceful one: the hypervisor is unharmed, and so are all tables.
    let peaceful = guests.get(cases.len()).and_then(|guest| end(&guest["end"]));
    let verdict = match (booted.ran.status, peaceful) {
        (Some(0 | 1), Some(Outcome::Exit(0))) => booted.clean(),
        (status, end) => Err(format!("exit status {status:?}, the last guest ended by {end:?}")),
    };
    tally += context.check(&name, verdict, booted.ran.took);
    Ok(tally)
}

/// How a guest of a JSON report ended.
fn end(end: &Value) -> Option<Outcome> {
    match end["how"].as_str()? {
        "exit" => Some(Outcome::Exit(end["code"].as_u64()? as u32)),
        "triple-fault" => Some(Outcome::TripleFault),
        "halted" => Some(Outcome::Halted),
        "power-off" => Some(Outcome::PowerOff),
        "reset" => Some(Outcome::Reset),
        "refused" => Some(Outcome::Refused),
        _ => None,
    }
}
