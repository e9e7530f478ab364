//! The torture as a program: `cargo vmmu torture` builds and runs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
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
    #[arg(long, default_value_t = 300_000)]
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
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "steps", "format"])]
    replay: Option<PathBuf>,
    /// Runs that shortening a failure may take; 0: none
    #[arg(long, value_name = "RUNS", default_value_t = 2000)]
    shrink: usize,
    /// Where failures are written
    #[arg(long, value_name = "FOLDER", default_value = ".")]
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
    #[arg(long, value_name = "N", default_value_t = 1)]
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
    if let Some(path) = &options.replay {
        return replay(path);
    }
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
                    found(options, &settings, *failure)?;
                    return Ok(false);
                }
            }
        }
    }
    show(&reports);
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&as_json(&reports))?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(all_ran(&reports))
}

/// A bar that is drawn to a terminal, and nowhere else.
fn progress(steps: u64) -> impl FnMut(u64) {
    let bar = ProgressBar::new(steps);
    let style = "{bar:30} {human_pos} of {human_len} steps, {per_sec}, {elapsed}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    move |done| {
        bar.set_position(done.min(steps));
        if done >= steps {
            bar.finish_and_clear();
        }
    }
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

fn found(options: &Options, settings: &Settings, failure: Failure) -> Result<()> {
    println!("found after {} steps: {}", failure.steps, failure.violation);
    let name = format!("failure-{}-{}.json", settings.tables.name(), settings.seed);
    let path = options.failures.join(name);
    let shrunk = match options.shrink {
        0 => Shrunk { failure, runs: 0, repeats: false },
        budget => {
            let bar = ProgressBar::new_spinner().with_message("shortening");
            bar.enable_steady_tick(Duration::from_millis(200));
            shrink(failure, budget, &mut |left| {
                bar.set_message(format!("shortening: {left} operations left"));
            })
        }
    };
    let plan = &shrunk.failure.plan;
    let text = serde_json::to_string_pretty(plan)?;
    fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
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
    println!("again: cargo vmmu torture --replay {}", path.display());
    Ok(())
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
fn replay(path: &Path) -> Result<bool> {
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
            return Ok(false);
        }
    }
    println!("nothing found in {tries} runs of {} operations", plan.len());
    Ok(true)
}

fn show(reports: &[(Settings, Report)]) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let heads = reports.iter().map(|(settings, _)| {
        format!("{}{}", settings.tables.name(), if settings.deterministic { ", turns" } else { "" })
    });
    table.set_header(std::iter::once(String::new()).chain(heads));
    let mut row = |name: &str, count: &dyn Fn(&Report) -> u64| {
        let counts = reports.iter().map(|(_, report)| grouped(count(report)));
        table.add_row(std::iter::once(name.to_owned()).chain(counts));
    };
    let Some((_, any)) = reports.first() else { return };
    for name in any.operations.keys() {
        row(name, &|report| report.operations.get(name).copied().unwrap_or(0));
    }
    // What came of them is set off by its indent.
    let outcomes = reports.iter().flat_map(|(_, report)| report.outcomes.keys());
    for name in outcomes.collect::<std::collections::BTreeSet<_>>() {
        row(&format!("  {name}"), &|report| report.outcomes.get(name).copied().unwrap_or(0));
    }
    row("  walks", &|report| report.processors.walks);
    row("  translations from a TLB", &|report| report.processors.hits);
    row("  walks from a cached upper entry", &|report| report.processors.structures);
    row("  flushes", &|report| report.stats.flushes);
    row("  flushes for somebody else's debt", &|report| report.stats.foreign_debts);
    row("steps", &|report| report.steps);
    row("steps a second", &|report| {
        (report.steps as f64 / report.took.as_secs_f64().max(1e-6)) as u64
    });
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    for (settings, report) in reports {
        println!(
            "{}, seed {}: nothing found in {} steps, {:.1} s{}",
            settings.tables.name(),
            settings.seed,
            grouped(report.steps),
            report.took.as_secs_f64(),
            if settings.deterministic {
                format!("; the same seed gives {:016x} again", report.digest)
            } else {
                String::new()
            }
        );
    }
}

fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn as_json(reports: &[(Settings, Report)]) -> serde_json::Value {
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
    json!({ "runs": runs })
}

#[cfg(feature = "defects")]
fn put_back(defect: Option<&str>) -> Result<()> {
    use vmmu::protocol::{Defect, switch};
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
