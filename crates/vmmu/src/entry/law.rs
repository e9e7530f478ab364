//! The law: what a change of one entry obliges its author to do, and which changes are illegal.
//!
//! The hazard: worker A takes W away from a leaf, sees that W was clear already, and concludes that
//! no flush is due. But W had been cleared softly a moment before by worker B, whose flush is still
//! to come, and vCPU C goes on writing through a translation that it has. A rule of this kind that
//! each writer of entries applies by itself is sooner or later forgotten by one of them.
//!
//! The rule: [`consequences`] is a pure function of format, old value, new value and level. Every
//! writer of every entry goes through it, so that what follows is derived in one place and from
//! nothing but what changed. It implements sections 1.0.2, 1.1 and 1.11 of the behaviour
//! description:
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

use crate::addr::{Level, Pfn};
use crate::entry::access::Access;
use crate::entry::cell::Value;
use crate::entry::format::{Format, soft};

/// When a flush has to be finished.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FlushDue {
    /// Never, for this change.
    Never,
    /// Before the dirty log that this change belongs to is handed out. The operation owes it
    /// whether or not an entry has changed; it does not follow from the single change.
    BeforeLog,
    /// Before anybody relies on the permission being gone.
    BeforeReliance,
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
pub struct Consequences {
    /// The flush.
    pub flush: FlushDue,
    /// A set D was dropped, or W where there is no D: the frames of the old leaf must be reported
    /// dirty.
    pub dirty: bool,
    /// A leaf that was used is gone (A, or not hidden where there is no A): the host may want to
    /// know.
    pub accessed: bool,
    /// W was set, or a leaf with W was inserted: the new leaf's frames have to be put into the
    /// dirty log, in the section of the change.
    pub log: bool,
    /// Leaves of this level.
    pub leaves: Count,
    /// This table is no longer reachable through the entry.
    pub detached: Option<Pfn>,
    /// An owner of external tables must hear of it: what is mapped or linked, or what the library
    /// allows, has changed, not just how use is recorded.
    pub external: bool,
}

impl Consequences {
    /// Nothing.
    pub const NOTHING: Consequences = Consequences {
        flush: FlushDue::Never,
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
pub enum Illegal {
    /// One of the values is none that the library writes at this level.
    Corrupt,
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

/// What a value is as far as a few of its bits show, or `None` if they show already that it is
/// corrupt.
#[inline]
fn class(format: &Format, value: Value, level: Level) -> Option<Class> {
    let v = value.0;
    if v & soft::PRESENT != 0 {
        if format.is_table(value, level) {
            return Some(Class::Table);
        }
        return legal_leaf(format, v, level).then_some(Class::Leaf);
    }
    if v == format.empty {
        return Some(Class::Empty);
    }
    if format.mmio.is_some_and(|bits| v & bits == bits) {
        return Some(Class::Mmio);
    }
    match v & (soft::HOLD | soft::CLAIM) {
        0 => None,
        soft::HOLD | soft::CLAIM => Some(Class::Held),
        _ => Some(Class::Dead),
    }
}

/// Whether a leaf can be where it is and its three permission bits form a legal state.
#[inline]
fn legal_leaf(format: &Format, v: u64, level: Level) -> bool {
    let (host, mmu, w) =
        (v & soft::HOST_WRITABLE != 0, v & soft::MMU_WRITABLE != 0, v & format.write != 0);
    level <= format.largest && (host || !mmu) && (mmu || !w)
}

/// What follows when a leaf appears where there was none.
#[inline]
fn mapped(format: &Format, v: u64) -> Consequences {
    Consequences {
        log: v & format.write != 0,
        leaves: Count::Mapped,
        external: true,
        ..Consequences::NOTHING
    }
}

/// What follows when a leaf goes and no table of the same translation takes its place.
#[inline]
fn unmapped(format: &Format, v: u64) -> Consequences {
    Consequences {
        flush: FlushDue::BeforeReliance,
        dirty: was_dirty(format, v),
        accessed: was_accessed(format, v),
        leaves: Count::Unmapped,
        external: true,
        ..Consequences::NOTHING
    }
}

/// What replacing `old` by `new` in an entry of `level` obliges to, or why it must not be done.
///
/// Both values must be of `format`, which only [`Format::read`] checks in full. What is seen
/// without decoding them, such as a leaf where none can be or software bits that contradict each
/// other, is [`Illegal::Corrupt`].
#[inline]
pub fn consequences(
    format: &Format,
    old: Value,
    new: Value,
    level: Level,
) -> Result<Consequences, Illegal> {
    // The fault path, and most of what ever happens: nothing becomes a leaf.
    if old.0 == format.empty && format.is_leaf(new, level) {
        return if legal_leaf(format, new.0, level) {
            Ok(mapped(format, new.0))
        } else {
            Err(Illegal::Corrupt)
        };
    }
    // Range operations: a leaf becomes nothing.
    if new.0 == format.empty && format.is_leaf(old, level) {
        return if legal_leaf(format, old.0, level) {
            Ok(unmapped(format, old.0))
        } else {
            Err(Illegal::Corrupt)
        };
    }
    if old == new { Ok(Consequences::NOTHING) } else { all_others(format, old, new, level) }
}

/// The changes that are rare, in a function of their own, so that what is inlined into a caller
/// stays small.
fn all_others(
    format: &Format,
    old: Value,
    new: Value,
    level: Level,
) -> Result<Consequences, Illegal> {
    let (Some(from), Some(to)) = (class(format, old, level), class(format, new, level)) else {
        return Err(Illegal::Corrupt);
    };
    match (from, to) {
        (Class::Dead, Class::Dead) => return Ok(Consequences::NOTHING),
        (Class::Dead, _) if !defect!(OverwritesFrozen) => return Err(Illegal::Dead),
        (Class::Held, Class::Held) => return Err(Illegal::Frozen),
        (Class::Leaf | Class::Table, Class::Mmio) => return Err(Illegal::Mmio),
        (Class::Table, Class::Table) => return Err(Illegal::Relink),
        (Class::Leaf, Class::Leaf) => return leaf_to_leaf(format, old.0, new.0),
        _ => {}
    }
    let mut owed = match to {
        Class::Leaf => mapped(format, new.0),
        Class::Table => Consequences { external: true, ..Consequences::NOTHING },
        Class::Empty | Class::Mmio | Class::Held | Class::Dead => Consequences::NOTHING,
    };
    match from {
        // A split owes nothing more: any mixture of the leaf and its children is the same
        // translation, and the children carry D and A on.
        Class::Leaf if to == Class::Table => owed.leaves = Count::Unmapped,
        Class::Leaf => owed = unmapped(format, old.0),
        Class::Table => {
            let recorded = by_software(new.0) || new.0 & format.dirty != 0;
            if owed.log && !recorded {
                return Err(Illegal::Clean);
            }
            owed.detached = Some(format.pfn(old));
            owed.flush = FlushDue::BeforeReliance;
            owed.external = true;
        }
        Class::Empty | Class::Mmio | Class::Held | Class::Dead => {}
    }
    Ok(owed)
}

/// Without hardware D, a leaf that could be written counts as written.
#[inline]
fn was_dirty(format: &Format, v: u64) -> bool {
    if by_software(v) { v & format.write != 0 } else { v & format.dirty != 0 }
}

/// Without hardware A, a leaf counts as used until aging hides it.
#[inline]
fn was_accessed(format: &Format, v: u64) -> bool {
    if by_software(v) { !format.is_hidden(Value(v)) } else { v & format.accessed != 0 }
}

#[inline]
fn by_software(v: u64) -> bool {
    v & soft::RECORD == 1 << soft::RECORD_SHIFT
}

#[inline]
fn leaf_to_leaf(format: &Format, old: u64, new: u64) -> Result<Consequences, Illegal> {
    let changed = old ^ new;
    if changed & (super::format::ADDRESS | format.huge) != 0 {
        return Err(Illegal::Frame);
    }
    if changed & soft::HOST_WRITABLE != 0 {
        return Err(Illegal::HostWritable);
    }
    if changed & soft::RECORD != 0 {
        return Err(Illegal::Record);
    }
    if changed & format.memory_mask != 0 {
        return Err(Illegal::Memory);
    }
    let taken = |bits: u64| old & bits != 0 && new & bits == 0;
    let mut owed = Consequences::NOTHING;
    owed.log = changed & format.write != 0 && new & format.write != 0;
    owed.dirty = if by_software(old) { taken(format.write) } else { taken(format.dirty) };
    let (before, after) = (format.rights(old), format.rights(new));
    owed.external = before != after;
    let unseen = defect!(NoFlushForSoftlyProtected)
        && old & format.write == 0
        && before.difference(after) == Access::WRITE;
    if !after.contains(before) && !unseen {
        owed.flush = FlushDue::BeforeReliance;
    } else if taken(format.write) || taken(format.dirty) {
        owed.flush = FlushDue::BeforeLog;
    }
    Ok(owed)
}
