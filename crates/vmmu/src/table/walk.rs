//! The one walker.
//!
//! The hazard: worker A takes mappings away, a table page in each section. Between two of its sections
//! worker B creates a slot, deletes one, or drops every root. If A remembered a pointer to where it was,
//! or the number of a slot in the set, it would come back to a page that was freed, or pass over what
//! it has to take away. If it began anew after each change, a guest that moves a BAR again and again
//! would keep A from ever ending.
//!
//! The rule: between sections A carries a [`Cursor`], which is made of names and numbers that mean the
//! same whatever is changed. They are looked up anew in each section, and the walk only ever goes
//! forward.
//!
//! Two orders:
//!
//! * *leaves*: every entry of a range that is not a table, in ascending order;
//! * *deepest_table*: every table of a root, deepest first, to be detached. It needs no place to go on
//!   from: what has been detached is gone.

use core::cell::Cell;

use crate::addr::{ENTRIES, Gfn, GfnRange, INDEX_BITS, Level};
use crate::protocol::section::{Inside, Liability, Section};
use crate::state::root::{PLACES, Phase, Role, Root, RootName};
use crate::state::slot::AddressSpace;
use crate::state::slot_set::SlotSet;
use crate::state::table::Table;
use crate::sync;
use crate::table::entry::Entry;
use crate::table::page::{Page, Passes, Then};

/// In which order, and what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Entries of a range that are not tables.
    Leaves,
    /// All tables below a root, deepest first.
    TablesBottomUp,
}

/// What a walk goes over.
pub(crate) trait Target {
    /// The order.
    fn order(&self) -> Order;

    /// The first piece whose key is `from` or comes after it, in the slots as they are in this
    /// section. Asked in every section.
    fn piece(&self, slots: &SlotSet, from: PieceKey) -> Option<Piece>;

    /// Whether a root is meant. Invalid roots are, unless the target says otherwise: they may
    /// still be used.
    fn wants(&self, root: &Root) -> bool {
        let _ = root;
        true
    }
}

/// Which piece of a target. Pieces are walked in the order of their keys, and a key names the same
/// piece in every slot set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct PieceKey {
    /// What the target orders its pieces by: a page of a backing, or an address space.
    pub major: u64,
    /// Which of those that are equal in that: the slot's number.
    pub minor: u32,
}

impl PieceKey {
    /// The key of the piece of a target that has only one.
    pub(crate) const ONLY: PieceKey = PieceKey { major: 0, minor: 0 };

    /// The smallest key after this one.
    fn next(self) -> PieceKey {
        match self.minor.checked_add(1) {
            Some(minor) => PieceKey { minor, ..self },
            None => PieceKey { major: self.major.saturating_add(1), minor: 0 },
        }
    }
}

/// A part of a target: guest frames of one address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub key: PieceKey,
    pub space: AddressSpace,
    pub range: GfnRange,
}

/// Where a walk is: the key of its piece, a root by place and name, and a guest frame. All that
/// comes before is done, in the order of these three.
///
/// A walk begins after a grace period that follows its announcement, and lasts until that is taken
/// back: the range is under invalidation, the slot is dying, the root is invalid, or what a mapping
/// would say has been changed. From then on nothing that the walk is to take away is mapped anew.
/// So whatever is changed between two sections, the place is enough to go on from:
///
/// * What lies before it stays done.
/// * A root that was born since then has never held anything of the kind; it is passed over. Were it
///   not, somebody who drops all roots again and again would keep the walk from ending.
/// * The same is true of a slot that was created since then.
/// * A slot that is gone was zapped by its own deletion before it left the set. Until that zap is
///   flushed, its range stands in a ledger, where the end of this walk finds it. A slot that has
///   moved was deleted at its old place and created at its new one.
/// * A slot that stays keeps its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cursor {
    /// Roots whose generation is larger were born after the walk had begun.
    newest: u64,
    piece: PieceKey,
    root: usize,
    name: Option<RootName>,
    gfn: Gfn,
    /// Generation of the slot set; what `RestartsAtSlotChange` looks at.
    #[cfg(feature = "defects")]
    slots: u64,
}

impl Cursor {
    /// Before the first piece. The caller has waited for the grace period that follows the
    /// announcement.
    ///
    /// The number taken here is from the sequence that generations of roots are from. A root with a
    /// larger one was not there yet when the grace period ended. A section that may have been given
    /// a permit in spite of the announcement was over by then, so it knew no such root.
    pub(crate) fn begin() -> Self {
        Cursor {
            newest: sync::unique(),
            piece: PieceKey::default(),
            root: 0,
            name: None,
            gfn: Gfn(0),
            #[cfg(feature = "defects")]
            slots: 0,
        }
    }

    /// At the beginning of a piece.
    fn enter(&mut self, piece: PieceKey) {
        (self.piece, self.root, self.name) = (piece, 0, None);
    }

    /// Begins anew when the slots have changed: a defect.
    #[cfg(feature = "defects")]
    fn restart(&mut self, slots: u64) {
        if self.slots != slots && defect!(RestartsAtSlotChange) {
            self.enter(PieceKey::default());
        }
        self.slots = slots;
    }

    /// One table of leaves too far: a defect.
    pub(crate) fn skip(&mut self) {
        if self.name.is_some() {
            self.gfn = self.gfn.leaf(Level::Size2M).end();
        }
    }
}

/// What one section's worth of walking came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WalkStep {
    /// A page was visited.
    Visited,
    /// A page was visited, and nothing is left.
    VisitedLast,
    /// Something was frozen: let its owner run.
    Wait,
    /// The visitor wants to stop.
    Pause,
    /// Nothing is left.
    Done,
}

impl<'s, L: Liability> Section<'s, L> {
    /// The valid root of a role.
    pub fn root(&self, role: Role) -> Option<RootName> {
        self.inside.core.roots.find(role).map(|root| root.name)
    }

    /// The entry at which a walk for `gfn` ends: of level `stop`, or above where there is no
    /// table. `None`: there is no such root.
    #[inline]
    pub fn entry(&self, root: RootName, gfn: Gfn, stop: Level) -> Option<Entry<'_, L>> {
        let root = self.inside.core.roots.get(root)?;
        Some(descend(self.inside, &root, gfn, stop))
    }

    /// One section's worth of a walk: at most one page goes to the visitor.
    pub(crate) fn step(
        &self,
        cursor: &mut Cursor,
        target: &dyn Target,
        visit: &mut dyn FnMut(&Page<'_, L>) -> Then,
    ) -> WalkStep {
        let slots = self.slots();
        #[cfg(feature = "defects")]
        cursor.restart(slots.generation);
        loop {
            let Some(Piece { key, space, range }) = target.piece(slots, cursor.piece) else {
                return WalkStep::Done;
            };
            if key != cursor.piece {
                cursor.enter(key);
            }
            let Some(root) = self.next_root(cursor, space, target) else {
                cursor.enter(key.next());
                continue;
            };
            if cursor.name != Some(root.name) {
                cursor.name = Some(root.name);
                cursor.gfn = range.start();
            }
            let inside: Inside<'_, L> = self.inside;
            let order = target.order();
            let page = match order {
                Order::Leaves => leaves(inside, &root, cursor.gfn, range.end()),
                Order::TablesBottomUp => deepest_table(inside, &root),
            };
            let Some(page) = page else {
                cursor.root += 1;
                cursor.name = None;
                continue;
            };
            if defect!(LeavesOverlappingHugeLeaf)
                && let Some(first) = page.entries().next()
                && first.level > Level::Size4K
                && first.is_leaf()
                && !range.covers(first.range())
            {
                cursor.gfn = first.range().end();
                return WalkStep::Visited;
            }
            let step = go_on(cursor, page, visit);
            let is_through = order == Order::Leaves && cursor.gfn >= range.end();
            if is_through && step == WalkStep::Visited && self.is_last(cursor, space, target) {
                return WalkStep::VisitedLast;
            }
            return step;
        }
    }

    /// Passes on to what comes after a root that is done, and says whether that is nothing: it saves
    /// a section that would find out no more.
    fn is_last(&self, cursor: &mut Cursor, space: AddressSpace, target: &dyn Target) -> bool {
        cursor.root += 1;
        cursor.name = None;
        if self.next_root(cursor, space, target).is_some() {
            return false;
        }
        cursor.enter(cursor.piece.next());
        target.piece(self.slots(), cursor.piece).is_none()
    }

    fn next_root(
        &self,
        cursor: &mut Cursor,
        space: AddressSpace,
        target: &dyn Target,
    ) -> Option<Root> {
        let newest = cursor.newest;
        let is_meant = |root: &Root| {
            let is_left_out = space != AddressSpace::Normal && defect!(ForgetsSecondSpace);
            root.phase != Phase::Retiring
                && (root.name.generation <= newest || defect!(DrainsNewRoots))
                && root.role.space == space
                && !is_left_out
                && target.wants(root)
        };
        while cursor.root < PLACES {
            let root = self.inside.core.roots.at(cursor.root).filter(is_meant);
            if root.is_some() {
                return root;
            }
            cursor.root += 1;
            cursor.name = None;
        }
        None
    }
}

/// Visits one page and moves the cursor.
fn go_on<L: Liability>(
    cursor: &mut Cursor,
    page: Page<'_, L>,
    visit: &mut dyn FnMut(&Page<'_, L>) -> Then,
) -> WalkStep {
    let format = &page.inside.core.format;
    let is_table =
        |n: &usize| page.table.cell(*n).is_some_and(|cell| format.is_table(cell.get(), page.level));
    // Where there is a table, the next step goes down there.
    let stop = match page.passes {
        Passes::Leaves => (page.from..page.to).find(is_table).unwrap_or(page.to),
        Passes::Tables => page.to,
    };
    if stop == page.from {
        // It became a table since the walk looked.
        return WalkStep::Visited;
    }
    let page = Page { to: stop, ..page };
    let then = visit(&page);
    let reached = match then {
        Then::Next => page.to,
        Then::Again | Then::Pause => page.at.get(),
    };
    if reached > page.from {
        cursor.gfn = Gfn(page.base.0 + reached as u64 * page.level.pages());
    }
    match then {
        Then::Next => WalkStep::Visited,
        Then::Again => WalkStep::Wait,
        Then::Pause => WalkStep::Pause,
    }
}

/// The entry at which a walk for `gfn` from a root ends: of level `stop`, or above where there is
/// no table.
#[inline]
pub(crate) fn descend<'s, L: Liability>(
    inside: Inside<'s, L>,
    root: &Root,
    gfn: Gfn,
    stop: Level,
) -> Entry<'s, L> {
    let format = &inside.core.format;
    let mut number = root.level(format) as u32;
    let mut shift = (number - 1) * INDEX_BITS;
    let mut pfn = root.top;
    loop {
        // SAFETY: a root's top table is released only after a grace period that follows its
        // retiring, and this section has found the root not yet retiring; every other table is
        // read from a linked entry in this section, so it too is released only afterwards.
        let table = unsafe { Table::at(inside.core.window, pfn) };
        let cell = table.cell_at((gfn.0 >> shift) as usize);
        let seen = cell.get();
        if number <= stop as u32 || !format.is_upper_table(seen) {
            let level = Level::from_number(number);
            return Entry { inside, cell, seen, level, gfn: gfn.align_down(level) };
        }
        pfn = format.pfn(seen);
        number -= 1;
        shift -= INDEX_BITS;
    }
}

/// The part from `gfn` to `end` of the deepest table that covers `gfn`.
fn leaves<'s, L: Liability>(
    inside: Inside<'s, L>,
    root: &Root,
    gfn: Gfn,
    end: Gfn,
) -> Option<Page<'s, L>> {
    let end = end.min(Gfn(inside.core.format.frames()));
    if gfn >= end {
        return None;
    }
    // SAFETY: as in `descend`.
    let mut table = unsafe { Table::at(inside.core.window, root.top) };
    let mut level = root.level(&inside.core.format);
    while let Some((child, below)) = Entry::of(inside, table, level, gfn).child() {
        (table, level) = (child, below);
    }
    let from = gfn.index(level);
    let base = Gfn(gfn.align_down(level).0 - from as u64 * level.pages());
    let last = (end.0 - 1 - base.0) / level.pages();
    let to = (last as usize).min(ENTRIES - 1) + 1;
    let at = Cell::new(from);
    Some(Page { inside, table, level, base, from, to, passes: Passes::Leaves, at })
}

/// The entry above a table that has no tables below it; if there is no table, one that is frozen,
/// where a table may come back.
fn deepest_table<'s, L: Liability>(inside: Inside<'s, L>, root: &Root) -> Option<Page<'s, L>> {
    // SAFETY: as in `descend`.
    let mut table = unsafe { Table::at(inside.core.window, root.top) };
    let mut level = root.level(&inside.core.format);
    let mut base = Gfn(0);
    let mut found = None;
    let entry = |table: &'s Table, level: Level, base: Gfn, n: usize| {
        Entry::of(inside, table, level, Gfn(base.0 + n as u64 * level.pages()))
    };
    loop {
        let table_at = |n: &usize| entry(table, level, base, *n).is_table();
        let frozen_at = |n: &usize| entry(table, level, base, *n).is_frozen();
        let n = (0..ENTRIES).find(table_at).or_else(|| (0..ENTRIES).find(frozen_at));
        let Some(n) = n else { return found };
        let at = Cell::new(n);
        let (from, to, passes) = (n, n + 1, Passes::Tables);
        found = Some(Page { inside, table, level, base, from, to, passes, at });
        let above = entry(table, level, base, n);
        let Some((child, below)) = above.child() else { return found };
        base = above.gfn;
        (table, level) = (child, below);
        if level == Level::Size4K {
            return found;
        }
    }
}
