//! The protocol under model checkers.

use std::thread;

use anyhow::{Result, anyhow};

use super::{context::Context, context::Length, source::tests, tally::Tally};

/// Models that one process runs, one after the other.
struct Part {
    name: &'static str,
    checker: &'static str,
    /// What the harness is told about which.
    which: &'static [&'static str],
}

/// loom: every interleaving of two or three actors; about half of the time for each part. shuttle:
/// many vCPUs on schedules chosen by chance.
const PARTS: [Part; 3] = [
    Part { name: "loom models, some", checker: "loom", which: &["debts::", "entering::"] },
    Part {
        name: "loom models, the others",
        checker: "loom",
        which: &["--skip", "debts::", "--skip", "entering::"],
    },
    Part { name: "shuttle models", checker: "shuttle", which: &[] },
];

/// Under which names what they write is found.
pub fn names() -> [&'static str; PARTS.len()] {
    PARTS.map(|part| part.name)
}

/// Schedules of shuttle's long form, as a multiple of the usual ones. That of loom has more
/// preemptions.
const LONG: &str = "50";

/// The library's own functions under both checkers, and each of their pieces taken out and seen
/// missing. All parts at once: each runs one model at a time.
pub fn models(context: &Context) -> Result<Tally> {
    let ended = thread::scope(|scope| {
        let threads = PARTS.map(|part| scope.spawn(move || run(context, &part)));
        threads.map(|thread| thread.join())
    });
    let mut tally = Tally::default();
    for part in ended {
        tally += part.map_err(|_| anyhow!("a thread panicked"))??;
    }
    Ok(tally)
}

fn run(context: &Context, part: &Part) -> Result<Tally> {
    let Part { name, checker, which } = *part;
    let folder = context.project().scratch(checker).display().to_string();
    let mut command = context.cargo(&[
        "test",
        "--release",
        "--package",
        "vmmu",
        "--features",
        "protocol,defects",
        "--test",
        checker,
        "--target-dir",
        &folder,
        "--",
        "--nocapture",
    ]);
    command.args(which).env("RUSTFLAGS", format!("--cfg {checker}"));
    if context.length == Length::Long {
        command.env("VMMU_SCHEDULES", LONG).env("VMMU_PREEMPTIONS", "long");
    }
    tests(context, name, command)
}
