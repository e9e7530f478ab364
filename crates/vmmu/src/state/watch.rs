//! A watch names the guest frames for which somebody is looking up a host frame.
//!
//! The hazard: vCPU A asks the host which frame backs a page, and is told. Before A writes the answer
//! into the tables, the host gives that frame to somebody else; its invalidation finds nothing mapped
//! and returns. If A then writes its answer, the guest reaches a frame that is no longer its own.
//!
//! The rule: A writes the pages into its watch, passes a full fence, and only then looks whether they
//! are under invalidation. An invalidation announces its range, passes a full fence, and then sets the
//! *hit* bit of every watch that overlaps it. So either A sees the range, or the invalidation sees the
//! watch. A looks at the hit bit again in the section in which it writes the entry. Linux guards the
//! same race with one sequence number for each VM (`mmu_invalidate_retry`); here an invalidation
//! refuses only those who ask about its own pages.
//!
//! A watch is written wide, because which leaf its slot allows is not known before the section, and is
//! made *narrower* in the section that admits it. An invalidation may read the watch before or after
//! that. Every range it can read from A's fence on contains all that A will map; an invalidation that
//! reads what was there before had its fence before A's, and A sees what it announced. So making it
//! narrower needs no fence: an invalidation of other pages may hit once too often, one of these pages
//! never misses. Making it wider after the fence would be wrong, and so would a watch that is narrower
//! than the leaf that is mapped.
//!
//! A request can be *parked*: it becomes a name that its vCPU may lose, or keep for ever, and its watch
//! would stay taken. So a parked watch may be taken away by the participant that opened it, when it
//! has no other, and by whoever registers in that participant's place. The hazard: the name is made a
//! request again at the same moment, and two hold one watch. Both therefore take it by one
//! compare-exchange of the whole hits word, which has a count of the openings and a *parked* bit:
//! whoever clears the bit holds the watch, and who comes later finds it cleared, or another count. A
//! watch that is not parked has a holder, and nobody takes it from him.

use crate::addr::{Gfn, GfnRange, Level};
use crate::state::slot::AddressSpace;
#[cfg(any(loom, shuttle))]
use crate::sync::Counter;
use crate::sync::{AtomicU64, Ordering};

/// The frames somebody resolves outside of any section.
#[derive(Debug)]
pub(crate) struct WatchWords {
    /// 0: closed. Else bit 0, level in bits 1 to 3, address space in bit 4, gfn from bit 8.
    open: AtomicU64,
    /// Bit 0: hit. Bit 1: parked. Above them, how often the watch has been opened.
    hits: AtomicU64,
    /// How often it has been opened, once more: a model would explore every look at `hits`, of which
    /// this part does not change while the watch is open.
    #[cfg(any(loom, shuttle))]
    opened: Counter,
}

/// What an open watch names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    pub space: AddressSpace,
    pub range: GfnRange,
    /// The range is a leaf of this level, or everything.
    pub level: Level,
}

impl WatchWords {
    pub(crate) fn new() -> Self {
        WatchWords {
            open: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            #[cfg(any(loom, shuttle))]
            opened: Counter::default(),
        }
    }

    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire) != 0
    }

    /// Opens it over the leaf of `level` around `gfn`. The section that follows orders this
    /// before everything it reads.
    #[inline]
    pub(crate) fn open(&self, space: AddressSpace, gfn: Gfn, level: Level) {
        let count = self.hits.load(Ordering::Relaxed) >> COUNT;
        self.hits.store((count + 1) << COUNT, Ordering::Relaxed);
        #[cfg(any(loom, shuttle))]
        self.opened.add(1);
        self.write(space, gfn, level);
    }

    /// From now on it is open over less: over the leaf of a smaller `level` around `gfn`. In the
    /// section that admits it.
    #[inline]
    pub(crate) fn narrow(&self, space: AddressSpace, gfn: Gfn, level: Level) {
        self.write(space, gfn, level);
    }

    #[inline]
    fn write(&self, space: AddressSpace, gfn: Gfn, level: Level) {
        let gfn = gfn.align_down(level);
        let word = 1 | (level as u64) << 1 | (space as u64) << 4 | gfn.0 << 8;
        self.open.store(word, Ordering::Release);
    }

    /// Takes a spare one, if it is closed.
    pub(crate) fn try_open(&self, space: AddressSpace, gfn: Gfn, level: Level) -> bool {
        // A closed watch is first claimed with the widest range there is, so that an invalidation
        // between the two steps hits too much rather than too little.
        let claim = self.open.compare_exchange(0, WIDEST, Ordering::AcqRel, Ordering::Relaxed);
        if claim.is_ok() {
            self.open(space, gfn, level);
        }
        claim.is_ok()
    }

    #[inline]
    pub(crate) fn close(&self) {
        self.open.store(0, Ordering::Release);
    }

    #[inline]
    pub(crate) fn watched(&self) -> Option<Watched> {
        let word = self.open.load(Ordering::Acquire);
        if word == 0 {
            return None;
        }
        let gfn = Gfn(word >> 8);
        let level = match word >> 1 & 7 {
            1 => Level::Size4K,
            2 => Level::Size2M,
            3 => Level::Size1G,
            _ => {
                let (space, range) = (AddressSpace::Normal, GfnRange::ALL);
                return Some(Watched { space, range, level: Level::L5 });
            }
        };
        let space = AddressSpace::of_bit(word >> 4);
        Some(Watched { space, range: gfn.leaf(level), level })
    }

    /// Its holder gives it up, and leaves it open.
    pub(crate) fn park(&self) {
        self.hits.fetch_or(PARKED, Ordering::AcqRel);
    }

    /// What to take it with, if it is parked.
    pub(crate) fn parked(&self) -> Option<ParkedWord> {
        let word = self.hits.load(Ordering::Acquire);
        (word & PARKED != 0).then_some(ParkedWord(word))
    }

    /// Takes what was parked under this name. `false`: it has been taken.
    pub(crate) fn unpark(&self, count: u64) -> bool {
        self.parked().is_some_and(|word| word.0 >> COUNT == count && self.take(word))
    }

    /// Takes what was parked when `parked` was read. `false`: somebody else did.
    pub(crate) fn take(&self, parked: ParkedWord) -> bool {
        if defect!(TakesParkedBlindly) {
            self.hits.store(parked.0 & !PARKED, Ordering::Release);
            return true;
        }
        // It may be hit meanwhile, and stays so.
        [parked.0, parked.0 | HIT].into_iter().any(|word| {
            let held = word & !PARKED;
            self.hits.compare_exchange(word, held, Ordering::AcqRel, Ordering::Acquire).is_ok()
        })
    }

    /// Somebody takes the watched frames back.
    pub(crate) fn hit(&self) {
        self.hits.fetch_or(HIT, Ordering::AcqRel);
    }

    #[inline]
    pub(crate) fn is_hit(&self) -> bool {
        self.hits.load(Ordering::Acquire) & HIT != 0
    }

    /// How often it has been opened: the name of a request in it.
    pub(crate) fn count(&self) -> u64 {
        #[cfg(any(loom, shuttle))]
        return self.opened.get();
        #[cfg(not(any(loom, shuttle)))]
        return self.hits.load(Ordering::Relaxed) >> COUNT;
    }
}

/// What a parked watch is taken with: it says of which opening.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ParkedWord(u64);

const HIT: u64 = 1;
const PARKED: u64 = 1 << 1;
/// Where the count of the openings begins.
const COUNT: u32 = 2;

/// Level 7 is none: all frames.
const WIDEST: u64 = 1 | 7 << 1;
