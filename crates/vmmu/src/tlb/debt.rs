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
use crate::entry::law::FlushDue;
use crate::host::Host;
use crate::section::{Clearing, Local, Owing, Section};
use crate::table::Table;

/// What has been cleared so far and not yet paid for.
#[derive(Debug)]
pub(crate) struct Outstanding {
    flush: Cell<FlushDue>,
    /// The last table detached; each links the one before in its first entry.
    retired: Cell<Option<Pfn>>,
}

impl Outstanding {
    fn new() -> Self {
        Outstanding { flush: Cell::new(FlushDue::Never), retired: Cell::new(None) }
    }

    pub(crate) fn owe(&self, flush: FlushDue) {
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
    local: Local<'p, H>,
    owed: Outstanding,
    due: Due,
    /// What `LedgerAfterClear` opens too late.
    #[cfg(feature = "defects")]
    late: GfnRange,
}

impl<'p, H: Host> Local<'p, H> {
    /// Opens a debt over `range`, for work that promises nothing by itself.
    pub fn debt(&mut self, range: GfnRange) -> Debt<'_, H> {
        self.lend().into_debt(range, Due::Yes)
    }

    pub(crate) fn into_debt(self, range: GfnRange, due: Due) -> Debt<'p, H> {
        if !defect!(LedgerAfterClear) {
            self.words().ledger.open(range);
        }
        Debt {
            local: self,
            owed: Outstanding::new(),
            due,
            #[cfg(feature = "defects")]
            late: range,
        }
    }
}

impl<H: Host> Debt<'_, H> {
    /// A section whose entries can be cleared.
    pub fn section(&mut self) -> Clearing<'_> {
        Section::open(self.local.core(), self.local.words(), Owing(&self.owed))
    }

    /// Flushes if anything was cleared, waits for the sections that may still be in a detached
    /// table, releases those tables, and closes the ledger.
    pub fn settle(self) {
        let mut this = ManuallyDrop::new(self);
        let vm = this.local.vm;
        let words = this.local.words();
        #[cfg(feature = "defects")]
        if defect!(LedgerAfterClear) {
            words.ledger.open(this.late);
        }
        if defect!(LedgerClosedBeforeFlush) {
            words.ledger.close();
        }
        if defect!(FreesTableBeforeFlush) {
            this.free_detached();
        }
        if this.owed.flush.get() != FlushDue::Never && this.due == Due::Yes {
            vm.flush(words);
        }
        this.free_detached();
        words.ledger.close();
    }

    /// Waits for the sections that may still be in a table that was detached, and gives these
    /// tables back.
    fn free_detached(&mut self) {
        if self.owed.retired.get().is_none() {
            return;
        }
        self.local.synchronize();
        let vm = self.local.vm;
        let mut next = self.owed.retired.take();
        while let Some(pfn) = next {
            // SAFETY: the table was detached by this debt, the exclusion has ended every section
            // that could reach it, and it has not been released yet.
            let table = unsafe { Table::at(vm.core.window, pfn) };
            let link = table.cell(0).map(|cell| cell.get());
            let state = link.map(|v| vm.core.format.read(v, crate::addr::Level::Size4K));
            next = match state {
                Some(State::Dead { next }) => next,
                _ => None,
            };
            self.local.words().counters.tables_unlinked.add(1);
            vm.host.release(pfn);
        }
    }

    /// What was cleared will not be flushed: a defect.
    pub(crate) fn forget_flush(&mut self) {
        self.owed.flush.set(FlushDue::Never);
    }
}

impl<H: Host> Drop for Debt<'_, H> {
    fn drop(&mut self) {
        let words = self.local.words();
        if self.owed.flush.get() == FlushDue::Never && self.owed.retired.get().is_none() {
            words.ledger.close();
        } else {
            words.ledger.leak();
            words.counters.debts_leaked.add(1);
        }
    }
}

impl<H: Host> core::fmt::Debug for Debt<'_, H> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Debt").field("owed", &self.owed).field("due", &self.due).finish()
    }
}
