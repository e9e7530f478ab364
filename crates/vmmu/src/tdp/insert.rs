//! Inserting: the permit for one whole leaf, and the walk that spends it.
//!
//! Modify is not insert. Anyone in a section may split; only the holder of an [`Insert`] may put a
//! mapping where there was none.

use crate::addr::{Gfn, GfnRange, Level, Pfn};
use crate::entry::access::{Access, MemoryType};
use crate::entry::cell::Value;
use crate::entry::law;
use crate::entry::leaf::{Leaf, Record, Tracked, Writable};
use crate::entry::state::State;
use crate::fault::{Cause, PageFault};
use crate::protocol::section::{Inside, Liability, Section};
use crate::state::broken::Broken;
use crate::state::root::{Phase, Root, RootName};
use crate::state::slot::{SlotWord, Source};
use crate::state::slot_set::{Hint, Region};
use crate::state::table::Table;
use crate::sync::spin_loop;
use crate::table::cache::ReservedPages;
use crate::table::entry::{Entry, Split};
use crate::table::walk::descend;
use crate::tdp::request::{Refused, ResolvedFault, congruent};

/// The permit: one frame, one whole leaf, one root that is valid in this section.
#[must_use]
#[derive(Debug)]
pub struct Insert<'s, L: Liability> {
    inside: Inside<'s, L>,
    root: Root,
    gfn: Gfn,
    level: Level,
    what: What,
    access: Access,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// A leaf; its frame is that of the whole leaf's start.
    Leaf(Leaf),
    /// The MMIO entry of this generation.
    Mmio(Value),
}

/// What came of an insert.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Mapped {
    /// The leaf is there, of this level.
    Done(Level),
    /// A leaf that allows the access was there.
    Spurious,
    /// Something there is frozen, or the VM died: leave the section.
    Busy,
    /// A leaf of another frame is there, or one whose permissions must not grow in place.
    Conflict,
    /// The table for an MMIO entry is missing, and MMIO has linked as many as it may below this root.
    NoTable,
    /// The table for an MMIO entry is missing, and so are pages for it in stock.
    NoPages,
}

impl<L: Liability> Section<'_, L> {
    /// Asks for the permit to insert `frame` as a leaf of `level`.
    ///
    /// In this order: root, slot, ranges under invalidation, *then* hits. A range leaves the array of
    /// those only after it has set its hits.
    #[inline]
    pub fn permit<'a>(
        &'a self,
        frame: &'a ResolvedFault<'_>,
        level: Level,
    ) -> Result<Insert<'a, L>, Refused> {
        let core = self.inside.core;
        let admission = &frame.admission;
        if level > frame.level() {
            return Err(Refused::Level);
        }
        let root = self.valid_root(admission.root);
        if !core::ptr::eq(core, frame.watch.core) {
            return Err(Refused::Foreign);
        }
        let root = root?;
        self.holds(frame, admission.gfn().leaf(level))?;
        let found = &frame.found;
        let access = admission.word.access() & found.access;
        let leaf = leaf_for(core.format.record(), found.pfn, access, found.memory, admission.fault);
        Ok(self.insert(root, admission.fault, level, leaf))
    }

    /// Whether `frame` is still what backs its page, and all of `leaf` may be used.
    #[inline]
    pub(crate) fn holds(&self, frame: &ResolvedFault<'_>, leaf: GfnRange) -> Result<(), Refused> {
        let core = self.inside.core;
        let admission = &frame.admission;
        if !core::ptr::eq(core, frame.watch.core) {
            return Err(Refused::Foreign);
        }
        if core.slots.word(admission.region.id) != admission.word && !defect!(IgnoresRevision) {
            return Err(Refused::Stale);
        }
        let pages = admission.region.host_range(leaf).ok_or(Refused::NoSlot)?;
        if core.invalidations.covers(&pages) {
            return Err(Refused::Invalidation);
        }
        let words = core.participants.watch_words(frame.watch.place).ok_or(Refused::Foreign)?;
        if words.is_hit() { Err(Refused::Hit) } else { Ok(()) }
    }

    /// The permit for a page of a linear slot found in this section: its frame needs no watch.
    #[inline]
    pub(crate) fn permit_linear(
        &self,
        root: &Root,
        region: &Region,
        word: SlotWord,
        fault: PageFault,
    ) -> Result<Insert<'_, L>, Refused> {
        let core = self.inside.core;
        let Source::Linear(frames) = region.source else { return Err(Refused::Slot) };
        if !may_be_populated(root) {
            return Err(Refused::Root);
        }
        if !word.is_live() {
            return Err(Refused::Stale);
        }
        if !word.access().contains(fault.access) {
            return Err(Refused::ReadOnly);
        }
        let gfn = fault.gpa.gfn();
        let pfn = Pfn(frames.first().0 + (gfn.0 - region.range.start().0));
        let mut level = region.level_at(gfn, word.largest().min(core.largest));
        while level > Level::Size4K && !congruent(pfn, gfn, level) {
            level = level.below().unwrap_or(Level::Size4K);
        }
        let leaf = leaf_for(core.format.record(), pfn, word.access(), frames.memory(), fault);
        Ok(self.insert(*root, fault, level, leaf))
    }

    /// The permit for an MMIO entry: no slot is there, as of the generation it will carry, and the
    /// root is of that generation's epoch.
    pub fn permit_mmio(&self, root: RootName, fault: PageFault) -> Result<Insert<'_, L>, Refused> {
        let core = self.inside.core;
        let slots = self.slots();
        let root = self.valid_root(root)?;
        let gfn = fault.gpa.gfn();
        if slots.find(root.role.space, gfn, &mut Hint::default()).is_some() {
            return Err(Refused::Slot);
        }
        if !slots.remembers_in(core.roots.epoch(&root)) {
            return Err(Refused::Generation);
        }
        let mmio = State::Mmio { generation: slots.tag() };
        let value = core.format.make(mmio, Level::Size4K).ok_or(Refused::Generation)?;
        let (inside, access) = (self.inside, fault.access);
        Ok(Insert { inside, root, gfn, level: Level::Size4K, what: What::Mmio(value), access })
    }

    /// The root, if it may be populated.
    #[inline]
    fn valid_root(&self, name: RootName) -> Result<Root, Refused> {
        let root = self.inside.core.roots.get(name);
        root.filter(may_be_populated).ok_or(Refused::Root)
    }

    #[inline]
    fn insert(&self, root: Root, fault: PageFault, level: Level, leaf: Leaf) -> Insert<'_, L> {
        let (inside, gfn, access) = (self.inside, fault.gpa.gfn(), fault.access);
        let start = Pfn(leaf.pfn.0 & !(level.pages() - 1));
        let leaf = Leaf { pfn: start, ..leaf };
        Insert { inside, root, gfn, level, what: What::Leaf(leaf), access }
    }
}

/// Whether tables below the root may get new mappings.
#[inline]
pub(crate) fn may_be_populated(root: &Root) -> bool {
    root.phase == Phase::Valid || defect!(PopulatesInvalidRoot)
}

/// A new leaf. A is set if it is about to be used, D if it is about to be written: hardware would
/// do so at once, and a walk that finds them set is shorter.
#[inline]
fn leaf_for(
    record: Record,
    pfn: Pfn,
    access: Access,
    memory: MemoryType,
    fault: PageFault,
) -> Leaf {
    let by_hardware = record != Record::Software;
    let used = fault.cause == Cause::Guest && by_hardware;
    let writable = access.contains(Access::WRITE);
    Leaf {
        pfn,
        read: access.contains(Access::READ),
        exec: access.contains(Access::EXEC),
        writable: if writable { Writable::Yes } else { Writable::Never },
        accessed: used,
        dirty: used && writable && fault.access.contains(Access::WRITE),
        record,
        tracked: if fault.cause == Cause::Prefault && !by_hardware && !writable {
            Tracked::Yes
        } else {
            Tracked::No
        },
        memory,
    }
}

impl<'s, L: Liability> Insert<'s, L> {
    /// Level of the leaf.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Walks to the place and puts the leaf there. Tables that are missing are linked, filled
    /// first; a huge leaf in the way that does not allow the access is split; where there is a
    /// table already, the leaf becomes a smaller one in it.
    #[inline]
    pub fn map(mut self, mut pages: ReservedPages<'_>) -> Mapped {
        let core = self.inside.core;
        let mut entry = descend(self.inside, &self.root, self.gfn, self.level);
        loop {
            if let Some((table, level)) = entry.child() {
                if entry.level == self.level && !self.shrink(level) {
                    return Mapped::Busy;
                }
                entry = Entry::of(self.inside, table, level, self.gfn);
                continue;
            }
            let (inside, cell, level, gfn) = (entry.inside, entry.cell, entry.level, entry.gfn);
            let again = || Entry { inside, cell, seen: cell.get(), level, gfn };
            if entry.is_frozen() && defect!(SpinsInSection) {
                spin_loop();
                entry = again();
                continue;
            }
            let in_the_way = entry.is_frozen() && !defect!(OverwritesFrozen);
            if in_the_way || core.broken().is_some() {
                return Mapped::Busy;
            }
            if entry.is_leaf() {
                if entry.allows(self.access) {
                    if defect!(ReplacesPresentLeaf)
                        && entry.level == self.level
                        && let Some(value) = self.value()
                    {
                        let _ = entry.cell.exchange(value);
                        return Mapped::Done(self.level);
                    }
                    return Mapped::Spurious;
                }
                // What is no memory is no reason to split, for which there may be no page.
                if entry.level > self.level && matches!(self.what, What::Leaf(_)) {
                    entry = match entry.split(&mut pages) {
                        Ok(Split::Done | Split::NotHuge) => again(),
                        // The caller comes back with pages for one leaf.
                        Ok(Split::NoPage | Split::Dead) => return Mapped::Busy,
                        Err(changed) => changed,
                    };
                    continue;
                }
                match self.widen(entry) {
                    Ok(mapped) => return mapped,
                    Err(changed) => entry = changed,
                }
                continue;
            }
            let lost = if entry.level == self.level {
                self.place(entry)
            } else if matches!(self.what, What::Mmio(_)) {
                self.link_for_mmio(entry, &mut pages)
            } else {
                self.link(entry, &mut pages)
            };
            match lost {
                Ok(mapped) => return mapped,
                Err(changed) => entry = changed,
            }
        }
    }

    /// The leaf for this frame one size smaller, in the table of `level` that is there already.
    fn shrink(&mut self, level: Level) -> bool {
        let outer = self.level.pages() - 1;
        self.level = level;
        if let What::Leaf(leaf) = &mut self.what {
            // Frame and guest frame lie at the same place of the larger block.
            leaf.pfn = Pfn(leaf.pfn.0 | self.gfn.0 & outer & !(level.pages() - 1));
        }
        level.can_be_leaf()
    }

    #[inline]
    fn value(&self) -> Option<Value> {
        match self.what {
            What::Mmio(value) => Some(value),
            What::Leaf(leaf) => self.inside.core.format.leaf(&leaf, self.level),
        }
    }

    /// Puts the value into an entry of the right level in which there is no translation.
    #[inline]
    fn place(&self, entry: Entry<'s, L>) -> Result<Mapped, Entry<'s, L>> {
        let Some(value) = self.value() else { return Ok(Mapped::Conflict) };
        if entry.seen == value {
            return Ok(Mapped::Spurious);
        }
        Ok(match entry.apply(value)? {
            Some(_) => Mapped::Done(self.level),
            None => Mapped::Busy,
        })
    }

    /// A leaf of the same frame that allows less: it may grow in place if the law agrees.
    fn widen(&self, entry: Entry<'s, L>) -> Result<Mapped, Entry<'s, L>> {
        let format = &self.inside.core.format;
        let (State::Leaf(old), What::Leaf(new)) = (entry.state(), self.what) else {
            return Ok(Mapped::Conflict);
        };
        let same = old.pfn == new.pfn && old.memory == new.memory && old.record == new.record;
        if !same || old.writable.by_host() != new.writable.by_host() {
            return Ok(Mapped::Conflict);
        }
        let merged = Leaf {
            read: old.read | new.read,
            exec: old.exec | new.exec,
            accessed: old.accessed | new.accessed,
            dirty: old.dirty | new.dirty,
            tracked: Tracked::No,
            ..old
        };
        let Some(value) = format.leaf(&merged, entry.level) else { return Ok(Mapped::Conflict) };
        if value == entry.seen {
            return Ok(Mapped::Conflict);
        }
        let level = entry.level;
        Ok(match entry.apply(value)? {
            Some(_) => Mapped::Done(level),
            None => Mapped::Busy,
        })
    }

    /// Links the missing tables if MMIO may link so many and there are pages for them.
    fn link_for_mmio(
        &self,
        entry: Entry<'s, L>,
        pages: &mut ReservedPages<'_>,
    ) -> Result<Mapped, Entry<'s, L>> {
        let core = self.inside.core;
        let tables = entry.level as usize - self.level as usize;
        // Counted first: what others link meanwhile does not lead beyond the limit.
        if !core.roots.count_mmio_tables(&self.root, tables as u64, core.mmio_tables) {
            return Ok(Mapped::NoTable);
        }
        let linked =
            if pages.count() < tables { Ok(Mapped::NoPages) } else { self.link(entry, pages) };
        if !matches!(linked, Ok(Mapped::Done(_))) {
            core.roots.discount_mmio_tables(&self.root, tables as u64);
        }
        linked
    }

    /// Builds the missing tables with the leaf in the last one, and links them with one exchange.
    /// Who loses takes them apart again and keeps the pages.
    fn link(
        &self,
        entry: Entry<'s, L>,
        pages: &mut ReservedPages<'_>,
    ) -> Result<Mapped, Entry<'s, L>> {
        let core = self.inside.core;
        let format = &core.format;
        let Some(value) = self.value() else { return Ok(Mapped::Conflict) };
        let Ok(inserted) = law::consequences(format, format.empty(), value, self.level) else {
            core.kill(Broken::FrameUnusable);
            return Ok(Mapped::Busy);
        };
        // From the leaf's table upwards.
        let mut built = [None; 4];
        let mut count = 0;
        let (mut level, mut below) = (self.level, value);
        while level < entry.level {
            let (Some(pfn), Some(slot)) = (pages.take(), built.get_mut(count)) else {
                unbuild(self, &built, pages);
                return Ok(Mapped::Busy);
            };
            // SAFETY: from the cache, linked nowhere.
            unsafe { Table::at(core.window, pfn) }.cell_for(self.gfn, level).set_private(below);
            *slot = Some((pfn, level));
            count += 1;
            below = format.table(pfn);
            let Some(above) = level.above() else { break };
            level = above;
        }
        let words = self.inside.words;
        match entry.apply(below) {
            Ok(Some(_)) => {
                self.inside.account(&inserted, self.level);
                words.counters.tables_linked.add(count as u64);
                Ok(Mapped::Done(self.level))
            }
            Ok(None) => {
                unbuild(self, &built, pages);
                Ok(Mapped::Busy)
            }
            Err(changed) => {
                unbuild(self, &built, pages);
                Err(changed)
            }
        }
    }
}

/// Takes tables that were not linked apart again.
fn unbuild<L: Liability>(
    insert: &Insert<'_, L>,
    built: &[Option<(Pfn, Level)>; 4],
    pages: &mut ReservedPages<'_>,
) {
    let core = insert.inside.core;
    for (pfn, level) in built.iter().flatten() {
        // SAFETY: never linked.
        let table = unsafe { Table::at(core.window, *pfn) };
        table.cell_for(insert.gfn, *level).set_private(core.format.empty());
        pages.put_back(*pfn);
    }
}
