//! What a slot is, and the one word that has everything that can change while the slot lives.
//!
//! The hazard: vCPU A faults on a page of slot 3 and asks the host for the frame. Meanwhile worker B
//! deletes slot 3 and creates another slot over the same guest frames. If A maps its answer now, the
//! guest finds the old slot's memory in the new slot.
//!
//! The rule: state, flags and a *revision*, which no two states of any slot of the MMU share, stand in
//! one word for each slot number. A request carries the word it was admitted under; the permit compares
//! it with the word as it is then. So a change of one slot refuses no fault on another.
//!
//! A slot is *coming*, *live* or *dying*, and stays in the set in all three. A coming slot becomes live
//! after the grace period that follows its announcement: by then every fault is over that looked while
//! there was no slot. A dying slot leaves the set after its last leaf is gone and flushed, so that
//! invalidations by the host find its leaves as long as there are any. Neither is given a permit, and
//! neither is MMIO: a fault waits for a coming slot, and on a dying one answers *busy*.

use core::fmt;

use crate::addr::{GfnRange, Level, Pfn};
use crate::entry::access::{Access, MemoryType};
use crate::sync::{AtomicU64, Ordering};

/// Number of a slot of one MMU, below [`Config::slots`](crate::Config::slots). The host chooses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotId(pub u32);

/// One of two sets of slots with one numbering of frames.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum AddressSpace {
    /// What a vCPU sees ordinarily.
    Normal = 0,
    /// What it sees in system-management mode, or whatever else the hypervisor tells apart.
    Smm = 1,
}

impl AddressSpace {
    /// How many there are.
    pub const COUNT: usize = 2;

    /// Both, by number.
    pub const ALL: [AddressSpace; Self::COUNT] = [AddressSpace::Normal, AddressSpace::Smm];

    /// The one whose number is the lowest bit of `bits`.
    #[inline]
    pub(crate) const fn of_bit(bits: u64) -> AddressSpace {
        if bits & 1 == 0 { AddressSpace::Normal } else { AddressSpace::Smm }
    }
}

/// Host frames in one run, which a slot maps one to one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LinearFrames {
    first: Pfn,
    memory: MemoryType,
}

impl LinearFrames {
    /// As many frames from `first` on as the slot has pages, all mapped with one memory type.
    ///
    /// # Safety
    ///
    /// A guest reaches all of these frames as long as the slot lives. They belong to the guest:
    /// none is a table page, and this program uses none of them for anything else.
    pub const unsafe fn new(first: Pfn, memory: MemoryType) -> Self {
        LinearFrames { first, memory }
    }

    /// Frame of the slot's first page.
    pub const fn first(self) -> Pfn {
        self.first
    }

    /// Memory type of every mapping.
    pub const fn memory(self) -> MemoryType {
        self.memory
    }
}

/// Where a slot's pages come from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Source {
    /// Host frames in one run, pinned: they never move while the slot lives, and a fault asks
    /// nobody.
    Linear(LinearFrames),
    /// Pages of a backing that the host looks up, and may take back by an invalidation.
    Backed {
        /// The host's name for the backing.
        backing: u64,
        /// Page of the backing behind the slot's first page.
        first: u64,
    },
}

/// Whether a guest may write a slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mutability {
    /// Reads, writes and fetches.
    ReadWrite,
    /// Writes are not mapped but reported (flash memory, ROM). Cannot change while a slot lives.
    ReadOnly,
}

/// A slot to be made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SlotSpec {
    /// Its number; must be free.
    pub id: SlotId,
    /// Address space.
    pub space: AddressSpace,
    /// Guest frames.
    pub range: GfnRange,
    /// What backs them.
    pub source: Source,
    /// Whether the guest may write.
    pub mutability: Mutability,
    /// The largest leaf.
    pub largest: Level,
}

/// A slot as it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotInfo {
    /// As it was made, with the current limit.
    pub spec: SlotSpec,
    /// Where it is in its life.
    pub state: SlotState,
}

/// Where a slot is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SlotState {
    /// Announced, not yet usable.
    Coming,
    /// In use.
    Live,
    /// Being deleted; its leaves may still be mapped.
    Dying,
}

/// State, flags and revision of a slot in one word. 0: no slot.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotWord(pub u64);

const COMING: u64 = 1;
const LIVE: u64 = 2;
const DYING: u64 = 3;
const READ_ONLY: u64 = 1 << 2;
const LARGEST_SHIFT: u32 = 3;
const REVISION_SHIFT: u32 = 8;

impl fmt::Debug for SlotWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} revision {}", self.state(), self.0 >> REVISION_SHIFT)
    }
}

impl SlotWord {
    pub(crate) const NONE: SlotWord = SlotWord(0);

    pub(crate) fn new(state: SlotState, spec: &SlotSpec, revision: u64) -> SlotWord {
        let state = match state {
            SlotState::Coming => COMING,
            SlotState::Live => LIVE,
            SlotState::Dying => DYING,
        };
        let read_only = match spec.mutability {
            Mutability::ReadWrite => 0,
            Mutability::ReadOnly => READ_ONLY,
        };
        let largest = (spec.largest as u64) << LARGEST_SHIFT;
        SlotWord(state | read_only | largest | revision << REVISION_SHIFT)
    }

    /// The same slot dying, under a new revision.
    pub(crate) fn dying(self, revision: u64) -> SlotWord {
        let flags = self.0 & ((1 << REVISION_SHIFT) - 1) & !3;
        SlotWord(DYING | flags | revision << REVISION_SHIFT)
    }

    pub(crate) fn state(self) -> Option<SlotState> {
        match self.0 & 3 {
            COMING => Some(SlotState::Coming),
            LIVE => Some(SlotState::Live),
            DYING => Some(SlotState::Dying),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn is_live(self) -> bool {
        self.0 & 3 == LIVE
    }

    #[inline]
    pub(crate) fn is_read_only(self) -> bool {
        self.0 & READ_ONLY != 0
    }

    #[inline]
    pub(crate) fn largest(self) -> Level {
        match self.0 >> LARGEST_SHIFT & 7 {
            3 => Level::Size1G,
            2 => Level::Size2M,
            _ => Level::Size4K,
        }
    }

    /// What a guest may do with the slot's memory.
    #[inline]
    pub(crate) fn access(self) -> Access {
        if self.is_read_only() { Access::READ | Access::EXEC } else { Access::all() }
    }
}

/// The words of all slots, by number.
pub(crate) fn load(words: &[AtomicU64], id: SlotId) -> SlotWord {
    words.get(id.0 as usize).map_or(SlotWord::NONE, |word| SlotWord(word.load(Ordering::Acquire)))
}
