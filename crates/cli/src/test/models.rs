//! The protocol under model checkers.

use std::thread;

use anyhow::{Result, anyhow};

use super::{context::Context, context::Length, source::tests, tally::Tally};

/// What runs under loom: every interleaving of two or three actors.
pub const LOOM: &str = "loom models";

/// What runs under shuttle: many vCPUs on schedules chosen by chance.
pub const SHUTTLE: &str = "shuttle models";

/// Schedules of the long form, as a multiple of the usual ones.
const LONG: &str = "50";

/// The library's own functions under both checkers, and each of their pieces taken out and seen
/// missing. Both at once: each runs one model at a time.
pub fn models(context: &Context) -> Result<Tally> {
    let both = thread::scope(|scope| {
        let checkers = [(LOOM, "loom"), (SHUTTLE, "shuttle")];
        let threads = checkers.map(|(name, checker)| scope.spawn(|| run(context, name, checker)));
        threads.map(|thread| thread.join())
    });
    let mut tally = Tally::default();
    for ended in both {
        tally += ended.map_err(|_| anyhow!("a thread panicked"))??;
    }
    Ok(tally)
}

fn run(context: &Context, name: &str, checker: &str) -> Result<Tally> {
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
    command.env("RUSTFLAGS", format!("--cfg {checker}"));
    if context.length == Length::Long {
        command.env("VMMU_SCHEDULES", LONG);
    }
    tests(context, name, command)
}
