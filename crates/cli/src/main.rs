//! The `vmmu` command.
fn main() {}
