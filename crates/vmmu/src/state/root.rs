//! Roots: the top tables, in a fixed array of places with generations.
//!
//! A root is shared by all vCPUs of the same [`Role`] and lives until it is invalidated, whether
//! or not a vCPU uses it: switching roles and back rebuilds nothing. A [`RootName`] says place and
//! generation; it is looked up in every section, never turned into a pointer that outlives one.
//!
//! A place goes `free → valid → invalid → retiring → free`. It becomes free, and its generation
//! can be reused, only after the grace period that follows `retiring`: a section that has read the
//! place while it was taken cannot meet its next tenant.
//!
//! Hardware: a vCPU enters the guest only after it has said so in its mode word, fenced, and seen
//! its root valid ([`tlb`](crate::tlb)); who invalidates a root waits until every vCPU that was in
//! the guest has left it once. After that nothing runs on the root, whatever names are still held.

use crate::addr::{Level, Pfn};
use crate::entry::format::Format;
use crate::error::NoMemory;
use crate::state::slot::AddressSpace;
use crate::sync;
use crate::sync::{AtomicU64, Mutex, Ordering, lock_or_wait};

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
    /// Its tables are gone; the place is being given back.
    Retiring,
}

const FREE: u64 = 0;
const VALID: u64 = 1;
const INVALID: u64 = 2;
const RETIRING: u64 = 3;
const PHASE_BITS: u32 = 2;

#[derive(Debug)]
struct RootWords {
    /// Phase and generation.
    state: AtomicU64,
    top: AtomicU64,
    role: AtomicU64,
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

#[inline]
fn phase(state: u64) -> Option<Phase> {
    match state & ((1 << PHASE_BITS) - 1) {
        VALID => Some(Phase::Valid),
        INVALID => Some(Phase::Invalid),
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
        };
        Roots { places: core::array::from_fn(place), create: Mutex::new(()) }
    }

    /// The tenant of a place. Only in a section, or while nothing else runs.
    #[inline]
    pub(crate) fn at(&self, place: usize) -> Option<Root> {
        let words = self.places.get(place)?;
        let state = words.state.load(Ordering::Acquire);
        Some(Root {
            name: RootName { place: place as u8, generation: state >> PHASE_BITS },
            phase: phase(state)?,
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

    /// The valid root of a role, new if need be from the table `fresh` gives.
    ///
    /// `Ok(None)`: all places are taken by drains. `Err`: a table is needed and there is none.
    pub(crate) fn create(
        &self,
        role: Role,
        fresh: impl FnOnce() -> Option<Pfn>,
        wait: impl FnMut(),
    ) -> Result<Option<Root>, NoMemory> {
        let _creating = lock_or_wait(&self.create, wait);
        if let Some(root) = self.find(role) {
            return Ok(Some(root));
        }
        let is_free = |place: &RootWords| phase(place.state.load(Ordering::Acquire)).is_none();
        let mut places = self.places.iter().enumerate();
        let Some((place, words)) = places.find(|(_, place)| is_free(place)) else {
            return Ok(None);
        };
        let top = fresh().ok_or(NoMemory)?;
        words.top.store(top.0, Ordering::Relaxed);
        words.role.store(role.pack(), Ordering::Relaxed);
        // No root of any VM has had this one, so the name of another VM's root names nothing here.
        let generation = sync::unique();
        words.state.store(generation << PHASE_BITS | VALID, Ordering::Release);
        Ok(self.at(place))
    }

    /// Valid to invalid. The caller waits for a grace period next. Returns whether it was valid.
    pub(crate) fn invalidate(&self, name: RootName) -> bool {
        self.step(name, VALID, INVALID)
    }

    /// Invalid to retiring. The caller waits for a grace period next.
    pub(crate) fn retire(&self, name: RootName) -> bool {
        self.step(name, INVALID, RETIRING)
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

impl Root {
    /// Level of the entries of its top table.
    pub(crate) fn level(&self, format: &Format) -> Level {
        format.top()
    }
}
