//! Steps that measure, sanitize and fuzz: cache lines written, instructions executed, memory
//! errors, data races, bytes nobody would send.

use std::{
    fs::File,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::Result;

use super::{
    context::{Context, Length},
    source::tests,
    tally::Tally,
};
use crate::{
    bench::{self, Bounds},
    provide::{GXX, provide},
};

/// The cache lines that a fault writes.
pub fn lines(context: &Context) -> Result<Tally> {
    let arguments =
        ["test", "--package", "vmmu", "--features", "protocol,record", "--test", "lines"];
    tests(context, "cache lines", context.cargo(&arguments))
}

/// Instructions of the library's operations: each within 2 % of what is stored.
pub fn counts(context: &Context) -> Result<Tally> {
    let name = "instruction counts";
    let rustc = bench::rustc()?;
    let bounds = Bounds::load(context.project())?;
    if bounds.rustc != rustc {
        let why = format!("the bounds are those of {}, and this is {rustc}", bounds.rustc);
        return Ok(context.ignore(name, &why));
    }
    let began = Instant::now();
    let log = Stdio::from(File::create(context.file(name, "log"))?);
    let counts = match bench::count(context.project(), log) {
        Ok(counts) => counts,
        Err(e) => return Ok(context.check(name, Err(format!("{e:#}")), began.elapsed())),
    };
    println!("{}", bench::table(&counts, &bounds));
    let mut tally = Tally::default();
    for count in &counts {
        tally += match bounds.judge(count).complaint(count) {
            None => Tally::PASSED,
            Some(complaint) => {
                println!("     FAILED            {}: {complaint}", count.name);
                Tally::FAILED
            }
        };
    }
    for name in bounds.lost(&counts) {
        println!("     FAILED            {name}: has a bound and was not counted");
        tally += Tally::FAILED;
    }
    Ok(tally)
}

/// What every build with a sanitizer needs: its own target, or proc macros would be built with it
/// too.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// cargo of the nightly toolchain, or why there is none. `$CARGO` is the stable one's own binary;
/// the one in the search path chooses.
fn nightly(context: &Context) -> Result<Command, String> {
    let cargo = || {
        let mut command = Command::new("cargo");
        // A missing toolchain is to be an error, not a download.
        command
            .arg("+nightly")
            .env("RUSTUP_AUTO_INSTALL", "0")
            .current_dir(context.project().root());
        command
    };
    match cargo().arg("--version").stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(cargo()),
        _ => Err("no nightly toolchain is installed".into()),
    }
}

/// Library and judge with every access checked, and with leaks counted.
pub fn asan(context: &Context) -> Result<Tally> {
    let name = "address sanitizer";
    let mut command = match nightly(context) {
        Ok(command) => command,
        Err(why) => return Ok(context.ignore(name, &why)),
    };
    command.args(["test", "--no-fail-fast", "--lib", "--tests", "--target", TARGET]);
    for package in ["vmmu", "machine", "torture"] {
        // What is tested is worth optimizing; what it needs is not.
        let optimized = format!("profile.dev.package.{package}.opt-level=1");
        command.args(["--package", package, "--config", &optimized]);
    }
    command
        .args(["--features", "vmmu/protocol", "--target-dir"])
        .arg(context.project().scratch("asan"))
        .env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only")
        .env("RUSTFLAGS", "-Zsanitizer=address");
    tests(context, name, command)
}

/// What of the library is shared without being atomic, watched for data races; and two defects
/// that must be reported.
pub fn tsan(context: &Context) -> Result<Tally> {
    let name = "thread sanitizer";
    let root = context.project().root();
    let suppressions = root.join("crates/vmmu/tests/races.suppressions");
    let races = |arguments: &[&str]| -> Result<Command, String> {
        let mut command = nightly(context)?;
        command
            .args(["test", "--package", "vmmu", "--features", "protocol,defects"])
            .args(["--test", "races", "--target", TARGET, "--target-dir"])
            .arg(context.project().scratch("tsan"))
            .args(["--", "--test-threads=1"])
            .args(arguments)
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
            .env("RUSTFLAGS", "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer")
            .env(
                "TSAN_OPTIONS",
                format!("halt_on_error=1 suppressions={}", suppressions.display()),
            );
        Ok(command)
    };
    let mut tally = match races(&[]) {
        Ok(command) => tests(context, name, command)?,
        Err(why) => return Ok(context.ignore(name, &why)),
    };
    // The alarms were counted as ignored tests.
    tally.ignored = 0;
    for defect in ["a_slot_set_changed_without_waiting", "memory_taken_without_waiting"] {
        let name = format!("{name} on {defect}");
        let command = races(&["--ignored", defect]).map_err(anyhow::Error::msg)?;
        let ran = context.run(&name, command)?;
        let verdict = match ran.output.contains("ThreadSanitizer: data race") {
            true if ran.status != Some(0) => Ok(()),
            _ => Err("the defect was not reported".to_owned()),
        };
        tally += context.check(&name, verdict, ran.took);
    }
    Ok(tally)
}

/// The flags of cargo-fuzz: coverage for libFuzzer, and the address sanitizer. Without that program
/// the targets need no installation; `cargo fuzz` works on the same folder.
const FUZZING: &str = "-Zsanitizer=address --cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Each target, and how many inputs it gets: some seconds' worth.
const TARGETS: [(&str, u64); 4] =
    [("emulate", 60_000), ("loaders", 30_000), ("protocol", 40_000), ("entries", 150_000)];

/// How many times as many in the long form.
const LONG: u64 = 200;

/// What comes from a guest, from a file or over the control line, made up by libFuzzer.
pub fn fuzz(context: &Context) -> Result<Tally> {
    let mut command = match nightly(context) {
        Ok(command) => command,
        Err(why) => return Ok(context.ignore("fuzz targets", &why)),
    };
    provide(GXX)?;
    let folder = context.project().root().join("fuzz");
    let built = context.project().scratch("fuzz");
    command
        .args(["build", "--release", "--bins", "--target", TARGET, "--target-dir"])
        .arg(&built)
        .env("RUSTFLAGS", FUZZING)
        .current_dir(&folder);
    let ran = context.run("fuzz targets", command)?;
    if ran.status != Some(0) {
        return Ok(context.check("fuzz targets", Err("they do not build".into()), ran.took));
    }
    let mut tally = Tally::default();
    for (target, runs) in TARGETS {
        let runs = if context.length == Length::Long { LONG * runs } else { runs };
        let name = format!("{runs} inputs for {target}");
        // What earlier runs found is not used: the same seed gives the same inputs.
        let found = built.join("corpus").join(target);
        std::fs::remove_dir_all(&found).ok();
        std::fs::create_dir_all(&found)?;
        let mut command = Command::new(built.join(TARGET).join("release").join(target));
        command
            .arg(&found)
            .arg(folder.join("seeds").join(target))
            .arg(format!("-runs={runs}"))
            .arg(format!("-artifact_prefix={}/{target}-", built.display()))
            .args(["-seed=1", "-max_len=4096", "-timeout=60"]);
        let ran = context.run(&name, command)?;
        let verdict = match ran.status {
            Some(0) => Ok(()),
            status => Err(format!("ended with {status:?}; the input is in {}", built.display())),
        };
        tally += context.check(&name, verdict, ran.took);
    }
    Ok(tally)
}
