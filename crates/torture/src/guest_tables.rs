//! The guest's own page tables, for vCPUs that use paging: every address is itself, so what a
//! guest reaches is judged as without. But each access walks in two dimensions: a table of the
//! guest lies in guest memory like any other page, is mapped by a fault like any other, and gets
//! its accessed and dirty flags through the nested tables.
//!
//! They lie in a linear slot of address space 0, which stays.

use std::sync::atomic::{AtomicU64, Ordering};

use machine::{Long, Paging};
use vmmu::addr::{Gfn, GfnRange, Level, Pfn};
use vmmu::entry::MemoryType;
use vmmu::slot::{AddressSpace, LinearFrames, Mutability, SlotId, SlotSpec, Source};

use crate::arena::{Arena, GUEST_TABLES, PHYS_BITS};
use crate::model::{DEVICES, Pages, SITES};

/// First gfn of the slot they lie in.
const START: u64 = 0xe00;
/// The slot's number, behind those that come and go.
pub const SLOT: SlotId = SlotId(SITES.len() as u32 + 2);

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = ((1 << 52) - 1) & !0xfff;

/// Whether a frame is one of the slot's.
pub fn holds(gfn: u64) -> bool {
    (START..START + GUEST_TABLES).contains(&gfn)
}

/// The slot.
pub fn slot() -> SlotSpec {
    let memory = MemoryType::WriteBack;
    SlotSpec {
        id: SLOT,
        space: AddressSpace::Normal,
        range: GfnRange::sized(Gfn(START), GUEST_TABLES).expect("short"),
        // SAFETY: the arena has these frames for the guest's tables and for nothing else.
        source: Source::Linear(unsafe { LinearFrames::new(Pfn(Arena::GUEST_TABLES_HOME), memory) }),
        mutability: Mutability::ReadWrite,
        largest: Level::Size4K,
    }
}

/// Writes the tables, and says how a vCPU uses them.
pub fn write(arena: &Arena) -> Paging {
    let mut tables = Tables { arena, used: 1 };
    for site in SITES.iter().filter(|site| site.space == 0) {
        if matches!(site.views[0].pages, Pages::Huge) {
            for gfn in (site.start..site.start + site.pages).step_by(512) {
                tables.map(gfn, 2);
            }
        } else {
            (site.start..site.start + site.pages).for_each(|gfn| tables.map(gfn, 1));
        }
    }
    DEVICES.for_each(|gfn| tables.map(gfn, 1));
    Paging::Long(Long { phys_bits: PHYS_BITS, ..Long::new(START << 12) })
}

struct Tables<'a> {
    arena: &'a Arena,
    used: u64,
}

impl Tables<'_> {
    /// Maps a frame to itself by a leaf of a level.
    fn map(&mut self, gfn: u64, leaf: u64) {
        let mut table = START;
        for level in (leaf + 1..=4).rev() {
            let word = word(self.arena, table, gfn, level);
            let mut entry = word.load(Ordering::Relaxed);
            if entry == 0 {
                assert!(self.used < GUEST_TABLES, "the guest needs more tables");
                entry = (START + self.used) << 12 | PRESENT_WRITABLE;
                self.used += 1;
                word.store(entry, Ordering::Relaxed);
            }
            table = (entry & ADDRESS) >> 12;
        }
        let large = if leaf > 1 { LARGE } else { 0 };
        let leaf = word(self.arena, table, gfn, leaf);
        leaf.store(gfn << 12 | PRESENT_WRITABLE | large, Ordering::Relaxed);
    }
}

/// The entry for a frame in the table at gfn `table`.
fn word(arena: &Arena, table: u64, gfn: u64, level: u64) -> &AtomicU64 {
    let index = gfn >> (9 * (level - 1)) & 511;
    arena.word(Arena::GUEST_TABLES_HOME + table - START, index as usize)
}
