//! The rules of the caches, one test each: what a processor may go on using, and what it must not.
//!
//! What it *may* is shown by its happening; what it *must* by its never not happening, over many
//! seeds.

mod amd;
mod bounds;
mod faults;
mod flags;
mod intel;
mod kept;
mod linear;
mod pieces;
mod silence;
mod speculation;
mod stage;
#[path = "../support/mod.rs"]
mod support;
mod upper;
