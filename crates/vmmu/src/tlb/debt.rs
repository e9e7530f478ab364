//! A flush is a debt, opened before the first clear and closed after the flush.
//!
//! Only the entries of a section opened on a debt can be cleared. Table pages that were detached
//! hang on it and are released when it is settled: after the flush, because processors cache upper
//! levels, and after an exclusion, because sections may still be inside them.
//!
//! A debt that is dropped unsettled frees nothing: what hangs on it is leaked, its range stays in
//! the ledger for good, and the count of leaked debts shows it.

use core::cell::Cell;
use core::mem::ManuallyDrop;

use crate::addr::{GfnRange, Pfn};
use crate::entry::State;
use crate::entry::law::Flush;
use crate::host::Host;
use crate::section::{Clearing, Owing, Section, Turn};
use crate::table::Table;

/// What has been cleared so far and not yet paid for.
#[derive(Debug)]
pub(crate) struct Owed {
    flush: Cell<Flush>,
    /// The last table detached; each links the one before in its first entry.
    retired: Cell<Option<Pfn>>,
}

impl Owed {
    fn new() -> Self {
        Owed { flush: Cell::new(Flush::None), retired: Cell::new(None) }
    }

    pub(crate) fn owe(&self, flush: Flush) {
        self.flush.set(self.flush.get().max(flush));
    }

    /// Hangs a detached table, all of whose entries are dead, on the debt.
    pub(crate) fn hang(&self, pfn: Pfn, table: &Table, format: &crate::entry::Format) {
        if let Some(first) = table.cell(0) {
            first.set_dead(format.dead(self.retired.get()));
        }
        self.retired.set(Some(pfn));
    }
}

/// Whether the flush itself is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    /// Before anything is released or promised.
    Yes,
    /// No processor can hold translations of what is cleared: the debts of a drain after
    /// `unload`.
    Waived,
}

/// An open debt over a range; see the module.
#[must_use = "a debt that is dropped unsettled leaks what hangs on it"]
pub struct Debt<'p, H: Host> {
    turn: Turn<'p, H>,
    owed: Owed,
    due: Due,
    /// What `LedgerAfterClear` opens too late.
    #[cfg(feature = "defects")]
    late: GfnRange,
}

impl<'p, H: Host> Turn<'p, H> {
    /// Opens a debt over `range`, for work that promises nothing by itself.
    pub fn debt(&mut self, range: GfnRange) -> Debt<'_, H> {
        self.lend().into_debt(range, Due::Yes)
    }

    pub(crate) fn into_debt(self, range: GfnRange, due: Due) -> Debt<'p, H> {
        if !defect!(LedgerAfterClear) {
            self.line().ledger.open(range);
        }
        Debt {
            turn: self,
            owed: Owed::new(),
            due,
            #[cfg(feature = "defects")]
            late: range,
        }
    }
}

impl<H: Host> Debt<'_, H> {
    /// A section whose entries can be cleared.
    pub fn section(&mut self) -> Clearing<'_> {
        Section::open(self.turn.core(), self.turn.line(), Owing(&self.owed))
    }

    /// Flushes if anything was cleared, waits for the sections that may still be in a detached
    /// table, releases those tables, and closes the ledger.
    pub fn settle(self) {
        let mut this = ManuallyDrop::new(self);
        let vm = this.turn.vm;
        let line = this.turn.line();
        #[cfg(feature = "defects")]
        if defect!(LedgerAfterClear) {
            line.ledger.open(this.late);
        }
        if defect!(LedgerClosedBeforeFlush) {
            line.ledger.close();
        }
        if defect!(FreesTableBeforeFlush) {
            this.free_detached();
        }
        if this.owed.flush.get() != Flush::None && this.due == Due::Yes {
            vm.flush(line);
        }
        this.free_detached();
        line.ledger.close();
    }

    /// Waits for the sections that may still be in a table that was detached, and gives these
    /// tables back.
    fn free_detached(&mut self) {
        if self.owed.retired.get().is_none() {
            return;
        }
        self.turn.exclude();
        let vm = self.turn.vm;
        let mut next = self.owed.retired.take();
        while let Some(pfn) = next {
            // SAFETY: the table was detached by this debt, the exclusion has ended every section
            // that could reach it, and it has not been released yet.
            let table = unsafe { Table::at(vm.core.window, pfn) };
            let link = table.cell(0).map(|cell| cell.get());
            let state = link.map(|v| vm.core.format.read(v, crate::addr::Level::K4));
            next = match state {
                Some(State::Dead { next }) => next,
                _ => None,
            };
            self.turn.line().counters.tables_unlinked.add(1);
            vm.host.release(pfn);
        }
    }

    /// What was cleared will not be flushed: a defect.
    pub(crate) fn forget_flush(&mut self) {
        self.owed.flush.set(Flush::None);
    }
}

impl<H: Host> Drop for Debt<'_, H> {
    fn drop(&mut self) {
        let line = self.turn.line();
        if self.owed.flush.get() == Flush::None && self.owed.retired.get().is_none() {
            line.ledger.close();
        } else {
            line.ledger.leak();
            line.counters.debts_leaked.add(1);
        }
    }
}

impl<H: Host> core::fmt::Debug for Debt<'_, H> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Debt").field("owed", &self.owed).field("due", &self.due).finish()
    }
}
