//! Table pages that nobody will give back before the MMU ends.
//!
//! The hazard: worker A has detached a table, and before it has given the page back, a hook of the
//! host unwinds, or the debt on which the table hangs is dropped. The page may still be reached, by a
//! processor that was not flushed or by a section that was not waited for, so it must not be given
//! back now; and nobody knows of it any more, so it would be lost.
//!
//! The rule: such pages are put on a list, linked through their first entries. When the MMU ends,
//! nothing can reach them any more, and they are given back.

use crate::addr::{Level, Pfn};
use crate::entry::format::Format;
use crate::entry::state::State;
use crate::state::table::Table;
use crate::sync::{AtomicU64, Ordering};

/// See the module. 0 is the end of the list: frame 0 is never a table.
#[derive(Debug)]
pub(crate) struct Abandoned(AtomicU64);

impl Abandoned {
    pub(crate) fn new() -> Self {
        Abandoned(AtomicU64::new(0))
    }

    /// Adds a chain of tables.
    ///
    /// # Safety
    ///
    /// Each of them is detached or was never linked, all of its entries are dead or empty, and the
    /// caller has it alone. The first entry of each says which is next ([`next`]).
    pub(crate) unsafe fn add(&self, format: &Format, window: u64, first: Pfn) {
        let mut last = first;
        // SAFETY: by the caller's promise.
        while let Some(after) = unsafe { next(format, window, last) } {
            last = after;
        }
        let mut head = self.0.load(Ordering::Relaxed);
        loop {
            let rest = (head != 0).then_some(Pfn(head));
            // SAFETY: by the caller's promise.
            unsafe { link(format, window, last, rest) };
            match self.0.compare_exchange(head, first.0, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes the whole chain. For the end of the MMU.
    pub(crate) fn take(&mut self) -> Option<Pfn> {
        let head = self.0.swap(0, Ordering::AcqRel);
        (head != 0).then_some(Pfn(head))
    }
}

/// Which table follows in a chain.
///
/// # Safety
///
/// The table is one of a chain that the caller has alone.
pub(crate) unsafe fn next(format: &Format, window: u64, pfn: Pfn) -> Option<Pfn> {
    // SAFETY: by the caller's promise.
    let first = unsafe { Table::at(window, pfn) }.cell(0)?.get();
    match format.read(first, Level::Size4K) {
        State::Dead { next } => next,
        _ => None,
    }
}

/// Lets a table be followed by another, or be the last.
///
/// # Safety
///
/// As for [`next`].
pub(crate) unsafe fn link(format: &Format, window: u64, pfn: Pfn, next: Option<Pfn>) {
    // SAFETY: by the caller's promise.
    if let Some(first) = unsafe { Table::at(window, pfn) }.cell(0) {
        first.set_dead(format.dead(next));
    }
}
