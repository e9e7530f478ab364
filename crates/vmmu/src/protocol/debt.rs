//! A flush is a debt: opened before the first clear, closed after the flush.
//!
//! The hazard: worker A takes a table out of the tree, gives its page back, and flushes. Between the
//! two, a processor that has the table in a paging-structure cache walks memory that is somebody
//! else's.
//!
//! The rule: entries can be cleared only in a section opened on a debt. Tables that were detached
//! hang on the debt and are given back when it is settled: after the flush, because processors
//! cache upper levels, and after a grace period, because sections may still be inside them. While a
//! debt is open its range stands in the participant's [ledger](crate::state::ledger), where others
//! see it who have to say that the range is gone.
//!
//! A debt can be *waived*: when no processor can hold a translation of what is cleared, there is no
//! flush to come, so it opens no range, and nobody need flush on its behalf. That is the case below a
//! root that every vCPU has left since it became invalid. The order is what makes it right: worker A
//! sees vCPU C outside the guest, and only then clears the entry that worker B finds empty. What C did
//! in the guest is over when B sees that, and C enters with another root and a flush.
//!
//! A debt that is dropped unsettled frees nothing: what hangs on it is leaked, its range stays in the
//! ledger for good, and the count of leaked debts shows it.

use core::mem::ManuallyDrop;

use crate::addr::{GfnRange, Level};
use crate::entry::state::State;
use crate::host::host::Host;
use crate::protocol::local::Local;
use crate::protocol::outstanding::Outstanding;
use crate::protocol::section::{Clearing, Owing, Section};
use crate::state::table::Table;

/// Whether the flush itself is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    /// Before anything is released, and before the range is said to be gone.
    Yes,
    /// No processor can hold translations of what is cleared: the debts of a drain after
    /// `unload`. Such a debt stands in no ledger.
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
    /// Opens a debt over `range`, for work that is no revocation.
    pub fn debt(&mut self, range: GfnRange) -> Debt<'_, H> {
        self.lend().into_debt(range, Due::Yes)
    }

    pub(crate) fn into_debt(self, range: GfnRange, due: Due) -> Debt<'p, H> {
        if due == Due::Yes && !defect!(LedgerAfterClear) {
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
        Section::open::<H>(self.local.core(), self.local.words(), Owing(&self.owed))
    }

    /// Flushes if anything was cleared, waits for the sections that may still be in a detached
    /// table, releases those tables, and closes the ledger.
    pub fn settle(self) {
        let mut this = ManuallyDrop::new(self);
        if this.due == Due::Waived {
            if defect!(WaivesBeforeUnload) {
                this.local.outside_once();
            }
            this.free_detached();
            return;
        }
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
        if this.owed.owes_flush() {
            this.local.flush();
        }
        this.free_detached();
        words.ledger.close();
    }

    /// Waits for the sections that may still be in a table that was detached, and gives these
    /// tables back.
    fn free_detached(&mut self) {
        if !self.owed.has_retired() {
            return;
        }
        self.local.synchronize();
        let (core, host) = (self.local.core(), self.local.hooks());
        let mut next = self.owed.take_retired();
        while let Some(pfn) = next {
            // SAFETY: the table was detached by this debt, the grace period has ended every section
            // that could reach it, and it has not been released yet.
            let table = unsafe { Table::at(core.window, pfn) };
            let link = table.cell(0).map(|cell| cell.get());
            let state = link.map(|v| core.format.read(v, Level::Size4K));
            next = match state {
                Some(State::Dead { next }) => next,
                _ => None,
            };
            self.local.words().counters.tables_unlinked.add(1);
            host.release(pfn);
        }
    }

    /// What was cleared will not be flushed: a defect.
    pub(crate) fn forget_flush(&mut self) {
        self.owed.forget_flush();
    }
}

impl<H: Host> Drop for Debt<'_, H> {
    fn drop(&mut self) {
        let words = self.local.words();
        let is_nothing = self.owed.is_nothing();
        match self.due {
            Due::Waived => {}
            Due::Yes if is_nothing => words.ledger.close(),
            Due::Yes => words.ledger.leak(),
        }
        if !is_nothing {
            words.counters.debts_leaked.add(1);
        }
    }
}

impl<H: Host> core::fmt::Debug for Debt<'_, H> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Debt").field("owed", &self.owed).field("due", &self.due).finish()
    }
}
