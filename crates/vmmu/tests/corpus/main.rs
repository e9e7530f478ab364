//! The corpus: mistakes that were made in some memory-management unit, put back one at a time.
//!
//! A test is named after the defect it puts back, and runs one scenario twice: without the defect
//! it must hold, with it it must not. Races are among the models (`tests/loom`, `tests/shuttle`);
//! what one thread can show is here.
//!
//! ```text
//! cargo test -p vmmu --features protocol,defects --test corpus
//! ```
#![cfg(all(feature = "protocol", feature = "defects", not(any(loom, shuttle))))]

#[path = "../support/mod.rs"]
mod support;

mod catch;
mod processor;
mod stage;

mod edges;
mod entries;
mod flushes;
mod grace;
mod invalidations;
mod later_flush;
mod left;
mod memory;
mod mmio;
mod roots;
mod slots;
mod walks;
mod watches;
