//! Ranges of host memory that are under invalidation, in the host's own terms.
//!
//! A fixed array, because an invalidation must not allocate and must not wait for another one.
//! When all places are taken, further invalidations are only counted, and while the count is not
//! zero every insert of a backed page is refused: false retries, never a miss.
//!
//! Order: a range is published before the fence that precedes setting hits; it leaves only after
//! its hits are set. So who sees it gone sees the hits.
//!
//! A range is *held* by a value that will withdraw it, or *named*: whoever says the same range
//! ends it. Several may be the same at one time, so an end takes one of the named by
//! compare-exchange, of the very tenant it has compared, and never one that is held.

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
const HELD: u64 = 2;
const NAMED: u64 = 3;
const PHASE: u64 = 0b11;
/// A new tenant.
const TENANT: u64 = 0b100;

#[derive(Debug)]
struct Place {
    /// Phase, and which of its tenants.
    state: AtomicU64,
    backing: AtomicU64,
    first: AtomicU64,
    end: AtomicU64,
}

/// The ranges under invalidation now.
#[derive(Debug)]
pub(crate) struct Invalidations {
    /// How many, so that a fault usually reads one word.
    count: AtomicU64,
    /// Those that found no place.
    overflow: AtomicU64,
    /// Of these, those that are named.
    named: AtomicU64,
    places: [Place; PLACES],
}

/// Names the place of one published range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InvalidationPlace {
    Place(usize),
    Overflow,
}

impl Invalidations {
    pub(crate) fn new() -> Self {
        let place = |_| Place {
            state: AtomicU64::new(FREE),
            backing: AtomicU64::new(0),
            first: AtomicU64::new(0),
            end: AtomicU64::new(0),
        };
        Invalidations {
            count: AtomicU64::new(0),
            overflow: AtomicU64::new(0),
            named: AtomicU64::new(0),
            places: core::array::from_fn(place),
        }
    }

    pub(crate) fn announce(&self, range: &HostRange) -> InvalidationPlace {
        self.count.fetch_add(1, Ordering::AcqRel);
        for (n, place) in self.places.iter().enumerate() {
            let seen = place.state.load(Ordering::Relaxed);
            let tenant = (seen & !PHASE).wrapping_add(TENANT);
            if seen & PHASE == FREE
                && place
                    .state
                    .compare_exchange(seen, tenant | FILLING, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            {
                place.backing.store(range.backing, Ordering::Relaxed);
                place.first.store(range.first, Ordering::Relaxed);
                place.end.store(range.end(), Ordering::Relaxed);
                place.state.store(tenant | HELD, Ordering::Release);
                return InvalidationPlace::Place(n);
            }
        }
        self.overflow.fetch_add(1, Ordering::AcqRel);
        InvalidationPlace::Overflow
    }

    /// Ends what the caller holds.
    pub(crate) fn withdraw(&self, place: InvalidationPlace) {
        match place {
            InvalidationPlace::Place(n) => {
                if let Some(place) = self.places.get(n) {
                    let tenant = place.state.load(Ordering::Relaxed) & !PHASE;
                    place.state.store(tenant | FREE, Ordering::Release);
                }
            }
            InvalidationPlace::Overflow => {
                self.overflow.fetch_sub(1, Ordering::AcqRel);
            }
        }
        self.count.fetch_sub(1, Ordering::AcqRel);
    }

    /// What the caller holds is from now on ended by [`end`](Self::end), for hosts whose notifier
    /// has separate callbacks for begin and end.
    pub(crate) fn name(&self, place: InvalidationPlace) {
        match place {
            InvalidationPlace::Place(n) => {
                if let Some(place) = self.places.get(n) {
                    let tenant = place.state.load(Ordering::Relaxed) & !PHASE;
                    place.state.store(tenant | NAMED, Ordering::Release);
                }
            }
            InvalidationPlace::Overflow => {
                self.named.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// Ends one that was named and is exactly this range. `false`: there is none.
    pub(crate) fn end(&self, range: &HostRange) -> bool {
        for place in &self.places {
            let seen = place.state.load(Ordering::Acquire);
            // Compared with what may be the next tenant's range already; then `state` has moved.
            let same = seen & PHASE == NAMED
                && place.backing.load(Ordering::Relaxed) == range.backing
                && place.first.load(Ordering::Relaxed) == range.first
                && place.end.load(Ordering::Relaxed) == range.end();
            let free = seen & !PHASE | FREE;
            if same && defect!(EndsOneTwice) {
                place.state.store(free, Ordering::Release);
                self.count.fetch_sub(1, Ordering::AcqRel);
                return true;
            }
            if same
                && place
                    .state
                    .compare_exchange(seen, free, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            {
                self.count.fetch_sub(1, Ordering::AcqRel);
                return true;
            }
        }
        // One without a place: all that is known of those is how many there are.
        let one_less = |named: u64| named.checked_sub(1);
        if self.named.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_err() {
            return false;
        }
        self.withdraw(InvalidationPlace::Overflow);
        true
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
            place.state.load(Ordering::Acquire) & PHASE >= HELD
                && place.backing.load(Ordering::Relaxed) == range.backing
                && place.first.load(Ordering::Relaxed) < range.end()
                && range.first < place.end.load(Ordering::Relaxed)
        })
    }
}
