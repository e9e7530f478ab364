//! `vmmu bench`: instructions of the library's operations, held against the stored ones.
//!
//! callgrind counts them, run by gungraun's runner: the same program gives the same counts every
//! time, so 2 % are a change and not noise. A count below its bound is as wrong as one above: the
//! stored figures are what the next change is judged by.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    boot::outcome::Status,
    project::{Project, cargo},
    provide::{VALGRIND, provide},
    report::grouped,
    say,
};

/// Must be the version of the library in `crates/bench`.
const RUNNER: &str = "0.20.0";
/// What a count may differ from the stored one, in percent.
const TOLERANCE: u128 = 2;

/// What the library's own part costs in Linux KVM 6.12, in instructions an operation.
const KVM: [(&str, u64); 3] =
    [("fault linear", 2130), ("fault backed", 2130), ("invalidate table", 390)];

/// Count the instructions of the library's operations.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Store what is counted as the new bounds
    #[arg(long)]
    store: bool,
    /// Write a report for programs
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What was counted for one benchmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// For people: `fault linear`.
    pub name: String,
    /// Operations it did.
    pub operations: u64,
    /// Instructions of all of them.
    pub instructions: u64,
    /// Functions of libc that were among them, whose instructions depend on the processor.
    pub foreign: Vec<String>,
}

/// The stored counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// The compiler they are true for.
    pub rustc: String,
    /// Instructions by benchmark.
    pub instructions: BTreeMap<String, u64>,
}

/// How a count stands to its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Within 2 %.
    Kept,
    /// More.
    Worse,
    /// Less: the bound is to follow.
    Better,
    /// There is no bound.
    Unknown,
    /// libc was counted too.
    Foreign,
}

impl Bounds {
    fn path(project: &Project) -> PathBuf {
        project.root().join("crates/bench/bounds.json")
    }

    /// The stored ones; none if nothing was stored yet.
    pub fn load(project: &Project) -> Result<Self> {
        let path = Self::path(project);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("cannot understand {}", path.display())),
            Err(_) => Ok(Bounds::default()),
        }
    }

    fn store(&self, project: &Project) -> Result<()> {
        let path = Self::path(project);
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn of(rustc: String, counts: &[Count]) -> Self {
        let instructions = counts.iter().map(|c| (c.name.clone(), c.instructions)).collect();
        Bounds { rustc, instructions }
    }

    /// How `count` stands to them.
    pub fn judge(&self, count: &Count) -> Verdict {
        if !count.foreign.is_empty() {
            return Verdict::Foreign;
        }
        let Some(bound) = self.instructions.get(&count.name) else { return Verdict::Unknown };
        let (counted, bound) = (u128::from(count.instructions) * 100, u128::from(*bound));
        if counted > bound * (100 + TOLERANCE) {
            Verdict::Worse
        } else if counted < bound * (100 - TOLERANCE) {
            Verdict::Better
        } else {
            Verdict::Kept
        }
    }

    /// Stored ones that were not counted.
    pub fn lost(&self, counts: &[Count]) -> Vec<&str> {
        let is_lost = |name: &&String| counts.iter().all(|count| count.name != **name);
        self.instructions.keys().filter(is_lost).map(String::as_str).collect()
    }
}

impl Verdict {
    /// `None`: as it should be.
    pub fn complaint(self, count: &Count) -> Option<String> {
        let store = "`cargo vmmu bench --store` stores it";
        match self {
            Verdict::Kept => None,
            Verdict::Worse => Some("more than 2 % above its bound".into()),
            Verdict::Better => Some(format!("better than stored; {store}")),
            Verdict::Unknown => Some(format!("no bound is stored; {store}")),
            Verdict::Foreign => Some(format!("counts libc too: {}", count.foreign.join(", "))),
        }
    }
}

fn change(count: u64, bound: u64) -> f64 {
    count as f64 / bound.max(1) as f64 - 1.0
}

/// Counts, reports and judges.
pub fn run(options: &Options) -> Result<Status> {
    let project = Project::find()?;
    provide(VALGRIND)?;
    let counts = count(&project, Stdio::inherit())?;
    let rustc = rustc()?;
    let bounds = Bounds::load(&project)?;
    println!("{}", table(&counts, &bounds));
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&document(&counts, &bounds, &rustc))? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if options.store {
        Bounds::of(rustc, &counts).store(&project)?;
        say!("stored {} bounds in {}", counts.len(), Bounds::path(&project).display());
        return Ok(Status::Ended);
    }
    if bounds.rustc != rustc {
        say!("the bounds are those of {}; this is {rustc}: nothing is judged", bounds.rustc);
        return Ok(Status::Ended);
    }
    let mut status = Status::Ended;
    for count in &counts {
        if let Some(complaint) = bounds.judge(count).complaint(count) {
            say!("{}: {complaint}", count.name);
            status = Status::Failed;
        }
    }
    for name in bounds.lost(&counts) {
        say!("{name}: has a bound and was not counted");
        status = Status::Failed;
    }
    Ok(status)
}

/// Runs the benchmarks; `messages` is where cargo's and valgrind's go.
pub fn count(project: &Project, messages: Stdio) -> Result<Vec<Count>> {
    let output = Command::new(cargo())
        .args(["bench", "--quiet", "--package", "bench", "--bench", "counts", "--"])
        // The processor's caches are not what is asked for, and simulating them takes twice as long.
        .args(["--output-format=json", "--callgrind-args=--cache-sim=no"])
        .env("GUNGRAUN_RUNNER", runner(project)?)
        .current_dir(project.root())
        .stdin(Stdio::null())
        .stderr(messages)
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the benchmarks did not run to their end");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let counts: Vec<Count> =
        text.lines().filter(|line| line.starts_with('{')).map(parse).collect::<Result<_>>()?;
    if counts.is_empty() {
        bail!("the benchmarks reported nothing");
    }
    Ok(counts)
}

/// One line of the runner's report.
fn parse(line: &str) -> Result<Count> {
    let report: Value = serde_json::from_str(line).context("the runner's report is no JSON")?;
    let text = |field: &str| report[field].as_str().unwrap_or_default();
    let id = text("id");
    let (id, operations) = id
        .rsplit_once('x')
        .and_then(|(id, n)| Some((id.trim_end_matches('_'), n.parse().ok()?)))
        .with_context(|| format!("`{id}` does not end in x and a number"))?;
    let total = &report["profiles"][0]["data"]["total"]["metrics"]["Ir"]["values"]["new"];
    let instructions = total.as_u64().context("no instructions in the runner's report")?;
    let name = format!("{} {id}", text("function_name")).replace('_', " ").trim_end().to_owned();
    let foreign = foreign(Path::new(text("output_dir")))?;
    Ok(Count { name, operations, instructions, foreign })
}

/// The functions of libc in callgrind's profiles of one benchmark.
fn foreign(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for file in fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "out") {
            found.extend(foreign_in(&fs::read_to_string(&path)?));
        }
    }
    Ok(found)
}

fn foreign_in(profile: &str) -> impl Iterator<Item = String> {
    const NAMES: [&str; 7] = ["memcpy", "memmove", "memset", "memcmp", "bcmp", "malloc", "free"];
    profile
        .lines()
        .filter_map(|line| line.strip_prefix("fn="))
        .filter_map(|line| line.split_whitespace().last())
        .filter(|name| {
            let plain = name.trim_start_matches('_');
            NAMES.iter().any(|foreign| plain.starts_with(foreign))
        })
        .map(str::to_owned)
}

/// The runner, installed on first use. Unoptimised: it waits for valgrind most of the time.
fn runner(project: &Project) -> Result<PathBuf> {
    let tools = project.scratch("tools");
    let runner = tools.join("bin/gungraun-runner");
    let version = Command::new(&runner).arg("--version").output();
    if version.is_ok_and(|v| String::from_utf8_lossy(&v.stdout).trim().ends_with(RUNNER)) {
        return Ok(runner);
    }
    say!("installing gungraun-runner {RUNNER} below {}", tools.display());
    let output = Command::new(cargo())
        .args(["install", "gungraun-runner", "--version", &format!("={RUNNER}")])
        .args(["--locked", "--debug", "--root"])
        .arg(&tools)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .stdin(Stdio::null())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("cannot install gungraun-runner: {}", complaint.lines().last().unwrap_or("?"));
    }
    Ok(runner)
}

/// The compiler's version.
pub fn rustc() -> Result<String> {
    let output =
        Command::new("rustc").arg("--version").output().context("cannot run rustc --version")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn kvm(name: &str) -> Option<u64> {
    KVM.iter().find(|(of, _)| *of == name).map(|(_, instructions)| *instructions)
}

fn each(count: &Count, instructions: u64) -> f64 {
    instructions as f64 / count.operations.max(1) as f64
}

/// The report for people: instructions of one operation.
pub fn table(counts: &[Count], bounds: &Bounds) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["operation", "counted", "each", "stored", "change", "KVM 6.12"]);
    for count in counts {
        let bound = bounds.instructions.get(&count.name).copied();
        table.add_row([
            count.name.clone(),
            grouped(count.operations),
            format!("{:.1}", each(count, count.instructions)),
            bound.map_or("-".into(), |bound| format!("{:.1}", each(count, bound))),
            bound.map_or("-".into(), |bound| {
                format!("{:+.1} %", 100.0 * change(count.instructions, bound))
            }),
            kvm(&count.name).map_or(String::new(), grouped),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn document(counts: &[Count], bounds: &Bounds, rustc: &str) -> Value {
    let rows: Vec<Value> = counts
        .iter()
        .map(|count| {
            json!({
                "name": count.name,
                "operations": count.operations,
                "instructions": count.instructions,
                "stored": bounds.instructions.get(&count.name),
                "kvm_each": kvm(&count.name),
            })
        })
        .collect();
    json!({"format": 1, "rustc": rustc, "stored_rustc": bounds.rustc, "counts": rows})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(name: &str, instructions: u64) -> Count {
        Count { name: name.into(), operations: 10, instructions, foreign: Vec::new() }
    }

    #[test]
    fn two_percent_either_way_are_kept_and_more_is_not() {
        let bounds = Bounds::of("rustc".into(), &[count("fault", 10_000)]);
        let verdict = |instructions| bounds.judge(&count("fault", instructions));
        assert_eq!(verdict(10_200), Verdict::Kept);
        assert_eq!(verdict(10_201), Verdict::Worse);
        assert_eq!(verdict(9_800), Verdict::Kept);
        assert_eq!(verdict(9_799), Verdict::Better);
        assert_eq!(bounds.judge(&count("zap", 1)), Verdict::Unknown);
        assert_eq!(bounds.lost(&[count("zap", 1)]), ["fault"]);
    }

    #[test]
    fn libc_among_what_is_counted_is_noticed() {
        let profile = "ob=(2) counts\nfn=(10) vmmu::tdp::free_below\ncfn=(12)\n\
            fn=(11) __memset_avx2_unaligned_erms\nfn=(12) vmmu::memset_of_slots\nfn=(11)\n";
        let found: Vec<_> = foreign_in(profile).collect();
        assert_eq!(found, ["__memset_avx2_unaligned_erms"]);
        let bounds = Bounds::of("rustc".into(), &[count("fault", 5)]);
        let counted = Count { foreign: found, ..count("fault", 5) };
        assert_eq!(bounds.judge(&counted), Verdict::Foreign);
        assert!(Verdict::Foreign.complaint(&counted).unwrap().contains("avx2"));
    }

    #[test]
    fn a_report_that_counts_nothing_is_an_error() {
        assert!(parse("{\"id\": \"linear\"}").is_err());
        assert!(parse("{\"id\": \"linear_x5\", \"output_dir\": \".\"}").is_err());
    }
}
