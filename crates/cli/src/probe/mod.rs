//! `vmmu probe`: the processor's own page walker against the software one.
//!
//! Cases are drawn here ([`draw`]), written into memory and run by the hypervisor without any help
//! of vmmu, and what came is compared with what the crate `machine` says ([`judge`]): how the
//! access ended, with which codes and addresses, which word was reached, and every bit that the
//! walk changed in any table. What the emulated processor is known to do wrong is listed with
//! exactly what it makes of it ([`faults`]); anything else that differs fails the run.

mod bend;
mod draw;
mod faults;
mod judge;
mod quirks;
mod show;
mod stage;

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::Args;
use comfy_table::{Table, presets};
use hypervisor::{
    probe::Probe,
    wire::{self, Job},
};
use serde_json::{Value, json};

use self::{
    bend::Bend,
    draw::Drawn,
    faults::FAULTS,
    judge::{Judge, Model, Verdict},
};
use crate::{
    boot::{
        options::{Accel, Threads},
        outcome::Status,
        screen::{self, Screen, Show},
        session::{self, Cut, Run},
    },
    machine::{self, Clock, Machine},
    project::Project,
    provide::{QEMU, provide},
    report::grouped,
    say,
    size::{GIB, MIB, Size},
};

/// Differences that are printed in full.
const SHOWN: usize = 3;

/// Compare the processor's page walker with the software one.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
EXIT STATUS:
  0  they agree, but for the known faults of the emulator
  1  they do not, or the run was interrupted
  2  usage, or something is missing
  3  time-out
  4  the hypervisor failed")]
pub struct Options {
    /// Cases to run
    #[arg(long, default_value_t = 5000, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    cases: u32,
    /// What the cases are drawn from: the same seed gives the same cases
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    seed: u64,
    /// Run this case only, and print it
    #[arg(long, value_name = "NUMBER")]
    only: Option<u32>,
    /// Leave a rule out of the software walker, to see that it is missed
    #[arg(long, value_enum, value_name = "RULE")]
    bend: Option<Bend>,
    /// What executes the hypervisor; kvm only where the host gives guests SVM
    #[arg(long, value_enum, default_value = "tcg")]
    accel: Accel,
    /// Give up after this many seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,
    /// Write a report for programs
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the cases and compares. An error is something missing (exit status 2).
pub fn run(options: &Options) -> Result<Status> {
    let cases: Vec<Drawn> = match options.only {
        Some(number) => vec![draw::draw(options.seed, number)],
        None => (0..options.cases).map(|number| draw::draw(options.seed, number)).collect(),
    };
    let run = on_processor(options, &cases)?;
    if let Some(status) = failed(&run) {
        return Ok(status);
    }
    let phys_bits = run.phys_bits.context("the hypervisor did not say what it runs on")?;
    if run.outcomes.len() != cases.len() {
        say!("{} outcomes of {} cases (exit status 4)", run.outcomes.len(), cases.len());
        return Ok(Status::Fault);
    }
    let judge = Judge::new(Model { phys_bits, bend: options.bend });
    let mut tally = Comparison::default();
    for (drawn, seen) in cases.iter().zip(&run.outcomes) {
        *tally.ends.entry(show::end(seen)).or_default() += 1;
        tally.changed += seen.changed.len() as u64;
        let verdict = judge.judge(drawn, seen);
        if options.only.is_some() {
            screen::write(show::case(drawn, &judge.expected(drawn), seen).as_bytes());
        }
        match verdict {
            Verdict::Agreed => tally.agreed += 1,
            Verdict::Known(faults) => {
                tally.known += 1;
                for fault in faults {
                    *tally.faults.entry(fault.name).or_default() += 1;
                }
            }
            Verdict::Differs(expected) => {
                tally.differ.push(drawn.number);
                let kind = show::difference(&expected, seen);
                tally.kinds.entry(kind).or_default().push(drawn.number);
                if tally.differ.len() <= SHOWN && options.only.is_none() {
                    let again = format!("--seed {} --only {}", options.seed, drawn.number);
                    let case = show::case(drawn, &expected, seen);
                    screen::write(format!("DIFFERENCE ({again})\n{case}\n").as_bytes());
                }
            }
        }
    }
    screen::write(format!("{}\n\n", tally.table(cases.len()).trim_fmt()).as_bytes());
    let status = if tally.differ.is_empty() { Status::Ended } else { Status::Failed };
    if let Some(path) = &options.json {
        let document = tally.document(options, cases.len(), &run);
        fs::write(path, serde_json::to_vec_pretty(&document)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    match status {
        Status::Ended => screen::write(b"vmmu: the walkers agree\n"),
        _ => say!("the walkers differ in {} cases (exit status 1)", tally.differ.len()),
    }
    Ok(status)
}

/// Has the hypervisor run the cases.
fn on_processor(options: &Options, cases: &[Drawn]) -> Result<Run> {
    let project = Project::find()?;
    let qemu = provide(QEMU)?;
    let hypervisor = project.build_hypervisor()?;
    let mut bytes = Vec::new();
    for drawn in cases {
        bytes = postcard::to_extend(&drawn.case, bytes).context("cannot encode a case")?;
    }
    let job = Job {
        version: wire::VERSION,
        paging: wire::Paging::Npt,
        pages: wire::PageLimit::K4,
        phys_bits: None,
        hide: Vec::new(),
        // No signals: nothing is to run but the cases.
        exact: true,
        inject: None,
        churn: None,
        guests: Vec::new(),
        probe: Some(Probe {
            arena: stage::ARENA,
            image: stage::image(),
            count: cases.len() as u32,
            cases: &bytes,
        }),
    };
    let folder = tempfile::tempdir().context("cannot make a temporary directory")?;
    let job_file = folder.path().join("job");
    let job = postcard::to_stdvec(&job).context("cannot encode the job")?;
    fs::write(&job_file, &job).with_context(|| format!("cannot write {}", job_file.display()))?;
    let machine = Machine {
        qemu,
        kernel: hypervisor,
        job: job_file,
        control: folder.path().join("control"),
        cpus: 1,
        // So that there is memory at 4 GiB; what is not touched costs nothing.
        memory: Size(3 * GIB),
        accel: options.accel,
        threads: Threads::Single,
        clock: Clock::Host,
        gdb: None,
    };
    machine::affordable(Size(256 * MIB + job.len() as u64))?;
    let timeout = Duration::from_secs(options.timeout);
    let screen = Screen::new(Show::Cases(cases.len() as u64));
    session::run(&machine, Vec::new(), timeout, None, screen)
}

/// What kept the cases from being run, said to the user.
fn failed(run: &Run) -> Option<Status> {
    let (status, what) = match (&run.failure, run.cut) {
        (Some(what), _) => (Status::Fault, format!("the hypervisor failed: {what}")),
        (None, Cut::TimeOut) => (Status::TimeOut, "time-out".to_owned()),
        (None, Cut::Interrupt) => (Status::Failed, "interrupted".to_owned()),
        (None, Cut::No) if !run.spoke => {
            (Status::Fault, format!("the hypervisor never spoke\n{}", run.complaints))
        }
        (None, Cut::No) => return None,
    };
    say!("{what} (exit status {})", status as u8);
    Some(status)
}

/// All cases together.
#[derive(Debug, Default)]
struct Comparison {
    /// What the processor did, how often.
    ends: BTreeMap<String, u64>,
    /// Words that accesses and walks changed.
    changed: u64,
    agreed: u64,
    known: u64,
    faults: BTreeMap<&'static str, u64>,
    /// Numbers of the cases that differ.
    differ: Vec<u32>,
    /// Kinds of difference: what the processor did, what the walker says.
    kinds: BTreeMap<String, Vec<u32>>,
}

impl Comparison {
    fn table(&self, cases: usize) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let mut row = |name: &str, count: u64| {
            table.add_row([name.to_owned(), grouped(count)]);
        };
        row("cases", cases as u64);
        for (end, count) in &self.ends {
            row(&format!("  {end}"), *count);
        }
        row("words changed", self.changed);
        row("the walkers agree", self.agreed);
        row("known faults of the emulator", self.known);
        for fault in FAULTS {
            row(&format!("  {}", fault.name), self.faults.get(fault.name).copied().unwrap_or(0));
        }
        row("differences", self.differ.len() as u64);
        for (kind, cases) in &self.kinds {
            row(&format!("  {kind}, as in case {}", cases[0]), cases.len() as u64);
        }
        table
    }

    fn document(&self, options: &Options, cases: usize, run: &Run) -> Value {
        let faults: Vec<Value> = FAULTS
            .iter()
            .map(|fault| {
                let count = self.faults.get(fault.name).copied().unwrap_or(0);
                json!({"name": fault.name, "says": fault.says, "count": count})
            })
            .collect();
        json!({
            "format": 1,
            "seed": options.seed,
            "cases": cases,
            "ends": self.ends,
            "words_changed": self.changed,
            "agreed": self.agreed,
            "known": self.known,
            "faults": faults,
            "differ": self.differ,
            "host_seconds": run.wall.as_secs_f64(),
        })
    }
}
