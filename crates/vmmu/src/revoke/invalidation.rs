//! Invalidations by the host: pages of a backing are taken back.

use core::fmt;

use crate::addr::HostRange;
use crate::host::host::Host;
use crate::protocol::local::Local;
use crate::revoke::host_pages::HostPages;
use crate::state::core::Core;
use crate::state::invalidations::InvalidationPlace;

/// A range under invalidation: until this is dropped, nothing can be mapped from it.
#[must_use = "dropping it ends the invalidation"]
#[derive(Debug)]
pub struct Invalidation<'vm> {
    core: &'vm Core,
    /// `None`: of no page.
    place: Option<InvalidationPlace>,
}

impl<'vm> Invalidation<'vm> {
    pub(crate) fn new(core: &'vm Core, place: Option<InvalidationPlace>) -> Self {
        Invalidation { core, place }
    }
}

impl Drop for Invalidation<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.core.invalidations.remove(place);
        }
    }
}

/// No invalidation of this range is under way that [`Mmu::invalidate_begin`](crate::Mmu::invalidate_begin)
/// began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotInvalidating(pub HostRange);

impl fmt::Display for NotInvalidating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HostRange { backing, first, .. } = self.0;
        let end = self.0.end();
        write!(
            f,
            "no invalidation of backing {backing}, pages {first:#x}..{end:#x} is under way: end \
             exactly what was begun"
        )
    }
}

impl core::error::Error for NotInvalidating {}

impl<H: Host> Local<'_, H> {
    /// Takes the pages back. When this returns, no vCPU reaches them by any translation, in any
    /// root, also not by a huge leaf that overlaps them by one page; and until the place is removed
    /// nothing is mapped from them.
    pub(crate) fn invalidate(&mut self, pages: HostPages) -> Option<InvalidationPlace> {
        let core = self.core();
        self.words().counters.invalidations.add(1);
        let announced = self.announce(pages);
        // If a hook of the host unwinds, nothing has been invalidated, and nobody is refused for it.
        let undo = Invalidation { core, place: announced.what().place() };
        let walked = announced.synchronize().walk(|page| page.each(|entry| entry.zap()));
        let revoked = walked.finish();
        core::mem::forget(undo);
        // It is this MMU's.
        revoked.open(core).and_then(|pages| pages.place())
    }
}
