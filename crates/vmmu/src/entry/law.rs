//! The law: what a change of one entry obliges its author to do, and which changes are crimes.
//!
//! [`owed`] is a pure function of format, old value, new value and level. Every writer of every
//! entry goes through it, so that consequences are derived in one place and from nothing but what
//! changed. Its rules are sections 1.0.2, 1.1 and 1.11 of the behaviour description:
//!
//! | change | flush | why |
//! |---|---|---|
//! | absent to present, a permission added, A or D set | none | x86 caches nothing that is absent; a narrower cached entry costs a spurious fault |
//! | *library writable* taken (hard protection) | before anybody relies on it | an earlier soft protection may have left writable translations |
//! | W taken, or D cleared, softly | before the log is handed out | later writes would go unseen |
//! | A cleared, or R and X hidden by aging | none | a false "old" is tolerated |
//! | R or X taken as a permission | before anybody relies on it | security |
//! | leaf gone | before the page is reused | |
//! | table gone or replaced by a leaf | before the table is freed | paging-structure caches |
//! | leaf replaced by a table of the same translation (split) | none | any mixture is equivalent |
//!
//! Losing D is never allowed, so a change that drops a set D owes a dirty mark; losing A is.
//!
//! The law looks at one entry only. That a split's children are right, that whoever replaces a
//! frozen value owns it, and that an insert holds a permit, is the business of the types that
//! call it.

use super::format::soft;
use super::{Format, Value};
use crate::addr::{Level, Pfn};

/// When a flush has to be finished.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Flush {
    /// Never, for this change.
    None,
    /// Before the dirty log that this change belongs to is handed out. The operation owes it
    /// whether or not an entry changed; it is not a consequence of the single change.
    BeforeLog,
    /// Before anybody relies on the permission being gone.
    BeforePromise,
}

/// A counter of leaves or tables that moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Count {
    /// Stays.
    Same,
    /// One more leaf of this level.
    Mapped,
    /// One leaf of this level fewer.
    Unmapped,
}

/// What a legal change obliges to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owed {
    /// The flush.
    pub flush: Flush,
    /// A set D was dropped: the frames of the old leaf must be reported dirty.
    pub dirty: bool,
    /// A set A was dropped with its leaf: the host may want to know.
    pub accessed: bool,
    /// W was set, or a leaf with W was inserted: the new leaf's frames belong into the dirty log,
    /// in the section of the change.
    pub log: bool,
    /// Leaves of this level.
    pub leaves: Count,
    /// This table is no longer reachable through the entry.
    pub detached: Option<Pfn>,
    /// An owner of external tables must hear of it: what is mapped or linked has changed, not
    /// just how it is recorded.
    pub external: bool,
}

impl Owed {
    /// Nothing.
    pub const NOTHING: Owed = Owed {
        flush: Flush::None,
        dirty: false,
        accessed: false,
        log: false,
        leaves: Count::Same,
        detached: None,
        external: false,
    };
}

/// Why a change is illegal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crime {
    /// One of the values is none that the library writes at this level.
    Corrupt,
    /// Absent to a different absent value, with neither MMIO nor a frozen value involved.
    Idle,
    /// A present leaf gets another frame or size: it must be zapped and flushed in between.
    Frame,
    /// The host's permission to write changes while the leaf is present.
    HostWritable,
    /// The memory type changes while the leaf is present.
    Memory,
    /// The way of recording changes while the leaf is present.
    Record,
    /// A table is replaced by another table.
    Relink,
    /// A dead entry comes back to life.
    Dead,
    /// A huge leaf that hardware may write replaces a table without being born dirty: a walker may
    /// set D in a child until the flush.
    Clean,
    /// A frozen value is replaced by a frozen value of another kind or owner.
    Frozen,
    /// A mapping is replaced by an MMIO entry in one step.
    Mmio,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Empty,
    Mmio,
    Held,
    Dead,
    Table,
    Leaf,
}

#[inline]
fn class(format: &Format, value: Value, level: Level) -> Class {
    let v = value.0;
    if v & soft::PRESENT != 0 {
        return if format.is_table(value, level) { Class::Table } else { Class::Leaf };
    }
    if v == format.empty {
        return Class::Empty;
    }
    if format.mmio.is_some_and(|bits| v & bits == bits) {
        return Class::Mmio;
    }
    if v & soft::HOLD != 0 && v & soft::CLAIM != 0 { Class::Dead } else { Class::Held }
}

/// Whether a leaf's four permission bits form one of the four legal states.
#[inline]
fn legal_writable(format: &Format, v: u64) -> bool {
    let (host, mmu, w) =
        (v & soft::HOST_WRITABLE != 0, v & soft::MMU_WRITABLE != 0, v & format.write != 0);
    (host || !mmu) && (mmu || !w)
}

/// What replacing `old` by `new` in an entry of `level` obliges to, or why it must not be done.
///
/// Both values must be of `format`; a value whose software bits contradict each other is
/// [`Crime::Corrupt`].
#[inline]
pub fn owed(format: &Format, old: Value, new: Value, level: Level) -> Result<Owed, Crime> {
    if old == new {
        return Ok(Owed::NOTHING);
    }
    let (from, to) = (class(format, old, level), class(format, new, level));
    let is_leaf = |class| matches!(class, Class::Leaf);
    if (is_leaf(from) && !legal_writable(format, old.0))
        || (is_leaf(to) && (!legal_writable(format, new.0) || !level.can_be_leaf()))
    {
        return Err(Crime::Corrupt);
    }
    let mut owed = Owed::NOTHING;
    match (from, to) {
        (Class::Dead, Class::Dead) => return Ok(owed),
        (Class::Dead, _) => return Err(Crime::Dead),
        (Class::Empty, Class::Empty) => return Err(Crime::Idle),
        (Class::Held, Class::Held) => return Err(Crime::Frozen),
        (Class::Leaf | Class::Table, Class::Mmio) => return Err(Crime::Mmio),
        (Class::Table, Class::Table) => return same_table(format, old, new),
        (Class::Leaf, Class::Leaf) => return leaf_to_leaf(format, old.0, new.0),
        _ => {}
    }
    match from {
        Class::Leaf => {
            owed.leaves = Count::Unmapped;
            owed.dirty = was_dirty(format, old.0);
            owed.accessed = old.0 & format.accessed != 0;
            owed.external = true;
            // A split: any mixture of the leaf and its children is the same translation.
            owed.flush = match to {
                Class::Table => Flush::None,
                _ => Flush::BeforePromise,
            };
            // The children carry D and A on.
            if to == Class::Table {
                owed.dirty = false;
                owed.accessed = false;
            }
        }
        Class::Table => {
            owed.detached = Some(format.pfn(old));
            owed.flush = Flush::BeforePromise;
            owed.external = true;
        }
        Class::Empty | Class::Mmio | Class::Held | Class::Dead => {}
    }
    match to {
        Class::Leaf => {
            owed.leaves = Count::Mapped;
            owed.log = new.0 & format.write != 0;
            owed.external = true;
            let unrecorded = new.0 & format.dirty == 0 && !by_software(new.0);
            if from == Class::Table && owed.log && unrecorded {
                return Err(Crime::Clean);
            }
        }
        Class::Table => owed.external = true,
        Class::Empty | Class::Mmio | Class::Held | Class::Dead => {}
    }
    Ok(owed)
}

/// Without hardware D, a leaf that could be written counts as written.
#[inline]
fn was_dirty(format: &Format, v: u64) -> bool {
    if by_software(v) { v & format.write != 0 } else { v & format.dirty != 0 }
}

#[inline]
fn by_software(v: u64) -> bool {
    v & soft::RECORD == 1 << soft::RECORD_SHIFT
}

/// Only hardware's A may differ.
fn same_table(format: &Format, old: Value, new: Value) -> Result<Owed, Crime> {
    if old.0 | format.accessed == new.0 | format.accessed {
        Ok(Owed::NOTHING)
    } else {
        Err(Crime::Relink)
    }
}

#[inline]
fn leaf_to_leaf(format: &Format, old: u64, new: u64) -> Result<Owed, Crime> {
    let changed = old ^ new;
    if changed & (super::format::ADDRESS | format.huge) != 0 {
        return Err(Crime::Frame);
    }
    if changed & soft::HOST_WRITABLE != 0 {
        return Err(Crime::HostWritable);
    }
    if changed & soft::RECORD != 0 {
        return Err(Crime::Record);
    }
    if changed & format.memory_mask != 0 {
        return Err(Crime::Memory);
    }
    let taken = |bits: u64| old & bits != 0 && new & bits == 0;
    let mut owed = Owed::NOTHING;
    owed.log = changed & format.write != 0 && new & format.write != 0;
    owed.dirty = if by_software(old) { taken(format.write) } else { taken(format.dirty) };
    if taken(soft::MMU_WRITABLE) || lost_permission(format, old, new) {
        owed.flush = Flush::BeforePromise;
        owed.external = true;
    } else if taken(format.write) || taken(format.dirty) {
        owed.flush = Flush::BeforeLog;
    }
    Ok(owed)
}

/// Whether a leaf may no longer be read or fetched from, hidden or not.
#[inline]
fn lost_permission(format: &Format, old: u64, new: u64) -> bool {
    let reads = |v: u64| v & format.read == format.read || v & soft::SAVED_READ != 0;
    let fetches = |v: u64| {
        let hidden = v & (soft::SAVED_READ | soft::SAVED_EXEC) != 0;
        if hidden {
            v & soft::SAVED_EXEC != 0
        } else if format.exec != 0 {
            v & format.exec != 0
        } else {
            v & format.no_exec == 0
        }
    };
    (reads(old) && !reads(new)) || (fetches(old) && !fetches(new))
}
