//! The set of slots: two copies, one current, swapped under the slot guard.
//!
//! Sections read the current copy; whoever holds the guard edits the other one, makes it current
//! and excludes before he edits again. Lookup by guest frame and by host page are binary searches.
//! A copy is plain values, so the cost of a change is one pass over them, and only creating a slot
//! can need memory: before it is published, room for it is made in both copies. So each of them has
//! at all times room for what the current one holds, and what comes after the creation, a move
//! or the deletion of any slot, allocates nothing.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::fmt;

use super::{AddressSpace, SlotId, SlotInfo, SlotSpec, SlotState, Source, Word, load};
use crate::NoMemory;
use crate::active::HostRange;
use crate::addr::{Gfn, GfnRange};
use crate::sync::{AtomicU64, Mutex, Ordering};

/// What never changes while a slot lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Region {
    pub range: GfnRange,
    pub space: AddressSpace,
    pub id: SlotId,
    pub source: Source,
}

/// A backed region seen from its backing; sorted by backing and first page.
#[derive(Clone, Copy, Debug)]
struct Backed {
    backing: u64,
    first: u64,
    end: u64,
    /// The largest `end` up to here within the backing: regions may alias one another's pages.
    reach: u64,
    region: Region,
}

/// Where the last lookup of a vCPU ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hint(usize);

/// One copy of the set.
#[derive(Debug, Default)]
pub(crate) struct SlotSet {
    /// Rises with every change of what is memory. MMIO entries carry it.
    pub generation: u64,
    regions: [Vec<Region>; AddressSpace::COUNT],
    backed: Vec<Backed>,
}

impl SlotSet {
    /// The slot around `gfn`; tries where the last search ended first.
    #[inline]
    pub(crate) fn find(&self, space: AddressSpace, gfn: Gfn, hint: &mut Hint) -> Option<&Region> {
        let regions = self.regions.get(usize::from(space.0))?;
        if let Some(region) = regions.get(hint.0)
            && region.range.contains(gfn)
        {
            return Some(region);
        }
        let after = regions.partition_point(|region| region.range.start() <= gfn);
        let place = after.checked_sub(1)?;
        let region = regions.get(place).filter(|region| region.range.contains(gfn))?;
        hint.0 = place;
        Some(region)
    }

    /// The first slot that ends after `gfn`.
    pub(crate) fn next(&self, space: AddressSpace, gfn: Gfn) -> Option<&Region> {
        let regions = self.regions.get(usize::from(space.0))?;
        regions.get(regions.partition_point(|region| region.range.end() <= gfn))
    }

    /// The `n`-th region that has a page of `host`, in a fixed order of this copy.
    pub(crate) fn backed_by(&self, host: &HostRange, n: usize) -> Option<(usize, &Region)> {
        let key = |b: &Backed| (b.backing, b.reach);
        let start = self.backed.partition_point(|b| key(b) <= (host.backing, host.first)).max(n);
        let rest = self.backed.get(start..)?.iter().enumerate();
        rest.take_while(|(_, b)| b.backing == host.backing && b.first < host.end())
            .find(|(_, b)| b.end > host.first)
            .map(|(i, b)| (start + i, &b.region))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().flatten()
    }

    fn overlapping(&self, space: AddressSpace, range: GfnRange) -> Option<&Region> {
        self.next(space, range.start()).filter(|region| region.range.overlaps(range))
    }

    fn by_id(&self, id: SlotId) -> Option<&Region> {
        self.iter().find(|region| region.id == id)
    }

    /// Lengths of the vectors with one region more.
    fn lengths_with(&self, spec: &SlotSpec) -> ([usize; AddressSpace::COUNT], usize) {
        let mut regions = [0; AddressSpace::COUNT];
        for (n, (length, list)) in regions.iter_mut().zip(&self.regions).enumerate() {
            *length = list.len() + usize::from(n == usize::from(spec.space.0));
        }
        let is_backed = matches!(spec.source, Source::Backed { .. });
        (regions, self.backed.len() + usize::from(is_backed))
    }

    /// Makes room for what `like` has, and for one region more.
    fn reserve(&mut self, like: &SlotSet, more: &SlotSpec) -> Result<(), NoMemory> {
        fn room<T>(to: &mut Vec<T>, n: usize) -> Result<(), NoMemory> {
            to.try_reserve(n.saturating_sub(to.len())).map_err(|_| NoMemory)
        }
        let (regions, backed) = like.lengths_with(more);
        for (to, length) in self.regions.iter_mut().zip(regions) {
            room(to, length)?;
        }
        room(&mut self.backed, backed)
    }

    /// Whether there is room for one region more.
    fn has_room(&self, more: &SlotSpec) -> bool {
        let (regions, backed) = self.lengths_with(more);
        let mut lists = self.regions.iter().zip(regions);
        lists.all(|(list, length)| list.capacity() >= length) && self.backed.capacity() >= backed
    }

    /// Becomes `like` without `without` and with `with`. Allocates nothing if reserved.
    fn rebuild(&mut self, like: &SlotSet, without: Option<SlotId>, with: Option<Region>) {
        self.generation = like.generation + 1;
        self.backed.clear();
        for (space, (to, from)) in self.regions.iter_mut().zip(&like.regions).enumerate() {
            to.clear();
            to.extend(from.iter().filter(|region| Some(region.id) != without).copied());
            if let Some(region) = with.filter(|r| usize::from(r.space.0) == space) {
                let place = to.partition_point(|r| r.range.start() < region.range.start());
                to.insert(place, region);
            }
            self.backed.extend(to.iter().filter_map(|region| match region.source {
                Source::Linear { .. } => None,
                Source::Backed { backing, first } => {
                    let end = first.saturating_add(region.range.pages());
                    Some(Backed { backing, first, end, reach: end, region: *region })
                }
            }));
        }
        self.backed.sort_unstable_by_key(|b| (b.backing, b.first));
        let mut before: Option<(u64, u64)> = None;
        for backed in &mut self.backed {
            if let Some((_, reach)) = before.filter(|(backing, _)| *backing == backed.backing) {
                backed.reach = backed.reach.max(reach);
            }
            before = Some((backed.backing, backed.reach));
        }
    }
}

/// Why a change of the slots was refused. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SlotError {
    /// The number is not below the configured count.
    Id(SlotId),
    /// There is no such address space.
    Space(AddressSpace),
    /// The number is in use.
    Taken(SlotId),
    /// No slot has this number, or it is being deleted.
    Missing(SlotId),
    /// A slot needs at least one page.
    Empty(SlotId),
    /// The frames go beyond what the tables can translate.
    TooHigh {
        /// The slot's range.
        range: GfnRange,
        /// Number of frames the tables can translate.
        frames: u64,
    },
    /// The frames of an existing slot overlap.
    Overlap {
        /// The slot that was asked for.
        id: SlotId,
        /// Its range.
        range: GfnRange,
        /// The slot that is there.
        other: SlotId,
        /// The range of that one.
        other_range: GfnRange,
    },
    /// The host has reserved frames of a linear slot (its own memory, for instance).
    Reserved {
        /// The slot that was asked for.
        id: SlotId,
        /// First host frame of the slot.
        first: u64,
        /// Host frame after its last.
        end: u64,
        /// First reserved host frame of the range in the way.
        reserved_first: u64,
        /// Host frame after the last reserved one.
        reserved_end: u64,
    },
    /// The host frames go beyond the physical address width, or the pages of the backing beyond
    /// 64 bits.
    Source(SlotId),
    /// The format has no code for this memory type.
    Memory(crate::entry::MemoryType),
    /// A leaf of this level does not exist.
    Largest(crate::addr::Level),
    /// Memory ran out.
    NoMemory,
    /// The VM is dead.
    Dead(crate::Broken),
}

impl From<NoMemory> for SlotError {
    fn from(_: NoMemory) -> Self {
        SlotError::NoMemory
    }
}

impl fmt::Display for SlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SlotError::Id(id) => write!(f, "slot {}: number too large for this VM", id.0),
            SlotError::Space(space) => write!(f, "address space {} does not exist", space.0),
            SlotError::Taken(id) => write!(f, "slot {} exists: delete or move it", id.0),
            SlotError::Missing(id) => write!(f, "slot {} does not exist", id.0),
            SlotError::Empty(id) => write!(f, "slot {} has no page", id.0),
            SlotError::TooHigh { range, frames } => {
                write!(f, "{range} ends beyond frame {frames:#x}, the last the tables reach")
            }
            SlotError::Overlap { id, range, other, other_range } => {
                write!(f, "slot {} at {range} overlaps slot {} at {other_range}", id.0, other.0)
            }
            SlotError::Reserved { id, first, end, reserved_first, reserved_end } => write!(
                f,
                "slot {} on host frames {first:#x}..{end:#x} overlaps the host's reserved frames \
                 {reserved_first:#x}..{reserved_end:#x}",
                id.0
            ),
            SlotError::Source(id) => {
                write!(f, "slot {}: its host frames or backing pages end beyond the width", id.0)
            }
            SlotError::Memory(memory) => write!(f, "no code for memory type {memory:?}"),
            SlotError::Largest(level) => write!(f, "no leaf of {level} exists"),
            SlotError::NoMemory => f.write_str("out of memory; nothing has changed"),
            SlotError::Dead(broken) => write!(f, "the VM is dead: {broken}"),
        }
    }
}

impl core::error::Error for SlotError {}

/// All slots of a VM.
pub struct Slots {
    sets: [UnsafeCell<SlotSet>; 2],
    current: AtomicU64,
    words: Box<[AtomicU64]>,
    /// The last revision given out. Locked: the slot guard.
    pub(crate) guard: Mutex<u64>,
}

// SAFETY: the sets are the only part that is not Sync by itself. The current one is only read,
// and only inside sections (`current`); the other one is only touched by the holder of the guard
// (`Edit`), who excludes all sections between making a set current and touching its predecessor.
unsafe impl Sync for Slots {}
// SAFETY: plain owned data.
unsafe impl Send for Slots {}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").field("capacity", &self.words.len()).finish_non_exhaustive()
    }
}

impl Slots {
    pub(crate) fn new(capacity: usize) -> Result<Self, NoMemory> {
        let mut words = Vec::new();
        words.try_reserve_exact(capacity).map_err(|_| NoMemory)?;
        words.extend((0..capacity).map(|_| AtomicU64::new(0)));
        Ok(Slots {
            sets: Default::default(),
            current: AtomicU64::new(0),
            words: words.into_boxed_slice(),
            guard: Mutex::new(0),
        })
    }

    /// The set as it is now.
    ///
    /// # Safety
    ///
    /// The reference must not outlive the section it was taken in, or nothing else may run
    /// (`&mut Mmu`).
    #[inline]
    pub(crate) unsafe fn current(&self) -> &SlotSet {
        let [a, b] = &self.sets;
        let set = if self.current.load(Ordering::Acquire) & 1 == 0 { a } else { b };
        // SAFETY: only the set that is not current is ever written (`Edit::swap`), and only after
        // an exclusion that ends every section in which it may have been current.
        unsafe { &*set.get() }
    }

    /// State, flags and revision of a slot now.
    #[inline]
    pub(crate) fn word(&self, id: SlotId) -> Word {
        load(&self.words, id)
    }
}

/// Whether there is room for a slot that is to be made.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// There is.
    There,
    /// In one of two copies: synchronize, and ask again.
    AfterGracePeriod,
}

/// Changes under the slot guard: the caller holds it and excludes after each.
pub(crate) struct Edit<'g> {
    slots: &'g Slots,
    revision: &'g mut u64,
}

impl<'g> Edit<'g> {
    /// `revision` is what the guard of `slots` holds, which proves that it is held.
    pub(crate) fn new(slots: &'g Slots, revision: &'g mut u64) -> Self {
        Edit { slots, revision }
    }

    fn sets(&mut self) -> (&SlotSet, &mut SlotSet, u64) {
        let current = self.slots.current.load(Ordering::Relaxed) & 1;
        let [a, b] = &self.slots.sets;
        let (now, next) = if current == 0 { (a, b) } else { (b, a) };
        // SAFETY: the guard is held, so nobody else edits; `now` is only read by anyone; `next`
        // was current last before the exclusion that ended the previous change, so no section
        // reads it.
        unsafe { (&*now.get(), &mut *next.get(), current ^ 1) }
    }

    fn set_word(&mut self, id: SlotId, state: SlotState, spec: &SlotSpec) -> Word {
        *self.revision += 1;
        let word = Word::new(state, spec, *self.revision);
        self.store(id, word);
        word
    }

    fn store(&self, id: SlotId, word: Word) {
        if let Some(place) = self.slots.words.get(id.0 as usize) {
            place.store(word.0, Ordering::Release);
        }
    }

    /// The slot of that number that is not dying.
    pub(crate) fn info(&mut self, id: SlotId) -> Result<SlotInfo, SlotError> {
        let word = self.slots.word(id);
        let (now, ..) = self.sets();
        let region = now.by_id(id).ok_or(SlotError::Missing(id))?;
        let info = describe(region, word).ok_or(SlotError::Missing(id))?;
        if info.state == SlotState::Dying { Err(SlotError::Missing(id)) } else { Ok(info) }
    }

    /// Whether a slot could be where `spec` says if it were not where it is.
    pub(crate) fn check_move(&mut self, spec: &SlotSpec) -> Result<(), SlotError> {
        let (now, ..) = self.sets();
        let mut at = spec.range.start();
        while let Some(other) = now.next(spec.space, at) {
            if !other.range.overlaps(spec.range) {
                break;
            }
            if other.id != spec.id {
                return Err(overlap(spec, other));
            }
            at = other.range.end();
        }
        Ok(())
    }

    /// Makes room for a slot in both copies. [`Room::AfterGracePeriod`]: one copy has it and is now
    /// current; synchronize, and ask again.
    pub(crate) fn make_room(&mut self, spec: &SlotSpec) -> Result<Room, SlotError> {
        self.check_add(spec)?;
        let (now, next, place) = self.sets();
        next.reserve(now, spec)?;
        if now.has_room(spec) {
            return Ok(Room::There);
        }
        next.rebuild(now, None, None);
        // Nothing has changed.
        next.generation = now.generation;
        self.slots.current.store(place, Ordering::Release);
        Ok(Room::AfterGracePeriod)
    }

    fn check_add(&mut self, spec: &SlotSpec) -> Result<(), SlotError> {
        if spec.id.0 as usize >= self.slots.words.len() {
            return Err(SlotError::Id(spec.id));
        }
        if usize::from(spec.space.0) >= AddressSpace::COUNT {
            return Err(SlotError::Space(spec.space));
        }
        if self.slots.word(spec.id) != Word::NONE {
            return Err(SlotError::Taken(spec.id));
        }
        let (now, ..) = self.sets();
        match now.overlapping(spec.space, spec.range) {
            Some(other) => Err(overlap(spec, other)),
            None => Ok(()),
        }
    }

    /// Publishes a new slot as coming. Checked against everything but the host's reservations.
    pub(crate) fn add(&mut self, spec: &SlotSpec) -> Result<(), SlotError> {
        self.check_add(spec)?;
        let region =
            Region { range: spec.range, space: spec.space, id: spec.id, source: spec.source };
        let (now, next, place) = self.sets();
        next.reserve(now, spec)?;
        next.rebuild(now, None, Some(region));
        self.set_word(spec.id, SlotState::Coming, spec);
        self.slots.current.store(place, Ordering::Release);
        Ok(())
    }

    /// Coming to live, after the exclusion that followed [`add`](Self::add).
    pub(crate) fn come(&mut self, spec: &SlotSpec) {
        self.set_word(spec.id, SlotState::Live, spec);
    }

    /// Live with other flags, under a new revision.
    pub(crate) fn revise(&mut self, spec: &SlotSpec) {
        self.set_word(spec.id, SlotState::Live, spec);
    }

    /// Live to dying.
    pub(crate) fn die(&mut self, spec: &SlotSpec) {
        self.set_word(spec.id, SlotState::Dying, spec);
    }

    /// Takes a dying slot whose leaves are gone out of the set. The caller excludes, then
    /// [`free_id`](Self::free_id)s it.
    pub(crate) fn remove(&mut self, id: SlotId) {
        let (now, next, place) = self.sets();
        next.rebuild(now, Some(id), None);
        self.slots.current.store(place, Ordering::Release);
    }

    /// Makes the number of a removed slot free again.
    pub(crate) fn free_id(&mut self, id: SlotId) {
        self.store(id, Word::NONE);
    }

    /// The generation of the current set.
    pub(crate) fn generation(&mut self) -> u64 {
        self.sets().0.generation
    }
}

fn overlap(spec: &SlotSpec, other: &Region) -> SlotError {
    SlotError::Overlap { id: spec.id, range: spec.range, other: other.id, other_range: other.range }
}

/// A region with its word.
pub(crate) fn describe(region: &Region, word: Word) -> Option<SlotInfo> {
    let mutability = if word.is_read_only() {
        super::Mutability::ReadOnly
    } else {
        super::Mutability::ReadWrite
    };
    Some(SlotInfo {
        spec: SlotSpec {
            id: region.id,
            space: region.space,
            range: region.range,
            source: region.source,
            mutability,
            largest: word.largest(),
        },
        state: word.state()?,
    })
}
