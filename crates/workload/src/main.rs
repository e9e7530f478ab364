//! The memory workload: one line for each part, and a verdict.
//!
//! ```text
//! workload: PART ok
//! workload: verdict ok CHECKSUM
//! ```

mod mapping;
mod parts;

use std::process::ExitCode;

use parts::{Outcome, advise, files, forks, held::Held, remap, threads};

fn main() -> ExitCode {
    let held = match Held::new() {
        Ok(held) => held,
        Err(what) => {
            println!("workload: verdict FAILED held: {what}");
            return ExitCode::FAILURE;
        }
    };
    println!("workload: holding {} MiB under a pattern", held.mebibytes());
    let mut checksum = 0u64;
    let mut failures = Vec::new();
    let parts: [(&str, &dyn Fn() -> Outcome); 6] = [
        ("forks", &forks::run),
        ("remap", &remap::run),
        ("advise", &advise::run),
        ("files", &files::run),
        ("threads", &threads::run),
        // Last: whatever happened in the meantime must not have touched it.
        ("held", &|| held.check()),
    ];
    for (name, part) in parts {
        match part() {
            Ok(sum) => {
                println!("workload: {name} ok");
                checksum = checksum.rotate_left(9) ^ sum;
            }
            Err(what) => {
                println!("workload: {name} FAILED {what}");
                failures.push(format!("{name}: {what}"));
            }
        }
    }
    match failures.as_slice() {
        [] => {
            println!("workload: verdict ok {checksum:016x}");
            ExitCode::SUCCESS
        }
        _ => {
            println!("workload: verdict FAILED {}", failures.join("; "));
            ExitCode::FAILURE
        }
    }
}
