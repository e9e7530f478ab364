//! One table page in memory.

use crate::addr::{ENTRIES, Gfn, Level, Pfn};
use crate::entry::cell::{Cell, Value};
use crate::entry::format::Format;

/// One table page.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Table([Cell; ENTRIES]);

impl Table {
    /// A table outside of any host memory; models give these out.
    pub fn new() -> Self {
        Table(core::array::from_fn(|_| Cell::new(Value(0))))
    }

    /// The table at a frame.
    ///
    /// # Safety
    ///
    /// * `pfn` was given by [`TablePages::take`](crate::host::TablePages::take) of the host whose
    ///   window this is, and has been filled.
    /// * It is not released while the reference lives: the caller is in a section that reached it
    ///   through its parent's entry (release waits for sections), or it is not linked yet, or it
    ///   is detached and owned, or nothing else runs.
    #[inline]
    pub(crate) unsafe fn at<'a>(window: u64, pfn: Pfn) -> &'a Table {
        let address = pfn.hpa().0.wrapping_add(window);
        // SAFETY: the host promises 4096 readable and writable bytes there, used by nobody else
        // but hardware walkers, which access the same words atomically; any bytes are a valid
        // table of atomic words. The alignment is that of a frame.
        unsafe { &*core::ptr::with_exposed_provenance::<Table>(address as usize) }
    }

    #[inline]
    pub(crate) fn cell(&self, index: usize) -> Option<&Cell> {
        self.0.get(index)
    }

    /// The word for a frame; the index has as many bits as the table has entries.
    #[inline]
    pub(crate) fn cell_for(&self, gfn: Gfn, level: Level) -> &Cell {
        self.cell_at(gfn.index(level))
    }

    /// The word at an index; bits beyond a table's are ignored.
    #[inline]
    #[allow(clippy::indexing_slicing, reason = "the mask keeps the index below the length")]
    pub(crate) fn cell_at(&self, index: usize) -> &Cell {
        &self.0[index & (ENTRIES - 1)]
    }

    pub(crate) fn cells(&self) -> &[Cell; ENTRIES] {
        &self.0
    }

    /// Empties a table nobody else can reach.
    pub(crate) fn clear(&self, format: &Format) {
        for cell in &self.0 {
            cell.set_private(format.empty());
        }
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}
