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

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use hypervisor::{
    probe::{Outcome, Probe},
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
/// Cases that are run in one machine.
const TOGETHER: u32 = 20_000;

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
    #[arg(long, value_name = "NUMBER", conflicts_with = "cases")]
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
    if let Some(path) = &options.json {
        // Said now, not when everything has run.
        write(path, b"")?;
    }
    let numbers = options.only.map_or(0..options.cases, |number| number..number + 1);
    let setup = Setup {
        qemu: provide(QEMU)?,
        hypervisor: Project::find()?.build_hypervisor()?,
        accel: options.accel,
        timeout: Duration::from_secs(options.timeout),
    };
    let mut comparison = Comparison::default();
    let mut first = numbers.start;
    while first < numbers.end {
        let cases = first..numbers.end.min(first.saturating_add(TOGETHER));
        first = cases.end;
        let progress = Show::Cases { before: u64::from(cases.start), of: numbers.end.into() };
        let cases: Vec<Drawn> = cases.map(|number| draw::draw(options.seed, number)).collect();
        let run = setup.run(&cases, Screen::new(progress))?;
        if let Some(status) = failed(&run, cases.len()) {
            return Ok(status);
        }
        let phys_bits = run.phys_bits.context("the hypervisor did not say what it runs on")?;
        let judge = Judge::new(Model { phys_bits, bend: options.bend });
        comparison.took += run.wall;
        for (drawn, seen) in cases.iter().zip(&run.outcomes) {
            comparison.add(options, &judge, drawn, seen);
        }
    }
    screen::write(format!("{}\n\n", comparison.table().trim_fmt()).as_bytes());
    for (kind, cases) in &comparison.kinds {
        let line = format!("{} x {kind}, as in case {}\n", grouped(cases.len() as u64), cases[0]);
        screen::write(line.as_bytes());
    }
    if let Some(path) = &options.json {
        write(path, &serde_json::to_vec_pretty(&comparison.document(options))?)?;
    }
    if comparison.differ.is_empty() {
        let known = match comparison.known {
            0 => String::new(),
            1 => ", but for a known fault of the emulator in one case".to_owned(),
            n => format!(", but for known faults of the emulator in {} cases", grouped(n)),
        };
        screen::write(format!("vmmu: the walkers agree{known}\n").as_bytes());
        return Ok(Status::Ended);
    }
    say!("the walkers differ in {} cases (exit status 1)", comparison.differ.len());
    Ok(Status::Failed)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// What every run of the machine needs.
struct Setup {
    qemu: PathBuf,
    hypervisor: PathBuf,
    accel: Accel,
    timeout: Duration,
}

impl Setup {
    /// Has the hypervisor run the cases.
    fn run(&self, cases: &[Drawn], screen: Screen) -> Result<Run> {
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
        let file = folder.path().join("job");
        let job = postcard::to_stdvec(&job).context("cannot encode the job")?;
        fs::write(&file, &job).with_context(|| format!("cannot write {}", file.display()))?;
        machine::affordable(Size(256 * MIB + job.len() as u64))?;
        let machine = Machine {
            qemu: self.qemu.clone(),
            kernel: self.hypervisor.clone(),
            job: file,
            control: folder.path().join("control"),
            cpus: 1,
            // So that there is memory at 4 GiB; what is not touched costs nothing.
            memory: Size(3 * GIB),
            accel: self.accel,
            threads: Threads::Single,
            clock: Clock::Host,
            gdb: None,
        };
        session::run(&machine, Vec::new(), self.timeout, None, screen)
    }
}

/// What kept the cases from being run, said to the user.
fn failed(run: &Run, cases: usize) -> Option<Status> {
    let (status, what) = match (&run.failure, run.cut) {
        (Some(what), _) => (Status::Fault, format!("the hypervisor failed: {what}")),
        (None, Cut::TimeOut) => (Status::TimeOut, "time-out".to_owned()),
        (None, Cut::Interrupt) => (Status::Failed, "interrupted".to_owned()),
        (None, Cut::No) if !run.spoke => {
            (Status::Fault, format!("the hypervisor never spoke\n{}", run.complaints))
        }
        (None, Cut::No) if run.outcomes.len() != cases => {
            (Status::Fault, format!("{} outcomes of {cases} cases came", run.outcomes.len()))
        }
        (None, Cut::No) => return None,
    };
    say!("{what} (exit status {})", status as u8);
    Some(status)
}

/// All cases together.
#[derive(Debug, Default)]
struct Comparison {
    /// Whose entries were drawn, how often.
    classes: BTreeMap<&'static str, u64>,
    /// What the processor did, how often.
    ends: BTreeMap<String, u64>,
    /// Words that accesses and walks changed.
    changed: u64,
    agreed: u64,
    known: u64,
    faults: BTreeMap<&'static str, u64>,
    /// Numbers of the cases that differ.
    differ: Vec<u32>,
    /// The same, by kind of difference.
    kinds: BTreeMap<String, Vec<u32>>,
    /// How long the machine ran.
    took: Duration,
}

impl Comparison {
    /// Compares one case.
    fn add(&mut self, options: &Options, judge: &Judge, drawn: &Drawn, seen: &Outcome) {
        *self.classes.entry(show::class(drawn.class)).or_default() += 1;
        *self.ends.entry(show::end(seen)).or_default() += 1;
        self.changed += seen.changed.len() as u64;
        if options.only.is_some() {
            let case = show::case(drawn, &judge.walked(drawn), &judge.expected(drawn), seen);
            screen::write(case.as_bytes());
        }
        match judge.judge(drawn, seen) {
            Verdict::Agreed => self.agreed += 1,
            Verdict::Known(faults) => {
                self.known += 1;
                for fault in faults {
                    *self.faults.entry(fault.name).or_default() += 1;
                    if options.only.is_some() {
                        let line = format!("  known, {}: {}\n", fault.name, fault.says);
                        screen::write(line.as_bytes());
                    }
                }
            }
            Verdict::Differs(expected) => {
                self.differ.push(drawn.number);
                let kind = show::difference(&expected, seen);
                self.kinds.entry(kind).or_default().push(drawn.number);
                if self.differ.len() <= SHOWN && options.only.is_none() {
                    let bend = options.bend.and_then(|bend| bend.to_possible_value());
                    let bend = bend.map(|bend| format!(" --bend {}", bend.get_name()));
                    let again = format!(
                        "--seed {} --only {}{}",
                        options.seed,
                        drawn.number,
                        bend.unwrap_or_default()
                    );
                    let case = show::case(drawn, &judge.walked(drawn), &expected, seen);
                    screen::write(format!("DIFFERENCE ({again})\n{case}\n").as_bytes());
                }
            }
        }
    }

    fn cases(&self) -> u64 {
        self.classes.values().sum()
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let mut row = |name: &str, count: u64| {
            table.add_row([name.to_owned(), grouped(count)]);
        };
        row("cases", self.cases());
        for (class, count) in &self.classes {
            row(&format!("  {class}"), *count);
        }
        row("what the processor did", self.ends.values().sum());
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
        if let Some(counts) = table.column_mut(1) {
            counts.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn document(&self, options: &Options) -> Value {
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
            "cases": self.cases(),
            "classes": self.classes,
            "ends": self.ends,
            "words_changed": self.changed,
            "agreed": self.agreed,
            "known": self.known,
            "faults": faults,
            "differ": self.differ,
            "kinds": self.kinds,
            "host_seconds": self.took.as_secs_f64(),
        })
    }
}
