//! The `vmmu` command.

mod bench;
mod boot;
mod control;
mod cpuid;
mod guests;
mod imports;
mod json;
mod machine;
mod probe;
mod project;
mod provide;
mod report;
mod test;
mod torture;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use loaders::size;

use crate::boot::outcome::Status;

/// A line to the user on standard error.
#[macro_export]
macro_rules! say {
    ($($part:tt)*) => { eprintln!("vmmu: {}", format_args!($($part)*)) };
}

/// Boots guests on vmmu, the memory-management unit of a hypervisor, and tests it.
#[derive(Debug, Parser)]
#[command(name = "vmmu", bin_name = "cargo vmmu", version)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Boot(Box<boot::options::Options>),
    Probe(probe::Options),
    Test(test::Options),
    Bench(bench::Options),
    Torture(torture::Options),
}

fn main() -> ExitCode {
    let result = match Line::parse().command {
        Command::Boot(options) => boot::run(&options),
        Command::Probe(options) => probe::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Torture(options) => torture::run(&options),
    };
    let status = result.unwrap_or_else(|e| {
        say!("{e:#}");
        Status::Missing
    });
    ExitCode::from(status as u8)
}
