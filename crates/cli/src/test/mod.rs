//! `vmmu test`: every test of the workspace, as named steps with their times.

mod context;
mod corpus;
mod hostile;
mod imports;
mod measures;
mod models;
mod runs;
mod source;
mod tally;
mod torture;
mod walkers;

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use self::{
    context::{Context, Length},
    tally::Tally,
};
use crate::{
    boot::outcome::Status,
    guests::packages,
    project::Project,
    provide::{QEMU, VALGRIND, provide},
    say,
};

/// Run every test.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Name the steps and run none
    #[arg(long)]
    list: bool,
    /// Run this step only; may be repeated
    #[arg(long, value_name = "STEP")]
    only: Vec<String>,
    /// More rounds of the same
    #[arg(long)]
    long: bool,
    /// Only the step `corpus`: put every defect back and say who catches it
    #[arg(long, conflicts_with = "only")]
    corpus: bool,
}

/// One step.
struct Step {
    name: &'static str,
    about: &'static str,
    needs: Needs,
    run: fn(&Context) -> Result<Tally>,
}

/// What a step needs besides cargo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Valgrind,
    Qemu,
    QemuAndLinux,
}

const fn step(
    name: &'static str,
    about: &'static str,
    needs: Needs,
    run: fn(&Context) -> Result<Tally>,
) -> Step {
    Step { name, about, needs, run }
}

/// In the order of their cost, so that a mistake shows early.
const STEPS: &[Step] = &[
    step("format", "cargo fmt --check", Needs::Nothing, source::format),
    step("lints", "clippy, also of the bare-metal binaries", Needs::Nothing, source::lints),
    step("imports", "no file imports upwards or in a circle", Needs::Nothing, imports::imports),
    step("build", "the bare-metal binaries", Needs::Nothing, source::build),
    step("units", "unit and integration tests of every crate", Needs::Nothing, source::units),
    step("docs", "doc tests and documentation", Needs::Nothing, source::documentation),
    step("models", "the protocol under loom and shuttle", Needs::Nothing, models::models),
    step("corpus", "every defect put back and caught", Needs::Nothing, corpus::corpus),
    step("lines", "cache lines a fault writes", Needs::Nothing, measures::lines),
    step("counts", "instructions against their bounds", Needs::Valgrind, measures::counts),
    step("torture", "random operations from threads", Needs::Nothing, torture::torture),
    step("walkers", "the processor's walker and ours", Needs::Qemu, walkers::walkers),
    step("asan", "library and judge, with every access checked", Needs::Nothing, measures::asan),
    step("tsan", "the library watched for data races", Needs::Nothing, measures::tsan),
    step("fuzz", "bytes nobody would send", Needs::Nothing, measures::fuzz),
    step("builtin", "the built-in guest, also offline", Needs::Qemu, runs::builtin),
    step("multiboot", "modules, sparse RAM, 1 GiB pages", Needs::Qemu, runs::multiboot),
    step("hostile", "guests that mean harm", Needs::Qemu, hostile::guests),
    step("usage", "what cannot be is refused", Needs::Qemu, runs::usage),
    step("linux", "Linux over processors and page sizes", Needs::QemuAndLinux, runs::linux),
    step("churn", "memory taken back from under Linux", Needs::QemuAndLinux, runs::churn),
    step("power-off", "power-offs in a row", Needs::QemuAndLinux, runs::power_off),
    step("time-out", "a guest that does not end in time", Needs::QemuAndLinux, runs::time_out),
    step("alarms", "faults put in are found", Needs::QemuAndLinux, runs::alarms),
    step("exact", "two exact runs agree", Needs::QemuAndLinux, runs::exact),
];

/// Runs the steps. An error is something missing (exit status 2).
pub fn run(options: &Options) -> Result<Status> {
    if options.list {
        for step in STEPS {
            println!("{:<10} {}", step.name, step.about);
        }
        return Ok(Status::Ended);
    }
    if let Some(unknown) = options.only.iter().find(|name| STEPS.iter().all(|s| s.name != **name)) {
        let known: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        bail!("no step `{unknown}`; there are {}", known.join(", "));
    }
    let is_wanted = |step: &&Step| match options.corpus {
        true => step.name == "corpus",
        false => options.only.is_empty() || options.only.iter().any(|o| o == step.name),
    };
    let wanted: Vec<&Step> = STEPS.iter().filter(is_wanted).collect();
    let project = Project::find()?;
    if wanted.iter().any(|step| step.needs == Needs::Valgrind) {
        provide(VALGRIND)?;
    }
    if wanted.iter().any(|step| matches!(step.needs, Needs::Qemu | Needs::QemuAndLinux)) {
        provide(QEMU)?;
    }
    if wanted.iter().any(|step| step.needs == Needs::QemuAndLinux)
        && let Err(e) = packages::debian(&project)
    {
        // Those steps will fail, each with its reason; the others still count.
        say!("no Linux can be had: {e:#}");
    }
    let length = if options.long { Length::Long } else { Length::Usual };
    let context = Context::new(project, length)?;
    let mut total = Tally::default();
    let mut times = Vec::new();
    for step in wanted {
        println!("{}: {}", step.name, step.about);
        let began = Instant::now();
        let tally = (step.run)(&context).unwrap_or_else(|e| {
            println!("     FAILED            {}: {e:#}", step.name);
            Tally::FAILED
        });
        times.push((step.name, began.elapsed(), tally));
        total += tally;
    }
    println!();
    for (name, took, tally) in times {
        let Tally { passed, failed, ignored } = tally;
        println!(
            "{name:<10} {:>7.1} s  {passed:>5} passed {failed:>3} failed {ignored:>3} ignored",
            took.as_secs_f64()
        );
    }
    println!("\n{}", total.result());
    Ok(if total.failed == 0 { Status::Ended } else { Status::Failed })
}
