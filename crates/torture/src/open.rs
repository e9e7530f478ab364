//! How many invalidations are open at one time.
//!
//! The library has places for a few of them ([`PLACES`]). What it does for those that find none is
//! judged only where it is certain that one of them found none: more are open than there are places.
//! An invalidation is counted here after it has begun and until just before it ends, so the count is
//! never larger than the truth.

use std::sync::atomic::{AtomicU64, Ordering};

/// Places for invalidations. So few that they do not last.
pub const PLACES: u64 = 3;

/// See the module.
#[derive(Debug, Default)]
pub struct Open {
    now: AtomicU64,
    /// How often one ended after which there may have been a place for each.
    ebbs: AtomicU64,
}

/// A moment at which at least one invalidation has no place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Overflow {
    ebbs: u64,
}

impl Open {
    /// One has begun. Says whether there are more now than places.
    pub fn begun(&self) -> bool {
        self.now.fetch_add(1, Ordering::SeqCst) >= PLACES
    }

    /// One is about to end.
    pub fn ending(&self) {
        if self.now.fetch_sub(1, Ordering::SeqCst) <= PLACES + 1 {
            self.ebbs.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// This moment, if at least one has no place.
    pub fn overflow(&self) -> Option<Overflow> {
        let ebbs = self.ebbs.load(Ordering::SeqCst);
        (self.now.load(Ordering::SeqCst) > PLACES).then_some(Overflow { ebbs })
    }

    /// Whether at least one has been without a place at all times since that moment.
    pub fn is_still(&self, overflow: Overflow) -> bool {
        self.overflow() == Some(overflow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_lasts_until_there_may_be_a_place_for_each() {
        let open = Open::default();
        for _ in 0..PLACES {
            assert!(!open.begun());
            assert_eq!(open.overflow(), None);
        }
        assert!(open.begun());
        let overflow = open.overflow().unwrap();
        assert!(open.begun());
        open.ending();
        assert!(open.is_still(overflow), "one is without a place still");
        open.ending();
        assert!(!open.is_still(overflow));
        open.begun();
        assert!(!open.is_still(overflow), "another one");
        assert!(open.overflow().is_some());
    }
}
