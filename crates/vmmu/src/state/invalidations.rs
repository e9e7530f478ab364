//! Ranges of host memory that are under invalidation, in the host's own terms.
//!
//! The hazard: the host begins to take page P back, and its invalidation has zapped what was mapped.
//! vCPU A faults on P, asks the host, and is still told the old frame, because the host has not changed
//! its books yet. If A maps it, the guest keeps a frame that the host is about to give away.
//!
//! The rule: from its begin to its end an invalidation's range stands in this array, and nobody is
//! given a permit for a page in it. A range is announced before the fence that precedes setting hits,
//! and leaves the array only after its hits are set. So a fault that does not find the range any more
//! finds its own [watch](super::watch) hit.
//!
//! The array has a fixed size, because an invalidation must neither allocate nor wait for another one.
//! When all places are taken, further invalidations are only counted, and while that count is not zero
//! every insert of a backed page is refused: a fault may be tried again for nothing, but none is missed.
//!
//! A range is *held* by a value whose drop ends it, or *named*: whoever says the same range ends it.
//! Several may be the same at one time, so an end takes one of the named by a compare-exchange of
//! exactly the tenant whose range it has compared, and never one that is held.

use crate::addr::HostRange;
use crate::sync::{AtomicU64, Ordering};

const PLACES: usize = if cfg!(any(loom, shuttle)) { 2 } else { 16 };
const FREE: u64 = 0;
const FILLING: u64 = 1;
const HELD: u64 = 2;
const NAMED: u64 = 3;
const PHASE: u64 = 0b11;
/// A new tenant.
const TENANT: u64 = 0b100;

#[derive(Debug)]
struct InvalidationWords {
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
    places: [InvalidationWords; PLACES],
}

/// Names the place of one announced range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InvalidationPlace {
    At(usize),
    Overflow,
}

impl Invalidations {
    pub(crate) fn new() -> Self {
        let place = |_| InvalidationWords {
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
                return InvalidationPlace::At(n);
            }
        }
        self.overflow.fetch_add(1, Ordering::AcqRel);
        InvalidationPlace::Overflow
    }

    /// Ends what the caller holds.
    pub(crate) fn remove(&self, place: InvalidationPlace) {
        match place {
            InvalidationPlace::At(n) => {
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
            InvalidationPlace::At(n) => {
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
        self.remove(InvalidationPlace::Overflow);
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
