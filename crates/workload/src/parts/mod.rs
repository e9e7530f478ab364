//! The parts of the workload. Each checks all data it wrote and gives the sum of what it read.

pub mod advise;
pub mod files;
pub mod forks;
pub mod held;
pub mod remap;
pub mod threads;

/// Sum of all words read, or what was wrong.
pub type Outcome = Result<u64, String>;

/// Names a system call that failed.
pub fn call(name: &str) -> impl Fn(nix::Error) -> String {
    move |error| format!("{name}: {error}")
}
