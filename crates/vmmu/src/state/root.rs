//! Roots: the top tables, in a fixed array of places with generations.
//!
//! A root is shared by all vCPUs of the same [`Role`] and lives until it is invalidated, whether
//! or not a vCPU uses it: switching roles and back rebuilds nothing. A [`RootName`] says place and
//! generation; it is looked up in every section, never turned into a pointer that outlives one.
//!
//! A place goes `free → valid → invalid → unloaded → retiring → free`. It is *unloaded* when every
//! vCPU has been outside the guest since it became invalid. It becomes free, and its generation
//! can be reused, only after the grace period that follows `retiring`: a section that has read the
//! place while it was taken cannot meet its next tenant.
//!
//! Whoever drains a root may stop half way: a handle is dropped, a hook of the host unwinds. Then the
//! place would be taken for ever. So the phase says all that is left to do, and anybody may go on
//! from there. While a call works on a place, it has the place's *draining* word, and gives it back
//! when it ends, by whatever way; between calls nobody has it.
//!
//! MMIO entries below a root carry only the low part of the slots' generation, the *tag*. The
//! hazard: vCPU A writes one; half a million changes later worker B puts a slot there and the tag is
//! what it was; vCPU C meets the old entry and takes memory for a device. Taking the old entries away
//! when the tag comes round is not enough, because C may be faster than B's walk, and because one
//! operation of B may change the slots twice and step over the tag zero. So each root knows its
//! *epoch*: the high part of the generation when it was born. Below it MMIO entries are written and
//! believed only by who reads, in the section of the entry, a set of the same epoch; epoch and tag
//! together are the whole generation. A root of an older epoch serves memory as before, and remembers
//! no MMIO. Replacing it is a matter of speed alone: it may be late, stop half way, or not happen.
//!
//! A root that is born beside such a change knows the older epoch only if whoever made the change
//! finds it afterwards: the epoch is read, and the root made valid, in one section, and roots of older
//! epochs are looked for after a grace period.
//!
//! A guest chooses where it reads what is no memory, and each place may need tables of its own. So
//! each root counts the tables that MMIO faults have linked below it, and there is a
//! [limit](crate::Config::mmio_tables).
//!
//! Hardware: a vCPU enters the guest only after it has said so in its mode word, fenced, and seen
//! its root valid ([`vcpu`](super::vcpu)); whoever invalidates a root waits until every vCPU that
//! was in the guest has left it once. After that nothing runs on the root, whatever names are still
//! held.

use crate::addr::{Level, Pfn};
use crate::entry::format::Format;
use crate::state::slot::AddressSpace;
use crate::sync;
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering, lock_or_wait};

/// Places for roots. A VM has at most six meaningful roles; the others are drains under way.
pub(crate) const PLACES: usize = if cfg!(any(loom, shuttle)) { 2 } else { 16 };

/// What makes two vCPUs able to share a root. All of it counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Role {
    /// The slots that are visible.
    pub space: AddressSpace,
    /// Anything else the hypervisor tells apart, such as a guest mode.
    pub flavour: u16,
}

impl Role {
    /// The ordinary role: address space 0.
    pub const PLAIN: Role = Role { space: AddressSpace::Normal, flavour: 0 };

    fn pack(self) -> u64 {
        self.space as u64 | u64::from(self.flavour) << 8
    }

    #[inline]
    fn unpack(word: u64) -> Role {
        Role { space: AddressSpace::of_bit(word), flavour: (word >> 8) as u16 }
    }
}

/// The name of a root: a place and which of its tenants. No two roots of any VMs have the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RootName {
    pub(crate) place: u8,
    pub(crate) generation: u64,
}

impl RootName {
    /// No root: what is asked for under this name is never mapped.
    pub(crate) const NONE: RootName = RootName { place: u8::MAX, generation: 0 };
}

/// Where a root is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// vCPUs may load it and populate it.
    Valid,
    /// Nobody may populate it; vCPUs may still run on it until they have been outside once.
    Invalid,
    /// No vCPU runs on it any more.
    Unloaded,
    /// Its tables are gone; the place is being given back.
    Retiring,
}

const FREE: u64 = 0;
const VALID: u64 = 1;
const INVALID: u64 = 2;
const RETIRING: u64 = 3;
const UNLOADED: u64 = 4;
const PHASE_BITS: u32 = 3;

#[derive(Debug)]
struct RootWords {
    /// Phase and generation.
    state: AtomicU64,
    top: AtomicU64,
    role: AtomicU64,
    /// High part of the slots' generation at its birth.
    epoch: AtomicU64,
    /// Tables below it that MMIO faults have linked. The one word here that faults write, and only
    /// those that link a table for MMIO.
    mmio_tables: AtomicU64,
    /// 1 while a call works on an invalid root here.
    draining: AtomicU64,
}

/// The right to go on with the drain of the root in one place, for the time of a call.
#[derive(Debug)]
pub(crate) struct Draining<'r>(&'r RootWords);

impl Drop for Draining<'_> {
    fn drop(&mut self) {
        self.0.draining.store(0, Ordering::Release);
    }
}

/// A root as a section sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Root {
    pub name: RootName,
    pub phase: Phase,
    pub role: Role,
    pub top: Pfn,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Roots {
    places: [RootWords; PLACES],
    /// Held while a root is created, so that two vCPUs of one role get the same.
    create: Mutex<()>,
}

/// What there is for a role.
#[derive(Debug)]
pub(crate) enum Berth<'r> {
    /// Its root.
    Taken(Root),
    /// A place for it. Dropped, it stays free.
    Free(Vacancy<'r>),
    /// Neither: all places are taken by drains.
    None,
}

/// The right to make one root; nobody else makes one meanwhile.
#[derive(Debug)]
pub(crate) struct Vacancy<'r> {
    roots: &'r Roots,
    words: &'r RootWords,
    place: usize,
    role: Role,
    _creating: MutexGuard<'r, ()>,
}

#[inline]
fn phase(state: u64) -> Option<Phase> {
    match state & ((1 << PHASE_BITS) - 1) {
        VALID => Some(Phase::Valid),
        INVALID => Some(Phase::Invalid),
        UNLOADED => Some(Phase::Unloaded),
        RETIRING => Some(Phase::Retiring),
        _ => None,
    }
}

impl Roots {
    pub(crate) fn new() -> Self {
        let place = |_| RootWords {
            state: AtomicU64::new(FREE),
            top: AtomicU64::new(0),
            role: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            mmio_tables: AtomicU64::new(0),
            draining: AtomicU64::new(0),
        };
        Roots { places: core::array::from_fn(place), create: Mutex::new(()) }
    }

    /// The tenant of a place. Only in a section, or while nothing else runs.
    #[inline]
    pub(crate) fn at(&self, place: usize) -> Option<Root> {
        let words = self.places.get(place)?;
        let state = words.state.load(Ordering::Acquire);
        let phase = phase(state)?;
        Some(Root {
            name: RootName { place: place as u8, generation: state >> PHASE_BITS },
            phase,
            role: Role::unpack(words.role.load(Ordering::Relaxed)),
            top: Pfn(words.top.load(Ordering::Relaxed)),
        })
    }

    /// The root of that name, as long as its top table may be looked at: once it is retiring,
    /// nothing waits for a section that opens now.
    #[inline]
    pub(crate) fn get(&self, name: RootName) -> Option<Root> {
        let is_there = |root: &Root| root.phase != Phase::Retiring || defect!(LooksAtRetiringRoot);
        self.at(usize::from(name.place)).filter(|root| root.name == name && is_there(root))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Root> {
        (0..PLACES).filter_map(|place| self.at(place))
    }

    /// Whether that root may be populated and loaded.
    #[inline]
    pub(crate) fn is_valid(&self, name: RootName) -> bool {
        let valid = name.generation << PHASE_BITS | VALID;
        self.places
            .get(usize::from(name.place))
            .is_some_and(|place| place.state.load(Ordering::Acquire) == valid)
    }

    /// The valid root of a role.
    pub(crate) fn find(&self, role: Role) -> Option<Root> {
        let fits = |root: &Root| root.role == role || defect!(RoleBlindReuse);
        self.iter().find(|root| root.phase == Phase::Valid && fits(root))
    }

    /// The valid root of a role, or a place to make one in.
    pub(crate) fn find_or_make(&self, role: Role, wait: impl FnMut()) -> Berth<'_> {
        let creating = lock_or_wait(&self.create, wait);
        if let Some(root) = self.find(role) {
            return Berth::Taken(root);
        }
        let is_free =
            |(_, words): &(usize, &RootWords)| phase(words.state.load(Ordering::Acquire)).is_none();
        match self.places.iter().enumerate().find(is_free) {
            Some((place, words)) => {
                Berth::Free(Vacancy { roots: self, words, place, role, _creating: creating })
            }
            None => Berth::None,
        }
    }

    /// Places without a tenant, as far as one can say without the lock of who makes roots.
    pub(crate) fn free_places(&self) -> usize {
        PLACES - self.iter().count()
    }

    /// The epoch that a root was born in.
    #[inline]
    pub(crate) fn epoch(&self, root: &Root) -> u64 {
        self.place(root.name).map_or(u64::MAX, |words| words.epoch.load(Ordering::Relaxed))
    }

    /// Counts tables that are about to be linked below a root for MMIO, if there are not more than
    /// `limit` then. In a section that found the root.
    pub(crate) fn count_mmio_tables(&self, root: &Root, tables: u64, limit: u64) -> bool {
        let more = |now: u64| now.checked_add(tables).filter(|sum| *sum <= limit);
        // Nothing is ordered by the count.
        let counted = |words: &RootWords| {
            words.mmio_tables.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
        };
        self.place(root.name).is_some_and(counted)
    }

    /// The tables counted were not linked. In the section that counted them.
    pub(crate) fn discount_mmio_tables(&self, root: &Root, tables: u64) {
        if let Some(words) = self.place(root.name) {
            words.mmio_tables.fetch_sub(tables, Ordering::Relaxed);
        }
    }

    #[inline]
    fn place(&self, name: RootName) -> Option<&RootWords> {
        self.places.get(usize::from(name.place))
    }

    /// Valid to invalid. The caller waits for a grace period next. Returns whether it was valid.
    pub(crate) fn invalidate(&self, name: RootName) -> bool {
        self.step(name, VALID, INVALID)
    }

    /// Invalid to unloaded, for whoever has waited until every vCPU was outside since.
    pub(crate) fn unload(&self, name: RootName) -> bool {
        self.step(name, INVALID, UNLOADED)
    }

    /// Unloaded to retiring. The caller waits for a grace period next.
    pub(crate) fn retire(&self, name: RootName) -> bool {
        self.step(name, UNLOADED, RETIRING)
    }

    /// The right to go on with the drain of that root. `None`: another call is at it.
    pub(crate) fn begin_drain(&self, name: RootName) -> Option<Draining<'_>> {
        let words = self.place(name)?;
        let taken =
            words.draining.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
        taken.then(|| Draining(words))
    }

    /// The root of that name in whatever phase, for whoever has the right to drain it.
    pub(crate) fn draining(&self, _: &Draining<'_>, name: RootName) -> Option<Root> {
        self.at(usize::from(name.place)).filter(|root| root.name == name)
    }

    /// Retiring to free, after the grace period.
    pub(crate) fn free(&self, name: RootName) -> bool {
        self.step(name, RETIRING, FREE)
    }

    fn step(&self, name: RootName, from: u64, to: u64) -> bool {
        let Some(place) = self.places.get(usize::from(name.place)) else { return false };
        let word = |phase| name.generation << PHASE_BITS | phase;
        let seen = word(from);
        place.state.compare_exchange(seen, word(to), Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

impl Vacancy<'_> {
    /// A root with that top table. Its epoch is that of the set which the caller reads in the section
    /// that it is in.
    pub(crate) fn fill(self, top: Pfn, epoch: u64) -> Option<Root> {
        let Vacancy { roots, words, place, role, .. } = self;
        words.top.store(top.0, Ordering::Relaxed);
        words.role.store(role.pack(), Ordering::Relaxed);
        words.epoch.store(epoch, Ordering::Relaxed);
        words.mmio_tables.store(0, Ordering::Relaxed);
        // No root of any VM has had this one, so the name of another VM's root names nothing here.
        let generation = sync::unique();
        words.state.store(generation << PHASE_BITS | VALID, Ordering::Release);
        roots.at(place)
    }
}

impl Root {
    /// Level of the entries of its top table.
    pub(crate) fn level(&self, format: &Format) -> Level {
        format.top()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody who has come too late for a drain leaves it to whoever is at it.
    #[test]
    fn a_drain_has_one_hand() {
        let roots = Roots::new();
        let Berth::Free(free) = roots.find_or_make(Role::PLAIN, || ()) else { panic!("no place") };
        let name = free.fill(Pfn(1), 0).unwrap().name;
        let at_it = roots.begin_drain(name).unwrap();
        for _ in 0..3 {
            assert!(roots.begin_drain(name).is_none());
        }
        drop(at_it);
        assert!(roots.begin_drain(name).is_some());
    }
}
