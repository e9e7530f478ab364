//! One page, where it is and where it moves, and processors that remember it.

use std::collections::BTreeSet;

use machine::Access::Read;
use machine::{Context, Habits, Long, Processor};

use crate::support::{self, Rig, Vendor};

pub const VENDORS: [Vendor; 2] = [Vendor::Amd, Vendor::Intel];
pub const GPA: u64 = 0x12_b456_7000;
/// The page beside it, below the same upper entries.
pub const BESIDE: u64 = GPA + 0x1000;
pub const OLD: u64 = 0x3_4000_0000;
pub const NEW: u64 = 0x4_8000_0000;
pub const LINEAR: u64 = 0x7f12_b456_7000;
pub const USER: u64 = 7;
pub const GUEST_DIRTY: u64 = 1 << 6;
pub const SEEDS: u64 = 40;
pub const TRIES: usize = 50;

/// A, D of the nested leaf.
pub fn flags(vendor: Vendor) -> (u64, u64) {
    match vendor {
        Vendor::Amd => (1 << 5, 1 << 6),
        Vendor::Intel => (1 << 8, 1 << 9),
    }
}

/// `GPA` at `OLD`.
pub fn rig(vendor: Vendor) -> Rig {
    let mut rig = Rig::of(vendor);
    rig.map(GPA, OLD, 1);
    rig
}

/// `LINEAR` at `GPA` in the guest's tables, and `GPA` at `OLD`.
pub fn long_rig(vendor: Vendor) -> Rig {
    let mut rig = rig(vendor);
    rig.guest_map(LINEAR, GPA, 1, USER);
    rig
}

pub fn user(rig: &Rig) -> Context {
    rig.paged(Long { user: true, ..Long::new(rig.cr3) })
}

pub fn oldest() -> Processor {
    Processor::with_habits(0, Habits::oldest())
}

/// Reads often: the pages reached.
pub fn reads(
    processor: &mut Processor,
    rig: &Rig,
    context: &Context,
    address: u64,
) -> BTreeSet<u64> {
    (0..TRIES).map(|_| processor.translate(&rig.ram, context, address, Read).unwrap().hpa).collect()
}

/// What all seeds together reach: `prepare` learns and changes, then `address` is read.
pub fn reached(
    context: &Context,
    address: u64,
    make: impl Fn() -> Rig,
    prepare: impl Fn(&mut Processor, &mut Rig),
) -> BTreeSet<u64> {
    let mut all = BTreeSet::new();
    for seed in 0..SEEDS {
        let mut rig = make();
        let mut processor = Processor::new(seed);
        prepare(&mut processor, &mut rig);
        all.extend(reads(&mut processor, &rig, context, address));
    }
    all
}

pub fn set<const N: usize>(pages: [u64; N]) -> BTreeSet<u64> {
    BTreeSet::from(pages)
}

/// Points the nested leaf of `gpa` elsewhere.
pub fn move_to(rig: &Rig, gpa: u64, hpa: u64) {
    rig.edit(gpa, 1, hpa, support::ADDRESS);
}
