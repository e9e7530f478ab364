//! Participants' lines: turns, watches, ledgers and counters, and the exclusion that waits for
//! turns.
//!
//! Every vCPU thread and every worker owns one [`ParticipantWords`] in an array that lives as long as the VM.
//! Its first cache line is all that a fault writes besides the entry:
//!
//! * the **turn** is odd while a section of the participant is open;
//! * the **watch** names the frames a fault is resolving; invalidations set its **hit**;
//! * counters of what faults did that write an entry or repeat at once.
//!
//! Faults that end otherwise (a read-only slot, a hole, no pages) write one line more of the
//! participant's own, but no entry. `tests/lines.rs` counts this.
//!
//! Its second line is written by range operations only: the **ledger** with the range of the one
//! open debt, and the hull of debts that were leaked.
//!
//! *Exclusion*: fence, then wait for every turn that is odd to change. It pairs with the fence
//! that opens a section: either the section sees what was published before the exclusion, or the
//! exclusion sees the section's odd turn and waits for its end.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::NoMemory;
use crate::addr::{Gfn, GfnRange, Level};
use crate::slot::AddressSpace;
use crate::sync::{AtomicU64, Counter, Ordering, fence};

/// Watches beyond the participants' own, for requests that outlive the next fault.
const SPARES: usize = if cfg!(any(loom, shuttle)) { 1 } else { 16 };

/// The frames somebody resolves outside of any section.
#[derive(Debug)]
pub(crate) struct WatchWords {
    /// 0: closed. Else bit 0, level in bits 1 to 3, address space in bit 4, gfn from bit 8.
    open: AtomicU64,
    /// Bit 0: hit. Above it, how often the watch has been opened.
    hits: AtomicU64,
}

/// What an open watch names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watched {
    pub space: AddressSpace,
    pub range: GfnRange,
}

impl WatchWords {
    fn new() -> Self {
        WatchWords { open: AtomicU64::new(0), hits: AtomicU64::new(0) }
    }

    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire) != 0
    }

    /// Opens it over the leaf of `level` around `gfn`. The section that follows orders this
    /// before everything it reads.
    #[inline]
    pub(crate) fn open(&self, space: AddressSpace, gfn: Gfn, level: Level) {
        let count = self.hits.load(Ordering::Relaxed) >> 1;
        self.hits.store((count + 1) << 1, Ordering::Relaxed);
        let gfn = gfn.align_down(level);
        let word = 1 | (level as u64) << 1 | u64::from(space.0) << 4 | gfn.0 << 8;
        self.open.store(word, Ordering::Release);
    }

    /// Takes a spare one, if it is closed.
    fn try_open(&self, space: AddressSpace, gfn: Gfn, level: Level) -> bool {
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
            _ => return Some(Watched { space: AddressSpace(0), range: GfnRange::ALL }),
        };
        Some(Watched { space: AddressSpace((word >> 4 & 1) as u8), range: gfn.leaf(level) })
    }

    /// Somebody takes the watched frames back.
    pub(crate) fn hit(&self) {
        self.hits.fetch_or(1, Ordering::AcqRel);
    }

    #[inline]
    pub(crate) fn is_hit(&self) -> bool {
        self.hits.load(Ordering::Acquire) & 1 != 0
    }

    /// How often it has been opened: the name of a request in it.
    pub(crate) fn count(&self) -> u64 {
        self.hits.load(Ordering::Relaxed) >> 1
    }
}

/// Level 7 is none: all frames.
const WIDEST: u64 = 1 | 7 << 1;

/// The range of a participant's one open debt, and the hull of the leaked ones.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Ledger {
    start: AtomicU64,
    /// 0: no debt is open.
    end: AtomicU64,
    leaked_start: AtomicU64,
    leaked_end: AtomicU64,
    /// Debts ever opened, ended and leaked: what the participant itself knows of its ledger.
    opened: Counter,
    ended: Counter,
    leaked: Counter,
}

impl Ledger {
    fn new() -> Self {
        Ledger {
            start: AtomicU64::new(0),
            end: AtomicU64::new(0),
            leaked_start: AtomicU64::new(u64::MAX),
            leaked_end: AtomicU64::new(0),
            opened: Counter::default(),
            ended: Counter::default(),
            leaked: Counter::default(),
        }
    }

    /// The words are ordered before any clear by the fence of the section that clears.
    ///
    /// A debt that is still here was forgotten: there is one at a time, and its end closes it.
    pub(crate) fn open(&self, range: GfnRange) {
        if self.opened.get() != self.ended.get() {
            self.leak();
        }
        self.opened.add(1);
        self.start.store(range.start().0, Ordering::Relaxed);
        self.end.store(range.end().0, Ordering::Release);
    }

    pub(crate) fn close(&self) {
        self.ended.add(1);
        self.end.store(0, Ordering::Release);
    }

    /// The open debt will never be settled: it stays in the ledger, so that later promises flush
    /// more, never less.
    pub(crate) fn leak(&self) {
        self.leaked.add(1);
        let start = self.start.load(Ordering::Relaxed);
        let end = self.end.load(Ordering::Relaxed);
        let hull = self.leaked_start.load(Ordering::Relaxed).min(start);
        self.leaked_start.store(hull, Ordering::Relaxed);
        let hull = self.leaked_end.load(Ordering::Relaxed).max(end);
        self.leaked_end.store(hull, Ordering::Release);
        self.close();
    }

    /// Whether every debt there was is settled. Only for the participant itself.
    fn is_settled(&self) -> bool {
        self.opened.get() == self.ended.get() && self.leaked.get() == 0
    }

    /// Whether a debt over `range` is open.
    ///
    /// Who asks has met an entry that is clear already. If the debtor cleared it, both words of
    /// the debt were written before the clear that was seen, so they cannot be read torn.
    pub(crate) fn is_open(&self, range: GfnRange) -> bool {
        let overlaps = |start: &AtomicU64, end: &AtomicU64| {
            let end = end.load(Ordering::Acquire);
            let start = start.load(Ordering::Acquire);
            start < range.end().0 && range.start().0 < end
        };
        overlaps(&self.start, &self.end) || overlaps(&self.leaked_start, &self.leaked_end)
    }
}

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

    /// Opens a section. Even after a section that was forgotten, the turn becomes odd.
    #[inline]
    pub(crate) fn enter(&self) {
        self.enter_unfenced();
        if !defect!(SectionWithoutFence) {
            fence(Ordering::SeqCst);
        }
    }

    /// The turn alone, which orders nothing before what the section reads. It releases what the
    /// section before it did: an exclusion that waits for that one may see only this store.
    #[inline]
    pub(crate) fn enter_unfenced(&self) {
        let sections = self.sections.load(Ordering::Relaxed);
        let order =
            if defect!(CountWithoutRelease) { Ordering::Relaxed } else { Ordering::Release };
        self.sections.store(sections.wrapping_add(1) | 1, order);
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
    lines: Box<[ParticipantWords]>,
    spares: Box<[WatchWords]>,
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
    pub(crate) fn new(places: usize) -> Result<Self, NoMemory> {
        Ok(Participants {
            lines: boxed(places, ParticipantWords::new)?,
            spares: boxed(SPARES, WatchWords::new)?,
        })
    }

    /// Takes a free place. A place whose last request is still out is not free.
    pub(crate) fn register(&self) -> Option<u32> {
        let free = |line: &&ParticipantWords| {
            !line.watch.is_open()
                && line.taken.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let place = self.lines.iter().position(|line| free(&line))?;
        Some(place as u32)
    }

    pub(crate) fn unregister(&self, place: u32) {
        if let Some(line) = self.get(place) {
            // A section that is open now was forgotten; nobody is to wait for it for ever.
            if line.sections.load(Ordering::Relaxed) & 1 == 1 {
                line.leave();
            }
            line.taken.store(0, Ordering::Release);
        }
    }

    #[inline]
    pub(crate) fn get(&self, place: u32) -> Option<&ParticipantWords> {
        self.lines.get(place as usize)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &ParticipantWords> {
        self.lines.iter()
    }

    #[cfg(feature = "record")]
    pub(crate) fn spares(&self) -> &[WatchWords] {
        &self.spares
    }

    /// Opens a watch: the participant's own, or a spare one while the own is still out.
    #[inline]
    pub(crate) fn watch(
        &self,
        place: u32,
        space: AddressSpace,
        gfn: Gfn,
        level: Level,
    ) -> Option<WatchPlace> {
        let own = &self.get(place)?.watch;
        if !own.is_open() {
            own.open(space, gfn, level);
            return Some(WatchPlace::Own(place));
        }
        let spare = self.spares.iter().position(|spare| spare.try_open(space, gfn, level))?;
        Some(WatchPlace::Spare(spare as u32))
    }

    #[inline]
    pub(crate) fn watch_words(&self, place: WatchPlace) -> Option<&WatchWords> {
        match place {
            WatchPlace::Own(n) => self.get(n).map(|line| &line.watch),
            WatchPlace::Spare(n) => self.spares.get(n as usize),
        }
    }

    /// Hits every watch for which `is_taken` says so.
    pub(crate) fn hit(&self, is_taken: impl Fn(Watched) -> bool) {
        let all = self.lines.iter().map(|line| &line.watch).chain(self.spares.iter());
        for watch in all {
            if watch.watched().is_some_and(&is_taken) {
                watch.hit();
            }
        }
    }

    /// Waits for every section of the others that is open now.
    pub(crate) fn synchronize(&self, own: u32, relax: impl Fn()) {
        fence(Ordering::SeqCst);
        for (place, line) in self.lines.iter().enumerate() {
            let sections = line.sections.load(Ordering::Acquire);
            if place == own as usize || sections & 1 == 0 {
                continue;
            }
            while line.sections.load(Ordering::Acquire) == sections {
                relax();
            }
        }
    }

    /// Whether anybody has a debt over `range`. The participant `own`, who asks, has settled his;
    /// what he leaked or forgot before counts like the debts of others.
    pub(crate) fn owes(&self, own: u32, range: GfnRange) -> bool {
        let concerns = |place: usize, line: &ParticipantWords| {
            place != own as usize || !line.ledger.is_settled()
        };
        let mut lines = self.lines.iter().enumerate();
        lines.any(|(place, line)| concerns(place, line) && line.ledger.is_open(range))
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn two_counts_in_a_word_carry_into_their_own_words_only() {
        let (pair, carries) = (Pair::default(), <[Counter; 2]>::default());
        let both = || [Half::First, Half::Second].map(|half| pair.get(half, &carries));
        pair.0.add(u64::from(u32::MAX - 1) << 32 | u64::from(u32::MAX));
        assert_eq!(both(), [0xffff_ffff, 0xffff_fffe]);
        pair.count(Half::First, &carries);
        assert_eq!(both(), [0x1_0000_0000, 0xffff_fffe]);
        pair.count(Half::Second, &carries);
        pair.count(Half::Second, &carries);
        assert_eq!(both(), [0x1_0000_0000, 0x1_0000_0000]);
        pair.count(Half::First, &carries);
        pair.count(Half::Second, &carries);
        assert_eq!(both(), [0x1_0000_0001, 0x1_0000_0001]);
    }
}
