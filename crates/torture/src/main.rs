//! The torture as a program: `cargo vmmu torture` builds and runs it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{HumanCount, ProgressBar, ProgressFinish, ProgressStyle};
use serde_json::{Value, json};
use torture::shrink::{Shrunk, shrink};
use torture::{Failure, MOST_VCPUS, Plan, Report, Settings, Tables};

/// Random operations from several threads, judged by a software x86 and a flat model of memory
///
/// vCPUs read, write, fetch and add through software processors that keep stale translations for
/// as long as they may; the host moves, steals and shares pages, changes slots, zaps, drains roots
/// and fails allocations. Exit status: 0 nothing was found and every operation ran, 1 something
/// was found, 2 usage.
#[derive(Debug, Parser)]
#[command(name = "torture", bin_name = "cargo vmmu torture", version)]
struct Options {
    /// Every choice follows from it; without, one is chosen and said
    #[arg(long)]
    seed: Option<u64>,
    /// Operations and accesses, of all threads together
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// vCPUs, each a thread; three threads of the host come on top
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=MOST_VCPUS as i64))]
    vcpus: u16,
    /// Tables: npt, ept, npt5, ept5, ept-without-flags; may be repeated [default: npt and ept]
    #[arg(long, value_name = "FORMAT", value_parser = tables)]
    format: Vec<Tables>,
    /// Threads take turns by the seed, and a seed repeats exactly
    #[arg(long)]
    deterministic: bool,
    /// Run the operations of a failure again
    #[arg(long, value_name = "FILE", conflicts_with_all =
          ["seed", "steps", "vcpus", "format", "deterministic", "rounds", "shrink"])]
    replay: Option<PathBuf>,
    /// Runs that shortening a failure may take; 0: none
    #[arg(long, value_name = "RUNS", default_value_t = 2000)]
    shrink: usize,
    /// Where failures are written [default: target/vmmu/torture]
    #[arg(long, value_name = "FOLDER", default_value = ".", hide_default_value = true)]
    failures: PathBuf,
    /// Write a report for programs
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Without interruptions inside the library: its atomics as they are shipped
    #[arg(long)]
    plain: bool,
    /// Put a defect back into the library; `list` names them
    #[arg(long, value_name = "NAME")]
    defect: Option<String>,
    /// More seeds, one after another, until something is found
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
}

fn tables(name: &str) -> Result<Tables, String> {
    let known = || Tables::ALL.map(Tables::name).join(", ");
    let found = Tables::ALL.into_iter().find(|tables| tables.name() == name);
    found.ok_or_else(|| format!("there are {}", known()))
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(why) => {
            eprintln!("vmmu: {why:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether all is well.
fn run(options: &Options) -> Result<bool> {
    put_back(options.defect.as_deref())?;
    if options.defect.as_deref() == Some("list") {
        return Ok(true);
    }
    if let Some(path) = &options.json {
        // Said now, not when everything has run.
        write(path, "")?;
    }
    if let Some(path) = &options.replay {
        return replay(options, path);
    }
    let folder = &options.failures;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let formats = match options.format.as_slice() {
        [] => vec![Tables::Npt, Tables::Ept],
        given => given.to_vec(),
    };
    let first = options.seed.unwrap_or_else(|| fastrand::u64(1..1 << 32));
    let mut reports = Vec::new();
    for round in 0..options.rounds {
        for &tables in &formats {
            let seed = first.wrapping_add(round);
            let (steps, vcpus) = (options.steps, usize::from(options.vcpus));
            let deterministic = options.deterministic;
            let settings = Settings { seed, steps, vcpus, tables, deterministic };
            eprintln!("vmmu: {} with seed {seed}, {} vCPUs", tables.name(), options.vcpus);
            match torture::run(settings, &mut progress(steps)) {
                Ok(report) => reports.push((settings, report)),
                Err(failure) => {
                    let failure = found(options, &settings, *failure)?;
                    tell(options, &reports, Some(&failure))?;
                    return Ok(false);
                }
            }
        }
    }
    show(&reports);
    tell(options, &reports, None)?;
    Ok(all_ran(&reports))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes the report for programs, if one is wanted.
fn tell(
    options: &Options,
    reports: &[(Settings, Report)],
    failure: Option<&Failure>,
) -> Result<()> {
    let Some(path) = &options.json else { return Ok(()) };
    write(path, &(serde_json::to_string_pretty(&as_json(reports, failure))? + "\n"))
}

/// A bar that is drawn to a terminal, and nowhere else.
fn progress(steps: u64) -> impl FnMut(u64) {
    let bar = ProgressBar::new(steps).with_finish(ProgressFinish::AndClear);
    let style = "{bar:30} {human_pos} of {human_len} steps, {per_sec}, {elapsed}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    move |done| bar.set_position(done.min(steps))
}

/// Every operation ran in one of the runs, or it is said which did not.
fn all_ran(reports: &[(Settings, Report)]) -> bool {
    let mut is_whole = true;
    for (settings, report) in reports {
        let missing = report.missing();
        if !missing.is_empty() {
            is_whole = false;
            eprintln!(
                "vmmu: {} with seed {}: never ran: {}. Nothing was shown about them; give more \
                 --steps",
                settings.tables.name(),
                settings.seed,
                missing.join(", ")
            );
        }
    }
    is_whole
}

/// Says what was found, shortens it and writes it down.
fn found(options: &Options, settings: &Settings, failure: Failure) -> Result<Failure> {
    let (name, seed) = (settings.tables.name(), settings.seed);
    println!("{name}, seed {seed}: found after {} steps: {}", failure.steps, failure.violation);
    let path = options.failures.join(format!("failure-{name}-{seed}.json"));
    let put = |plan: &Plan| write(&path, &(serde_json::to_string_pretty(plan)? + "\n"));
    // Shortening may be interrupted.
    put(&failure.plan)?;
    let shrunk = match options.shrink {
        0 => Shrunk { failure, runs: 0, repeats: false },
        budget => {
            let bar = ProgressBar::new_spinner().with_finish(ProgressFinish::AndClear);
            bar.enable_steady_tick(Duration::from_millis(200));
            shrink(failure, budget, &mut |left| {
                bar.set_message(format!("shortening: {left} operations left"));
            })
        }
    };
    let plan = &shrunk.failure.plan;
    put(plan)?;
    if shrunk.repeats {
        println!(
            "{} operations are enough ({} runs): {}",
            plan.len(),
            shrunk.runs,
            shrunk.failure.violation
        );
        list(plan);
    } else if options.shrink > 0 {
        println!(
            "the last {} operations alone did not fail again in {} runs{}",
            plan.len(),
            shrunk.runs,
            if settings.deterministic { "; the seed does" } else { "" }
        );
    }
    // The plan does not say how the library was built.
    let defect = options.defect.as_ref().map(|name| format!(" --defect {name}"));
    let plain = if options.plain { " --plain" } else { "" };
    println!(
        "again: cargo vmmu torture{plain}{} --replay {}",
        defect.unwrap_or_default(),
        path.display()
    );
    Ok(shrunk.failure)
}

fn list(plan: &Plan) {
    for (n, thread) in plan.threads.iter().enumerate() {
        let who = match n.checked_sub(plan.settings.vcpus) {
            None => format!("vCPU {n}"),
            Some(host) => format!("host {host}"),
        };
        for op in thread {
            println!("  {who}: {op:?}");
        }
    }
}

/// Runs a plan again; with free threads as often as it takes, within reason.
fn replay(options: &Options, path: &Path) -> Result<bool> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let plan: Plan = serde_json::from_slice(&text)
        .with_context(|| format!("{} is no plan of the torture", path.display()))?;
    if plan.threads.len() < plan.settings.vcpus || !(1..=MOST_VCPUS).contains(&plan.settings.vcpus)
    {
        bail!(
            "{}: {} vCPUs and {} threads",
            path.display(),
            plan.settings.vcpus,
            plan.threads.len()
        );
    }
    let tries = if plan.settings.deterministic { 1 } else { 200 };
    for n in 1..=tries {
        if let Err(failure) = torture::replay(&plan) {
            println!("found in run {n}: {}", failure.violation);
            list(&plan);
            tell(options, &[], Some(&Failure { plan, ..*failure }))?;
            return Ok(false);
        }
    }
    let runs = if tries == 1 { "one run".to_owned() } else { format!("{tries} runs") };
    println!("nothing found in {runs} of {} operations", plan.len());
    tell(options, &[], None)?;
    Ok(true)
}

/// A column for each format, with all its rounds together; then a line for each run.
fn show(reports: &[(Settings, Report)]) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let formats: Vec<(Tables, Vec<&Report>)> = Tables::ALL
        .into_iter()
        .map(|tables| {
            let of = reports.iter().filter(|(settings, _)| settings.tables == tables);
            (tables, of.map(|(_, report)| report).collect::<Vec<_>>())
        })
        .filter(|(_, reports)| !reports.is_empty())
        .collect();
    let heads = formats.iter().map(|(tables, _)| tables.name().to_owned());
    table.set_header(std::iter::once(String::new()).chain(heads));
    let mut row = |name: &str, count: &dyn Fn(&[&Report]) -> u64| {
        let counts = formats.iter().map(|(_, reports)| HumanCount(count(reports)).to_string());
        table.add_row(std::iter::once(name.to_owned()).chain(counts));
    };
    let names = |counts: fn(&Report) -> &BTreeMap<&'static str, u64>| -> BTreeSet<&'static str> {
        reports.iter().flat_map(|(_, report)| counts(report).keys().copied()).collect()
    };
    for name in names(|report| &report.operations) {
        row(name, &|reports| sum(reports, |report| count(&report.operations, name)));
    }
    // What came of them is set off by its indent.
    for name in names(|report| &report.outcomes) {
        let indented = format!("  {name}");
        row(&indented, &|reports| sum(reports, |report| count(&report.outcomes, name)));
    }
    type Count = fn(&Report) -> u64;
    let processors: [(&str, Count); 7] = [
        ("  walks", |report| report.processors.walks),
        ("  walks begun again", |report| report.processors.lost),
        ("  walks from a cached upper entry", |report| report.processors.structures),
        ("  translations from a TLB", |report| report.processors.hits),
        ("  stale ones, as one of them noticed", |report| report.processors.stale),
        ("  flushes", |report| report.stats.flushes),
        ("  flushes for somebody else's debt", |report| report.stats.foreign_debts),
    ];
    for (name, count) in processors {
        row(name, &|reports| sum(reports, count));
    }
    row("steps", &|reports| sum(reports, |report| report.steps));
    row("steps a second", &|reports| {
        let took: f64 = reports.iter().map(|report| report.took.as_secs_f64()).sum();
        (sum(reports, |report| report.steps) as f64 / took.max(1e-6)) as u64
    });
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{}", table.trim_fmt());
    for (settings, report) in reports {
        println!(
            "{}, seed {}: nothing found in {} steps, {:.1} s{}",
            settings.tables.name(),
            settings.seed,
            HumanCount(report.steps),
            report.took.as_secs_f64(),
            if settings.deterministic {
                format!("; the same seed gives {:016x} again", report.digest)
            } else {
                String::new()
            }
        );
    }
}

fn count(counts: &BTreeMap<&'static str, u64>, name: &str) -> u64 {
    counts.get(name).copied().unwrap_or(0)
}

fn sum(reports: &[&Report], count: impl Fn(&Report) -> u64) -> u64 {
    reports.iter().map(|report| count(report)).sum()
}

fn as_json(reports: &[(Settings, Report)], failure: Option<&Failure>) -> Value {
    let runs: Vec<_> = reports
        .iter()
        .map(|(settings, report)| {
            json!({
                "settings": settings,
                "steps": report.steps,
                "operations": report.operations,
                "outcomes": report.outcomes,
                "missing": report.missing(),
                "digest": format!("{:016x}", report.digest),
                "walks": report.processors.walks,
                "tlb_hits": report.processors.hits,
                "host_seconds": report.took.as_secs_f64(),
            })
        })
        .collect();
    let failure = failure.map(|failure| {
        json!({
            "settings": failure.plan.settings,
            "steps": failure.steps,
            "violation": failure.violation.what,
            "operations": failure.plan.len(),
        })
    });
    json!({ "runs": runs, "failure": failure })
}

#[cfg(feature = "defects")]
fn put_back(defect: Option<&str>) -> Result<()> {
    use vmmu::internals::{Defect, switch};
    let Some(name) = defect else { return Ok(()) };
    if name == "list" {
        for defect in Defect::ALL {
            println!("{:<32} {:<14} {}", defect.name(), defect.ids().join(" "), defect.about());
        }
        return Ok(());
    }
    let found = Defect::ALL.iter().find(|defect| defect.name() == name);
    let Some(defect) = found else { bail!("no defect is called `{name}`; --defect list") };
    eprintln!("vmmu: with a defect: {}", defect.about());
    switch(Some(*defect));
    Ok(())
}

#[cfg(not(feature = "defects"))]
fn put_back(defect: Option<&str>) -> Result<()> {
    match defect {
        None => Ok(()),
        Some(_) => bail!("this build has no defects: build it with the feature `defects`"),
    }
}
