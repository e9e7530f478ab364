//! Participants: everybody who may be inside the tables, with a set of words for each.
//!
//! The hazard: worker A takes a table out of the tree and wants to give its page back. vCPU B walked
//! into that table a moment before. If A gives the page back at once, B reads, or even writes, memory
//! that belongs to somebody else by then.
//!
//! The rule is that of RCU. A participant's *section count* is odd while it is inside a section.
//! Whoever wants to free something waits for a *grace period* first
//! ([`synchronize`](Participants::synchronize)): a full fence, then a wait until every count that is
//! odd has changed. That fence pairs with the one that opens a section: either the section begins late
//! enough to see the change, or the waiter sees the odd count and waits for its end. It waits for
//! nothing else: no lock, no watch, no vCPU.
//!
//! A participant's first cache line is all that a fault writes besides the entry: the section count,
//! the [watch](super::watch), and counters of faults that write an entry or repeat at once. Faults that
//! end otherwise (a read-only slot, a hole, no pages) write one more line of the participant's own, but
//! no entry. The second line holds the [ledger](super::ledger), which only range operations write.
//! `tests/lines.rs` counts this.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

use crate::addr::{Gfn, GfnRange, Level};
use crate::error::NoMemory;
use crate::state::ledger::Ledger;
use crate::state::slot::AddressSpace;
use crate::state::watch::{WatchWords, Watched};
use crate::sync::{AtomicU64, Counter, Ordering, fence};

/// Watches beyond the participants' own, for requests that outlive the next fault.
const SPARES: usize = if cfg!(any(loom, shuttle)) { 1 } else { 16 };

/// One participant.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct ParticipantWords {
    sections: AtomicU64,
    pub(crate) watch: WatchWords,
    /// Leaves mapped, by level.
    pub(crate) mapped: [Counter; 3],
    /// Low halves: spurious faults, retries.
    pub(crate) again: Pair,
    /// Low halves: faults emulated, and those of them that an MMIO entry answered.
    pub(crate) emulated: Pair,
    pub(crate) ledger: Ledger,
    pub(crate) counters: Counters,
    taken: AtomicU64,
}

#[cfg(not(any(loom, shuttle)))]
const _: () =
    assert!(core::mem::offset_of!(ParticipantWords, ledger) == 64, "one line for a fault");

/// Two counts in one word, because the first line has no room for two: the low 32 bits of each.
/// Their carries are [`Counters`].
#[derive(Debug, Default)]
#[repr(transparent)]
pub(crate) struct Pair(Counter);

/// Which of a [`Pair`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Half {
    First,
    Second,
}

impl Pair {
    /// Adds one; `carries` are those of this pair.
    #[inline]
    pub(crate) fn count(&self, half: Half, carries: &[Counter; 2]) {
        let shift = 32 * half as u32;
        let low = (self.0.get() >> shift) as u32;
        if low == u32::MAX {
            // What lies above the half is not to see the carry.
            if let Some(carry) = carries.get(half as usize) {
                carry.add(1);
            }
            self.0.add(0u64.wrapping_sub(u64::from(low) << shift));
        } else {
            self.0.add(1 << shift);
        }
    }

    /// The count as last seen.
    pub(crate) fn get(&self, half: Half, carries: &[Counter; 2]) -> u64 {
        let carry = carries.get(half as usize).map_or(0, Counter::get);
        carry << 32 | self.0.get() >> (32 * half as u32) & u64::from(u32::MAX)
    }
}

/// Counters that faults do not touch where they write an entry.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Counters {
    /// Leaves unmapped, by level.
    pub(crate) unmapped: [Counter; 3],
    /// Carries of [`ParticipantWords::again`].
    pub(crate) again: [Counter; 2],
    /// Carries of [`ParticipantWords::emulated`].
    pub(crate) emulated: [Counter; 2],
    pub(crate) write_protected: Counter,
    pub(crate) pending: Counter,
    pub(crate) busy: Counter,
    pub(crate) faulted: Counter,
    pub(crate) out_of_memory: Counter,
    pub(crate) splits: Counter,
    pub(crate) tables_linked: Counter,
    pub(crate) tables_unlinked: Counter,
    pub(crate) flushes: Counter,
    pub(crate) flushes_sent: Counter,
    pub(crate) flushes_elided: Counter,
    pub(crate) grace_periods: Counter,
    pub(crate) debts_leaked: Counter,
    pub(crate) foreign_debts: Counter,
    pub(crate) invalidations: Counter,
    pub(crate) zapped: Counter,
}

impl ParticipantWords {
    /// A fault found what it wanted.
    #[inline]
    pub(crate) fn count_spurious(&self) {
        self.again.count(Half::First, &self.counters.again);
    }

    /// A fault has to be tried again.
    #[inline]
    pub(crate) fn count_retry(&self) {
        self.again.count(Half::Second, &self.counters.again);
    }

    /// A fault was where no slot is.
    #[inline]
    pub(crate) fn count_emulated(&self) {
        self.emulated.count(Half::First, &self.counters.emulated);
    }

    /// An MMIO entry said so.
    #[inline]
    pub(crate) fn count_emulated_fast(&self) {
        self.emulated.count(Half::Second, &self.counters.emulated);
    }

    /// Spurious faults, and those to be tried again.
    pub(crate) fn again(&self) -> [u64; 2] {
        [Half::First, Half::Second].map(|half| self.again.get(half, &self.counters.again))
    }

    /// Faults emulated, and those of them that an MMIO entry answered.
    pub(crate) fn emulated(&self) -> [u64; 2] {
        [Half::First, Half::Second].map(|half| self.emulated.get(half, &self.counters.emulated))
    }

    fn new() -> Self {
        ParticipantWords {
            sections: AtomicU64::new(0),
            watch: WatchWords::new(),
            mapped: Default::default(),
            again: Pair::default(),
            emulated: Pair::default(),
            ledger: Ledger::new(),
            counters: Counters::default(),
            taken: AtomicU64::new(0),
        }
    }

    /// Opens a section. Even after a section that was forgotten, the count becomes odd.
    #[inline]
    pub(crate) fn enter(&self) {
        self.enter_unfenced();
        if !defect!(SectionWithoutFence) {
            fence(Ordering::SeqCst);
        }
    }

    /// The count alone, which orders nothing before what the section reads. It releases what the
    /// section before it did: a grace period that waits for that one may see only this store.
    #[inline]
    pub(crate) fn enter_unfenced(&self) {
        let sections = self.sections.load(Ordering::Relaxed);
        let order =
            if defect!(CountWithoutRelease) { Ordering::Relaxed } else { Ordering::Release };
        self.sections.store(sections.wrapping_add(1) | 1, order);
    }

    /// The section count as last seen.
    #[cfg(feature = "protocol")]
    pub(crate) fn sections(&self) -> u64 {
        self.sections.load(Ordering::Relaxed)
    }

    /// Leaves it.
    #[inline]
    pub(crate) fn leave(&self) {
        let sections = self.sections.load(Ordering::Relaxed);
        self.sections.store(sections.wrapping_add(1), Ordering::Release);
    }
}

/// All participants, and the spare watches.
#[derive(Debug)]
pub(crate) struct Participants {
    all: Box<[ParticipantWords]>,
    /// How many places at the end of `all` are the MMU's own.
    own: usize,
    spares: Box<[Spare]>,
}

/// A watch of nobody's own, with what tells whose request of which age is in it. Only whoever opens it
/// writes these words, before anybody can find it parked.
#[derive(Debug)]
#[cfg_attr(not(any(loom, shuttle)), repr(align(64)))]
pub(crate) struct Spare {
    watch: WatchWords,
    /// The participant.
    by: AtomicU64,
    /// How often the participant's own watch had been opened: if as often now, this is the younger.
    own: AtomicU64,
    /// Larger than those of the participant's earlier ones.
    age: AtomicU64,
}

impl Spare {
    fn new() -> Self {
        let [by, own, age] = [0; 3].map(AtomicU64::new);
        Spare { watch: WatchWords::new(), by, own, age }
    }
}

/// Which watch: a participant's own, or a spare one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WatchPlace {
    Own(u32),
    Spare(u32),
}

fn boxed<T>(n: usize, new: fn() -> T) -> Result<Box<[T]>, NoMemory> {
    let mut items = Vec::new();
    items.try_reserve_exact(n).map_err(|_| NoMemory)?;
    items.extend((0..n).map(|_| new()));
    Ok(items.into_boxed_slice())
}

impl Participants {
    /// `places` for vCPUs and workers, and `own` of the MMU itself.
    pub(crate) fn new(places: usize, own: usize) -> Result<Self, NoMemory> {
        Ok(Participants {
            all: boxed(places.saturating_add(own), ParticipantWords::new)?,
            own,
            spares: boxed(SPARES, Spare::new)?,
        })
    }

    /// Takes a free place for a vCPU or a worker. A place whose last request is still out is not
    /// free, but one whose last request is parked is: that request is taken away.
    pub(crate) fn register(&self) -> Option<u32> {
        self.take_first(0..self.all.len().saturating_sub(self.own))
    }

    /// Takes a free place of the MMU's own.
    pub(crate) fn register_own(&self) -> Option<u32> {
        self.take_first(self.all.len().saturating_sub(self.own)..self.all.len())
    }

    fn take_first(&self, among: Range<usize>) -> Option<u32> {
        let is_taken = |words: &ParticipantWords| {
            let taken = words.taken.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed);
            if taken.is_ok() && words.watch.is_open() {
                if !words.watch.parked().is_some_and(|word| words.watch.take(word)) {
                    words.taken.store(0, Ordering::Release);
                    return true;
                }
                words.watch.close();
            }
            taken.is_err()
        };
        let first = among.start;
        let place = self.all.get(among)?.iter().position(|words| !is_taken(words))?;
        Some((first + place) as u32)
    }

    pub(crate) fn unregister(&self, place: u32) {
        if let Some(words) = self.get(place) {
            // A section that is open now was forgotten; nobody is to wait for it for ever.
            if words.sections.load(Ordering::Relaxed) & 1 == 1 {
                words.leave();
            }
            words.taken.store(0, Ordering::Release);
        }
    }

    /// The words of a registered place.
    #[inline]
    #[allow(clippy::indexing_slicing, reason = "places are given out below the length")]
    pub(crate) fn at(&self, place: u32) -> &ParticipantWords {
        &self.all[place as usize]
    }

    #[inline]
    pub(crate) fn get(&self, place: u32) -> Option<&ParticipantWords> {
        self.all.get(place as usize)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &ParticipantWords> {
        self.all.iter()
    }

    #[cfg(feature = "record")]
    pub(crate) fn spares(&self) -> &[Spare] {
        &self.spares
    }

    /// Opens a spare watch for the participant `by`: a closed one, or else that of its oldest request
    /// that is parked.
    pub(crate) fn open_spare(
        &self,
        by: u32,
        space: AddressSpace,
        gfn: Gfn,
        level: Level,
    ) -> Option<WatchPlace> {
        let closed = self.spares.iter().position(|spare| spare.watch.try_open(space, gfn, level));
        let place = closed.map(|n| WatchPlace::Spare(n as u32));
        let place = place.or_else(|| {
            let place = self.revoke_parked(by)?;
            self.watch_words(place)?.open(space, gfn, level);
            Some(place)
        })?;
        if let WatchPlace::Spare(n) = place {
            let mine = self.spares.iter().filter(|s| s.by.load(Ordering::Relaxed) == u64::from(by));
            let age = mine.map(|spare| spare.age.load(Ordering::Relaxed)).max().unwrap_or(0);
            let spare = self.spares.get(n as usize)?;
            let own = self.get(by).map_or(0, |words| words.watch.count());
            // Released: whoever reads one of these knows that it has been opened again.
            spare.by.store(by.into(), Ordering::Release);
            spare.own.store(own, Ordering::Release);
            spare.age.store(age + 1, Ordering::Release);
        }
        Some(place)
    }

    /// Takes the watch of the oldest parked request of `by` away from it.
    fn revoke_parked(&self, by: u32) -> Option<WatchPlace> {
        if defect!(RevokesNoParked) {
            return None;
        }
        let own = &self.get(by)?.watch;
        // Each round that fails has met one that is a request again.
        (0..=self.spares.len()).find_map(|_| {
            let spares = self.spares.iter().enumerate().filter_map(|(n, spare)| {
                let word = spare.watch.parked()?;
                let is_mine = spare.by.load(Ordering::Acquire) == u64::from(by);
                let age = spare.age.load(Ordering::Acquire);
                is_mine.then_some((age, n, spare, word))
            });
            let oldest = spares.min_by_key(|(age, ..)| *age);
            let is_older = |spare: &Spare| spare.own.load(Ordering::Acquire) != own.count();
            if let Some(word) = own.parked()
                && oldest.is_none_or(|(_, _, spare, _)| !is_older(spare))
            {
                return own.take(word).then_some(WatchPlace::Own(by));
            }
            let (_, n, spare, word) = oldest?;
            spare.watch.take(word).then_some(WatchPlace::Spare(n as u32))
        })
    }

    #[inline]
    pub(crate) fn watch_words(&self, place: WatchPlace) -> Option<&WatchWords> {
        match place {
            WatchPlace::Own(n) => self.get(n).map(|words| &words.watch),
            WatchPlace::Spare(n) => self.spares.get(n as usize).map(|spare| &spare.watch),
        }
    }

    /// Hits every watch for which `is_taken` says so.
    pub(crate) fn hit(&self, is_taken: impl Fn(Watched) -> bool) {
        let own = self.all.iter().map(|words| &words.watch);
        let all = own.chain(self.spares.iter().map(|spare| &spare.watch));
        // Nearly all are closed.
        all.filter(|watch| watch.is_open()).for_each(|watch| {
            if watch.watched().is_some_and(&is_taken) {
                watch.hit();
            }
        });
    }

    /// Waits for every section of the others that is open now.
    pub(crate) fn synchronize(&self, own: u32, mut wait: impl FnMut()) {
        fence(Ordering::SeqCst);
        for (place, words) in self.all.iter().enumerate() {
            let sections = words.sections.load(Ordering::Acquire);
            if place == own as usize || sections & 1 == 0 {
                continue;
            }
            while words.sections.load(Ordering::Acquire) == sections {
                wait();
            }
        }
    }

    /// Whether anybody has a debt over `range`. The participant `own`, who asks, has settled his;
    /// what he leaked or forgot before counts like the debts of others.
    pub(crate) fn owes(&self, own: u32, range: GfnRange) -> bool {
        let concerns = |place: usize, words: &ParticipantWords| {
            place != own as usize || !words.ledger.is_settled()
        };
        let mut all = self.all.iter().enumerate();
        all.any(|(place, words)| concerns(place, words) && words.ledger.is_open(range))
    }
}
