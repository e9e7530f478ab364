//! A ledger names the guest frames whose entries a participant has cleared and not flushed yet.
//!
//! The hazard: worker A clears a leaf and has not flushed yet. Worker B has to tell the host that
//! nobody reaches that page any more; it walks over the same entry, finds it empty, and has cleared
//! nothing itself. If B returned now, a processor might still use the translation that A cleared.
//!
//! The rule: A writes the range into its ledger before its first clear, and takes it out after its
//! flush. Before B says that its range is revoked, it reads the ledgers of all participants, and if
//! one overlaps the range it flushes itself. B never waits for A.

use crate::addr::GfnRange;
use crate::sync::{AtomicU64, Counter, Ordering};

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
    pub(crate) fn new() -> Self {
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
        // Nothing is cleared under a debt over nothing, wherever that begins.
        let range = if range.is_empty() { GfnRange::EMPTY } else { range };
        if self.opened.get() != self.ended.get() {
            self.leak();
        }
        self.opened.add(1);
        let order = if defect!(LedgerStartRelaxed) { Ordering::Relaxed } else { Ordering::Release };
        self.start.store(range.start().0, order);
        self.end.store(range.end().0, Ordering::Release);
    }

    pub(crate) fn close(&self) {
        self.ended.add(1);
        self.end.store(0, Ordering::Release);
    }

    /// The open debt will never be settled: it stays in the ledger, so that later revocations
    /// flush more, never less.
    pub(crate) fn leak(&self) {
        self.leaked.add(1);
        let start = self.start.load(Ordering::Relaxed);
        let end = self.end.load(Ordering::Relaxed);
        if start == end {
            return self.close();
        }
        if defect!(LeakHidesLeak) {
            self.leaked_start.store(u64::MAX, Ordering::Relaxed);
            self.leaked_end.store(0, Ordering::Relaxed);
        }
        let hull = self.leaked_start.load(Ordering::Relaxed).min(start);
        self.leaked_start.store(hull, Ordering::Relaxed);
        let hull = self.leaked_end.load(Ordering::Relaxed).max(end);
        self.leaked_end.store(hull, Ordering::Release);
        self.close();
    }

    /// Whether every debt there was is settled. Only for the participant itself.
    pub(crate) fn is_settled(&self) -> bool {
        self.opened.get() == self.ended.get() && self.leaked.get() == 0
    }

    /// Whether a debt over `range` is open.
    ///
    /// Who asks may have met an entry that the debtor has cleared. Both words of that debt were written
    /// before the clear, so each of the two is read as that debt has left it or as it was written
    /// later, in whichever order they are read. If neither is from later, the debt is seen. If one is,
    /// it was written after that debt's flush, or after it was added to the leaked ones; and because
    /// every store releases and every load acquires, what the debtor did before, up to the end of the
    /// flush or the leak, has happened before the answer, and the leaked ones are read after it. So
    /// the start of one debt may be read with the end of another: then neither is needed.
    pub(crate) fn is_open(&self, range: GfnRange) -> bool {
        let overlaps = |start: &AtomicU64, end: &AtomicU64| {
            let end = end.load(Ordering::Acquire);
            let start = start.load(Ordering::Acquire);
            start.max(range.start().0) < end.min(range.end().0)
        };
        overlaps(&self.start, &self.end) || overlaps(&self.leaked_start, &self.leaked_end)
    }
}
