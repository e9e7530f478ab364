//! How a processor with a known fault walks.

use std::sync::atomic::Ordering::Relaxed;

use ::machine::{Access, Context, Habits, Memory, Paging, Processor};
use hypervisor::probe::Outcome;

use super::{judge::exit, stage::bit};

/// Faults of a processor that decide how it walks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quirks {
    /// Bits of present entries that mean nothing.
    pub ignored: u64,
    /// An exchange is a load and then a store.
    pub loads_first: bool,
    /// The accessed flag of a 1 GiB leaf is set before it is known whether the access is allowed.
    pub gigabyte_first: bool,
}

/// What a walk depends on in one of the two dimensions.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Top table.
    pub root: u64,
    /// Physical address width.
    pub phys_bits: u8,
    /// Whether bit 63 means something.
    pub nx: bool,
}

impl Rules {
    fn reserved(self, entry: u64) -> bool {
        let width = bit::ADDRESS & (!0 << self.phys_bits);
        entry & width != 0 || !self.nx && entry & bit::NX != 0
    }
}

/// Sets the accessed flag of the 1 GiB leaf at which a walk ended in a fault, as
/// [`Quirks::gigabyte_first`] would have it.
pub fn access_gigabyte(
    memory: &impl Memory,
    context: &Context,
    nested: Rules,
    guest: Rules,
    outcome: &Outcome,
) {
    let (rules, address) = match outcome.exit {
        exit::NESTED_FAULT => (nested, outcome.info2),
        exit::PAGE_FAULT => (guest, outcome.info2),
        _ => return,
    };
    let word = |table: u64, shift: u32| {
        let mut at = table + (address >> shift & 511) * 8;
        if outcome.exit == exit::PAGE_FAULT {
            // The walk has been here: nothing changes any more.
            let mut processor = Processor::with_habits(0, Habits::nothing());
            let flat = Context { paging: Paging::Off, ..*context };
            at = processor.translate(memory, &flat, at, Access::Write).ok()?.hpa;
        }
        memory.word(at)
    };
    let Some(top) = word(rules.root, 39) else { return };
    let top = top.load(Relaxed);
    if top & bit::P == 0 || top & bit::PS != 0 || rules.reserved(top) {
        return;
    }
    let Some(leaf) = word(top & bit::ADDRESS, 30) else { return };
    let value = leaf.load(Relaxed);
    if value & bit::P != 0 && value & bit::PS != 0 && !rules.reserved(value) {
        leaf.fetch_or(bit::A, Relaxed);
    }
}
