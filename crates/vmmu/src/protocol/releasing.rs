//! Giving a chain of table pages back to the host, page by page, though a hook may unwind.

use crate::addr::Pfn;
use crate::host::host::Host;
use crate::state::abandoned::next;
use crate::state::core::Core;

/// A chain that is being given back. Dropped before its end, what is left of it is
/// [abandoned](crate::state::abandoned).
pub(crate) struct Releasing<'c> {
    core: &'c Core,
    first: Option<Pfn>,
}

impl<'c> Releasing<'c> {
    /// A chain.
    ///
    /// # Safety
    ///
    /// Its tables are reached by nobody else, neither in sections nor by processors, and have not
    /// been released.
    pub(crate) unsafe fn new(core: &'c Core, first: Option<Pfn>) -> Self {
        Releasing { core, first }
    }

    /// Gives all of it back.
    pub(crate) fn release<H: Host>(mut self, host: &H) {
        while let Some(pfn) = self.first {
            // SAFETY: promised to `new`, and not released yet.
            self.first = unsafe { next(&self.core.format, self.core.window, pfn) };
            host.release(pfn);
        }
    }
}

impl Drop for Releasing<'_> {
    fn drop(&mut self) {
        if let Some(first) = self.first {
            // SAFETY: promised to `new`; what has been released is not in the chain any more.
            unsafe { self.core.abandoned.add(&self.core.format, self.core.window, first) }
        }
    }
}
