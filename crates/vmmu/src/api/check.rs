//! The checker: walks all tables of an MMU at rest and verifies what can be verified then.
//!
//! It takes `&mut Mmu`: whatever the MMU lends has been given back, so nothing changes. The numbers
//! of the [invariants](Invariant) are those of the behaviour description, section 3.
//!
//! What cannot be seen at rest, and what covers it instead:
//!
//! | invariant | covered by |
//! |---|---|
//! | 1, 10 no use after free, one owner frees | models `w1`, `r1`; the support host of the tests poisons released tables |
//! | 11 allocation outside of sections | types: a section lends no host |
//! | 13 nothing reaches pages after an invalidation has begun | models `a`, `w` |
//! | 14 no frame changes in place | the law (all pairs) |
//! | 18 no insert under an invalid root | types (`Insert`), model `r` |
//! | 26 host-writable constant, 27 flush before reliance | the law (all pairs) |
//! | 44, 45 walks end, flushes precede yields | tests of budgets and debts |
//! | 55 requests seen before entry | model of entry and flush |
//! | 65 failed calls change nothing | tests of slots |

use alloc::vec::Vec;
use core::fmt;

use crate::addr::{Gfn, Level, Pfn};
use crate::api::mmu::Mmu;
use crate::api::stats::Stats;
use crate::entry::access::Access;
use crate::entry::cell::Value;
use crate::entry::leaf::Leaf;
use crate::entry::state::State;
use crate::error::NoMemory;
use crate::host::host::Host;
use crate::state::core::Core;
use crate::state::root::Root;
use crate::state::slot::{SlotState, Source};
use crate::state::slot_set::{Region, SlotSet};
use crate::state::table::Table;

/// What the checker verifies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Invariant {
    /// 5: the tables linked are the tables counted.
    TablesCounted,
    /// 5, 7: every table is linked from one place.
    TableOnce,
    /// 12, 21: a leaf lies in a live slot.
    LeafInSlot,
    /// 12: a leaf maps the frame that the slot, or the host, has there.
    LeafFrame,
    /// A leaf never maps a table page or a reserved frame.
    LeafNotTable,
    /// 15: a leaf is aligned, within one slot, and no larger than the slot allows.
    LeafSize,
    /// 33: a leaf allows no more than its slot.
    LeafAccess,
    /// 19: nothing is frozen at rest.
    NotFrozen,
    /// 22: no MMIO entry of the current generation lies over a slot.
    MmioOutsideSlots,
    /// 23, 24, 25, 32: every entry is one that the library writes.
    EntryLegal,
    /// 57: the leaves counted are the leaves there are.
    LeavesCounted,
    /// No debt was left unsettled.
    DebtsSettled,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Invariant; 12] = [
        Invariant::TablesCounted,
        Invariant::TableOnce,
        Invariant::LeafInSlot,
        Invariant::LeafFrame,
        Invariant::LeafNotTable,
        Invariant::LeafSize,
        Invariant::LeafAccess,
        Invariant::NotFrozen,
        Invariant::MmioOutsideSlots,
        Invariant::EntryLegal,
        Invariant::LeavesCounted,
        Invariant::DebtsSettled,
    ];

    /// A name for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Invariant::TablesCounted => "tables-counted (5)",
            Invariant::TableOnce => "table-linked-once (5, 7)",
            Invariant::LeafInSlot => "leaf-in-live-slot (12, 21)",
            Invariant::LeafFrame => "leaf-maps-the-frame (12)",
            Invariant::LeafNotTable => "leaf-maps-no-table",
            Invariant::LeafSize => "leaf-size (15)",
            Invariant::LeafAccess => "leaf-access (33)",
            Invariant::NotFrozen => "nothing-frozen (19)",
            Invariant::MmioOutsideSlots => "mmio-outside-slots (22)",
            Invariant::EntryLegal => "entry-legal (23, 24, 25, 32)",
            Invariant::LeavesCounted => "leaves-counted (57)",
            Invariant::DebtsSettled => "debts-settled",
        }
    }
}

/// An entry or a count that violates an invariant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Violation {
    /// What is violated.
    pub invariant: Invariant,
    /// Where, for what has a place.
    pub place: Option<Where>,
    /// What was found: an entry, or a count.
    pub found: u64,
    /// What should have been there, where one can say.
    pub expected: Option<u64>,
}

/// An entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Where {
    /// First guest frame it covers.
    pub gfn: Gfn,
    /// Level of its table.
    pub level: Level,
    /// Frame of the root.
    pub root: Pfn,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.invariant.name())?;
        if let Some(Where { gfn, level, root }) = self.place {
            write!(f, " at gfn {gfn} ({level}, root {root})")?;
        }
        write!(f, ": found {:#x}", self.found)?;
        if let Some(expected) = self.expected {
            write!(f, ", expected {expected:#x}")?;
        }
        Ok(())
    }
}

/// What the checker saw.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Table pages, top tables included.
    pub tables: u64,
    /// Entries that are not empty.
    pub entries: u64,
    /// On how many entries or counts each invariant was verified.
    pub verified: [u64; Invariant::ALL.len()],
    /// What is wrong; the first [`Checked::KEPT`] of it.
    pub violations: Vec<Violation>,
    /// How many violations there were.
    pub found: u64,
}

impl Checked {
    /// Violations that are kept.
    pub const KEPT: usize = 64;

    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.found == 0
    }

    fn verify(&mut self, invariant: Invariant, holds: bool, violation: impl FnOnce() -> Violation) {
        if let Some(count) = self.verified.get_mut(invariant as usize) {
            *count += 1;
        }
        if !holds {
            self.found += 1;
            if self.violations.len() < Self::KEPT {
                self.violations.push(violation());
            }
        }
    }
}

/// What the host knows of a page of a backing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Witness {
    /// This frame backs it, allowing this.
    Frame(Pfn, Access),
    /// Nothing does, so nothing may be mapped.
    Nothing,
    /// The host does not say.
    Unknown,
}

impl<H: Host> Mmu<H> {
    /// Checks everything. `witness` is asked for each page of a backed slot that is mapped:
    /// backing, page.
    pub fn check(
        &mut self,
        mut witness: impl FnMut(u64, u64) -> Witness,
    ) -> Result<Checked, NoMemory> {
        let mut checked = Checked::default();
        checked.violations.try_reserve_exact(Checked::KEPT).map_err(|_| NoMemory)?;
        let stats = self.stats();
        // SAFETY: nothing else runs: `&mut Mmu`.
        let slots = unsafe { self.core.slots.current() };
        let tables = collect(&self.core, &mut checked)?;
        let mut check = Check {
            core: &self.core,
            slots,
            tables: &tables,
            checked: &mut checked,
            witness: &mut witness,
            leaves: [0; 3],
        };
        for root in self.core.roots.iter() {
            check.table(&root, root.top, self.core.format.top(), Gfn(0));
        }
        let leaves = check.leaves;
        counts(&mut checked, &stats, leaves);
        Ok(checked)
    }
}

fn counts(checked: &mut Checked, stats: &Stats, leaves: [u64; 3]) {
    let count = |invariant, found, expected| Violation {
        invariant,
        place: None,
        found,
        expected: Some(expected),
    };
    let tables = checked.tables;
    let counted = stats.tables + stats.roots;
    checked.verify(Invariant::TablesCounted, tables == counted, || {
        count(Invariant::TablesCounted, tables, counted)
    });
    for (found, counted) in leaves.into_iter().zip(stats.leaves) {
        checked.verify(Invariant::LeavesCounted, found == counted, || {
            count(Invariant::LeavesCounted, found, counted)
        });
    }
    let leaked = stats.debts_leaked;
    checked
        .verify(Invariant::DebtsSettled, leaked == 0, || count(Invariant::DebtsSettled, leaked, 0));
}

/// All table pages, sorted. A table that is met twice is not entered twice, so this ends.
fn collect(core: &Core, checked: &mut Checked) -> Result<Vec<Pfn>, NoMemory> {
    let mut seen: Vec<Pfn> = Vec::new();
    let mut open: Vec<(Pfn, Level)> = Vec::new();
    let push = |open: &mut Vec<(Pfn, Level)>, table| {
        open.try_reserve(1).map_err(|_| NoMemory)?;
        open.push(table);
        Ok(())
    };
    for root in core.roots.iter() {
        push(&mut open, (root.top, core.format.top()))?;
        while let Some((pfn, level)) = open.pop() {
            let place = seen.partition_point(|other| *other < pfn);
            let once = seen.get(place) != Some(&pfn);
            checked.verify(Invariant::TableOnce, once, || Violation {
                invariant: Invariant::TableOnce,
                place: Some(Where { gfn: Gfn(0), level, root: root.top }),
                found: pfn.0,
                expected: None,
            });
            if !once {
                continue;
            }
            seen.try_reserve(1).map_err(|_| NoMemory)?;
            seen.insert(place, pfn);
            let Some(below) = level.below() else { continue };
            // SAFETY: nothing else runs, and the table is linked.
            for cell in unsafe { Table::at(core.window, pfn) }.cells() {
                let value = cell.get();
                // What only looks like a table is not followed.
                if let State::Table(child) = core.format.read(value, level) {
                    push(&mut open, (child, below))?;
                }
            }
        }
    }
    checked.tables = seen.len() as u64;
    Ok(seen)
}

struct Check<'c> {
    core: &'c Core,
    slots: &'c SlotSet,
    tables: &'c [Pfn],
    checked: &'c mut Checked,
    witness: &'c mut dyn FnMut(u64, u64) -> Witness,
    leaves: [u64; 3],
}

impl Check<'_> {
    fn table(&mut self, root: &Root, pfn: Pfn, level: Level, base: Gfn) {
        // SAFETY: nothing else runs, and the table is linked.
        let table = unsafe { Table::at(self.core.window, pfn) };
        for (n, cell) in table.cells().iter().enumerate() {
            let value = cell.get();
            if value == self.core.format.empty() {
                continue;
            }
            let gfn = Gfn(base.0 + n as u64 * level.pages());
            self.checked.entries += 1;
            self.entry(root, Where { gfn, level, root: root.top }, value);
        }
    }

    fn entry(&mut self, root: &Root, place: Where, value: Value) {
        let state = self.core.format.read(value, place.level);
        let violation = |invariant| {
            move || Violation { invariant, place: Some(place), found: value.0, expected: None }
        };
        let legal = state != State::Corrupt;
        self.checked.verify(Invariant::EntryLegal, legal, violation(Invariant::EntryLegal));
        let frozen = matches!(state, State::Hold { .. } | State::Claim { .. } | State::Dead { .. });
        self.checked.verify(Invariant::NotFrozen, !frozen, violation(Invariant::NotFrozen));
        match state {
            State::Table(child) => {
                if let Some(below) = place.level.below()
                    && self.tables.binary_search(&child).is_ok()
                {
                    self.table(root, child, below, place.gfn);
                }
            }
            State::Leaf(leaf) => self.leaf(root, place, value, &leaf),
            State::Mmio { generation } => {
                let current = self.slots.wrote(self.core.roots.epoch(root), generation);
                let slot = self.region(root, place.gfn);
                let outside = !(current && slot.is_some());
                let violation = violation(Invariant::MmioOutsideSlots);
                self.checked.verify(Invariant::MmioOutsideSlots, outside, violation);
            }
            _ => {}
        }
    }

    fn region(&self, root: &Root, gfn: Gfn) -> Option<Region> {
        self.slots.find(root.role.space, gfn, &mut Default::default()).copied()
    }

    fn leaf(&mut self, root: &Root, place: Where, value: Value, leaf: &Leaf) {
        if let Some(count) = self.leaves.get_mut(place.level as usize - 1) {
            *count += 1;
        }
        let violation = |invariant, expected| {
            move || Violation { invariant, place: Some(place), found: value.0, expected }
        };
        let region = self.region(root, place.gfn);
        let word = region.map(|region| self.core.slots.word(region.id));
        let live = word.is_some_and(|word| word.state() == Some(SlotState::Live));
        let in_slot = violation(Invariant::LeafInSlot, None);
        self.checked.verify(Invariant::LeafInSlot, live, in_slot);
        let end = leaf.pfn.0 + place.level.pages();
        let table = self.tables.partition_point(|table| *table < leaf.pfn);
        let hits_table = self.tables.get(table).is_some_and(|table| table.0 < end);
        let hits_reserved = self.core.reserved.overlapping(leaf.pfn.0, end).is_some();
        let not_table = violation(Invariant::LeafNotTable, None);
        self.checked.verify(Invariant::LeafNotTable, !hits_table && !hits_reserved, not_table);
        let (Some(region), Some(word)) = (region, word) else { return };
        let range = place.gfn.leaf(place.level);
        let fits = region.range.covers(range)
            && place.level <= word.largest().min(self.core.largest)
            && leaf.pfn.is_aligned(place.level);
        let size = violation(Invariant::LeafSize, None);
        self.checked.verify(Invariant::LeafSize, fits, size);
        let mut access = Access::empty();
        access.set(Access::READ, leaf.read);
        access.set(Access::EXEC, leaf.exec);
        access.set(Access::WRITE, leaf.writable.by_host());
        let mut allowed = word.access();
        for page in 0..place.level.pages() {
            let gfn = Gfn(place.gfn.0 + page);
            let Some(expected) = self.backed_by(&region, gfn) else { continue };
            let (frame, host) = match expected {
                Witness::Frame(frame, host) => (Some(frame), host),
                Witness::Nothing => (None, Access::empty()),
                Witness::Unknown => continue,
            };
            allowed &= host;
            let same = frame == Some(Pfn(leaf.pfn.0 + page));
            let wrong = violation(Invariant::LeafFrame, frame.map(|frame| frame.0));
            self.checked.verify(Invariant::LeafFrame, same, wrong);
            if !same {
                break;
            }
        }
        let more = violation(Invariant::LeafAccess, Some(u64::from(allowed.bits())));
        self.checked.verify(Invariant::LeafAccess, allowed.contains(access), more);
    }

    /// What must be behind a page of a slot.
    fn backed_by(&mut self, region: &Region, gfn: Gfn) -> Option<Witness> {
        let offset = gfn.0.checked_sub(region.range.start().0)?;
        Some(match region.source {
            Source::Linear(frames) => Witness::Frame(Pfn(frames.first().0 + offset), Access::all()),
            Source::Backed { backing, first } => (self.witness)(backing, first + offset),
        })
    }
}

impl Checked {
    /// Invariants by name, with the number of entries or counts each was verified on.
    pub fn by_name(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = Invariant::ALL.into_iter().map(Invariant::name);
        names.zip(self.verified.iter().copied())
    }
}
