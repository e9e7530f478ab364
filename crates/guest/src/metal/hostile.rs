//! The hostile guests.

use super::{Machine, fail};
use guest::exit;

/// Runs the one with this name.
pub fn run(_machine: &Machine, name: &str) {
    fail(exit::USAGE, format_args!("there is no test {name}"))
}
