//! Ranges of host memory that are under invalidation, in the host's own terms.
//!
//! A fixed array, because an invalidation must not allocate and must not wait for another one.
//! When all places are taken, further invalidations are only counted, and while the count is not
//! zero every insert of a backed page is refused: false retries, never a miss.
//!
//! Order: a range is published before the fence that precedes setting hits; it leaves only after
//! its hits are set. So who sees it gone sees the hits.

use crate::sync::{AtomicU64, Ordering};

/// A range of pages of one backing. The meaning of both numbers is the host's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HostRange {
    /// Which backing, as given when slots were created.
    pub backing: u64,
    /// First 4 KiB page.
    pub first: u64,
    /// Number of 4 KiB pages.
    pub pages: u64,
}

impl HostRange {
    /// The page after the last; saturates at the top.
    pub const fn end(&self) -> u64 {
        self.first.saturating_add(self.pages)
    }

    /// Whether the two have a page in common.
    pub const fn overlaps(&self, other: &HostRange) -> bool {
        self.backing == other.backing && self.first < other.end() && other.first < self.end()
    }
}

const PLACES: usize = if cfg!(any(loom, shuttle)) { 2 } else { 16 };
const FREE: u64 = 0;
const FILLING: u64 = 1;
const ACTIVE: u64 = 2;

#[derive(Debug)]
struct Place {
    state: AtomicU64,
    backing: AtomicU64,
    first: AtomicU64,
    end: AtomicU64,
}

/// The ranges under invalidation now.
#[derive(Debug)]
pub(crate) struct Active {
    /// How many, so that a fault usually reads one word.
    count: AtomicU64,
    /// Those that found no place.
    overflow: AtomicU64,
    places: [Place; PLACES],
}

/// Names the place of one published range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ActivePlace {
    Place(usize),
    Overflow,
}

impl Active {
    pub(crate) fn new() -> Self {
        let place = |_| Place {
            state: AtomicU64::new(FREE),
            backing: AtomicU64::new(0),
            first: AtomicU64::new(0),
            end: AtomicU64::new(0),
        };
        Active {
            count: AtomicU64::new(0),
            overflow: AtomicU64::new(0),
            places: core::array::from_fn(place),
        }
    }

    pub(crate) fn publish(&self, range: &HostRange) -> ActivePlace {
        self.count.fetch_add(1, Ordering::AcqRel);
        for (n, place) in self.places.iter().enumerate() {
            let taken =
                place.state.compare_exchange(FREE, FILLING, Ordering::AcqRel, Ordering::Relaxed);
            if taken.is_ok() {
                place.backing.store(range.backing, Ordering::Relaxed);
                place.first.store(range.first, Ordering::Relaxed);
                place.end.store(range.end(), Ordering::Relaxed);
                place.state.store(ACTIVE, Ordering::Release);
                return ActivePlace::Place(n);
            }
        }
        self.overflow.fetch_add(1, Ordering::AcqRel);
        ActivePlace::Overflow
    }

    pub(crate) fn withdraw(&self, place: ActivePlace) {
        match place {
            ActivePlace::Place(n) => {
                if let Some(place) = self.places.get(n) {
                    place.state.store(FREE, Ordering::Release);
                }
            }
            ActivePlace::Overflow => {
                self.overflow.fetch_sub(1, Ordering::AcqRel);
            }
        }
        self.count.fetch_sub(1, Ordering::AcqRel);
    }

    /// The place of a range published as exactly this one, for hosts whose notifier has separate
    /// callbacks for begin and end.
    pub(crate) fn find(&self, range: &HostRange) -> Option<ActivePlace> {
        let same = |place: &Place| {
            place.state.load(Ordering::Acquire) == ACTIVE
                && place.backing.load(Ordering::Relaxed) == range.backing
                && place.first.load(Ordering::Relaxed) == range.first
                && place.end.load(Ordering::Relaxed) == range.end()
        };
        let place = self.places.iter().position(same).map(ActivePlace::Place);
        let overflow = self.overflow.load(Ordering::Acquire) > 0;
        place.or(overflow.then_some(ActivePlace::Overflow))
    }

    /// Whether a page of `range` is under invalidation.
    #[inline]
    pub(crate) fn covers(&self, range: &HostRange) -> bool {
        self.count.load(Ordering::Acquire) != 0 && self.covers_slowly(range)
    }

    fn covers_slowly(&self, range: &HostRange) -> bool {
        if self.overflow.load(Ordering::Acquire) > 0 {
            return true;
        }
        self.places.iter().any(|place| {
            place.state.load(Ordering::Acquire) == ACTIVE
                && place.backing.load(Ordering::Relaxed) == range.backing
                && place.first.load(Ordering::Relaxed) < range.end()
                && range.first < place.end.load(Ordering::Relaxed)
        })
    }
}
