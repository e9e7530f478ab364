//! Steps that compile and run on the host: format, lints, unit tests, documentation.

use std::process::Command;

use anyhow::Result;

use super::{context::Context, tally::Tally};

/// A cargo command that is one test: it succeeds or not.
fn single(
    context: &Context,
    name: &str,
    arguments: &[&str],
    flags: &[(&str, &str)],
) -> Result<Tally> {
    let mut command = context.cargo(arguments);
    command.envs(flags.iter().copied());
    let ran = context.run(name, command)?;
    let verdict = match ran.status {
        Some(0) => Ok(()),
        status => Err(format!("cargo {} ended with {status:?}", arguments.join(" "))),
    };
    Ok(context.check(name, verdict, ran.took))
}

/// A cargo command that runs tests of the harness and counts them.
fn harness(
    context: &Context,
    name: &str,
    arguments: &[&str],
    flags: &[(&str, &str)],
) -> Result<Tally> {
    let mut command = context.cargo(arguments);
    command.envs(flags.iter().copied());
    tests(context, name, command)
}

/// A command that runs tests of the harness and counts them.
pub fn tests(context: &Context, name: &str, command: Command) -> Result<Tally> {
    let line: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    let ran = context.run(name, command)?;
    let mut tally = Tally::of_harness(&ran.output);
    let verdict = match ran.status {
        Some(0) => Ok(()),
        _ if tally.failed > 0 => Err(format!("{} tests failed", tally.failed)),
        status => Err(format!("cargo {} ended with {status:?}", line.join(" "))),
    };
    let note = format!("{name}: {} passed", tally.passed);
    match &verdict {
        Ok(()) => println!("     ok      {:>6.1} s  {note}", ran.took.as_secs_f64()),
        Err(_) => {
            let shown = context.check(name, verdict.clone(), ran.took);
            // Tests that failed have been counted; a build that failed has not.
            if tally.failed == 0 {
                tally += shown;
            }
        }
    }
    Ok(tally)
}

/// `cargo fmt --check`.
pub fn format(context: &Context) -> Result<Tally> {
    single(context, "cargo fmt", &["fmt", "--all", "--check"], &[])
}

/// Lints of everything, and of the bare-metal binaries.
pub fn lints(context: &Context) -> Result<Tally> {
    let workspace = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--features",
        "vmmu/protocol",
        "--",
        "-D",
        "warnings",
    ];
    let mut tally = single(context, "clippy of the workspace", &workspace, &[])?;
    // What is only built with features that no other build has.
    let features = "vmmu/protocol,vmmu/defects,vmmu/record,vmmu/step,torture/step,torture/defects";
    let tests = [
        "clippy",
        "--package",
        "vmmu",
        "--package",
        "torture",
        "--all-targets",
        "--features",
        features,
        "--",
        "-D",
        "warnings",
    ];
    tally += single(context, "clippy of what only tests build", &tests, &[])?;
    for name in ["hypervisor", "guest"] {
        let metal = [
            "clippy",
            "--package",
            name,
            "--bin",
            name,
            "--features",
            "bare-metal",
            "--profile",
            "metal",
            "--",
            "-D",
            "warnings",
        ];
        tally += single(context, &format!("clippy of the bare-metal {name}"), &metal, &[])?;
    }
    Ok(tally)
}

/// The bare-metal binaries and the static workload.
pub fn build(context: &Context) -> Result<Tally> {
    let mut tally = Tally::default();
    for name in ["hypervisor", "guest"] {
        let metal = [
            "build",
            "--package",
            name,
            "--bin",
            name,
            "--features",
            "bare-metal",
            "--profile",
            "metal",
        ];
        tally += single(context, &format!("build of the bare-metal {name}"), &metal, &[])?;
    }
    Ok(tally)
}

/// Unit and integration tests of every crate.
pub fn units(context: &Context) -> Result<Tally> {
    harness(
        context,
        "cargo test",
        // With the protocol's hidden types, or the tests of their misuse would be left out.
        &[
            "test",
            "--workspace",
            "--no-fail-fast",
            "--lib",
            "--bins",
            "--tests",
            "--features",
            "vmmu/protocol",
        ],
        &[],
    )
}

/// The compile-fail tests among them need the protocol's hidden types. Only an unstable compiler,
/// or a stable one that is told to be one, compares the error codes they name.
pub fn documentation(context: &Context) -> Result<Tally> {
    let tests = ["test", "--workspace", "--no-fail-fast", "--doc", "--features", "vmmu/protocol"];
    let mut tally = harness(context, "doc tests", &tests, &[("RUSTC_BOOTSTRAP", "1")])?;
    // The prose at the head of a module names private parts of the protocol too.
    let flags = [("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links")];
    tally += single(context, "cargo doc", &["doc", "--workspace", "--no-deps"], &flags)?;
    Ok(tally)
}
