//! One entry, seen in a section: a place, and the value that was there.
//!
//! Every write consumes the observation and is one compare-exchange from it; whoever loses gets a
//! new observation. What the write obliges its author to do comes from the [law], in the same
//! section.

use crate::addr::{ENTRIES, Gfn, GfnRange, Level, Pfn};
use crate::entry::access::Access;
use crate::entry::cell::{Cell, Value};
use crate::entry::law;
use crate::entry::leaf::split_child;
use crate::entry::state::State;
use crate::protocol::section::{Inside, Liability, Owing};
use crate::state::broken::Broken;
use crate::state::table::Table;
use crate::sync::{Ordering, fence, spin_loop};
use crate::table::cache::ReservedPages;

/// A place and the value seen.
#[must_use]
#[derive(Debug)]
pub struct Entry<'s, L: Liability> {
    pub(crate) inside: Inside<'s, L>,
    pub(crate) cell: &'s Cell,
    pub(crate) seen: Value,
    pub(crate) level: Level,
    /// First frame it covers.
    pub(crate) gfn: Gfn,
}

/// What came of a split.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Split {
    /// There is a table where the huge leaf was.
    Done,
    /// It was no huge leaf. Nothing has changed.
    NotHuge,
    /// The pages that were reserved are used up. Nothing has changed.
    NoPage,
    /// The MMU is dead. Nothing has changed.
    Dead,
}

/// What came of taking a table away.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detach {
    /// It is gone, or there was none.
    Done,
    /// Somebody has a claim below it. Nothing has changed: leave the section and come back.
    Claimed,
}

/// The exchange was lost; this is what is there now.
pub type Changed<'s, L> = Entry<'s, L>;

impl<'s, L: Liability> Entry<'s, L> {
    /// The entry for `gfn` in a table of `level`.
    #[inline]
    pub(crate) fn of(inside: Inside<'s, L>, table: &'s Table, level: Level, gfn: Gfn) -> Self {
        let cell = table.cell_for(gfn, level);
        Entry { inside, cell, seen: cell.get(), level, gfn: gfn.align_down(level) }
    }

    /// The value seen.
    pub fn value(&self) -> Value {
        self.seen
    }

    /// What it means.
    pub fn state(&self) -> State {
        self.inside.core.format.read(self.seen, self.level)
    }

    /// Level of the table it is in.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The guest frames it covers.
    pub fn range(&self) -> GfnRange {
        self.gfn.leaf(self.level)
    }

    #[inline]
    pub(crate) fn is_table(&self) -> bool {
        self.inside.core.format.is_table(self.seen, self.level)
    }

    #[inline]
    pub(crate) fn is_leaf(&self) -> bool {
        self.inside.core.format.is_leaf(self.seen, self.level)
    }

    #[inline]
    pub(crate) fn is_frozen(&self) -> bool {
        self.inside.core.format.is_frozen(self.seen)
    }

    #[inline]
    pub(crate) fn allows(&self, access: Access) -> bool {
        self.is_leaf() && self.inside.core.format.allows(self.seen, access)
    }

    /// The table it points at, if it does.
    #[inline]
    pub(crate) fn child(&self) -> Option<(&'s Table, Level)> {
        let level = self.level.below()?;
        if !self.is_table() {
            return None;
        }
        let pfn = self.inside.core.format.pfn(self.seen);
        // SAFETY: read from a linked entry in a section, so the table is released only after
        // the section has ended.
        Some((unsafe { Table::at(self.inside.core.window, pfn) }, level))
    }

    /// Replaces the value seen, and does what the law says follows. `Ok(None)`: the law forbids
    /// it; the MMU is dead and nothing has changed.
    #[inline]
    pub(crate) fn apply(self, new: Value) -> Result<Option<law::Consequences>, Changed<'s, L>> {
        let core = self.inside.core;
        let owed = match law::consequences(&core.format, self.seen, new, self.level) {
            Ok(owed) => owed,
            Err(illegal) => {
                core.kill(Broken::Law(illegal));
                return Ok(None);
            }
        };
        match self.cell.change(self.seen, new) {
            Ok(()) => {
                self.inside.account(&owed, self.level);
                Ok(Some(owed))
            }
            Err(now) => Err(Entry { seen: now, ..self }),
        }
    }

    /// Replaces a huge leaf by a table of the same translation: a modify, allowed to anybody in a
    /// section. The children derive from the exact value that is exchanged, so nothing is owed.
    /// Anything but a huge leaf is left as it is.
    pub fn split(self, pages: &mut ReservedPages<'_>) -> Result<Split, Changed<'s, L>> {
        let core = self.inside.core;
        let (State::Leaf(leaf), Some(below)) = (self.state(), self.level.below()) else {
            return Ok(Split::NotHuge);
        };
        let Some(pfn) = pages.take() else { return Ok(Split::NoPage) };
        // SAFETY: from the cache, linked nowhere.
        let table = unsafe { Table::at(core.window, pfn) };
        for (n, cell) in table.cells().iter().enumerate() {
            let child = split_child(&leaf, self.level, n as u64);
            let value = child.and_then(|leaf| core.format.leaf(&leaf, below));
            cell.set_private(value.unwrap_or(core.format.empty()));
        }
        let (inside, level) = (self.inside, self.level);
        match self.apply(core.format.table(pfn)) {
            Ok(Some(_)) => {
                if let Some(counter) = inside.words.mapped.get(below as usize - 1) {
                    counter.add(ENTRIES as u64);
                }
                debug_assert!(level > Level::Size4K, "only huge leaves split");
                inside.words.counters.splits.add(1);
                inside.words.counters.tables_linked.add(1);
                Ok(Split::Done)
            }
            Ok(None) => {
                table.clear(&core.format);
                pages.put_back(pfn);
                Ok(Split::Dead)
            }
            Err(changed) => {
                table.clear(&core.format);
                pages.put_back(pfn);
                Err(changed)
            }
        }
    }
}

impl<'s> Entry<'s, Owing<'s>> {
    /// Makes a leaf or an MMIO entry empty. A table or a frozen value is left as it is. What the
    /// library never wrote kills the VM, and goes too: hardware may take it for a mapping.
    pub fn zap(self) -> Result<(), Changed<'s, Owing<'s>>> {
        let (inside, format) = (self.inside, &self.inside.core.format);
        if !self.is_leaf() {
            match self.state() {
                State::Leaf(_) | State::Mmio { .. } | State::Corrupt => {}
                _ => return Ok(()),
            }
        }
        let cell = self.cell;
        if self.apply(format.empty())?.is_none() {
            // The law knows no such value; the MMU is dead, and the promise must hold all the same.
            let _ = cell.exchange(format.empty());
            inside.kind.owe(law::FlushDue::BeforeReliance);
        }
        inside.words.counters.zapped.add(1);
        Ok(())
    }

    /// Takes the table away that the entry points at, makes all its entries dead, and hangs it on
    /// the debt. Anything but a table is left as it is, and so is a table below which somebody has a
    /// claim.
    ///
    /// The hazard: worker A finds no claim and takes the table away. Section B, which had walked into
    /// the table before, makes its claim in between and ends. A meets the claim among the entries that
    /// it has to make dead. B's author comes back for it in a later section, but no walk leads there
    /// any more: if A waited, it would wait for ever, inside a section.
    ///
    /// The rule: A first puts a hold in the place of the table, passes a full fence, and looks for
    /// claims again. B passes a full fence after its claim and walks there again. So either A sees the
    /// claim and puts the table back, or B does not find the way and gives its claim back within its
    /// section, and A may wait for that as for any hold. Others cannot take the hold for an empty
    /// entry: they leave their sections and come back, so a table that is put back escapes nobody.
    pub fn detach(self) -> Result<Detach, Changed<'s, Owing<'s>>> {
        let (inside, cell, level, gfn) = (self.inside, self.cell, self.level, self.gfn);
        let (Some((table, below)), true) = (self.child(), level > Level::Size4K) else {
            return Ok(Detach::Done);
        };
        let format = &inside.core.format;
        if has_claim(inside, table, below) {
            return Ok(Detach::Claimed);
        }
        let (linked, pfn) = (self.seen, format.pfn(self.seen));
        let Some(hold) = format.make(State::Hold { owner: 0 }, level) else {
            return Ok(Detach::Done);
        };
        if self.apply(hold)?.is_none() {
            return Ok(Detach::Done);
        }
        let held = Entry { inside, cell, seen: hold, level, gfn };
        fence(Ordering::SeqCst);
        let is_claimed = has_claim(inside, table, below) && !defect!(TakesTableUnderClaim);
        let next = if is_claimed { linked } else { format.empty() };
        if !matches!(held.apply(next), Ok(Some(_))) {
            // Nobody else replaces a hold.
            inside.core.kill(Broken::Corrupt);
        }
        if is_claimed {
            return Ok(Detach::Claimed);
        }
        if !defect!(LosesDetachedTable) {
            kill_entries(inside, pfn, table, below);
        }
        Ok(Detach::Done)
    }
}

/// Whether somebody has a claim in the table or in one below it.
fn has_claim(inside: Inside<'_, Owing<'_>>, table: &Table, level: Level) -> bool {
    let core = inside.core;
    table.cells().iter().any(|cell| {
        let value = cell.get();
        if core.format.is_claimed(value) {
            return true;
        }
        let Some(below) = level.below().filter(|_| core.format.is_table(value, level)) else {
            return false;
        };
        // SAFETY: read in this section from a table that was linked when this section reached it.
        let child = unsafe { Table::at(core.window, core.format.pfn(value)) };
        has_claim(inside, child, below)
    })
}

/// Makes all entries of a table dead that this section has detached and therefore owns.
///
/// Sections that walked past the parent before may still be at work here; exchanging each entry
/// is what decides against them. A table that one of them linked meanwhile is taken along.
fn kill_entries(inside: Inside<'_, Owing<'_>>, pfn: Pfn, table: &Table, level: Level) {
    let core = inside.core;
    let dead = core.format.dead(None);
    for cell in table.cells() {
        let mut seen = cell.get();
        loop {
            match core.format.read(seen, level) {
                // Held by a section that will put it back, or claimed by one that will find that no
                // walk leads here and give it back: only the owner of the table, which this is, may
                // wait for that, and only downwards.
                State::Hold { .. } | State::Claim { .. } => {
                    spin_loop();
                    seen = cell.get();
                    continue;
                }
                State::Dead { .. } => break,
                _ => {}
            }
            let owed = law::consequences(&core.format, seen, dead, level);
            if let Err(now) = cell.change(seen, dead) {
                seen = now;
                continue;
            }
            match owed {
                Ok(owed) => {
                    inside.account(&owed, level);
                    if let (Some(child), Some(below)) = (owed.detached, level.below()) {
                        // SAFETY: it was linked when it was read in this section.
                        let table = unsafe { Table::at(core.window, child) };
                        kill_entries(inside, child, table, below);
                    }
                }
                Err(_) => core.kill(Broken::Corrupt),
            }
            break;
        }
    }
    inside.words.counters.tables_unlinked.add(1);
    inside.kind.0.hang(pfn, table, &core.format);
}
