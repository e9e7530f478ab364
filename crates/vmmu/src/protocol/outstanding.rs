//! What a debt still owes: whether a flush is due, and the detached tables that wait for it.

use core::cell::Cell;

use crate::addr::Pfn;
use crate::entry::format::Format;
use crate::entry::law::FlushDue;
use crate::state::table::Table;

/// What a debt still owes.
#[derive(Debug)]
pub(crate) struct Outstanding {
    flush: Cell<FlushDue>,
    /// The last table detached; each links the one before in its first entry.
    retired: Cell<Option<Pfn>>,
}

impl Outstanding {
    pub(crate) fn new() -> Self {
        Outstanding { flush: Cell::new(FlushDue::Never), retired: Cell::new(None) }
    }

    /// Whether nothing is owed and nothing hangs on it.
    pub(crate) fn is_nothing(&self) -> bool {
        !self.owes_flush() && !self.has_retired()
    }

    /// Whether a flush is owed.
    pub(crate) fn owes_flush(&self) -> bool {
        self.flush.get() != FlushDue::Never
    }

    /// What was cleared will not be flushed: a defect.
    pub(crate) fn forget_flush(&self) {
        self.flush.set(FlushDue::Never);
    }

    /// Whether tables hang on it.
    pub(crate) fn has_retired(&self) -> bool {
        self.retired.get().is_some()
    }

    /// The last table hung on it, which links the others. From here on they are the caller's.
    pub(crate) fn take_retired(&self) -> Option<Pfn> {
        self.retired.take()
    }

    /// A flush is owed from now on.
    pub(crate) fn owe(&self, flush: FlushDue) {
        self.flush.set(self.flush.get().max(flush));
    }

    /// Hangs a detached table, all of whose entries are dead, on the debt.
    pub(crate) fn hang(&self, pfn: Pfn, table: &Table, format: &Format) {
        if let Some(first) = table.cell(0) {
            first.set_dead(format.dead(self.retired.get()));
        }
        self.retired.set(Some(pfn));
    }
}
