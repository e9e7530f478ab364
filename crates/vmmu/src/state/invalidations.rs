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
//! A range is *held* by a value whose drop ends it, or *named*: whoever says the same range ends it.
//! Several may be the same at one time, so an end takes one of the named by a compare-exchange of
//! exactly the tenant whose range it has compared, and never one that is held.
//!
//! # More invalidations than places
//!
//! The array has a fixed size ([`Config::invalidations`](crate::Config::invalidations)), because an
//! invalidation must neither allocate nor wait for another one. One that finds no place is *counted*
//! instead, in a table of counters that also has a fixed size. Memory is cut into blocks of 4 KiB,
//! 2 MiB, 1 GiB and 512 GiB; a range counts in blocks of the smallest size that is not shorter than the
//! range, so it touches one block or two neighbours; a range longer than the largest block counts for
//! its whole backing. Which counter that is follows from the backing, the size, and the first block
//! alone, so the begin and the end of a range find the same one, without knowing of one another.
//!
//! A range that touches two blocks raises one counter as well, of another kind than a range that touches
//! the first of them only: *pair* beside *single*. If it raised one for each block, an end would have to
//! take from two counters; it might find the second at zero, and while it gave the first one back,
//! another end, of a range that was begun, would have found that one at zero. With one counter the end
//! is one exchange, which succeeds or changes nothing. A fault on block B looks at B's counters and at
//! the pairs of the block before it.
//!
//! Counters are shared by ranges that touch the same blocks, and by blocks of one size that happen to
//! fall on the same counter: there are a few hundred of them. So a fault may be refused for the sake of a range that does not cover its page, but none
//! is admitted wrongly; and an end takes from its counter without knowing whose begin it undoes. While
//! each end is that of a range that was begun, this does no harm: the counter is zero when the last of
//! those that share it has ended. What held ranges count is kept apart, so that no end by name takes it.
//!
//! A range without a page refuses nothing. Only that its end follows a begin is remembered.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::addr::{HostRange, Level};
use crate::error::NoMemory;
use crate::sync::{AtomicU64, Ordering};

const FREE: u64 = 0;
const FILLING: u64 = 1;
const HELD: u64 = 2;
const NAMED: u64 = 3;
const PHASE: u64 = 0b11;
/// A new tenant.
const TENANT: u64 = 0b100;

/// Pages in a block, by size; the last is everything.
const BLOCKS: [u64; 5] = [
    Level::Size4K.pages(),
    Level::Size2M.pages(),
    Level::Size1G.pages(),
    Level::L4.pages(),
    u64::MAX,
];

/// Counters for the blocks of each size: powers of two. Sizes share none, because a large leaf looks at
/// all counters of sizes far below its own.
const COUNTERS: [usize; BLOCKS.len()] =
    if cfg!(any(loom, shuttle)) { [2, 1, 1, 1, 1] } else { [256, 128, 32, 16, 16] };

/// Who ends an invalidation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EndedBy {
    /// Whoever holds its [`InvalidationPlace`], by [`remove`](Invalidations::remove).
    Holder,
    /// Whoever says its range, by [`end`](Invalidations::end): for hosts whose notifier has separate
    /// callbacks for begin and end.
    Name,
}

#[derive(Debug)]
struct InvalidationWords {
    /// Phase, and which of its tenants.
    state: AtomicU64,
    backing: AtomicU64,
    first: AtomicU64,
    end: AtomicU64,
}

impl InvalidationWords {
    fn new() -> Self {
        InvalidationWords {
            state: AtomicU64::new(FREE),
            backing: AtomicU64::new(0),
            first: AtomicU64::new(0),
            end: AtomicU64::new(0),
        }
    }
}

/// Ranges without a place whose first block falls on this counter.
#[derive(Debug)]
struct Overflowed {
    held: [AtomicU64; 2],
    named: [AtomicU64; 2],
}

impl Overflowed {
    fn new() -> Self {
        let none = || [AtomicU64::new(0), AtomicU64::new(0)];
        Overflowed { held: none(), named: none() }
    }

    fn of(&self, by: EndedBy, touches: Touches) -> &AtomicU64 {
        let [single, pair] = match by {
            EndedBy::Holder => &self.held,
            EndedBy::Name => &self.named,
        };
        match touches {
            Touches::First => single,
            Touches::Both => pair,
        }
    }

    /// Whether any range counts here that touches so many blocks.
    fn any(&self, touches: Touches) -> bool {
        [EndedBy::Holder, EndedBy::Name]
            .into_iter()
            .any(|by| self.of(by, touches).load(Ordering::Acquire) != 0)
    }
}

/// How many blocks a range without a place touches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Touches {
    /// One.
    First,
    /// That one and the next.
    Both,
}

/// Where a range counts that found no place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CounterPlace {
    index: usize,
    touches: Touches,
}

impl CounterPlace {
    /// That of a range with pages: it follows from the range alone.
    fn of(range: &HostRange) -> CounterPlace {
        let pages = range.end() - range.first;
        let fits = |size: &Size| pages <= size.block;
        let size = Size::all().find(fits).unwrap_or(Size::EVERYTHING);
        let (first, last) = size.blocks(range);
        let touches = if first == last { Touches::First } else { Touches::Both };
        CounterPlace { index: size.index(range.backing, first), touches }
    }
}

/// A block size, and the counters for it.
#[derive(Clone, Copy)]
struct Size {
    /// Pages in a block.
    block: u64,
    /// Its first counter.
    start: usize,
    /// How many it has.
    counters: usize,
}

impl Size {
    /// The whole of a backing, as one block.
    const EVERYTHING: Size = Size {
        block: BLOCKS[4],
        start: COUNTERS[0] + COUNTERS[1] + COUNTERS[2] + COUNTERS[3],
        counters: COUNTERS[4],
    };

    /// All sizes, smallest first.
    fn all() -> impl Iterator<Item = Size> {
        let mut start = 0;
        BLOCKS.into_iter().zip(COUNTERS).map(move |(block, counters)| {
            let size = Size { block, start, counters };
            start += counters;
            size
        })
    }

    /// The first and the last block that a range with pages touches.
    fn blocks(self, range: &HostRange) -> (u64, u64) {
        (range.first / self.block, (range.end() - 1) / self.block)
    }

    /// The counter of a block. Neighbours have neighbouring counters, so that what is counted in one
    /// stretch of memory is told apart as far as that can be.
    fn index(self, backing: u64, block: u64) -> usize {
        // An odd number without a pattern: the upper half of the product depends on all of the backing.
        let key = backing.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.start + (key.wrapping_add(block) as usize & (self.counters - 1))
    }
}

/// The ranges under invalidation now.
#[derive(Debug)]
pub(crate) struct Invalidations {
    /// How many have pages, so that a fault usually reads one word.
    count: AtomicU64,
    /// Those of them that found no place.
    overflow: AtomicU64,
    /// Named ones that have no pages.
    empty: AtomicU64,
    places: Box<[InvalidationWords]>,
    counters: Box<[Overflowed]>,
}

/// Names the place of one announced range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InvalidationPlace {
    At(usize),
    Counted(CounterPlace),
    /// It has no pages.
    Nowhere,
}

impl Invalidations {
    pub(crate) fn new(places: usize) -> Result<Self, NoMemory> {
        let mut all = Vec::new();
        all.try_reserve_exact(places).map_err(|_| NoMemory)?;
        all.extend((0..places).map(|_| InvalidationWords::new()));
        let mut counters = Vec::new();
        let many = COUNTERS.iter().sum();
        counters.try_reserve_exact(many).map_err(|_| NoMemory)?;
        counters.extend((0..many).map(|_| Overflowed::new()));
        Ok(Invalidations {
            count: AtomicU64::new(0),
            overflow: AtomicU64::new(0),
            empty: AtomicU64::new(0),
            places: all.into_boxed_slice(),
            counters: counters.into_boxed_slice(),
        })
    }

    /// From now on pages of `range` are refused. A fence follows, then hits.
    pub(crate) fn announce(&self, range: &HostRange, by: EndedBy) -> InvalidationPlace {
        if is_empty(range) {
            if by == EndedBy::Name {
                self.empty.fetch_add(1, Ordering::AcqRel);
            }
            return InvalidationPlace::Nowhere;
        }
        self.count.fetch_add(1, Ordering::AcqRel);
        for (n, place) in self.places.iter().enumerate() {
            let seen = place.state.load(Ordering::Relaxed);
            let next = if defect!(PlaceKeepsItsName) { 0 } else { TENANT };
            let tenant = (seen & !PHASE).wrapping_add(next);
            if seen & PHASE == FREE
                && place
                    .state
                    .compare_exchange(seen, tenant | FILLING, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            {
                place.backing.store(range.backing, Ordering::Relaxed);
                place.first.store(range.first, Ordering::Relaxed);
                place.end.store(range.end(), Ordering::Relaxed);
                let phase = if by == EndedBy::Name { NAMED } else { HELD };
                place.state.store(tenant | phase, Ordering::Release);
                return InvalidationPlace::At(n);
            }
        }
        let counted = CounterPlace::of(range);
        if let Some(counter) = self.counters.get(counted.index) {
            counter.of(by, counted.touches).fetch_add(1, Ordering::AcqRel);
        }
        self.overflow.fetch_add(1, Ordering::AcqRel);
        InvalidationPlace::Counted(counted)
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
            InvalidationPlace::Counted(counted) => {
                if let Some(counter) = self.counters.get(counted.index) {
                    counter.of(EndedBy::Holder, counted.touches).fetch_sub(1, Ordering::AcqRel);
                }
                self.overflow.fetch_sub(1, Ordering::AcqRel);
            }
            InvalidationPlace::Nowhere => return,
        }
        self.count.fetch_sub(1, Ordering::AcqRel);
    }

    /// Ends one that was named and is exactly this range, or, without a place, counts where this
    /// range would. `false`: there is none, and nothing has changed.
    pub(crate) fn end(&self, range: &HostRange) -> bool {
        if is_empty(range) {
            return take_one(&self.empty);
        }
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
        let CounterPlace { index, touches } = CounterPlace::of(range);
        let counter = self.counters.get(index).map(|counter| counter.of(EndedBy::Name, touches));
        let ended = counter.is_some_and(take_one)
            || defect!(EndsAnyOverflowed)
                && self.counters.iter().any(|counter| counter.named.iter().any(take_one));
        if ended {
            // Whoever finds this zero already has seen what the counter was before, and the hits.
            self.overflow.fetch_sub(1, Ordering::AcqRel);
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
        ended
    }

    /// Whether a page of `range` is under invalidation, or may be.
    #[inline]
    pub(crate) fn covers(&self, range: &HostRange) -> bool {
        self.count.load(Ordering::Acquire) != 0 && self.covers_slowly(range)
    }

    fn covers_slowly(&self, range: &HostRange) -> bool {
        if is_empty(range) {
            return false;
        }
        let without_place = self.overflow.load(Ordering::Acquire);
        let tolerated = if defect!(IgnoresOneOverflowed) { 1 } else { 0 };
        if without_place > tolerated && self.is_counted(range) {
            return true;
        }
        self.places.iter().any(|place| {
            place.state.load(Ordering::Acquire) & PHASE >= HELD
                && place.backing.load(Ordering::Relaxed) == range.backing
                && place.first.load(Ordering::Relaxed) < range.end()
                && range.first < place.end.load(Ordering::Relaxed)
        })
    }

    /// Whether a range without a place counts in a block that `range` touches. A leaf of 4 KiB
    /// touches one block of each size.
    fn is_counted(&self, range: &HostRange) -> bool {
        if defect!(OverflowRefusesAll) {
            return true;
        }
        Size::all().any(|size| {
            let (first, last) = size.blocks(range);
            // More blocks than counters: those of all.
            let more = (last - first).min(size.counters as u64 - 1);
            let at = |block: u64| self.counters.get(size.index(range.backing, block));
            let before = at(first.wrapping_sub(1));
            before.is_some_and(|counter| counter.any(Touches::Both))
                || (first..=first + more).any(|block| {
                    at(block).is_some_and(|counter| {
                        counter.any(Touches::First) || counter.any(Touches::Both)
                    })
                })
        })
    }
}

/// Ranges end below the largest number there is, so one that begins there has no page either.
fn is_empty(range: &HostRange) -> bool {
    range.first >= range.end()
}

/// One less, unless it is zero.
fn take_one(counter: &AtomicU64) -> bool {
    if defect!(EndsOneTwice) {
        let seen = counter.load(Ordering::Acquire);
        counter.store(seen.saturating_sub(1), Ordering::Release);
        return seen != 0;
    }
    let one_less = |count: u64| count.checked_sub(1);
    counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_ok()
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    const M: u64 = Level::Size2M.pages();
    const G: u64 = Level::Size1G.pages();
    const T: u64 = Level::L4.pages();

    fn of(first: u64, pages: u64) -> HostRange {
        HostRange { backing: 7, first, pages }
    }

    fn without_places() -> Invalidations {
        Invalidations::new(0).unwrap()
    }

    /// Ranges of every block size, inside of a block and across an edge, and at both ends of all numbers.
    fn shapes() -> Vec<HostRange> {
        let mut shapes = Vec::new();
        for size in [1, M, G, T] {
            for base in [0, 5 * T] {
                shapes.push(of(base, size));
                shapes.push(of(base + 4 * size + size / 2, size));
                shapes.push(of(base + 4 * size - size / 4, size / 2 + 1));
            }
        }
        shapes.extend([of(0, T + 1), of(3, u64::MAX), of(u64::MAX - 1, 1), of(0, u64::MAX)]);
        shapes
    }

    #[test]
    fn what_has_no_place_covers_each_of_its_pages_and_every_leaf_with_one() {
        for range in shapes() {
            for by in [EndedBy::Holder, EndedBy::Name] {
                let all = without_places();
                let place = all.announce(&range, by);
                let last = range.end() - 1;
                let middle = range.first + (last - range.first) / 2;
                for page in [range.first, middle, last] {
                    for leaf in [1, M, G] {
                        let leaf = of(page - page % leaf, leaf);
                        assert!(all.covers(&leaf), "{range:?} has a page of {leaf:?}");
                        // A slot may begin anywhere in its backing.
                        let askew = of(page.saturating_sub(leaf.pages / 3), leaf.pages);
                        assert!(all.covers(&askew), "{range:?} has a page of {askew:?}");
                    }
                }
                match by {
                    EndedBy::Holder => {
                        assert!(!all.end(&range), "{range:?} is held");
                        all.remove(place);
                    }
                    EndedBy::Name => assert!(all.end(&range)),
                }
                assert!(!all.end(&range));
                assert!(!all.covers(&range));
                let counts = [&all.count, &all.overflow].map(|n| n.load(Ordering::Relaxed));
                assert_eq!(counts, [0, 0], "{range:?}");
            }
        }
    }

    #[test]
    fn what_has_no_place_leaves_other_blocks_alone() {
        let all = without_places();
        all.announce(&of(100, 1), EndedBy::Name);
        assert!(!all.covers(&of(99, 1)) && all.covers(&of(100, 1)) && !all.covers(&of(101, 1)));
        assert!(!all.covers(&HostRange { backing: 8, ..of(100, 1) }));
        let all = without_places();
        all.announce(&of(10 * M + 1, 2), EndedBy::Holder);
        for (block, covered) in [(9, false), (10, true), (11, false)] {
            assert_eq!(all.covers(&of(block * M, M)), covered, "block {block}");
        }
        let all = without_places();
        all.announce(&of(11 * M - 1, 2), EndedBy::Holder);
        for (block, covered) in [(9, false), (10, true), (11, true), (12, false)] {
            assert_eq!(all.covers(&of(block * M + 7, 1)), covered, "block {block}");
        }
    }

    #[test]
    fn an_end_that_was_never_begun_changes_nothing() {
        let all = without_places();
        // It touches blocks 0 and 1; the other end only the first of them, or only the second.
        let begun = of(M - 1, 2);
        all.announce(&begun, EndedBy::Name);
        for never in [of(1, 2), of(M, 2), of(2 * M - 1, 2), of(M - 1, 1), of(M - 1, M + 1)] {
            assert!(!all.end(&never), "{never:?}");
            assert!(all.covers(&begun));
        }
        // What touches the same blocks cannot be told from it.
        assert!(all.end(&of(M - 2, 3)) && !all.covers(&begun));
    }
}
