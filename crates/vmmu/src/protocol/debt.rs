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
//! A debt that is dropped unsettled frees nothing: what hangs on it is kept until the MMU ends, its
//! range stays in the ledger for good, and the count of leaked debts shows it.

use crate::addr::GfnRange;
use crate::host::host::Host;
use crate::protocol::local::Local;
use crate::protocol::outstanding::Outstanding;
use crate::protocol::releasing::Releasing;
use crate::protocol::section::{Clearing, Owing, Section};

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
    /// Whether its range stands in the ledger.
    is_open: bool,
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
            is_open: due == Due::Yes,
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

    /// Flushes if anything was cleared, closes the ledger, waits for the sections that may still be
    /// in a detached table, and releases those tables.
    ///
    /// If a hook of the host unwinds out of the flush, the debt counts as leaked: its range stays in
    /// the ledger. What has not been released then is [abandoned](crate::state::abandoned).
    pub fn settle(mut self) {
        if self.due == Due::Waived {
            if defect!(WaivesBeforeUnload) {
                self.local.outside_once();
            }
            self.owed.forget_flush();
            return self.free_detached();
        }
        #[cfg(feature = "defects")]
        if defect!(LedgerAfterClear) {
            self.local.words().ledger.open(self.late);
        }
        if defect!(LedgerClosedBeforeFlush) {
            self.close();
        }
        if defect!(FreesTableBeforeFlush) {
            self.free_detached();
        }
        if self.owed.owes_flush() {
            self.local.flush();
            self.owed.forget_flush();
        }
        self.close();
        self.free_detached();
    }

    /// Takes the range out of the ledger.
    fn close(&mut self) {
        if core::mem::take(&mut self.is_open) {
            self.local.words().ledger.close();
        }
    }

    /// Waits for the sections that may still be in a table that was detached, and gives these
    /// tables back.
    fn free_detached(&mut self) {
        if !self.owed.has_retired() {
            return;
        }
        self.local.synchronize();
        let (core, host) = (self.local.core(), self.local.hooks());
        // SAFETY: the tables were detached by this debt, the grace period has ended every section
        // that could reach them, and they are taken off the debt here.
        let releasing = unsafe { Releasing::new(core, self.owed.take_retired()) };
        releasing.release(host);
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
        if self.is_open {
            if is_nothing {
                words.ledger.close();
            } else {
                words.ledger.leak();
            }
        }
        if is_nothing {
            return;
        }
        words.counters.debts_leaked.add(1);
        if let Some(first) = self.owed.take_retired() {
            let core = self.local.core();
            // SAFETY: detached by this debt, and on no other list.
            unsafe { core.abandoned.add(&core.format, core.window, first) }
        }
    }
}

impl<H: Host> core::fmt::Debug for Debt<'_, H> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Debt").field("owed", &self.owed).field("due", &self.due).finish()
    }
}
